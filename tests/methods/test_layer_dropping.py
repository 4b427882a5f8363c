"""Layer dropping: how often a layer is left out, by what the draw is decided, and what it costs."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deep import deep_run, layer_weights
from memory import MemoryStore, PassCost, batch_of, run_of, trained, weights
from torch import Tensor

from cramming.architectures.configs.albert import AlbertConfig
from cramming.batch import Batch
from cramming.build import build_run
from cramming.cli import compose
from cramming.errors import UserError
from cramming.hashing import generator
from cramming.method import Chain, Method
from cramming.model import Model
from cramming.resolve import resolve
from cramming.train import Run
from cramming.validation import validate
from efficient_training.layer_dropping import LayerDropping
from efficient_training.layer_stacking import LayerStacking
from tests.architectures.families import TINY, built
from tests.architectures.families import arch as arch_of

Draw = tuple[int, int, tuple[int, ...]]
_ONE = batch_of(1)


class Watched(LayerDropping):
    """Notes what runs: (step, group, layers)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.drawn: list[Draw] = []

    @contextmanager
    def thinned(self, run: Run, group: Batch) -> Iterator[None]:
        with super().thinned(run, group):
            self.drawn.append((run.step, group.index, run.model.active_layers))
            yield


def group_of(size: int, index: int = 0) -> Batch:
    """A draw group of which only size and number matter."""
    return replace(_ONE, ids=torch.zeros(size, dtype=torch.int64), index=index)


def draws(method: LayerDropping, run: Run, groups: int, size: int = 1) -> list[tuple[int, ...]]:
    """The layers that run in so many draw groups of the step under way."""
    found = []
    for index in range(groups):
        with method.thinned(run, group_of(size, index)):
            found.append(run.model.active_layers)
    return found


def at_progress(method: LayerDropping, run: Run, progress: float) -> None:
    """Begin a step there."""
    run.clock.spent_s = progress * run.clock.budget_s
    method.before_step(run)


# ---- probabilities ----


def test_the_earlier_systems_probabilities(shared: Path) -> None:
    """Keep probability of every layer and expected depth, at every stored time."""
    stored = json.loads((shared / "golden/layer_drop.json").read_text())
    for case in stored["grid"]:
        method = LayerDropping(theta=case["max_theta"], gamma=case["gamma_factor"])
        layers = case["num_layers"]
        for point in case["points"]:
            drop = method.drop_probability(point["t"] / case["T"])
            assert drop == pytest.approx(point["max_drop_prob"], rel=1e-12, abs=1e-15)
            keep = [1 - drop * (i + 1) / layers for i in range(layers)]
            assert keep == pytest.approx(point["keep_prob_per_layer"], rel=1e-12)
            assert sum(keep) == pytest.approx(point["expected_active_layers"], rel=1e-12)


def test_the_earlier_systems_draws(shared: Path) -> None:
    """With its generator and our probabilities, in float32 as it had them."""
    stored = json.loads((shared / "golden/layer_drop.json").read_text())
    method = LayerDropping()
    for trace in stored["sampled_traces"]:
        random = torch.Generator().manual_seed(trace["seed"])
        for time_s, active in zip(trace["seconds"], trace["active"], strict=True):
            drop = method.drop_probability(time_s / 86400)
            keep = [torch.tensor(1 - drop * (i + 1) / 16) for i in range(16)]
            assert [i for i, p in enumerate(keep) if torch.bernoulli(p, generator=random)] == active


def test_layers_are_left_out_as_often_as_the_schedule_says() -> None:
    """1,800 groups at three moments: each layer's frequency, the mean depth, and that layers do not go by each other;
    within four standard deviations of what independent draws give."""
    groups = 600
    run = deep_run(LayerDropping(theta=0.3, gamma=4.0), 6)
    method: LayerDropping = run.method  # type: ignore[assignment]
    for progress, step in ((0.1, 3), (0.4, 17), (1.0, 99)):
        run.step = step
        at_progress(method, run, progress)
        drop = 0.7 * (1 - math.exp(-4 * progress))
        found = torch.tensor([[layer in kept for layer in range(6)] for kept in draws(method, run, groups)]).double()
        keep = torch.tensor([1 - drop * i / 6 for i in range(1, 7)], dtype=torch.float64)
        spread = keep * (1 - keep)
        assert ((found.mean(0) - keep).abs() < 4 * (spread / groups).sqrt()).all()
        depths = found.sum(1)
        assert abs(depths.mean() - keep.sum()) < 4 * (spread.sum() / groups).sqrt()
        centred = (found - keep) / spread.sqrt()
        together = (centred.T @ centred / groups).fill_diagonal_(0)
        assert together.abs().max() < 4 / math.sqrt(groups)


