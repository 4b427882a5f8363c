"""Sophia-G: the stored trajectories, a step by hand, and what the size of an estimate means."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cramming import optim
from cramming.errors import UserError
from cramming.optim.sophiag import SophiaG, SophiaGConfig
from cramming.optim.state import copy_state, drop_state

VARIANTS = ("sophia_official", "sophia_official_default_bs", "ntng_sophiag_config", "ntng_sophiag_mixed")
LR, DECAY, STEPS, EVERY = 0.1, 0.2, 7, 3
BETAS, RHO = (0.8, 0.9), 0.5


def sophia(parameters: Any, **options: Any) -> SophiaG:
    given = {"lr": LR, "weight_decay": DECAY, "betas": list(BETAS), "rho": RHO, **options}
    built = optim.build("sophiag", parameters, **given)
    assert isinstance(built, SophiaG)
    return built


@pytest.mark.parametrize("variant", VARIANTS)
def test_stored_trajectories(variant: str, shared: Path) -> None:
    """Both systems' step; they estimate at other moments, which the stored case tells."""
    described = json.loads((shared / "golden" / "optimizers.json").read_text())["variants"]
    case = next(v for v in described if v["name"] == variant)
    tensors = load_file(shared / "golden" / "optimizers.safetensors")
    parameters = {k: torch.nn.Parameter(tensors[f"input.param0.{k}"].clone()) for k in ("w", "u", "b")}
    config, decays = case["config"], case["weight_decay_groups"]
    groups = [{"params": [parameters[k]], "weight_decay": decays[k]} for k in parameters]
    options = {"betas": config["betas"], "rho": config["rho"], "bs": config["bs"]}
    optimizer = sophia(groups, lr=case["base_lr"], **options)

    def give(source: str, t: int) -> None:
        for k, parameter in parameters.items():
            parameter.grad = tensors[f"input.{source}.{k}"][t].clone()

    tolerance, clipped, estimates = max(20 * case["fp32_vs_fp64_max_abs"], 1e-6), set(), 0
    for t, (lr, moment) in enumerate(zip(case["lr"], case["hess_update"], strict=True)):
        if moment == "before":
            give("hess_grad", t)
            optimizer.update_hessian()
        give("grad", t)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        if moment == "after":
            give("hess_grad", t)
            optimizer.update_hessian()
        estimates += moment is not None
        for k, parameter in parameters.items():
            torch.testing.assert_close(parameter.data, tensors[f"{variant}.param.{k}"][t], rtol=0, atol=tolerance)
        if estimates:
            clipped.add(0 < optimizer.curvature()["unclipped_share"] < 1)
    assert estimates >= 2
    assert True in clipped, "both kinds of coordinates occur"
    for k, parameter in parameters.items():
        for key in ("exp_avg", "hessian"):
            expected = tensors[f"{variant}.final_state.{k}.{key}"]
            torch.testing.assert_close(optimizer.state[parameter][key], expected, rtol=1e-5, atol=1e-7)


def drawn(seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    while True:
        yield random.normal(size=(3, 4))


def test_steps_by_hand_in_float64() -> None:
    """Algorithm 3 of the paper, with estimates of sizes that differ."""
    start = np.random.default_rng(1).normal(size=(3, 4))
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = sophia([parameter])
    p, m, h, cut = start, np.zeros_like(start), np.zeros_like(start), []
    gradients, sampled = drawn(2), drawn(3)
    for t in range(1, STEPS + 1):
        g, factor = next(gradients), t / STEPS
        optimizer.param_groups[0]["lr"] = LR * factor
        parameter.grad = torch.tensor(g)
        optimizer.step()
        p = p * (1 - LR * factor * DECAY)
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        ratio = np.minimum(1.0, np.abs(m) / (RHO * h + 1e-15))
        p = p - LR * factor * np.sign(m) * ratio
        np.testing.assert_allclose(parameter.detach().numpy(), p, rtol=1e-12, atol=1e-12)
        if t % EVERY == 0:
            sample, tokens = next(sampled), 10.0 * t
            parameter.grad = torch.tensor(sample)
            optimizer.update_hessian(tokens)
            h = BETAS[1] * h + (1 - BETAS[1]) * tokens * sample * sample
            known = optimizer.curvature()
            assert known["hessian_norm"] == pytest.approx(np.linalg.norm(h), rel=1e-12)
            assert known["unclipped_share"] == np.mean(np.abs(m) < RHO * h)
            cut.append(ratio)
    assert 0 < np.mean(np.stack(cut) == 1) < 1


def test_a_constant_bs_is_the_number_of_tokens_of_every_estimate() -> None:
    """The authors multiply in the step, we in the estimate; a ``bs`` that is given has the last word."""
    found = []
    for options, tokens in (({"bs": 64.0}, 1.0), ({"bs": 64.0}, 999.0), ({}, 64.0)):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4))
        optimizer = sophia([parameter], **options)
        gradients = drawn(4)
        for _ in range(STEPS):
            parameter.grad = torch.tensor(next(gradients))
            optimizer.update_hessian(tokens)
            parameter.grad = torch.tensor(next(gradients))
            optimizer.step()
        found.append(parameter.detach())
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=1e-12)


