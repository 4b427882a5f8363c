"""What a run cost on all its devices, whose number may change on the way."""

import json
from pathlib import Path
from typing import Any

import pytest

from cramming import session
from cramming.checkpoint import newest
from cramming.cli import pretraining
from cramming.parallel.ranks import Ranks
from cramming.session import pretrain

from . import runs

PRICED = ("rst=flops", "rst.flops_per_s=1e9", "budget=0.5s")


class Two(Ranks):
    """One of two ranks that is all there is."""

    def largest(self, number: int) -> int:
        return number

    def told(self, value: Any) -> Any:
        return value

    def said_by_each(self, value: Any) -> list[Any]:
        return [value]


def trained(folder: Path, *overrides: str) -> dict[str, Any]:
    pretraining(pretrain, runs.command(folder, "name=priced", *overrides))
    found: dict[str, Any] = json.loads((folder / "outputs" / "priced" / "summary.json").read_text())
    return found


def test_each_part_of_a_run_counts_the_devices_it_had(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = trained(folder, *PRICED, "stop_at=0.25s")
    assert half["ranks"] == 1
    assert half["device_hours"] == pytest.approx(half["spent_s"] / 3600)
    monkeypatch.setattr(session, "here", lambda: Two(world=2))
    whole = trained(folder, *PRICED)
    due = half["spent_s"] + 2 * (whole["spent_s"] - half["spent_s"])
    assert whole["device_hours"] == pytest.approx(due / 3600)
    saved = newest(folder / "outputs" / "priced" / "checkpoints")
    assert saved is not None
    assert saved[0].manifest()["device_hours"] == whole["device_hours"]


def test_steps_have_no_hours(folder: Path) -> None:
    found = trained(folder, "budget=3")
    assert found["device_hours"] is None
