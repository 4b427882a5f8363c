"""The law of every method: at neutral settings it is the baseline bit for bit, at others it is not."""

from functools import cache
from typing import Any

import pytest
import torch
from memory import LAYERS, PassCost, same, trained, weights
from settings import ACTIVE, NEUTRAL
from whole_runs import METHODS, SEQUENCES, optimizer_for, run_with

from cramming.train import Run

WITHOUT_NEUTRAL: tuple[str, ...] = ("hutchinson",)  # without it AdaHessian takes no step
WITHOUT_ACTIVE: tuple[str, ...] = ("schedule_free",)  # it only says what is evaluated
STEP_PRICE = 3 * SEQUENCES * (1 + LAYERS) + 1
# The budget of 8 steps: of a clock that counts steps, and of one that charges every pass.
PRICING: dict[str, dict[str, Any]] = {
    "steps": {"budget": 8},
    "accounts_free": {"budget": 8 * STEP_PRICE, "costs": PassCost()},
}


@cache
def baseline(optimizer: str, precision: str, pricing: str) -> Run:
    """Trained once for all methods; the optimizer goes without the method that it would bring."""
    return trained(run_with({}, optimizer=optimizer, needs=False, precision=precision, **PRICING[pricing]))


def test_every_method_has_both_settings() -> None:
    assert sorted((*NEUTRAL, *WITHOUT_NEUTRAL)) == METHODS
    assert sorted((*ACTIVE, *WITHOUT_ACTIVE)) == METHODS


@pytest.mark.parametrize("pricing", PRICING)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_method_is_the_baseline_bit_for_bit(name: str, precision: str, pricing: str) -> None:
    """The same weights, the same optimizer state, the same loss, as many steps for the same price."""
    optimizer, method = optimizer_for(name), NEUTRAL[name]()
    expected = baseline(optimizer, precision, pricing)
    run = run_with({name: method}, optimizer=optimizer, precision=precision, free=method.accounts, **PRICING[pricing])
    trained(run)
    assert run.step == expected.step == 8
    assert torch.equal(weights(run.model), weights(expected.model))
    assert same(run.engine.state_dict(), expected.engine.state_dict())
    assert same(run.engine.loss, expected.engine.loss)
    assert run.clock.spent_s == expected.clock.spent_s
    assert run.stream.state_dict() == expected.stream.state_dict()
    assert run.model.active_layers == expected.model.active_layers


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ACTIVE)
def test_settings_that_act_do_change_the_run(name: str, precision: str) -> None:
    """Or the law above, and those of resume, would hold for nothing."""
    optimizer = optimizer_for(name)
    run = trained(run_with({name: ACTIVE[name]()}, optimizer=optimizer, precision=precision))
    plain = trained(run_with({}, optimizer=optimizer, needs=False, precision=precision))
    with run.method.evaluating(run):  # an average acts there only
        changed = not torch.equal(weights(run.model), weights(plain.model))
    assert changed or run.model.active_layers != plain.model.active_layers
