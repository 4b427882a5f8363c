"""The benchmark of optimizer steps: every optimizer at the tiniest size, and what its numbers mean."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import grid, optimizers
from cramming.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
TINY: dict[str, Any] = {"size": "tiny", "seq_length": 16, "pairs": 3, "steps": 2, "isolated": False, "device": "cpu"}


def test_every_optimizer_is_measured() -> None:
    options = optimizers.Options(optimizers=[*optimizers.known(), "library/adan"], precision="float32", **TINY)
    result = optimizers.run(options)
    assert [row["optimizer"] for row in result["rows"]] == options.optimizers
    for row in result["rows"]:
        assert not row["unfit"], row
        assert row["step_s"]["median"] > 0
        assert len(row["over_adamw"]["wall"]["pairs"]) == 3


def test_shares_and_ratios_are_of_one_step_and_of_a_whole_batch() -> None:
    """A block of 2 steps takes 1 s, one of AdamW's 0.5 s; a microbatch of 4 takes 0.25 s, and a batch has 32."""
    options = optimizers.Options(optimizers=["lion"], batch_size=32, microbatch_size=4, **TINY)
    seconds = {optimizers.ADAMW: 0.5, optimizers.OTHER: 1.0, optimizers.GRADIENTS: 0.25}
    found = grid.Measured(
        seconds={side: {"wall": [value] * 3, "cpu": [value] * 3} for side, value in seconds.items()},
        peak_mb={optimizers.OTHER: 7.0},
    )
    row = optimizers.row_of(options, "lion", found)
    assert row["step_s"]["median"] == 0.5
    assert row["over_adamw"]["wall"]["median"] == 2.0
    assert row["gradients_s"]["median"] == 2.0
    assert math.isclose(row["of_gradients"]["median"], 0.25)
    assert optimizers.cells(row) == ["lion", "500", "2.00 (2.00-2.00)", "25.00% (25.00%-25.00%)", "7"]


def test_what_does_not_fit_is_a_result() -> None:
    options = optimizers.Options(optimizers=["shampoo"], block_s=-1.0, **TINY)
    (row,) = optimizers.run(options)["rows"]
    assert "more than block_s" in row["unfit"]


@pytest.mark.parametrize("words", [{"optimizers": ["lionn"]}, {"size": "huge"}, {"pairs": 2}])
def test_wrong_options_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        optimizers.Options(**words)


@pytest.mark.full
def test_the_command_as_it_is_typed(tmp_path: Path) -> None:
    """In processes of their own."""
    out = tmp_path / "result.json"
    words = f"optimizers=[lion,library/kron] size=tiny seq_length=16 pairs=3 steps=1 threads=1 device=cpu out={out}"
    ended = subprocess.run(
        [sys.executable, "benchmarks/optimizers.py", *words.split()],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    lion, refused = json.loads(out.read_text())["rows"]
    assert lion["over_adamw"]["wall"]["median"] > 0
    assert "a checkpoint cannot hold its state" in refused["unfit"]
    assert "an optimizer step of bert, tiny" in ended.stdout
