"""What every optimizer must do, whatever its formula: those of the table here, and any that is added to it later.

That a run which is killed ends to the same bits is in ``tests/methods/test_pairs.py``, for every optimizer too.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import MemoryStore, batch_of, engine_of, same, small_model
from torch import Tensor, nn
from whole_runs import OPTIMIZERS, OPTIONS, run_with

from cramming import checkpoint
from cramming.optim import build, for_model
from cramming.optim.adahessian import AdaHessian
from cramming.optim.config import OptimConfig
from cramming.optim.state import copy_state, drop_state
from cramming.registry import lookup
from cramming.train import train

LR, STEPS = 0.01, 8
# Whose steps depend on all parameters at once, so that none of them can be told what it would do alone.
OF_THE_WHOLE = ("agd", "prodigy")
ALONE = [name for name in OPTIMIZERS if name not in OF_THE_WHOLE]
BY_GROUP = "library"  # counts the steps of a group, see test_optim_origins.py
# Rates at which a model of two layers of 32 learns within some steps; where there is none, the default does.
RATES = {"adam": 5e-3, "adamw": 5e-3, "adafactor": 5e-3, "agd": 3.0, "lamb": 2e-2, "lion": 3e-3, "muon": 5e-3}
RATES |= {"radam": 2e-2, "sam": 5e-3, "schedule_free": 1e-2, "sgd": 0.5, "shampoo": 5e-3, "soap": 1e-2}
RATES |= {"sophiag": 3e-3, "stable_adamw": 5e-3, "library": 5e-3}
HYPERPARAMETERS: dict[str, dict[str, Any]] = {"prodigy": {"d0": 1e-2}}


def made(name: str, parameters: Any, /, **options: Any) -> torch.optim.Optimizer:
    return build(name, parameters, lr=LR, **{**OPTIONS.get(name, {}), **options})


def fresh(count: int = 2, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """A matrix, a vector, a matrix, ..., seeded."""
    shapes = [(5, 3), (4,)] * count
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes[:count])]
    return [nn.Parameter(value.to(dtype)) for value in drawn]


def gradients(like: nn.Parameter, dtype: torch.dtype | None = None) -> list[Tensor]:
    random = torch.Generator().manual_seed(like.numel())
    return [torch.randn(like.shape, generator=random).to(dtype or like.dtype) for _ in range(2 * STEPS)]


def step(optimizer: torch.optim.Optimizer, given: dict[nn.Parameter, Tensor | None], factor: float = 1.0) -> None:
    """One step of the engine's: gradients, rates, step; nothing is left behind."""
    for parameter, gradient in given.items():
        parameter.grad = None if gradient is None else gradient.clone()
    if isinstance(optimizer, AdaHessian):  # moves nothing it has no estimate of; a method makes them
        optimizer.update_diagonal({p: 1 + g.abs() for p, g in given.items() if g is not None})
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_a_gradient_is_left_alone(name: str) -> None:
    used, unused = fresh()
    before = unused.detach().clone()
    optimizer = made(name, [used, unused], weight_decay=0.5)
    for gradient in gradients(used)[:3]:
        step(optimizer, {used: gradient, unused: None})
    assert torch.equal(unused, before)
    assert not optimizer.state.get(unused)
    assert not torch.equal(used, fresh()[0])
    assert used.dtype == torch.float32


@pytest.mark.parametrize("name", [name for name in ALONE if name != BY_GROUP])
def test_a_layer_that_comes_later_begins_as_if_it_were_the_first(name: str) -> None:
    """One gets gradients from the fourth step on; its steps are those of an optimizer that has it alone."""
    assert deviation(name) < 1e-6


def deviation(name: str, /, **options: Any) -> float:
    """How far the late ones end from where they would without the early ones."""
    early, late = fresh(3)[::2], fresh(2)[:2]
    late_twins = [nn.Parameter(p.detach().clone()) for p in late]
    together, alone = made(name, [*early, *late], **options), made(name, late_twins, **options)
    for t in range(STEPS):
        there = t >= 3
        given = {p: gradients(p)[t] for p in early} | {p: gradients(p)[t + 5] if there else None for p in late}
        step(together, given, factor=1 / (1 + t))
        if there:
            step(alone, {p: gradients(p)[t + 5] for p in late_twins}, factor=1 / (1 + t))
    assert all(not torch.equal(p, q) for p, q in zip(late, fresh(2), strict=True))
    return max(float((p - q).detach().abs().max()) for p, q in zip(late, late_twins, strict=True))


