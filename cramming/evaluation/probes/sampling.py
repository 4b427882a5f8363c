"""Which rows a probe takes where there are more than it needs: by chance, and always the same."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from cramming.data.permutation import Permutation

T = TypeVar("T")


def sampled(rows: Sequence[T], limit: int | None, of: str) -> tuple[list[T], tuple[str, ...]]:
    """At most ``limit`` of the rows, in their order, and a remark where that left some out.

    Args:
        rows: files may be sorted, so that the first ones would not do.
        limit: None: all.
        of: what they are called in the remark.
    """
    if limit is None or len(rows) <= limit:
        return list(rows), ()
    chosen = np.sort(Permutation(len(rows), "probe")(np.arange(limit)))
    return [rows[row] for row in chosen], (f"{limit:,} of {len(rows):,} {of}",)
