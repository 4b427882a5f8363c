"""``impl.attention`` of a run, and of whoever looks at it elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cramming import resolve
from cramming.cli import pretraining
from cramming.evaluation.trained import load_run
from cramming.folder import find
from cramming.session import pretrain
from cramming.validation import validate
from tests.session import runs


def test_a_run_from_a_machine_with_other_kernels_is_validated(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "device", lambda: torch.device("cpu"))
    shutil.copytree(finished / "outputs" / "whole", tmp_path / "whole")
    config = tmp_path / "whole" / "config.yaml"
    config.write_text(config.read_text().replace("attention: auto", "attention: varlen"))
    found = find(str(tmp_path), "whole", None)
    assert found.config.impl.attention == "varlen"
    run = load_run(found)
    assert run.model.attention == "auto"
    assert "impl.attention=varlen: it runs on NVIDIA GPUs" in caplog.text
    assert validate(run, limit=4) is not None


def test_the_summary_says_which_form_was_taken(folder: Path) -> None:
    pretraining(pretrain, runs.command(folder, "name=x", "budget=2", "impl.attention=blocks"))
    summary = json.loads((folder / "outputs" / "x" / "summary.json").read_text())
    assert summary["fast_paths"]["attention"] == "blocks"
