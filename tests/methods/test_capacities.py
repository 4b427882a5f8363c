"""How many updates a budget buys under each method, at the inherited prices: the ratios the earlier study had.

The loop, the engine, the stream, the clock and the methods are the real ones at the study's numbers (batches of 1536
sequences of 128 tokens, 16 layers, RTX 3090 table); only the model is a stand-in whose losses are independent random
numbers. The budget is a 480th of the study's 24 hours; what is not a whole step at its end is left out of account.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import CPU, MemoryStore
from torch import Tensor, nn

from cramming.batch import Batch
from cramming.build import build_method
from cramming.calibration import Target
from cramming.config import PretrainConfig, TrainConfig
from cramming.costs import Rtx3090Config, Setting
from cramming.data.stream import Split, Stream
from cramming.engine import Engine
from cramming.method import Method
from cramming.model import Model
from cramming.optim import for_model
from cramming.registry import load_plugins, lookup
from cramming.schedule import Constant
from cramming.train import Run, train
from efficient_training.irreducible_losses import identity, write
from efficient_training.rho_loss import RhoLoss
from rst.clock import Clock

load_plugins()
BATCH, LENGTH, LAYERS, HOURS = 1536, 128, 16, 24
BUDGET_S = HOURS * 3600 / 480
PREDICTED = 1 / LENGTH  # one token of a sequence; what is predicted costs nothing here


class Layer(nn.Module):
    """A weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class StandIn(Model):
    """Layers that compute nothing: whatever goes in, losses are random numbers, and every gradient is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.active_layers = tuple(range(LAYERS))
        self.vocab_size, self.max_positions = 64, LENGTH
        self.rest = Layer()
        self.random = torch.Generator().manual_seed(1)

    def forward(self, batch: Batch, logits: bool = False) -> Tensor:
        used = self.rest.weight + sum(self.blocks[layer].weight for layer in self.active_layers)  # type: ignore[misc]
        shape = (*batch.labels.shape, self.vocab_size) if logits else batch.labels.shape
        return torch.rand(shape, generator=self.random) + used - used.detach()


def stream_of_rows() -> Stream:
    """Rows of 128 random tokens, none held out."""
    corpus: Any = MemoryStore(2**14, LENGTH)
    return Stream(
        corpus, Split(corpus.rows, 0.0), seed=0, mask_rate=lambda: PREDICTED, max_mask_rate=PREDICTED, device=CPU
    )


def updates(folder: Path, methods: dict[str, Method], optimizer: str = "adamw", **options: Any) -> tuple[float, Run]:
    """Train until the budget is spent -> updates that all of it buys at the price of these, and the run."""
    optim = lookup("train/optim", optimizer)(**options)
    model = StandIn()
    target = Target("stand-in", LAYERS, LENGTH, "float32", optimizer)
    prices = Rtx3090Config(accept_mismatch=True).build(
        Setting(target, folder, folder, lambda lengths: {}, lambda work: 0.0)
    )
    method = build_method(methods, optim)
    clock = Clock({"main": prices}, BUDGET_S, free=method.free)
    engine = Engine(model, for_model(optim, model), clock, microbatch_size=BATCH, clip_norm=0.5)
    config = PretrainConfig(train=TrainConfig(batch_size=BATCH, optim=optim), method=methods)
    run = Run(config, model, engine, stream_of_rows(), clock, method, Constant(), lambda progress: BATCH)
    method.setup(run)
    spent: list[float] = []
    train(run, lambda run: spent.append(clock.spent_s))
    assert len(spent) == run.step
    assert clock.exhausted
    return run.step * BUDGET_S / spent[-1], run


def simple(kind: str, **options: Any) -> Callable[[Path], dict[str, Method]]:
    """A method with options, by name."""
    return lambda folder: {kind: lookup("method", kind)(**options)}


def rho(mega_batch_size: int) -> Callable[[Path], dict[str, Method]]:
    """RHO-loss with irreducible losses that are independent random numbers too."""

    def made(folder: Path) -> dict[str, Method]:
        stream = stream_of_rows()
        facts = {
            **identity(stream.store, stream.split),
            "mask": {"seed": 0, "rate": PREDICTED},
            "made_by": {"name": "chance"},
            "cost": {"total": 1.0, "unit": "s"},
        }
        losses = np.random.default_rng(2).random(stream.store.rows, dtype=np.float32)
        array = write(folder / "irreducible", losses, facts)
        return {"rho_loss": RhoLoss(mega_batch_size, irreducible=str(array.folder))}

    return made


CASES: dict[str, tuple[Callable[[Path], dict[str, Method]], float]] = {
    "stacking": (simple("layer_stacking"), 1.465),
    "dropping": (simple("layer_dropping"), 1.330),
    "selective backprop, beta 1": (simple("selective_backprop"), 0.548),
    "selective backprop, beta 2": (simple("selective_backprop", beta=2.0), 0.447),
    "selective backprop, beta 3": (simple("selective_backprop", beta=3.0), 0.378),
    "RHO-loss, 1 of 2": (rho(3072), 0.548),
    "RHO-loss, 1 of 10": (rho(15360), 0.195),
}
SAMPLE = ("stacking", "dropping", "selective backprop, beta 1", "RHO-loss, 1 of 2")  # one of each


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Updates without a method: a 480th of the study's 31,957."""
    found, run = updates(tmp_path_factory.mktemp("baseline"), {})
    assert found == pytest.approx(31_957 / 480, rel=1e-3)
    assert run.clock.ledger["train"] == pytest.approx(run.step * 12 * 0.2253)
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.full) for name in CASES]
)
def test_updates_of_a_budget_are_the_published_ratio(name: str, baseline: float, tmp_path: Path) -> None:
    methods, ratio = CASES[name]
    found, _ = updates(tmp_path, methods(tmp_path))
    assert found / baseline == pytest.approx(ratio, rel=0.01)


def test_sophias_updates_of_a_budget_are_the_published_ratio(baseline: float, tmp_path: Path) -> None:
    """768 sequences forward and backward for the curvature at every tenth step, on an account of their own."""
    found, run = updates(tmp_path, {}, "sophiag", hessian_every_steps=10, hessian_sequences=768)
    assert found / baseline == pytest.approx(0.952, rel=0.01)
    estimates = run.clock.counts["hessian"]["forward_backward"]["sequences"] / 768
    assert estimates in (run.step // 10, run.step // 10 + 1)
    assert run.clock.ledger["hessian"] == pytest.approx(estimates * 6 * 0.2253)
