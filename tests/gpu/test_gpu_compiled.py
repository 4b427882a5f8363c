"""Compiled blocks replayed as CUDA graphs on an NVIDIA GPU: the same numbers, and memory that stays what it is."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cramming import optim
from cramming.architectures.configs.bert import BertConfig
from cramming.batch import Batch
from cramming.cli import pretraining
from cramming.engine import Engine
from cramming.method import Forward, Method
from cramming.session import pretrain
from rst.clock import Clock
from rst.costs import StepsCost
from tests.session import runs

pytestmark = pytest.mark.gpu

VOCABULARY, LENGTH, PREDICTED, LAYERS, STEPS = 512, 64, 10, 4, 50
TOLERANCE = 0.02  # of a loss: 16 bits round to 0.4 %
SLACK = 8 * 2**20  # bytes; passes of these sizes that were recorded anew in every step would take ten times that
objective = Method().objective


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """What is compiled is shared by these tests, and graphs of others are gone."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def engine(cuda_graphs: bool, *, precision: str = "bfloat16", dropout: float = 0.0, lr: float = 1e-3) -> Engine:
    """Four layers of width 128 and their engine, the same weights at every call."""
    torch.manual_seed(0)
    config = BertConfig(layers=LAYERS, hidden=128, heads=2, intermediate=256, dropout=dropout, attention_dropout=0.0)
    model: Any = config.build(VOCABULARY, LENGTH).train(dropout > 0).cuda()
    return Engine(
        model,
        optim.build("adamw", optim.parameter_groups(model), lr=lr),
        Clock({"main": StepsCost()}, 1e9),
        precision=precision,
        microbatch_size=8,
        clip_norm=1.0,
        compile=True,
        cuda_graphs=cuda_graphs,
    )


def batch(seed: int, sequences: int = 16) -> Batch:
    """Tokens of which few are frequent, so that there is something to learn."""
    random = torch.Generator().manual_seed(seed)
    tokens = (VOCABULARY * torch.rand(sequences, LENGTH, generator=random) ** 4).long()
    positions = torch.rand(sequences, LENGTH, generator=random).argsort(1)[:, :PREDICTED]
    labels, weights = tokens.gather(1, positions), torch.ones(positions.shape)
    ids = torch.arange(sequences)
    inputs = tokens.scatter(1, positions, VOCABULARY - 1)
    return Batch(ids, ids, inputs, positions, labels, weights, None, weights.sum()).to(torch.device("cuda"))


def step(of: Engine, seed: int) -> float:
    """A step on a batch in two parts; its loss."""
    for part in batch(seed).split(of.microbatch_size):
        of.backward(part, objective)
    of.step(1.0)
    return of.loss


def close(found: list[float], expected: list[float]) -> None:
    """Two loss curves agree as far as 16 bits can tell."""
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_curve_is_that_of_blocks_that_are_not_replayed(precision: str) -> None:
    replayed, plain = engine(True, precision=precision), engine(False, precision=precision)
    assert (replayed.cuda_graphs, plain.cuda_graphs) == ("replayed", "not asked for")
    found, expected = ([step(of, seed) for seed in range(STEPS)] for of in (replayed, plain))
    close(found, expected)
    assert found[-1] < found[0] - 0.5, "it learns"
    assert replayed.cuda_graphs == "replayed"
    assert replayed.skipped_steps == plain.skipped_steps


def test_kernels_are_launched_by_graphs() -> None:
    def launches(of: Engine) -> tuple[int, int]:
        for seed in range(4):  # warmed up, recorded, replayed
            step(of, seed)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            step(of, 4)
            torch.cuda.synchronize()
        counts = {event.key: event.count for event in seen.key_averages()}
        single = sum(n for key, n in counts.items() if "LaunchKernel" in key)
        return sum(n for key, n in counts.items() if "GraphLaunch" in key), single

    (graphs, single), (none, many) = launches(engine(True)), launches(engine(False))
    # Of every block forward and back, for both parts of the batch; torch may keep the way back of the last one out.
    assert graphs >= 2 * (2 * LAYERS - 1)
    assert none == 0
    assert single < many