def test_before_the_first_estimate_every_coordinate_moves_by_the_rate() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = sophia([parameter])
    parameter.grad = torch.tensor([3.0, -1e-6, 0.0, 1e-3])
    optimizer.step()
    torch.testing.assert_close(parameter.data, torch.tensor([-LR, LR, 0.0, -LR]))


def test_what_has_no_gradient_is_left_alone() -> None:
    """In a step and in an estimate, which begins a state of its own where it comes first."""
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = sophia([used, unused])
    used.grad = torch.ones(3)
    optimizer.update_hessian(5.0)
    torch.testing.assert_close(optimizer.state[used]["hessian"], torch.full((3,), 0.5))
    optimizer.step()
    assert torch.equal(unused, torch.ones(3))
    assert not optimizer.state.get(unused)
    before = optimizer.state[used]["hessian"].clone()
    used.grad, unused.grad = None, torch.ones(3)
    optimizer.update_hessian(5.0)
    assert torch.equal(optimizer.state[used]["hessian"], before)


def trained(optimizer: SophiaG, parameter: torch.nn.Parameter, steps: range) -> None:
    """Gradients and estimates that depend on the parameter, so that any difference grows."""
    for t in steps:
        noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(t))
        parameter.grad = noise * torch.tanh(parameter.detach()) + 0.1
        optimizer.step()
        if t % 2:
            parameter.grad = noise * parameter.detach().cos()
            optimizer.update_hessian(20.0)


def fresh() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))


def test_a_state_taken_up_again_continues_to_the_last_bit() -> None:
    whole, halved = fresh(), fresh()
    trained(sophia([whole], lr=0.01), whole, range(STEPS))
    first = sophia([halved], lr=0.01)
    trained(first, halved, range(3))
    resumed = torch.nn.Parameter(halved.detach().clone())
    second = sophia([resumed], lr=0.01)
    second.load_state_dict(first.state_dict())
    trained(second, resumed, range(3, STEPS))
    assert torch.equal(resumed, whole)


def test_state_travels_to_a_copied_layer() -> None:
    source, target = fresh(), fresh()
    optimizer = sophia([source, target], lr=0.01)
    trained(optimizer, source, range(3))
    source.grad = None
    copy_state(optimizer, {target: source})
    with torch.no_grad():
        target.copy_(source)
    trained(optimizer, source, range(3, STEPS))
    source.grad = None
    trained(optimizer, target, range(3, STEPS))
    assert torch.equal(target, source)
    drop_state(optimizer, [target])
    assert target not in optimizer.state


def test_defaults_are_what_the_study_tuned_to() -> None:
    config = SophiaGConfig()
    assert (config.lr, config.weight_decay, config.rho, config.betas) == (4e-4, 0.015, 0.01, [0.965, 0.99])
    assert config.needs_method == "hessian"
    assert config.method_options() == {"hessian_every_steps": 10, "hessian_sequences": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, "rho=0.0"),
        ({"rho": float("nan")}, "rho=nan"),
        ({"bs": 0.0}, "bs=0.0"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"hessian_every_steps": 0}, "hessian_every_steps=0"),
        ({"hessian_sequences": 0}, "hessian_sequences=0"),
        ({"rhoo": 1.0}, "did you mean 'rho'"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        optim.build("sophiag", [fresh()], **{"lr": 0.1, **options})
