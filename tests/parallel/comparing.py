"""Whether two outcomes are of one run: what is counted exactly, what is computed to a bound."""

import pytest

from tests.parallel.laws import Outcome

LOSS, NORM = 1e-5, 1e-4  # relative


def assert_same_run(expected: Outcome, found: Outcome, begins: int = 0) -> None:
    """Row by row; ``found`` may have begun after so many rows of ``expected``.

    Raises:
        AssertionError: with the first row that differs.
    """
    rows = expected["steps"][begins:]
    assert len(found["steps"]) == len(rows)
    for row, other in zip(rows, found["steps"], strict=True):
        for key in ("step", "ids", "layers", "trained"):
            assert other[key] == row[key], f"{key} at step {row['step']}"
        assert other["columns"] == pytest.approx(row["columns"], rel=LOSS, abs=LOSS), f"step {row['step']}"
        for key, bound in (("loss", LOSS), ("grad_norm", NORM)):
            assert (other[key] is None) == (row[key] is None)
            assert row[key] is None or other[key] == pytest.approx(row[key], rel=bound), f"{key} at step {row['step']}"
    assert found["none"] == expected["none"][len(expected["none"]) - len(found["none"]) :]
    keys = ["step", "skipped", "stream", "spent", "ledger"]
    assert {key: found[key] for key in keys} == {key: expected[key] for key in keys}
