"""Checkpoints written while training goes on: what is saved is the state at the step's border, and kills stay safe."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cramming import checkpoint
from cramming.checkpoint import checkpoints
from cramming.errors import UserError
from cramming.saving import snapshot
from cramming.saving.background import Background

from . import runs

ASYNC = "impl.save_async=true"


def test_steps_go_on_while_it_is_written_and_do_not_change_what_is(tmp_path: Path) -> None:
    background, gate = Background(), threading.Event()
    state: dict[str, Any] = {"model": {"w": torch.zeros(3)}, "list": [1]}
    saved = snapshot.whole(state)

    def write() -> None:
        gate.wait(60)
        checkpoint.write(tmp_path, 1, saved, {}, keep=1, kept_at_h=[])

    background.start(write)
    state["model"]["w"] += 1
    state["list"].append(2)
    assert checkpoints(tmp_path) == []
    gate.set()
    background.wait()
    found = checkpoints(tmp_path)[0].read()
    assert torch.equal(found["model"]["w"], torch.zeros(3))
    assert found["list"] == [1]


def test_one_at_a_time_in_order() -> None:
    background, done = Background(), []
    for number in range(20):
        background.start(lambda number=number: done.append(number))  # type: ignore[misc]
    background.wait()
    assert done == list(range(20))


def test_a_failure_is_told_once_at_the_next(tmp_path: Path) -> None:
    background = Background()

    def fail() -> None:
        raise UserError("full")

    background.start(fail)
    with pytest.raises(UserError, match="full"):
        background.start(fail)
    background.wait()


def test_the_same_run_as_with_waiting(finished: Path, folder: Path) -> None:
    assert runs.run(runs.command(folder, "name=whole", ASYNC)) == 0
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))
    ours, theirs = (checkpoints(place / "outputs" / "whole" / "checkpoints") for place in (folder, finished))
    assert [c.step for c in ours] == [c.step for c in theirs]
    assert json.loads((folder / "outputs" / "whole" / "summary.json").read_text())["steps"] == 12


@pytest.mark.parametrize(
    "point",
    ["checkpoint-rename:2", *(pytest.param(p, marks=pytest.mark.full) for p in ("checkpoint-pruned:3", "step:7"))],
)
def test_kills_stay_safe(finished: Path, folder: Path, point: str) -> None:
    words = runs.command(folder, "name=whole", ASYNC)
    assert runs.run(words, kill_at=point) == -signal.SIGKILL
    assert runs.run(words) == 0
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))
