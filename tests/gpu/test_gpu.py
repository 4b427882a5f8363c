"""On an NVIDIA GPU: the same laws, and the same masks as on a processor. Skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch

from cramming.batch import Batch
from cramming.cli import pretraining
from cramming.data.masking import Masking
from cramming.session import pretrain
from tests.session import runs

pytestmark = pytest.mark.gpu


def train(folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Weights after 12 steps; ``name=`` says which run."""
    pretraining(pretrain, runs.command(folder, "impl.precision=auto", "impl.microbatch_size=auto", *overrides))
    name = next(word.removeprefix("name=") for word in overrides if word.startswith("name="))
    return runs.weights(folder, name)


def test_masks_are_those_of_the_processor() -> None:
    tokens = torch.randint(5, 1000, (64, 128))
    arguments = (tokens, torch.arange(64), torch.zeros(64, dtype=torch.int64))
    on_cpu: Batch = Masking.of(1000, 4, [0, 1, 2, 3, 4], torch.device("cpu"))(
        *arguments, None, seed=3, rate=0.15, slots=19
    )
    on_gpu: Batch = Masking.of(1000, 4, [0, 1, 2, 3, 4], torch.device("cuda"))(
        *(a.cuda() for a in arguments), None, seed=3, rate=0.15, slots=19
    )
    for field in ("inputs", "positions", "labels", "weights"):
        assert torch.equal(getattr(on_cpu, field), getattr(on_gpu, field).cpu()), field


GROWING = (
    "train.lengths=[4,8]", "train.lengths_until=[0.25,0.5]", "train.lengths_mode=unfold",
    "train.batch_size_initial=2", "train.batch_size_ramp=0.7",
)  # fmt: skip


@pytest.mark.parametrize(
    "options", [(), ("impl.precision=float16",), ("impl.compile=true",), ("impl.compile=false",), GROWING]
)
def test_a_run_learns_and_continues_to_the_last_bit(folder: Path, options: tuple[str, ...]) -> None:
    whole = train(folder, "name=whole", *options)
    summary = json.loads((folder / "outputs" / "whole" / "summary.json").read_text())
    assert summary["fast_paths"]["device"] == "cuda"
    assert summary["fast_paths"]["microbatch_size"] == 8
    assert summary["loss"] < 6.0
    train(folder, "name=parts", "stop_at=5", *options)
    assert runs.same(train(folder, "name=parts", *options), whole)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_follows_float32(folder: Path, precision: str) -> None:
    low = train(folder, "name=low", f"impl.precision={precision}", "train/optim=sgd", "train.optim.lr=0.1")
    full = train(folder, "name=full", "impl.precision=float32", "train/optim=sgd", "train.optim.lr=0.1")
    for name, expected in full.items():
        torch.testing.assert_close(low[name], expected, rtol=0.02, atol=2e-3)


def test_prices_are_measured(folder: Path) -> None:
    train(folder, "name=priced", "rst=calibrate", "rst.within_s=2", "budget=1s")
    table = json.loads((folder / "outputs" / "priced" / "rst.json").read_text())
    assert "NVIDIA" in table["provenance"]["device"]
