"""Profiles and timed microbatches on an NVIDIA GPU. Skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch

from cramming import microbatch
from cramming.cli import pretraining
from cramming.microbatch import Trial
from cramming.session import pretrain
from tests.session import runs

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("compiled", ["true", "false"])
def test_a_profile_has_the_device_s_time_and_changes_nothing(folder: Path, compiled: str) -> None:
    words = ["impl.precision=auto", f"impl.compile={compiled}"]
    pretraining(pretrain, runs.command(folder, "name=plain", *words))
    pretraining(pretrain, runs.command(folder, "name=seen", *words, "impl.profile=true", "impl.profile_steps=5"))
    assert runs.same(runs.weights(folder, "seen"), runs.weights(folder, "plain"))
    found = json.loads((folder / "outputs" / "seen" / "profile" / "profile.json").read_text())
    assert sum(found["phases"].values()) == pytest.approx(1)
    assert sum(found["classes"].values()) == pytest.approx(1)
    assert found["classes"]["matrix products"] > 0
    assert found["limit_s"] > 0
    assert any(operator["class"] == "optimizer" for operator in found["operators"])


def test_timed_sizes_leave_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that was timed, each pass compiled for itself, trains what the same size that was given trains."""
    real = microbatch.fastest
    tried: list[int] = []

    def chosen(usual: int, others: list[int], probe: object, **options: object) -> Trial:
        tried.extend(real(usual, others, probe, **{**options, "within_s": 600.0}).sequence_s)  # type: ignore[arg-type]
        return Trial(2, {2: 1.0, usual: 2.0})

    monkeypatch.setattr(microbatch, "fastest", chosen)
    monkeypatch.setattr(microbatch, "_SHORT_RUN_S", 0.0)
    compiled = ("impl.precision=auto", "impl.compile=true", "budget=6")
    pretraining(pretrain, runs.command(folder, "name=timed", *compiled, "impl.microbatch_size=auto"))
    assert tried == [1, 2, 4, 8]
    torch._dynamo.reset()
    pretraining(pretrain, runs.command(folder, "name=given", *compiled, "impl.microbatch_size=2"))
    assert runs.same(runs.weights(folder, "timed"), runs.weights(folder, "given"))
