"""Every optimizer's step against the formula worked out here, against stored trajectories, and against itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cramming.optim import build

NAMES = ["adamw", "adam", "sgd", "lion"]
LR, DECAY, STEPS = 0.1, 0.2, 7
STEPS_OF_THE_STORED = 25  # trajectories; not every system stores the count of them
Array = np.ndarray
Step = Callable[[Array, Array, dict[str, Any], int, float], Array]


def adamw_step(p: Array, g: Array, state: dict[str, Any], t: int, lr: float) -> Array:
    """Algorithm 2 of https://arxiv.org/abs/1711.05101, with the decay scaled by the learning rate as torch does."""
    p = p * (1 - lr * DECAY)
    return p - lr * adam_direction(g, state, t)


def adam_step(p: Array, g: Array, state: dict[str, Any], t: int, lr: float) -> Array:
    return p - lr * adam_direction(g + DECAY * p, state, t)


def adam_direction(g: Array, state: dict[str, Any], t: int) -> Array:
    state["m"] = 0.8 * state.get("m", 0.0) + 0.2 * g
    state["v"] = 0.9 * state.get("v", 0.0) + 0.1 * g * g
    return (state["m"] / (1 - 0.8**t)) / (np.sqrt(state["v"] / (1 - 0.9**t)) + 1e-3)


def sgd_step(p: Array, g: Array, state: dict[str, Any], t: int, lr: float) -> Array:
    g = g + DECAY * p
    state["m"] = g if t == 1 else 0.7 * state["m"] + g
    return p - lr * (g + 0.7 * state["m"])


def lion_step(p: Array, g: Array, state: dict[str, Any], t: int, lr: float) -> Array:
    m = state.get("m", np.zeros_like(g))
    state["m"] = 0.9 * m + 0.1 * g
    return p * (1 - lr * DECAY) - lr * np.sign(0.8 * m + 0.2 * g)


FORMULAS: dict[str, tuple[Step, dict[str, Any]]] = {
    "adamw": (adamw_step, {"betas": [0.8, 0.9], "eps": 1e-3}),
    "adam": (adam_step, {"betas": [0.8, 0.9], "eps": 1e-3}),
    "sgd": (sgd_step, {"momentum": 0.7, "nesterov": True}),
    "lion": (lion_step, {"betas": [0.8, 0.9]}),
}


