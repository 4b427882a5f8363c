"""Sharpness-aware minimization around another optimizer: the stored trajectory, a step by hand, whose state it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cramming import optim
from cramming.cli import compose
from cramming.errors import UserError
from cramming.optim.sam import Sam, SamConfig, ascended
from cramming.optim.state import copy_state


def sam(parameters: Any, **options: Any) -> Sam:
    built = optim.build("sam", parameters, **{"lr": 0.1, "weight_decay": 0.01, **options})
    assert isinstance(built, Sam)
    return built


def test_stored_trajectory(shared: Path) -> None:
    """Weights after every step, and both losses of each."""
    described = json.loads((shared / "golden" / "optimizers.json").read_text())["variants"]
    case = next(v for v in described if v["name"] == "sam_sgd")
    tensors = load_file(shared / "golden" / "optimizers.safetensors")
    x, y = tensors["sam_sgd.input.x"], tensors["sam_sgd.input.y"]
    parameters = {k: torch.nn.Parameter(tensors[f"input.param0.{k}"].clone()) for k in ("w", "u", "b")}
    optimizer = sam(
        [{"params": [parameters["w"], parameters["u"]]}, {"params": [parameters["b"]], "weight_decay": 0.0}],
        lr=case["config"]["lr"],
        inner="sgd",
        options={"momentum": case["config"]["momentum"], "nesterov": False},
        rho=case["config"]["rho"],
    )
    losses: list[float] = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = (torch.tanh(x @ parameters["w"] + parameters["b"]) - y).square().mean()
        loss = loss + 0.05 * parameters["u"].pow(4).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        return losses[-1]

    tolerance = max(20 * case["fp32_vs_fp64_max_abs"], 1e-6)
    for t in range(25):
        optimizer.step(closure)
        for k, parameter in parameters.items():
            torch.testing.assert_close(parameter.data, tensors[f"sam_sgd.param.{k}"][t], rtol=0, atol=tolerance)
    stored = tensors["sam_sgd.losses_two_per_step"]
    torch.testing.assert_close(torch.tensor(losses), stored, rtol=1e-5, atol=tolerance)


def test_a_step_by_hand_in_float64() -> None:
    """f = p^T A p / 2 with A diagonal: the gradient at p + e is A (p + e)."""
    curvature, start = torch.tensor([1.0, 10.0], dtype=torch.float64), torch.tensor([3.0, 0.4], dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = sam([parameter], lr=0.1, weight_decay=0.0, rho=0.5, inner="sgd", options={"momentum": 0.5})

    def closure() -> float:
        parameter.grad = curvature * parameter.detach()
        return float((curvature * parameter.detach().square()).sum() / 2)

    optimizer.step(closure)
    slope = curvature * start  # (3, 4), of length 5
    above = start + 0.5 * slope / 5
    gradient = curvature * above
    torch.testing.assert_close(parameter.data, start - 0.1 * (gradient + 0.5 * gradient))  # Nesterov's first step


def test_the_way_up_spans_all_parameters_and_leads_back_to_the_last_bit() -> None:
    """Also where the gradients carry a loss scale, are dropped on the way, or the passes fail."""
    parameters = [torch.nn.Parameter(torch.randn(n, generator=torch.Generator().manual_seed(n))) for n in (3, 4, 5)]
    before = [p.detach().clone() for p in parameters]
    slopes: list[Tensor] = [torch.randn(n, generator=torch.Generator().manual_seed(9 + n)) for n in (3, 4)]
    for scale in (1.0, 2.0**16):
        parameters[0].grad, parameters[1].grad = slopes[0] * scale, slopes[1] * scale
        with ascended(parameters, 0.25):
            moved = torch.cat([p.detach() - b for p, b in zip(parameters[:2], before[:2], strict=True)])
            assert moved.norm() == pytest.approx(0.25, rel=1e-5)
            torch.testing.assert_close(moved / moved.norm(), torch.cat(slopes) / torch.cat(slopes).norm())
            assert torch.equal(parameters[2], before[2]), "it has no gradient"
            for p in parameters:
                p.grad = None
        assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    parameters[0].grad = slopes[0]
    with pytest.raises(RuntimeError, match="of the passes"), ascended(parameters, 1.0):
        raise RuntimeError("of the passes")
    assert torch.equal(parameters[0], before[0])


def test_without_a_slope_nothing_moves() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.zeros(3)
    with ascended([parameter], 0.05):
        assert torch.equal(parameter, torch.ones(3))


def trained(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, steps: range) -> None:
    for t in steps:
        noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(t))
        parameter.grad = noise * torch.tanh(parameter.detach()) + 0.1
        optimizer.step()


def fresh() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("inner", ["adamw", "lion", "sgd"])
def test_groups_rates_and_state_are_the_inner_optimizer_s(inner: str) -> None:
    """What an engine, a schedule, a checkpoint and layer growth touch is what steps."""
    alone, wrapped = fresh(), fresh()
    plain, around = (
        optim.build(inner, [alone], lr=0.01, weight_decay=0.1),
        sam([wrapped], lr=0.01, weight_decay=0.1, inner=inner),
    )
    for optimizer, parameter in ((plain, alone), (around, wrapped)):
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * 0.5
        trained(optimizer, parameter, range(3))
    assert torch.equal(wrapped, alone)
    assert around.state is around.inner.state
    copied = torch.nn.Parameter(wrapped.detach().clone())
    again = sam([copied], lr=0.01, weight_decay=0.1, inner=inner)
    again.load_state_dict(around.state_dict())
    for group in again.param_groups:
        assert group["lr"] == 0.005
        assert group is again.inner.param_groups[0]
    trained(again, copied, range(3, 6))
    trained(plain, alone, range(3, 6))
    assert torch.equal(copied, alone)
    copy_state(again, {(other := fresh()): copied})
    assert again.inner.state[other].keys() == again.inner.state[copied].keys()


def test_it_is_priced_as_the_inner_one() -> None:
    assert SamConfig(inner="lion").priced_as == "lion"


def test_it_is_chosen_with_the_inner_optimizer_s_options() -> None:
    words = ["train/optim=sam", "train.optim.inner=lion", "train.optim.options={betas: [0.8, 0.7]}"]
    config = compose(words).train.optim
    optimizer = config.build(config.choose([{"params": [fresh()]}]))
    assert type(optimizer.inner).__name__ == "Lion"
    assert list(optimizer.param_groups[0]["betas"]) == [0.8, 0.7]
    assert config.method_options() == {"rho": 0.05}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho=-0.1"),
        ({"inner": "lionn"}, "did you mean 'lion'"),
        ({"options": {"betaz": [0.9, 0.98]}}, "adamw has no 'betaz'.*did you mean 'betas'"),
        ({"options": {"lr": 0.1}}, "adamw has no 'lr'"),
        ({"options": {"eps": -1.0}}, "eps=-1.0"),
        ({"inner": "sam"}, "needs the method sharpness itself"),
        ({"inner": "sophiag"}, "train/optim=sophiag method=sharpness"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sam([fresh()], **options)
