"""``impl.kernels`` of a run: what is found is said, stored, and kept when the run goes on."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cramming import microbatch
from cramming.cli import pretraining
from cramming.kernels import choice
from cramming.session import pretrain
from tests.session import runs

M2 = [
    "arch=m2_tiny", "arch.layers=2", "arch.hidden=32", "arch.intermediate=64", "arch.filter_order=16",
]  # fmt: skip


def m2(folder: Path, *words: str) -> Any:
    """Run it; what its folder says then."""
    tiny = [word for word in runs.command(folder, "name=m2") if not word.startswith("arch")]
    pretraining(pretrain, [*tiny, *M2, *words])
    place = folder / "outputs" / "m2"
    return [json.loads((place / name).read_text()) for name in ("summary.json", "resolved.json")]


def test_what_was_found_is_kept_when_a_run_goes_on(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_said", set())
    with caplog.at_level(logging.INFO):
        summary, stored = m2(folder, "budget=4", "stop_at=2")
    assert stored["kernels"] == "auto"
    assert stored["kernel_backends"] == {"gated_long_conv": "torch", "block_diagonal_glu": "torch"}
    assert summary["fast_paths"]["kernels"] == "gated_long_conv by torch, block_diagonal_glu by torch"
    assert "kernel_backends" not in summary["fast_paths"]
    assert "kernels" not in caplog.text
    stored["kernel_backends"]["gated_long_conv"] = "reference"
    (folder / "outputs" / "m2" / "resolved.json").write_text(json.dumps(stored))
    with caplog.at_level(logging.INFO):
        summary, again = m2(folder, "budget=4")
    assert again == stored
    assert summary["steps"] == 4
    assert summary["fast_paths"]["kernels"] == "gated_long_conv by reference, block_diagonal_glu by torch"
    (line,) = (message for message in caplog.messages if "kernels" in message)
    assert line.startswith("kernels: gated_long_conv by reference (the definition")


def test_passes_are_timed_with_the_backends_of_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of passes is of these backends, and what is plain has none."""
    asked: list[Any] = []
    real = microbatch._settings

    def settings(parts: Any, resolved: Any, whole: int) -> dict[str, Any]:
        asked.append(real(parts, resolved, whole))
        return asked[-1]

    monkeypatch.setattr(microbatch, "_settings", settings)
    for plain in ("[]", "[block_diagonal]"):
        _, stored = m2(folder, "budget=1", "impl.microbatch_size=auto", f"impl.plain={plain}", "resume=false")
        assert asked[-1]["kernel_backends"] == stored["kernel_backends"]
    assert [list(each["kernel_backends"]) for each in asked] == [
        ["gated_long_conv", "block_diagonal_glu"], ["gated_long_conv"],
    ]  # fmt: skip
    files = [microbatch._file(folder, {**asked[0], "kernel_backends": {"gated_long_conv": name}}) for name in "ab"]
    assert files[0] != files[1]


def test_a_model_without_these_operations_says_so_if_asked(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        pretraining(pretrain, runs.command(folder, "name=x", "budget=1", "impl.kernels=triton"))
    (line,) = (message for message in caplog.messages if "kernels" in message)
    assert line.startswith("impl.kernels=triton changes nothing: ")
    place = folder / "outputs" / "x"
    assert json.loads((place / "resolved.json").read_text())["kernel_backends"] == {}
    assert "kernels" not in json.loads((place / "summary.json").read_text())["fast_paths"]
