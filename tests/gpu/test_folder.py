"""That the tests beside this one, which are skipped where there is no GPU, have text to train on."""

from pathlib import Path

import pytest
import torch

from cramming import resolve
from cramming.cli import pretraining
from cramming.session import pretrain
from tests.session import runs


def test_its_text_is_enough_for_their_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "device", lambda: torch.device("cpu"))
    pretraining(pretrain, runs.command(folder, "name=x", "budget=1"))
    assert runs.weights(folder, "x")
