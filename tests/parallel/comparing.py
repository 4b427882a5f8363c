"""Whether two outcomes are of one run: what is counted exactly, what is computed to a bound.

Muon's iteration is in bfloat16; AdaHessian, Sophia and Adafactor divide by estimates that may be next to nothing: what
rounding makes of their weights, also in one process with microbatches of another size, is far more than what it makes
of others'.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.parallel.cases import GRID
from tests.parallel.laws import Outcome

LOSS, NORM, WEIGHTS = 1e-5, 1e-5, 1e-5  # relative, relative, absolute; losses of all, columns like losses
ROUGH = {
    "muon",
    "hutchinson",
    "adahessian",
    "hessian",
    "sophiag",
    "adafactor",
}  # optimizers, and methods they come with
ROUGH_NORM, ROUGH_WEIGHTS, ROUGH_COLUMNS = 1e-3, 1e-3, 1e-3
# Adafactor's losses, too: 2 ranks were measured at 1.2e-5, one process with microbatches of 1, 2 and 8 at 3 to 6e-6.
# In float64 it is 4e-16 (test_laws_scale.py).
ROUGH_LOSS = {"adafactor": 3e-5}


def is_rough(name: str) -> bool:
    """Whether the case has one of those."""
    return not ROUGH.isdisjoint((GRID[name].optimizer, *GRID[name].methods))


def assert_same_run(
    expected: Outcome, found: Outcome, *, rough: bool = False, begins: int = 0, loss: float = LOSS
) -> None:
    """Row by row; ``found`` may have begun after so many rows of ``expected``.

    Raises:
        AssertionError: with the first row that differs.
    """
    columns, norm = (ROUGH_COLUMNS, ROUGH_NORM) if rough else (LOSS, NORM)
    rows = expected["steps"][begins:]
    assert len(found["steps"]) == len(rows)
    for row, other in zip(rows, found["steps"], strict=True):
        for key in ("step", "ids", "layers", "trained"):
            assert other[key] == row[key], f"{key} at step {row['step']}"
        assert other["columns"] == pytest.approx(row["columns"], rel=columns, abs=columns), f"columns at {row['step']}"
        for key, bound in (("loss", loss), ("grad_norm", norm)):
            assert (other[key] is None) == (row[key] is None)
            assert row[key] is None or other[key] == pytest.approx(row[key], rel=bound), f"{key} at step {row['step']}"
    assert found["none"] == expected["none"][len(expected["none"]) - len(found["none"]) :]
    keys = ["step", "skipped", "stream", "spent", "ledger"]
    assert {key: found[key] for key in keys} == {key: expected[key] for key in keys}


def assert_equal(name: str, expected: Outcome, found: Outcome, there: Path, here: Path) -> None:
    """Two runs of a case from their beginning, and the weights they left in two folders.

    Raises:
        AssertionError: with the first row that differs.
    """
    rough = is_rough(name)
    assert_same_run(expected, found, rough=rough, loss=ROUGH_LOSS.get(GRID[name].optimizer, LOSS))
    apart = np.abs(np.load(there / f"{name}.npy") - np.load(here / f"{name}.npy")).max()
    assert float(apart) < (ROUGH_WEIGHTS if rough else WEIGHTS)