@pytest.mark.parametrize("name", OF_THE_WHOLE)
def test_a_layer_that_comes_later_moves_where_steps_are_of_the_whole(name: str) -> None:
    early, late = fresh()
    optimizer = made(name, [early, late], **HYPERPARAMETERS.get(name, {}))
    before = late.detach().clone()
    for t in range(STEPS):
        step(optimizer, {early: gradients(early)[t], late: gradients(late)[t] if t >= 3 else None})
        assert torch.equal(late, before) == (t < 3)
        assert torch.isfinite(late).all()


@pytest.mark.parametrize("name", ALONE)
def test_a_rate_and_a_decay_of_its_own(name: str) -> None:
    """A group's count for its parameters, and for no others."""
    ours, others = fresh(4)[:2], fresh(4)[2:]
    twins, other_twins = ([nn.Parameter(p.detach().clone()) for p in ps] for ps in (ours, others))
    groups = [{"params": ours, "lr": 0.03, "weight_decay": 0.4}, {"params": others}]
    together = made(name, groups, weight_decay=0.1)
    assert {group["base_lr"] for group in together.param_groups} == {0.03, LR}
    apart = build(name, twins, lr=0.03, weight_decay=0.4, **OPTIONS.get(name, {}))
    rest = made(name, other_twins, weight_decay=0.1)
    for t in range(5):
        step(together, {p: gradients(p)[t] for p in [*ours, *others]}, factor=0.5)
        step(apart, {p: gradients(p)[t] for p in twins}, factor=0.5)
        step(rest, {p: gradients(p)[t] for p in other_twins}, factor=0.5)
    for found, expected in zip([*ours, *others], [*twins, *other_twins], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", OF_THE_WHOLE)
def test_a_rate_of_its_own_where_steps_are_of_the_whole(name: str) -> None:
    """Twice the rate is twice the first step."""
    slow, fast = fresh(1)[0], nn.Parameter(fresh(1)[0].detach().clone())
    optimizer = made(name, [{"params": [slow]}, {"params": [fast], "lr": 2 * LR}], **HYPERPARAMETERS.get(name, {}))
    step(optimizer, {p: gradients(p)[0] for p in (slow, fast)})
    start = fresh(1)[0].detach()
    torch.testing.assert_close(fast.detach() - start, 2 * (slow.detach() - start), rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_where_the_schedule_is_0_nothing_moves(name: str) -> None:
    """As in the first step of every warm-up; neither steps nor decay."""
    parameters = fresh()
    optimizer = made(name, parameters, weight_decay=0.5)
    for t in range(2):
        step(optimizer, {p: gradients(p)[t] for p in parameters}, factor=0.0)
    for found, expected in zip(parameters, fresh(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    step(optimizer, {p: gradients(p)[2] for p in parameters})
    assert all(torch.isfinite(p).all() for p in parameters)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_travels_with_a_layer_that_is_copied(name: str) -> None:
    """From equal weights, equal states and equal gradients the source and its copy take equal steps."""
    source, target = fresh(3)[::2]
    vector, its_copy = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
    everything = [source, target, vector, its_copy]
    optimizer = made(name, everything)
    for t in range(4):
        step(optimizer, {p: gradients(p)[t] for p in everything} | ({target: None} if t < 2 else {}))
    with torch.no_grad():
        target.copy_(source)
        its_copy.copy_(vector)
    copy_state(optimizer, {target: source, its_copy: vector})
    assert same(state_of(optimizer, target), state_of(optimizer, source))
    for t in range(4, STEPS):
        step(optimizer, {p: gradients(p)[t] for p in everything})
        assert torch.equal(target, source)
        assert torch.equal(its_copy, vector)
    drop_state(optimizer, [target])
    assert not optimizer.state.get(target)
    step(optimizer, {p: gradients(p)[STEPS] for p in everything})
    assert torch.isfinite(target).all()


def state_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    return dict(optimizer.state.get(parameter, {}))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_taken_up_from_a_file_continues_to_the_last_bit(name: str, tmp_path: Path) -> None:
    """With a parameter that has none yet; rates differ from step to step, gradients follow the parameters."""

    def go_on(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
        for t in steps:
            given = {p: gradients(p)[t] * torch.tanh(p.detach()) + 0.1 for p in parameters[: 2 if t < 5 else 4]}
            step(optimizer, dict(given), factor=1 / (1 + t))

    whole, halved = fresh(4), fresh(4)
    go_on(whole, made(name, whole), range(STEPS))
    first = made(name, halved)
    go_on(halved, first, range(3))
    checkpoint.save(tmp_path, 3, {"model": {}, "optimizer": first.state_dict()}, {}, keep=1, kept_at_h=[])
    found = checkpoint.newest(tmp_path)
    assert found is not None
    resumed = [nn.Parameter(p.detach().clone()) for p in halved]
    second = made(name, resumed)
    second.load_state_dict(found[1]["optimizer"])
    go_on(resumed, second, range(3, STEPS))
    for expected, parameter in zip(whole, resumed, strict=True):
        assert torch.equal(expected, parameter)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_of_zero_leave_weights_finite(name: str) -> None:
    """As prices of updates are measured with; and those of a layer that a step did not reach."""
    parameters = fresh(3)
    optimizer = made(name, parameters)
    for t in range(12):
        step(optimizer, {p: torch.zeros_like(p) if t < 11 else gradients(p)[0] for p in parameters})
        assert all(torch.isfinite(p).all() for p in parameters)


@pytest.mark.parametrize(
    ("name", "options", "period"),
    [
        ("adamw", {}, 1),
        ("lamb", {}, 1),
        ("soap", {}, 10),
        ("shampoo", {"update_every": 3}, 3),
        ("lars", {"inner": "soap"}, 10),
        ("sam", {"inner": "soap"}, 10),
        ("library", {"name": "adan"}, 10),
    ],
)
def test_the_price_of_an_update_is_measured_over_whole_periods(name: str, options: dict[str, Any], period: int) -> None:
    """Or what is done every tenth step would be done for nothing."""
    engine = engine_of(optimizer=name, hyperparameters=options)
    taken: list[int] = []
    engine.optimizer.register_step_post_hook(lambda *_: taken.append(1))
    probe = engine.probe("update", batch_of(1), (0, 1))
    probe()
    assert len(taken) == probe.times == period  # type: ignore[attr-defined]


def test_optimizers_whose_updates_differ_have_prices_of_their_own() -> None:
    named = [
        lookup("train/optim", name)(**options).priced_as
        for name, options in (
            ("soap", {}),
            ("soap", {"update_every": 1}),
            ("shampoo", {}),
            ("lars", {}),
            ("lars", {"inner": "adamw"}),
            ("larc", {}),
            ("muon", {}),
            ("muon", {"iterations": 3}),
            ("library", {"name": "adan"}),
            ("library", {"name": "adabelief"}),
        )
    ]
    assert len(set(named)) == len(named)
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in named)  # a part of the name of a file


# ---- on a model ----


def skewed() -> MemoryStore:
    """Rows in which some words are frequent, as in text: there is something to learn within a few steps."""
    corpus = MemoryStore(400)
    drawn = np.random.default_rng(3).exponential(6.0, corpus.tokens.shape)
    corpus.tokens[:, 1:] = (5 + np.minimum(drawn, 58)).astype(np.uint16)[:, 1:]
    return corpus


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_descends_on_a_small_model(name: str) -> None:
    """From guessing among 64 words, 4.2 nats or more, to well below: 2.6 is what knowing their frequencies gives."""
    run = run_with({}, optimizer=name, budget=30)
    run.stream.store = skewed()  # type: ignore[assignment]
    rate, default = RATES.get(name), lookup("train/optim", name)(**OPTIONS.get(name, {})).lr
    for group in run.engine.optimizer.param_groups:
        group["base_lr"] = rate if rate is not None else default
        group.update({"d": 1e-4} if name == "prodigy" else {})
    losses: list[float] = []
    train(run, lambda run: losses.append(run.engine.loss))
    assert losses[0] > math.log(64)
    assert np.mean(losses[-5:]) < 3.2
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_and_biases_are_decayed_when_asked_and_only_then(name: str) -> None:
    """Whatever groups an optimizer makes of those it is given."""
    for asked in (False, True):
        model = small_model()
        config: OptimConfig = lookup("train/optim", name)(
            weight_decay=0.5, decay_norms=asked, decay_biases=asked, **OPTIONS.get(name, {})
        )
        groups = for_model(config, model).param_groups
        found = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
        assert len(found) == sum(len(group["params"]) for group in groups)
        assert found == {p: 0.5 if asked or p.ndim >= 2 else 0.0 for p in model.parameters()}