def test_the_mean_depth_of_a_run_is_that_of_the_schedule() -> None:
    """Over a run of 150 steps with two groups each: the sum of the expected depths at each step's beginning."""
    steps = 150
    run = run_of(LayerDropping(theta=0.4, gamma=8.0, sequences_per_draw=4), budget=steps)
    trained(run)
    drops = [0.6 * (1 - math.exp(-8 * step / steps)) for step in range(steps)]
    expected = [2 - drop * 1.5 for drop in drops]
    variance = sum(2 * p * (1 - p) for drop in drops for p in (drop / 2, drop))
    mean = run.method.columns()["mean_layers"]
    assert abs(mean - sum(expected) / steps) < 4 * math.sqrt(variance) / (2 * steps)
    assert run.method.columns()["drop_probability"] == pytest.approx(drops[-1])


def test_nothing_is_left_out_at_the_beginning() -> None:
    run = deep_run(LayerDropping(theta=0.0, gamma=1e6), 4)
    at_progress(run.method, run, 0.0)  # type: ignore[arg-type]
    assert set(draws(run.method, run, 50)) == {(0, 1, 2, 3)}  # type: ignore[arg-type]
    at_progress(run.method, run, 1.0)  # type: ignore[arg-type]
    assert all(3 not in kept for kept in draws(run.method, run, 50)), "kept with probability 0"  # type: ignore[arg-type]


# ---- what decides a draw ----


def test_a_draw_depends_on_seed_step_and_group_alone() -> None:
    """Not on the microbatch size, on earlier draws, or on when in the step it is asked for."""

    def drawn(seed: int = 0, microbatch_size: int = 4) -> list[Draw]:
        method = Watched(theta=0.2, sequences_per_draw=4)
        trained(deep_run(method, 5, seed=seed, microbatch_size=microbatch_size, costs=PassCost(), budget=1000))
        return method.drawn

    first = drawn()
    assert len({layers for _, _, layers in first}) > 5
    assert first == drawn(microbatch_size=2) == drawn(microbatch_size=1)
    assert first != drawn(seed=1)
    for step, group, layers in first[2:6]:
        run = deep_run(LayerDropping(theta=0.2, sequences_per_draw=4), 5)
        run.step = step
        run.method._drop = 0.8  # type: ignore[attr-defined]
        with run.method.thinned(run, group_of(4, group)):
            assert len(run.model.active_layers) <= len(layers), "at a higher probability, of the same numbers"
            assert set(run.model.active_layers) <= set(layers)


def test_a_draw_by_hand() -> None:
    run = deep_run(LayerDropping(theta=0.5), 4)
    at_progress(run.method, run, 1.0)  # type: ignore[arg-type]
    run.step = 7
    numbers = torch.rand(4, dtype=torch.float64, generator=generator(0, "layer_dropping", 7, 2))
    with run.method.thinned(run, group_of(3, 2)):
        # p = 0.5 x (1, 2, 3, 4) / 4.
        expected = tuple(i for i, (u, p) in enumerate(zip(numbers, (0.125, 0.25, 0.375, 0.5), strict=True)) if u >= p)
        assert run.model.active_layers == expected
    assert run.model.active_layers == (0, 1, 2, 3)


def test_over_the_layers_that_are_active() -> None:
    """While stacking has two of four active, the second is the last: the probabilities are those of a model of two."""
    watched = Watched(theta=0.0, gamma=1e6, sequences_per_draw=1)
    chain = Chain({"layer_stacking": LayerStacking(shares=[0.5, 1.0], at=[0.5]), "layer_dropping": watched})
    run = trained(deep_run(chain, 4, budget=40, microbatch_size=1))
    shallow = [layers for step, _, layers in watched.drawn if 0 < step < 20]
    deep = [layers for step, _, layers in watched.drawn if step >= 20]
    assert set(shallow) == {(), (0,)}, "the second is left out with probability 1, the first with a half"
    assert abs(shallow.count(()) - len(shallow) / 2) < 4 * math.sqrt(len(shallow) / 4)
    assert all(3 not in layers for layers in deep)
    assert any(2 in layers for layers in deep)
    assert run.model.active_layers == (0, 1, 2, 3)


# ---- cost, gradients, validation ----


