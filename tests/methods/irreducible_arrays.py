"""Irreducible losses of the rows in memory, on the disk for as long as the tests run."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import MemoryStore, store
from numpy.typing import NDArray

from cramming.data.stream import Split
from cramming.errors import UserError
from efficient_training.irreducible_losses import IrreducibleLosses, identity, write

MASK = {"seed": 7, "rate": 0.25}
COST = {"total": 2.0, "training": 2.0, "scoring": 0.0, "unit": "steps", "rst": "steps"}
_HELD_OUT = 0.1  # of the rows in memory
_folder = tempfile.TemporaryDirectory()


def facts(corpus: MemoryStore | None = None, heldout: float = _HELD_OUT, **changed: Any) -> dict[str, Any]:
    """What a manifest says."""
    corpus = corpus or store()
    found = {**identity(corpus, Split(corpus.rows, heldout)), "mask": MASK, "made_by": {"name": "il"}, "cost": COST}  # type: ignore[arg-type]
    return {**found, **changed}


def array(
    folder: Path, losses: NDArray[np.floating[Any]] | None = None, corpus: MemoryStore | None = None, **changed: Any
) -> IrreducibleLosses:
    """An array of ``losses``, by default of random ones, with another manifest where it is asked for."""
    rows = (corpus or store()).rows
    numbers = np.random.default_rng(3).random(rows, dtype=np.float32) if losses is None else losses
    return write(folder, numbers, facts(corpus, **changed))


@cache
def shared_array() -> str:
    """The folder of one that every test may read."""
    return str(array(Path(_folder.name) / "irreducible").folder)


def held_out(rows: int) -> dict[str, Any]:
    """What a manifest says of a split that holds out so many rows."""
    return {"split": {"name": "keyed", "heldout_rows": rows}}


def refused(call: Callable[[], Any], *said: str) -> None:
    """The call ends in one line with these words."""
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    for words in said:
        assert words in str(error.value)
