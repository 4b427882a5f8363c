"""A method that defers the step: its gradients wait, also across a resume."""

from pathlib import Path
from typing import Any

import pytest
from memory import run_of, same

from cramming import checkpoint
from cramming.batch import Batch
from cramming.method import Method, Step
from cramming.train import Run, train


class EveryOther(Method):
    """Steps after every second batch, on the gradients of both."""

    def __init__(self) -> None:
        self.calls = 0

    def update(self, run: Run, batch: Batch, factor: float, step: Step) -> int:
        self.calls += 1
        return step(factor) if self.calls % 2 == 0 else 0

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_of_a_deferred_step_survive_a_resume(precision: str, tmp_path: Path) -> None:
    def fresh() -> Run:
        return run_of(EveryOther(), budget=3, precision=precision)

    saved: list[Path] = []

    def save(run: Run) -> None:
        folder = tmp_path / str(len(saved))
        saved.append(checkpoint.save(folder, run.step, run.state_dict(), {}, keep=1, kept_at_h=[]))

    whole = fresh()
    train(whole, save)
    assert (len(saved), whole.step) == (6, 3), "six batches, three steps"
    resumed = fresh()
    resumed.load_state_dict(checkpoint.Checkpoint(saved[2]).read())  # one step taken, the third batch waits
    assert resumed.step == 1
    assert all(p.grad is not None for p in resumed.model.parameters())
    train(resumed, lambda run: None)
    assert same(resumed.state_dict()["model"], whole.state_dict()["model"])
