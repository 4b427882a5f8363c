"""Rates by step, and what the optimizer does with which weight."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from tuned import model, task

from cramming.evaluation.config import SCHEDULES, Setting
from cramming.evaluation.optimizing import factors, optimizer


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 10 steps, of which 2 of warm-up; then s = 0, 1/8, ... 7/8
        ("constant", [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0, 0.5, *(0.2 + 0.8 * (1 - i / 8) for i in range(8))]),
        ("polynomial", [0, 0.5, *(0.2 + 0.8 * (1 - i / 8) ** 3 for i in range(8))]),
        ("cosine", [0, 0.5, *(0.2 + 0.8 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8))]),
    ],
)
@pytest.mark.parametrize("warmup", [0.2, 2])
def test_rates_by_hand(schedule: str, expected: list[float], warmup: float) -> None:
    found = factors(Setting(schedule=schedule, warmup=warmup, end_factor=0.2, power=3.0), 10)
    assert [found(step) for step in range(10)] == pytest.approx(expected)


@given(st.sampled_from(SCHEDULES), st.integers(1, 400), st.floats(0, 500), st.floats(0, 1))
def test_every_rate_is_a_share_of_the_peak(schedule: str, steps: int, warmup: float, end: float) -> None:
    found = factors(Setting(schedule=schedule, warmup=warmup, end_factor=end, power=2.0), steps)
    rates = [found(step) for step in range(steps)]
    assert all(0 <= rate <= 1 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[peak:], rates[peak + 1 :], strict=False))


def test_warmup_in_steps_that_are_all_there_are() -> None:
    found = factors(Setting(schedule="linear", warmup=100), 4)
    assert [found(step) for step in range(4)] == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_they_are_transformers_schedules(schedule: str) -> None:
    from transformers import get_scheduler

    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs: Any = get_scheduler(name, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), 6, 60)
    (curve,) = theirs.lr_lambdas
    ours = factors(Setting(schedule=schedule, warmup=0.1), 60)
    assert [ours(step) for step in range(60)] == pytest.approx([curve(step) for step in range(60)])


def stepped(setting: Setting, factor: float, gradient: float = 0.0) -> tuple[nn.Linear, nn.Linear]:
    """A layer before and after a step at ``factor`` of the rate."""
    torch.manual_seed(0)
    before, after = nn.Linear(3, 2), nn.Linear(3, 2)
    after.load_state_dict(before.state_dict())
    made = optimizer(after, setting)
    for parameter in after.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    for group in made.param_groups:
        assert group["base_lr"] == setting.lr
        group["lr"] = group["base_lr"] * factor
    made.step()
    return before, after


@pytest.mark.parametrize(
    ("name", "kept"),
    [("adamw", 1 - 0.5 * 2e-3 * 0.1), ("decoupled_adamw", 1 - 0.5 * 0.1)],  # lr_t wd; (lr_t / lr) wd
)
def test_decay_by_hand(name: str, kept: float) -> None:
    setting = Setting(optimizer=name, lr=2e-3, weight_decay=0.1)
    before, after = stepped(setting, 0.5)
    torch.testing.assert_close(after.weight, before.weight * kept)
    assert torch.equal(after.bias, before.bias)
    before, after = stepped(replace(setting, decay_all=True), 0.5)
    torch.testing.assert_close(after.bias, before.bias * kept)


def test_decoupled_decay_does_not_follow_the_peak_rate() -> None:
    kept = [stepped(Setting(optimizer="decoupled_adamw", lr=lr, weight_decay=1e-2), 1.0) for lr in (1e-5, 1e-2)]
    torch.testing.assert_close(kept[0][1].weight, kept[1][1].weight)


def test_a_first_step_by_hand() -> None:
    """m / (1 - b1) = g and v / (1 - b2) = g^2, so that it is lr g / (|g| + eps)."""
    setting = Setting(lr=1e-2, betas=[0.9, 0.98], eps=0.5, weight_decay=0.0)
    before, after = stepped(setting, 0.25, gradient=-2.0)
    torch.testing.assert_close(after.weight, before.weight + 0.25 * 1e-2 * 2.0 / 2.5)


@pytest.mark.parametrize("family", ["bert_tiny", "modern_tiny", "hf"])
def test_norms_and_biases_of_a_model_are_not_decayed(family: str) -> None:
    made = model(family, task("classification"))
    groups = optimizer(made, Setting(weight_decay=0.1)).param_groups
    name = {id(parameter): name for name, parameter in made.named_parameters()}
    decayed = {name[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    rest = {name[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert decayed | rest == set(name.values())
    assert any("embeddings" in n for n in decayed)
    assert f"{made.last_layer}.weight" in decayed
    assert all("bias" in n or "norm" in n.lower() for n in rest)
    assert not {n for n in decayed if "norm" in n.lower() or "bias" in n}


def test_rates_of_pretraining_have_no_say() -> None:
    from tuned import LENGTH, weights

    from cramming.evaluation.finetuned import Start, build

    own = {"filter_lr": 1e-3, "filter_weight_decay": 0.1, "position_lr": 1e-5}
    made = build(Start(weights("m2_tiny", **own)), task("classification"), Setting(max_length=LENGTH), 0)
    groups = optimizer(made, Setting(lr=3e-5, weight_decay=0.2)).param_groups
    assert {group["lr"] for group in groups} == {3e-5}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.2}
    features = [n for n, _ in made.named_parameters() if n.endswith("filters.features")]
    undecayed = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert features
    assert all(id(made.get_parameter(name)) in undecayed for name in features)
