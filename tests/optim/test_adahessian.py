"""AdaHessian's step against the paper's, its averages, and parameters of which little is known."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cramming import optim
from cramming.errors import UserError
from cramming.optim.adahessian import AdaHessian, spatial_average
from cramming.optim.state import copy_state

LR, DECAY, STEPS = 0.1, 0.2, 7
BETAS, EPS, BLOCK = (0.8, 0.9), 1e-3, 2
State = dict[str, Any]


def adahessian(parameters: Any, **options: Any) -> AdaHessian:
    given = {"lr": LR, "weight_decay": DECAY, "betas": list(BETAS), "eps": EPS, "block": BLOCK, **options}
    built = optim.build("adahessian", parameters, **given)
    assert isinstance(built, AdaHessian)
    return built


def drawn(seed: int, shape: tuple[int, ...] = (3, 4)) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    while True:
        yield random.normal(size=shape)


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("every", [1, 3])
def test_steps_by_hand_in_float64(power: float, every: int) -> None:
    """Algorithm 1 of the paper; between estimates v stays, and its correction counts estimates."""
    start = np.random.default_rng(1).normal(size=(3, 4))
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = adahessian([parameter], hessian_power=power)
    p, m, v, estimates = start, np.zeros_like(start), np.zeros_like(start), 0
    gradients, diagonals = drawn(2), drawn(3)
    for t in range(1, STEPS + 1):
        if (t - 1) % every == 0:
            diagonal = next(diagonals)
            optimizer.update_diagonal({parameter: torch.tensor(diagonal)})
            pairs = np.abs(diagonal).reshape(3, 2, 2).mean(2)
            averaged = np.repeat(pairs, 2, axis=1)
            v, estimates = BETAS[1] * v + (1 - BETAS[1]) * averaged**2, estimates + 1
        g, lr = next(gradients), LR * t / STEPS
        optimizer.param_groups[0]["lr"] = lr
        parameter.grad = torch.tensor(g)
        optimizer.step()
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        root = np.sqrt(v / (1 - BETAS[1] ** estimates))
        p = p - lr * (m / (1 - BETAS[0] ** t) / (root**power + EPS) + DECAY * p)
        np.testing.assert_allclose(parameter.detach().numpy(), p, rtol=1e-12, atol=1e-12)


def test_blocks_of_neighbours_in_a_row_are_averaged() -> None:
    values = torch.arange(10.0).view(2, 5)
    expected = torch.tensor([[0.5, 0.5, 2.5, 2.5, 4.0], [5.5, 5.5, 7.5, 7.5, 9.0]])  # the last block is of one
    assert torch.equal(spatial_average(values, 2), expected)
    assert torch.equal(spatial_average(values, 32), torch.tensor([[2.0], [7.0]]).expand(2, 5)), "no further than a row"
    assert torch.equal(spatial_average(values, 1), values)
    assert torch.equal(spatial_average(values[0], 2), values[0]), "vectors stay as they are"
    kernel = torch.tensor([0.0, 1.0, 2.0]).expand(4, 1, 3)
    assert torch.equal(spatial_average(kernel, 32), torch.ones(4, 1, 3))


def test_a_parameter_without_an_estimate_waits_for_its_first() -> None:
    """A layer that was grown between two estimates; a denominator of eps would throw it away."""
    old, young = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = adahessian([old, young])
    optimizer.update_diagonal({old: torch.ones(2, 2)})
    old.grad, young.grad = torch.ones(2, 2), torch.ones(2, 2)
    optimizer.step()
    assert not torch.equal(old, torch.ones(2, 2))
    assert torch.equal(young, torch.ones(2, 2))
    torch.testing.assert_close(optimizer.state[young]["exp_avg"], torch.full((2, 2), 1 - BETAS[0]))
    optimizer.update_diagonal({young: torch.ones(2, 2)})
    optimizer.step()
    assert not torch.equal(young, torch.ones(2, 2))


def test_what_has_no_gradient_is_left_alone() -> None:
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = adahessian([used, unused])
    optimizer.update_diagonal({used: torch.ones(3)})
    used.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3))
    assert not optimizer.state.get(unused)


def trained(optimizer: AdaHessian, parameter: torch.nn.Parameter, steps: range) -> None:
    """Gradients and estimates that depend on the parameter, so that any difference grows."""
    for t in steps:
        noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(t))
        if t % 2 == 0:
            optimizer.update_diagonal({parameter: noise * parameter.detach().cos()})
        parameter.grad = noise * torch.tanh(parameter.detach()) + 0.1
        optimizer.step()


def fresh() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))


def test_a_state_taken_up_again_continues_to_the_last_bit() -> None:
    whole, halved = fresh(), fresh()
    trained(adahessian([whole]), whole, range(STEPS))
    first = adahessian([halved])
    trained(first, halved, range(3))
    resumed = torch.nn.Parameter(halved.detach().clone())
    second = adahessian([resumed])
    second.load_state_dict(first.state_dict())
    trained(second, resumed, range(3, STEPS))
    assert torch.equal(resumed, whole)


def test_state_travels_to_a_copied_layer() -> None:
    source, target = fresh(), fresh()
    optimizer = adahessian([source, target])
    trained(optimizer, source, range(3))
    source.grad = None
    copy_state(optimizer, {target: source})
    with torch.no_grad():
        target.copy_(source)
    trained(optimizer, source, range(3, STEPS))
    source.grad = None
    trained(optimizer, target, range(3, STEPS))
    assert torch.equal(target, source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hessian_power": 0.0}, "hessian_power=0.0"),
        ({"hessian_power": 1.5}, "hessian_power=1.5"),
        ({"block": 0}, "block=0"),
        ({"hessian_every_steps": 0}, "hessian_every_steps=0"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        optim.build("adahessian", [fresh()], **{"lr": 0.1, **options})
