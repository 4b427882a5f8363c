"""How many updates a budget buys under each method, at the inherited prices: the ratios the earlier study had.

The loop, the engine, the stream, the clock and the methods are the real ones at the study's numbers (batches of 1536
sequences of 128 tokens, 16 layers, RTX 3090 table); only the model is a stand-in whose losses are independent random
numbers. The budget is a 300th of the study's 24 hours; the last step's overrun is taken into account.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from rst.clock import Clock

BATCH, LENGTH, LAYERS, HOURS = 1536, 128, 16, 24
BUDGET_S = HOURS * 3600 / 300
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


def updates(folder: Path, methods: dict[str, Method], optimizer: str = "adamw", **options: Any) -> tuple[float, Run]:
    """Train until the budget is spent; updates in a budget that ends where the last one does, and the run."""
    load_plugins()
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
    corpus: Any = MemoryStore(2**14, LENGTH)
    stream = Stream(
        corpus,
        Split(corpus.rows, 0.0),
        seed=0,
        mask_rate=lambda: PREDICTED,
        max_mask_rate=PREDICTED,
        device=CPU,
    )
    run = Run(config, model, engine, stream, clock, method, Constant(), lambda progress: BATCH)
    method.setup(run)
    train(run, lambda run: None)
    return run.step * BUDGET_S / clock.spent_s, run


def method(kind: str, **options: Any) -> Callable[[Path], dict[str, Method]]:
    """A method with options, by name."""
    return lambda folder: {kind: lookup("method", kind)(**options)}


CASES: dict[str, tuple[str, Callable[[Path], dict[str, Method]], float]] = {
    "stacking": ("layer_stacking", method("layer_stacking"), 1.465),
    "dropping": ("layer_dropping", method("layer_dropping"), 1.330),
    "selective backprop, beta 1": ("selective_backprop", method("selective_backprop"), 0.548),
    "selective backprop, beta 2": ("selective_backprop", method("selective_backprop", beta=2.0), 0.447),
    "selective backprop, beta 3": ("selective_backprop", method("selective_backprop", beta=3.0), 0.378),
}


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Updates without a method: a 300th of the study's 31,957."""
    found, run = updates(tmp_path_factory.mktemp("baseline"), {})
    assert found == pytest.approx(31_957 / 300, rel=1e-3)
    assert run.clock.ledger["train"] == pytest.approx(run.step * 12 * 0.2253)
    return found


@pytest.mark.parametrize("name", CASES)
def test_updates_of_a_budget_are_the_published_ratio(name: str, baseline: float, tmp_path: Path) -> None:
    module, methods, ratio = CASES[name]
    if importlib.util.find_spec(f"efficient_training.{module}") is None:
        pytest.skip(f"{module} is not there yet")
    found, run = updates(tmp_path, methods(tmp_path))
    assert found / baseline == pytest.approx(ratio, rel=0.01)
    assert run.clock.spent_s >= BUDGET_S