def test_memory_does_not_grow() -> None:
    """Neither over steps nor over depths that are drawn anew, which are not recorded."""
    replayed = engine(True)

    def taken() -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_reserved()

    for seed in range(5):
        step(replayed, seed)
    before = taken()
    for seed in range(30):
        step(replayed, seed)
    assert taken() <= before + SLACK
    depths = [tuple(layer for layer in range(LAYERS) if number >> layer & 1) for number in range(1, 2**LAYERS)]
    for repeat in range(2):
        for depth in depths:
            replayed.model.active_layers = depth
            step(replayed, repeat)
            replayed.losses(batch(0, 8), "selection")
    assert "layers that are drawn anew" in replayed.cuda_graphs
    before = taken()
    for depth in depths * 2:
        replayed.model.active_layers = depth
        step(replayed, 0)
        replayed.losses(batch(0, 8), "selection")
    assert taken() <= before + SLACK


def test_depth_changes_from_step_to_step() -> None:
    """Stacked, then with layers left out, scaled and not."""
    depths = [(0,), (0, 1), (0, 1, 2, 3), (0, 2), (1, 3), (0, 1, 2, 3), (0,), (3,)]
    curves = []
    for on in (True, False):
        of, losses = engine(on), []
        for seed in range(3 * len(depths)):
            depth = depths[seed % len(depths)]
            of.model.active_layers = depth
            of.model.layer_scales = {depth[-1]: 1.25} if seed % 2 else None
            losses.append(step(of, seed))
        curves.append(losses)
    close(*curves)


def test_passes_between_others_say_what_they_should() -> None:
    """Scores, logits and hidden states asked for between training passes, and kept while others follow."""
    replayed, plain = engine(True), engine(False)
    kept: list[tuple[Tensor, Tensor]] = []
    for seed in range(6):
        asked = batch(100 + seed, 20)  # the last of its parts is smaller
        for of in (replayed, plain):
            of.backward(next(batch(seed).split(8)), objective)
        kept.append((replayed.losses(asked, "selection"), plain.losses(asked, "selection")))
        kept.append((replayed.logits(asked, "selection"), plain.logits(asked, "selection")))
        kept.append((replayed.uncharged_logits(asked), plain.uncharged_logits(asked)))
        kept.append((replayed.uncharged_hidden(asked), plain.uncharged_hidden(asked)))
        for of in (replayed, plain):
            of.backward(list(batch(seed).split(8))[1], objective)
            of.step(1.0)
        assert replayed.loss == pytest.approx(plain.loss, rel=TOLERANCE)
    torch.cuda.synchronize()
    for found, expected in kept:
        assert float((found - expected).norm() / expected.norm()) < TOLERANCE


def test_an_objective_may_ask_for_more_than_one_pass() -> None:
    def much(of: Engine) -> Any:
        def objective_of(forward: Forward, part: Batch) -> Tensor:
            scores = forward(part, logits=True).float()
            target = of.logits(part, "selection").argmax(-1)
            agreeing = torch.nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten())
            return objective(forward, part) + agreeing / 10

        return objective_of

    curves = []
    for on in (True, False):
        of, losses = engine(on), []
        for seed in range(12):
            for part in batch(seed).split(8):
                of.backward(part, much(of))
            of.step(1.0)
            losses.append(of.loss)
        curves.append(losses)
    close(*curves)


def test_dropout_is_drawn_anew_in_every_pass() -> None:
    of, part = engine(True, dropout=0.3, lr=0.0), batch(0, 8)
    losses = []
    for _ in range(8):
        losses.append(float(of.backward(part, objective)))
        of.step(1.0)
    assert len(set(losses)) == len(losses)


def test_in_float32_blocks_are_not_replayed() -> None:
    assert engine(True, precision="float32").cuda_graphs.startswith("none: in float32")


def test_a_run_continues_to_the_last_bit(folder: Path) -> None:
    """Passes that are recorded or warmed up compute what is replayed."""
    words = ["impl.precision=bfloat16", "impl.compile=true", "impl.cuda_graphs=true"]
    for name, more in (("whole", []), ("parts", ["stop_at=5"]), ("parts", [])):
        pretraining(pretrain, runs.command(folder, f"name={name}", *words, *more))
    summary = json.loads((folder / "outputs" / "whole" / "summary.json").read_text())
    assert summary["fast_paths"]["cuda_graphs"] == "replayed"
    assert math.isfinite(summary["loss"])
    assert runs.same(runs.weights(folder, "parts"), runs.weights(folder, "whole"))
