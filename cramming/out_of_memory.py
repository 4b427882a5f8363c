"""Telling that memory ran out from other errors, and finding what fits."""

import re
from collections.abc import Callable

import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on any device; the allocator of the CPU raises the bare class."""
    return isinstance(error, torch.OutOfMemoryError) or bool(
        re.search(r"can't allocate memory|out of memory", str(error))
    )


def largest_halving(size: int, attempt: Callable[[int], None]) -> int:
    """The largest halving of ``size`` at which ``attempt(size)`` does not run out of memory, or 0."""
    while size:
        try:
            attempt(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
        else:
            return size
    return 0
