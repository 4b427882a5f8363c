"""Whether a step is taken in one kernel is how an optimizer was built, not what was saved."""

from typing import Any

import pytest
import torch

from cramming import optim
from cramming.optim import for_model, is_fused
from cramming.registry import lookup

FUSED = ("adamw", "adam", "sam", "muon")


def made(kind: str, fused: bool) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A layer, always the same, and its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    return model, for_model(lookup("train/optim", kind)(lr=0.01), model, fused=fused)


def steps(model: torch.nn.Module, optimizer: Any, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        for parameter in model.parameters():
            generator = torch.Generator().manual_seed(step)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("kind", FUSED)
def test_one_kernel_is_every_parameter_by_itself(kind: str) -> None:
    (one, fused), (other, plain) = made(kind, True), made(kind, False)
    assert (is_fused(fused), is_fused(plain)) == (True, False)
    assert not any(group.get("fused") or group.get("foreach") for group in plain.param_groups)
    for model, optimizer in ((one, fused), (other, plain)):
        steps(model, optimizer, 50)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("fused", [True, False])
def test_a_saved_state_does_not_say_how_steps_are_taken(kind: str, fused: bool) -> None:
    before, saved = made(kind, not fused)
    steps(before, saved, 3)
    model, optimizer = made(kind, fused)
    model.load_state_dict(before.state_dict())
    state = saved.state_dict()
    optim.load(optimizer, state)
    assert is_fused(optimizer) is fused
    assert [group.get("fused") for group in state["param_groups"]] != [g.get("fused") for g in optimizer.param_groups]
    steps(model, optimizer, 3, first=3)
    whole, own = made(kind, fused)
    steps(whole, own, 6)
    torch.testing.assert_close(model.weight, whole.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sgd", "lion", "radam", "lamb"])
def test_others_are_as_they_are(kind: str) -> None:
    (_, fast), (_, plain) = made(kind, True), made(kind, False)
    assert is_fused(fast) is is_fused(plain) is None
    assert [{**g, "params": 0} for g in fast.param_groups] == [{**g, "params": 0} for g in plain.param_groups]
