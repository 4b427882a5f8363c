"""``impl.kernels=auto`` on an NVIDIA GPU: what is taken has passed its test there, and is kept."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from cramming.cli import pretraining
from cramming.kernels import backends, choice
from cramming.kernels.selftest import CASES, ConvolutionSizes, GluSizes, self_test
from cramming.session import pretrain
from tests.session import runs
from tests.session.test_kernels import M2

pytestmark = pytest.mark.gpu
HERE: dict[str, ConvolutionSizes | GluSizes] = {
    "gated_long_conv": ConvolutionSizes(64, 32, 128, 128, kept=True),
    "block_diagonal_glu": GluSizes(4096, 64, 256, 64),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("op", CASES)
def test_every_backend_that_is_here_passes(op: str, backend: str, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    found, why = backends.of(op, backend)
    if found is not None:
        why = getattr(found, backends.LACKS[op])(HERE[op].operands(dtype, device))
    if why is not None:
        pytest.skip(f"{op} by {backend}: {why}")
    assert self_test(op, backend, device, dtype, HERE[op]) is None


@pytest.mark.parametrize("op", CASES)
def test_what_is_taken_is_timed_and_has_passed(op: str) -> None:
    device = torch.device("cuda")
    found = choice.choose(op, device, torch.bfloat16, HERE[op], "auto")
    if found.backend != "torch":
        assert self_test(op, found.backend, device, torch.bfloat16, HERE[op].small()) is None
        assert "times as fast as torch at" in found.why
    assert choice.choose(op, device, torch.bfloat16, HERE[op], "auto") is found, "asked once"


@pytest.mark.parametrize("compiled", ["true", "false"])
def test_a_run_says_what_it_takes_and_goes_on_with_it(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, compiled: str
) -> None:
    monkeypatch.setattr(choice, "_said", set())

    def train(*words: str) -> Any:
        tiny = [word for word in runs.command(folder) if not word.startswith("arch")]
        pretraining(pretrain, [*tiny, *M2, f"impl.compile={compiled}", "impl.precision=auto", *words])

    with caplog.at_level(logging.INFO):
        train("name=whole")
    place = folder / "outputs" / "whole"
    settled = json.loads((place / "resolved.json").read_text())["kernel_backends"]
    assert settled.keys() == CASES.keys()
    said = json.loads((place / "summary.json").read_text())["fast_paths"]["kernels"]
    assert said == ", ".join(f"{op} by {backend}" for op, backend in settled.items())
    (line,) = (message for message in caplog.messages if message.startswith("kernels: "))
    assert all(f"{op} by {backend}" in line for op, backend in settled.items())
    train("name=parts", "stop_at=5")
    choice.fastest.cache_clear()  # timed anew, another may be a little faster
    train("name=parts")
    assert json.loads((place.parent / "parts" / "resolved.json").read_text())["kernel_backends"] == settled
    assert runs.same(runs.weights(folder, "parts"), runs.weights(folder, "whole"))


@pytest.mark.parametrize("backend", ["reference", "torch", "triton", "cuda"])
def test_every_backend_learns_the_same(folder: Path, backend: str) -> None:
    """One that cannot be had gives way to the next."""

    def loss(name: str) -> float:
        tiny = [word for word in runs.command(folder, f"name={name}") if not word.startswith("arch")]
        pretraining(pretrain, [*tiny, *M2, f"impl.kernels={name}", "impl.compile=false"])
        return float(json.loads((folder / "outputs" / name / "summary.json").read_text())["validation_loss"])

    assert loss(backend) == pytest.approx(loss("reference"), rel=1e-4)