def gradients(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """One for each step, seeded."""
    drawn = np.random.default_rng(5).normal(size=(STEPS, *shape))
    return [torch.tensor(g, dtype=dtype) for g in drawn]


@pytest.mark.parametrize("name", NAMES)
def test_steps_follow_the_formula_with_the_rate_of_each_step(name: str) -> None:
    formula, options = FORMULAS[name]
    start = np.random.default_rng(1).normal(size=(3, 4))
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = build(name, [parameter], lr=LR, weight_decay=DECAY, **options)
    expected, state = start, {}
    for t, gradient in enumerate(gradients((3, 4)), start=1):
        factor = t / STEPS
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["base_lr"] * factor
        parameter.grad = gradient.clone()
        optimizer.step()
        expected = formula(expected, gradient.numpy(), state, t, LR * factor)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


_SCALED = {"weight_decay": 0.01, "betas": [0.9, 0.98]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("adamw", {"weight_decay": 0.01, "betas": [0.9, 0.98], "eps": 1e-12}),
    "adam_classic": ("adam", {"weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8}),
    "lion_pytorch": ("lion", {"weight_decay": 0.1, "betas": [0.9, 0.99]}),
    "lion_pytorch_onecycle": ("lion", {"weight_decay": 0.1, "betas": [0.9, 0.99]}),
    "ntng_lion_config": ("lion", {"weight_decay": 0.1, "betas": [0.9, 0.99]}),
    "lion_pytorch_decoupled_wd": (
        "lion",
        {"weight_decay": 1.0, "betas": [0.9, 0.99]},
    ),  # there 0.01 over the first rate
    "ntng_adamw_scale": ("adamw_scale", _SCALED),
    "ntng_adamw_scale_nocorr": ("adamw_scale", {**_SCALED, "correct_bias": False}),
    "lars_sgd": ("lars", {"weight_decay": 0.05, "options": {"nesterov": False}}),
    "larc_sgd": ("larc", {"weight_decay": 0.05, "options": {"nesterov": False}}),
    "lars_adamw": ("lars", {"weight_decay": 0.01, "inner": "adamw"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_trajectories_of_the_earlier_systems(variant: str, shared: Path) -> None:
    described = json.loads((shared / "golden" / "optimizers.json").read_text())["variants"]
    case = next(v for v in described if v["name"] == variant)
    tensors = load_file(shared / "golden" / "optimizers.safetensors")
    name, options = VARIANTS[variant]
    parameters = {k: torch.nn.Parameter(tensors[f"input.param0.{k}"].clone()) for k in ("w", "u", "b")}
    said = options["weight_decay"] * (0.01 if variant == "lion_pytorch_decoupled_wd" else 1.0)
    assert case["weight_decay_groups"] == pytest.approx({"w": said, "u": said, "b": 0.0})
    groups = [
        {"params": [parameters["w"], parameters["u"]]},
        {"params": [parameters["b"]], "weight_decay": 0.0},
    ]
    optimizer = build(name, groups, lr=case["base_lr"], **options)
    tolerance = max(20 * case["fp32_vs_fp64_max_abs"], 1e-6)
    for t, lr in enumerate(case["lr"]):
        for k, parameter in parameters.items():
            parameter.grad = tensors[f"input.grad.{k}"][t].clone()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        for k, parameter in parameters.items():
            torch.testing.assert_close(parameter.data, tensors[f"{variant}.param.{k}"][t], rtol=0, atol=tolerance)
    for k, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            expected = tensors.get(f"{variant}.final_state.{k}.{key}", torch.tensor(float(STEPS_OF_THE_STORED)))
            torch.testing.assert_close(torch.as_tensor(value).float(), expected, rtol=1e-5, atol=1e-6)


def train(name: str, parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps whose gradients depend on the parameters, so that any difference grows."""
    drawn = gradients((5, 3), torch.float32)
    for t in steps:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] / (1 + t)
        for parameter in parameters:
            parameter.grad = drawn[t] * torch.tanh(parameter.detach()) + 0.1
        optimizer.step()


def fresh() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(s))) for s in (1, 2)]


@pytest.mark.parametrize("name", NAMES)
def test_a_state_taken_up_again_continues_to_the_last_bit(name: str) -> None:
    whole, halved = fresh(), fresh()
    train(name, whole, build(name, whole, lr=0.01), range(STEPS))

    first = build(name, halved, lr=0.01)
    train(name, halved, first, range(3))
    state = first.state_dict()
    resumed = [torch.nn.Parameter(p.detach().clone()) for p in halved]
    second = build(name, resumed, lr=0.01)
    second.load_state_dict(state)
    train(name, resumed, second, range(3, STEPS))

    for expected, found in zip(whole, resumed, strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_the_fused_step_is_the_plain_one_up_to_rounding(name: str) -> None:
    fused, plain = fresh(), fresh()
    with_kernel, without = build(name, fused, lr=0.01), build(name, plain, lr=0.01)
    assert with_kernel.defaults["fused"]
    for group in without.param_groups:
        group["fused"], group["foreach"] = False, False
    train(name, fused, with_kernel, range(STEPS))
    train(name, plain, without, range(STEPS))
    for found, expected in zip(fused, plain, strict=True):
        assert not torch.equal(found, fresh()[0])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_a_gradient_is_left_alone(name: str) -> None:
    used, unused = fresh()
    before = unused.detach().clone()
    optimizer = build(name, [used, unused], lr=0.01, weight_decay=0.5)
    used.grad = torch.ones_like(used)
    optimizer.step()
    assert torch.equal(unused, before)
    assert not optimizer.state.get(unused)
    assert not torch.equal(used, fresh()[0])
