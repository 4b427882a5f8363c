"""Killed at any moment, the same command again ends with the same weights, bit for bit."""

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from . import runs

# Every named point a run of 12 steps passes, with how often it passes it.
POINTS = {
    "step": 12,
    "metrics-append": 12,
    "checkpoint-weights": 3,
    "checkpoint-state": 3,
    "checkpoint-fsync": 12,
    "checkpoint-rename": 3,
    "checkpoint-replace": 1,
    "checkpoint-renamed": 3,
    "checkpoint-pruned": 3,
    "config-write": 1,
    "config-fsync": 1,
    "config-rename": 1,
    "resolved-write": 1,
    "resolved-rename": 1,
    "summary-write": 1,
    "summary-fsync": 1,
    "summary-rename": 1,
    "curves-write": 1,
    "tokenizer-trained": 1,
    "tokenizer-written": 1,
    "block-written": 1,
    "store-rename": 1,
}
ALL = [f"{name}:{nth}" for name, times in POINTS.items() for nth in range(1, times + 1)]
SAMPLE = [f"{name}:{random.Random(name).randint(1, POINTS[name])}" for name in [*POINTS][::6]]


def interrupted(finished: Path, folder: Path, *points: str) -> None:
    """Kill a run at each point in turn, let it end, and hold it against the one that was never killed."""
    words = runs.command(folder, "name=whole")
    for point in points:
        assert runs.run(words, kill_at=point) == -signal.SIGKILL, f"the run never passed {point}"
    assert runs.run(words) == 0
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))
    ours, theirs = folder / "outputs" / "whole", finished / "outputs" / "whole"
    assert rows(ours) == rows(theirs)
    assert (ours / "curves.png").is_file()
    left, right = (json.loads((place / "summary.json").read_text()) for place in (ours, theirs))
    for key in ("steps", "spent_s", "ledger", "work", "validation_loss", "loss", "sequences", "data_fingerprint"):
        assert left[key] == right[key], key


def rows(run_dir: Path) -> list[dict[str, object]]:
    """What a run logged, without what depends on the time of day."""
    timed = ("elapsed_s", "tokens_per_s", "mfu")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.mark.parametrize("point", SAMPLE)
def test_killed_at_a_named_point(finished: Path, folder: Path, point: str) -> None:
    interrupted(finished, folder, point)


@pytest.mark.full
@pytest.mark.parametrize("point", [point for point in ALL if point not in SAMPLE])
def test_killed_at_every_named_point(finished: Path, folder: Path, point: str) -> None:
    interrupted(finished, folder, point)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(150))
def test_killed_several_times(finished: Path, folder: Path, seed: int) -> None:
    """Early points first, so that each is still ahead of the run when its turn comes."""
    draw = random.Random(seed)
    preparing = draw.choice(["tokenizer-trained:1", "tokenizer-written:1", "block-written:1", "store-rename:1"])
    training = [f"step:{draw.randint(1, 4)}", f"checkpoint-{draw.choice(['weights', 'state', 'fsync', 'rename'])}:1"]
    interrupted(finished, folder, preparing, *training, f"step:{draw.randint(1, 3)}")


def test_killed_between_an_earlier_stop_and_the_summary_of_the_end(finished: Path, folder: Path) -> None:
    """The summary of the stop must not be taken for that of the end."""
    assert runs.run(runs.command(folder, "name=whole", "stop_at=6")) == 0
    words = runs.command(folder, "name=whole")
    assert runs.run(words, kill_at="summary-write:1") == -signal.SIGKILL
    assert runs.run(words) == 0
    assert json.loads((folder / "outputs" / "whole" / "summary.json").read_text())["steps"] == 12
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))


def test_dropout_goes_on_with_the_draws_of_a_run_that_nobody_killed(folder: Path) -> None:
    for name, point in (("whole", ""), ("killed", "step:7")):
        words = runs.command(folder, f"name={name}", "arch.dropout=0.1")
        assert not point or runs.run(words, kill_at=point) == -signal.SIGKILL
        assert runs.run(words) == 0
    assert runs.same(runs.weights(folder, "killed"), runs.weights(folder, "whole"))


def test_killed_at_random_moments(finished: Path, folder: Path) -> None:
    """Real kills, whenever they come: at moments spread over a whole run's life."""
    draw = random.Random(1)
    words = runs.command(folder, "name=whole")
    log = folder / "outputs" / "whole" / "metrics.jsonl"
    for steps in sorted(draw.sample(range(1, 12), 2)):
        process = runs.start(words)

        def far_enough(process: Any = process, steps: int = steps) -> bool:
            return (log.exists() and len(rows(log.parent)) >= steps) or not process.is_alive()

        runs.wait_for(far_enough)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    interrupted(finished, folder)


def test_ctrl_c_and_sigterm_save_first(finished: Path, folder: Path) -> None:
    words = runs.command(folder, "name=whole", "impl.save_every_steps=null", "budget=200")
    log = folder / "outputs" / "whole" / "metrics.jsonl"
    before = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        process = runs.start(words)
        runs.wait_for(lambda before=before: log.exists() and len(rows(log.parent)) > before)
        os.kill(process.pid, number)
        process.join(600)
        assert process.exitcode == 128 + number
        saved = runs.checkpoints(folder / "outputs" / "whole" / "checkpoints")[-1].step
        assert before < saved < 200
        before = saved
    shutil.rmtree(folder / "outputs" / "other", ignore_errors=True)
    assert runs.run(words) == 0
    straight = [word for word in words if word != "name=whole"] + ["name=straight"]
    assert runs.run(straight) == 0
    assert runs.same(runs.weights(folder, "whole"), runs.weights(folder, "straight"))
