"""``impl.cuda_graphs`` of a run where there are none."""

import json
from pathlib import Path

import pytest
import torch

from cramming import resolve
from cramming.cli import pretraining
from cramming.session import pretrain
from tests.session import runs


def test_a_run_without_a_gpu_says_once_that_there_are_none(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its log and in its summary; the passes that find the microbatch's size say nothing."""
    monkeypatch.setattr(resolve, "device", lambda: torch.device("cpu"))
    words = ["impl.cuda_graphs=true", "budget=1", "impl.microbatch_size=auto"]
    pretraining(pretrain, runs.command(folder, "name=x", *words))
    said = [record.getMessage() for record in caplog.records if "cuda_graphs" in record.getMessage()]
    assert said == ["impl.cuda_graphs=true: blocks run without: there are none on a cpu"]
    summary = json.loads((folder / "outputs" / "x" / "summary.json").read_text())
    assert summary["fast_paths"]["cuda_graphs"] == "none: there are none on a cpu"
