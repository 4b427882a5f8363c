"""What is trained is one point, what is validated and exported another; looking at it changes nothing."""

from typing import Any

import pytest
import torch
from memory import run_of, same, weights
from torch import nn
from whole_runs import run_with

from cramming.errors import UserError
from cramming.method import Chain
from cramming.optim import build
from cramming.optim.schedule_free import ScheduleFree, ScheduleFreeConfig
from cramming.train import Run, train
from cramming.validation import validate
from efficient_training.schedule_free import ScheduleFree as Lends


def trained(look: bool) -> Run:
    run = run_with({}, optimizer="schedule_free", budget=8)
    train(run, lambda run: validate(run) if look else None)
    return run


def test_a_run_that_is_validated_is_the_run_that_is_not() -> None:
    assert same(trained(look=True).state_dict(), trained(look=False).state_dict())


def test_the_average_is_what_is_validated_and_exported() -> None:
    """x by the definition, kept beside the optimizer: the mean of z with weights rate^2."""
    run = run_with({}, optimizer="schedule_free", budget=8)
    optimizer: Any = run.engine.optimizer
    sums: dict[nn.Parameter, torch.Tensor] = {}
    total = 0.0

    def keep(run: Run) -> None:
        nonlocal total
        rate = optimizer.param_groups[0]["lr"] * (1 - 0.999**run.step) ** 0.5
        total += rate**2
        for p in run.model.parameters():
            sums[p] = sums.get(p, torch.zeros_like(p)) + rate**2 * optimizer.state[p]["z"]

    train(run, keep)
    before = weights(run.model)
    expected = torch.cat([(sums[p] / total).flatten() for p in run.model.parameters()])
    with run.method.evaluating(run):
        evaluated = weights(run.model)
        torch.testing.assert_close(evaluated, expected, rtol=0, atol=2e-6)
        assert not torch.allclose(evaluated, before, rtol=0, atol=1e-4)
    assert torch.equal(weights(run.model), before)
    exported = run.method.lent(run.method.state_dict())
    assert set(exported) == {name for name, _ in run.model.named_parameters()}
    assert torch.equal(torch.cat([exported[name].flatten() for name, _ in run.model.named_parameters()]), evaluated)


def test_in_a_chain_too() -> None:
    run = run_with({}, optimizer="schedule_free", budget=2)
    chain = Chain({"first": Lends(), "second": Lends()})
    chain.setup(run)
    train(run, lambda run: None)
    alone, together = run.method.lent(run.method.state_dict()), chain.lent(chain.state_dict())
    assert same(dict(alone), dict(together))


def test_a_layer_that_was_never_used_is_its_own_average() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = build("schedule_free", [used, unused], lr=0.1)
    assert isinstance(optimizer, ScheduleFree)
    used.grad = torch.ones(3)
    optimizer.step()
    assert list(optimizer.average()) == [used]


def test_the_method_alone_is_refused() -> None:
    with pytest.raises(UserError, match="train/optim=schedule_free"):
        run_of(Lends())


def test_betas_that_leave_no_average_are_refused() -> None:
    with pytest.raises(UserError, match=r"betas=\[0.0, 0.9\]"):
        ScheduleFreeConfig(betas=[0.0, 0.9])