def test_every_depth_has_its_price_and_none_is_one_of_them() -> None:
    watched = Watched(theta=0.0, gamma=1e6, sequences_per_draw=4)
    run = trained(deep_run(watched, 2, budget=2000, costs=PassCost()))
    assert {len(layers) for _, _, layers in watched.drawn} == {0, 1, 2}
    passes = sum(4 * 3 * (1 + len(layers)) for _, _, layers in watched.drawn)
    assert run.clock.ledger == {"train": passes, "optimizer": run.step}


def test_a_parameter_that_no_sequence_used_has_no_gradient() -> None:
    """Of the last layer, never kept: no gradient, no decay, no state. What one group of a step kept has all of them."""
    seen: list[list[bool]] = []

    class Notes(Method):
        def update(self, run: Run, batch: Batch, factor: float, step: Any) -> int:
            seen.append([all(p.grad is not None for p in block.parameters()) for block in run.model.blocks])
            return int(step(factor))

    watched = Watched(theta=0.0, gamma=1e6, sequences_per_draw=4)
    run = deep_run(Chain({"layer_dropping": watched, "notes": Notes()}), 3, budget=12)
    run.clock.budget_s, run.clock.spent_s = 24, 12  # so that the first step has the full probability
    before = layer_weights(run.model)
    trained(run)
    assert torch.equal(layer_weights(run.model)[2], before[2])
    assert all(p not in run.engine.optimizer.state for p in run.model.blocks[2].parameters())
    used = [
        [any(layer in layers for at, _, layers in watched.drawn if at == step) for layer in range(3)]
        for step in range(12)
    ]
    assert seen == used
    assert len({tuple(row) for row in used}) > 2


def test_validation_sees_every_layer() -> None:
    """The same weights in a run without the method: the same loss, between steps and after any."""
    losses: list[tuple[float, float]] = []

    def observe(run: Run) -> None:
        plain = deep_run(Method(), 4)
        plain.model.load_state_dict(run.model.state_dict())
        ours, theirs = validate(run), validate(plain)
        assert ours is not None
        assert theirs is not None
        losses.append((ours.loss, theirs.loss))

    trained(deep_run(LayerDropping(theta=0.0, gamma=1e6), 4, budget=3), observe)
    assert all(ours == theirs for ours, theirs in losses)


def test_a_pass_that_fails_leaves_the_depth_as_it_was() -> None:
    run = deep_run(LayerDropping(theta=0.0, gamma=1e6, rescale=True), 4)
    at_progress(run.method, run, 1.0)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError), run.method.thinned(run, group_of(1)):
        raise RuntimeError
    assert run.model.active_layers == (0, 1, 2, 3)
    assert run.model.layer_scales is None


# ---- rescaling ----


LIBRARYS = ("albert_tiny", "deberta_tiny")  # whose layers run in a loop of transformers'


@pytest.mark.parametrize("name", [name for name in TINY if name not in LIBRARYS])
def test_a_scaled_layer_changes_its_input_by_so_many_times_as_much(name: str) -> None:
    """Every family, both layouts, with gradient checkpointing: x + s (layer(x) - x), at every token and gradient."""
    model = built(arch_of(name, layers=3), 24)
    for layout in ("packed", "document"):
        batch = batch_of(4, layout)
        for checkpointing in (False, True):
            model.gradient_checkpointing, model.active_layers = checkpointing, (0, 2)
            model.layer_scales = {0: 1.25, 1: 9.0, 2: 2.0}
            scaled, gradients = outputs(model, batch)
            model.layer_scales = None
            by_hand, expected = outputs(model, batch, scales={0: 1.25, 2: 2.0})
            torch.testing.assert_close(scaled, by_hand, rtol=1e-4, atol=1e-5)
            for ours, theirs in zip(gradients, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
            plain, _ = outputs(model, batch)
            assert not torch.allclose(plain, scaled, rtol=1e-2, atol=1e-2)


def outputs(model: Model, batch: Batch, scales: dict[int, float] | None = None) -> tuple[Tensor, list[Tensor]]:
    """Losses that count, and gradients; with ``scales`` by hooks on the layers."""
    handles = []
    for layer, scale in (scales or {}).items():

        def scaled(module: Any, args: Any, output: Tensor, scale: float = scale) -> Tensor:
            x, _, queries, *_ = args
            before = x if queries is None else queries.select(x)
            return before + scale * (output - before)

        handles.append(model.blocks[layer].register_forward_hook(scaled))
    losses = model(batch)[batch.weights > 0]
    found = torch.autograd.grad(losses.mean(), list(model.parameters()), allow_unused=True)
    for handle in handles:
        handle.remove()
    return losses.detach(), [gradient for gradient in found if gradient is not None]


def test_on_average_a_rescaled_layer_is_the_layer() -> None:
    """One layer, kept with probability 0.6: 0.6 x scaled + 0.4 x its input is what it gives when it is always there."""
    run = deep_run(
        LayerDropping(theta=0.6, gamma=1e6, rescale=True), model=built(arch_of("crammed_tiny", layers=1), 24)
    )
    at_progress(run.method, run, 1.0)  # type: ignore[arg-type]
    states, model = {}, run.model
    for index in range(20):
        with run.method.thinned(run, group_of(1, index)), torch.no_grad():
            model.final_norm = torch.nn.Identity()
            states[model.active_layers] = model.hidden(batch_of(2))
    with torch.no_grad():
        torch.testing.assert_close(0.6 * states[0,] + 0.4 * states[()], model.hidden(batch_of(2)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_rescaling_reaches_the_passes(precision: str) -> None:
    """Also those of the low-precision copy: other weights than without it, the same depth."""
    runs = [
        trained(deep_run(LayerDropping(theta=0.3, gamma=1e6, rescale=rescale), 3, budget=4, precision=precision))
        for rescale in (False, True)
    ]
    plain, scaled = runs
    assert plain.method.columns() == scaled.method.columns()
    assert not torch.equal(weights(plain.model), weights(scaled.model))
    again = trained(deep_run(LayerDropping(theta=1.0, rescale=True), 3, budget=4, precision=precision))
    assert torch.equal(
        weights(again.model), weights(trained(deep_run(Method(), 3, budget=4, precision=precision)).model)
    )


# ---- groups and microbatches ----


def built_run(folder: Path, batch: int, microbatch: Any) -> tuple[Run, int | None]:
    """A run as a command builds it, and the microbatch size it found."""
    words = [
        "data=local", "data.path=none", "data.seq_length=24", "arch=bert_tiny", "arch.layers=1", "arch.hidden=32",
        "rst=steps", "budget=1", "method=layer_dropping", f"train.batch_size={batch}", "impl.precision=float32",
        f"impl.microbatch_size={microbatch}", "impl.threads=1",
    ]  # fmt: skip
    config = compose(words)
    corpus: Any = MemoryStore(2000)
    run, resolved = build_run(config, corpus, resolve(config.impl, None), folder)
    return run, resolved.microbatch_size


@pytest.mark.parametrize(
    ("batch", "microbatch", "groups", "found"),
    [
        (64, "auto", [64], 32),
        (96, "auto", [96], 32),
        (96, 48, [96], 48),  # a batch smaller than a group is one, which 48 divides
        (1536, "auto", [128] * 12, 32),
        (192, 64, [128, 64], 64),
    ],
)
def test_batches_of_any_size_have_a_microbatch(
    batch: int, microbatch: Any, groups: list[int], found: int, tmp_path: Path
) -> None:
    run, size = built_run(tmp_path, batch, microbatch)
    assert size == found if run.engine.device.type == "cpu" or microbatch != "auto" else size
    drawn = run.next_batch()
    assert drawn is not None
    assert [len(group) for group in drawn.groups(run.method.sequences_per_draw)] == groups


def test_a_microbatch_must_divide_what_shares_a_draw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"microbatch_size=48 does not divide the 128 sequences .* use a divisor of 64"):
        built_run(tmp_path, 192, 48)


# ---- bad input ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"theta": 1.5}, "theta=1.5 is the last layer's probability of being kept; give 0 to 1"),
        ({"theta": float("nan")}, "theta=nan"),
        ({"gamma": -1.0}, "gamma=-1.0 must be a finite number from 0"),
        ({"gamma": float("inf")}, "gamma=inf must be a finite number"),
        ({"sequences_per_draw": 0}, "sequences_per_draw=0 must be at least 1, or null for the whole batch"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"method.layer_dropping.{says}"):
        LayerDropping(**options)


def test_models_without_layers_of_their_own_are_refused() -> None:
    albert = AlbertConfig(layers=4, hidden=32, heads=2, intermediate=64, embedding_dim=16).build(64, 24)
    with pytest.raises(
        UserError, match="method=layer_dropping needs layers that are each their own, and those of Albert"
    ):
        deep_run(LayerDropping(), model=albert)  # type: ignore[arg-type]


def test_a_loop_that_is_not_ours_drops_and_does_not_rescale() -> None:
    deberta: Any = arch_of("deberta_tiny").build(64, 24)
    trained(deep_run(LayerDropping(theta=0.2, sequences_per_draw=4), model=deberta, budget=3))
    with pytest.raises(UserError, match="rescale=true has no way into the loop of Deberta: leave it out"):
        deep_run(LayerDropping(rescale=True), model=deberta)
