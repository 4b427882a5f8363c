"""The second pass of sharpness-aware minimization: what it changes, what it puts back, and what it costs."""

from typing import Any

import pytest
import torch
from memory import LAYERS, PassCost, same, trained, weights
from torch import Tensor
from whole_runs import run_with

from cramming.batch import Batch
from cramming.errors import UserError
from cramming.method import Chain, Method
from cramming.train import Run, train
from efficient_training.layer_dropping import LayerDropping
from efficient_training.sharpness import Sharpness

RHO, LR = 0.3, 0.1


def with_sharpness(rho: float = RHO, **options: Any) -> Run:
    methods: dict[str, Method] = {"sharpness": Sharpness(rho)}
    return run_with({**options.pop("others", {}), **methods}, needs=False, **options)


def slopes(run: Run, batch: Batch) -> list[Tensor]:
    loss = (run.model(batch) * batch.weights).sum() / batch.normalizer
    return list(torch.autograd.grad(loss, list(run.model.parameters())))


@pytest.mark.parametrize("microbatch_size", [8, 3])
def test_a_step_uses_the_gradient_a_little_up_the_slope(microbatch_size: int) -> None:
    """Worked out beside it (equation 2), for gradient descent without decay or clipping."""
    run = with_sharpness(optimizer="sgd", microbatch_size=microbatch_size)
    run.engine.clip_norm = None
    parameters = list(run.model.parameters())
    for group in run.engine.optimizer.param_groups:
        group.update(base_lr=LR, momentum=0.0, nesterov=False, weight_decay=0.0)
    batch = run.draw(8)
    run.stream.draw = lambda n: batch  # type: ignore[method-assign]
    first = slopes(run, batch)
    here = [p.detach().clone() for p in parameters]
    length = torch.nn.utils.get_total_norm(first)
    low = ((run.model(batch) * batch.weights).sum() / batch.normalizer).item()
    with torch.no_grad():
        torch._foreach_add_(parameters, [RHO * g / length for g in first])
    second = slopes(run, batch)
    high = ((run.model(batch) * batch.weights).sum() / batch.normalizer).item()
    with torch.no_grad():
        torch._foreach_copy_(parameters, here)
    run.clock.budget_s = 1
    trained(run)
    for parameter, before, gradient, plain in zip(parameters, here, second, first, strict=True):
        torch.testing.assert_close(parameter.data, before - LR * gradient, rtol=1e-4, atol=1e-5)
        assert not torch.equal(gradient, plain)
    assert run.method.columns()["sharpness"] == pytest.approx(high - low, rel=1e-3)
    assert high > low
    assert run.engine.loss == pytest.approx(low, rel=1e-5), "the loss that is logged is that of the weights"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_weights_come_back_to_the_last_bit(precision: str) -> None:
    """At a rate of zero nothing but the way up could move them."""
    run = with_sharpness(optimizer="adamw", precision=precision, budget=3)
    before = weights(run.model)
    for group in run.engine.optimizer.param_groups:
        group["base_lr"] = 0.0
    trained(run)
    assert torch.equal(weights(run.model), before)
    assert run.clock.counts["sharpness"] == run.clock.counts["train"]


def test_a_loss_scale_does_not_matter() -> None:
    """The way up has length rho whatever gradients are multiplied by; powers of two move exponents only."""
    ends = []
    for scale in (2.0**9, 2.0**11):
        run = with_sharpness(optimizer="sgd", precision="float16", budget=3)
        run.engine.load_state_dict({**run.engine.state_dict(), "scale": scale})
        start = weights(run.model)
        ends.append(weights(trained(run).model) - start)
    assert (ends[0] - ends[1]).norm() < 1e-2 * ends[0].norm()


def test_the_second_pass_is_paid_for() -> None:
    price = 3 * 8 * (1 + LAYERS)
    run = trained(with_sharpness(costs=PassCost(), budget=3 * (2 * price + 1)))
    assert run.step == 3
    assert run.clock.ledger == {"train": 3 * price, "sharpness": 3 * price, "optimizer": 3}
    free = trained(with_sharpness(costs=PassCost(), budget=3 * (price + 1), free=["sharpness"]))
    assert free.step == 3
    assert torch.equal(weights(free.model), weights(run.model))


def test_it_sees_the_layers_that_the_first_pass_saw() -> None:
    dropping = LayerDropping(theta=0.0, sequences_per_draw=4)
    run = with_sharpness(others={"layer_dropping": dropping}, budget=8)
    depths: dict[str, list[int]] = {"train": [], "sharpness": []}
    charge = run.clock.charge

    def noted(work: Any, account: str = "train") -> float:
        if account in depths:
            depths[account].append(work.layers)
        return charge(work, account)

    run.clock.charge = noted  # type: ignore[method-assign]
    trained(run)
    assert depths["sharpness"] == depths["train"]
    assert min(depths["train"]) < LAYERS


def test_a_gradient_that_is_not_finite_ends_the_step_before_the_second_pass() -> None:
    run = with_sharpness(optimizer="adamw", budget=2)
    before, backward = weights(run.model), run.engine.backward

    def overflowing(batch: Batch, objective: Any, account: str = "train") -> Tensor:
        return backward(batch, lambda forward, part: objective(forward, part) * float("inf"), account)

    run.engine.backward = overflowing  # type: ignore[method-assign]
    trained(run)
    assert run.engine.skipped_steps == 2
    assert torch.equal(weights(run.model), before)
    assert "sharpness" not in run.clock.counts


def test_sam_is_its_base_with_this_method() -> None:
    """``train/optim=sam`` brings it: the same bits, and a state that takes up where it was."""
    brought = trained(run_with({}, optimizer="sam"))
    alone = trained(with_sharpness(rho=0.05, optimizer="adamw"))
    assert torch.equal(weights(brought.model), weights(alone.model))
    assert same(brought.engine.state_dict(), alone.engine.state_dict())
    assert brought.method.columns() == alone.method.columns()


def test_training_with_it_descends() -> None:
    """One batch again and again."""
    run = with_sharpness(rho=0.05, budget=30)
    batch, losses = run.draw(8), []
    run.stream.draw = lambda n: batch  # type: ignore[method-assign]
    train(run, lambda run: losses.append(run.engine.loss))
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
def test_a_length_that_is_none_is_refused(rho: float) -> None:
    with pytest.raises(UserError, match=r"method\.sharpness\.rho="):
        Sharpness(rho)


def test_a_step_over_several_batches_has_no_second_pass() -> None:
    with pytest.raises(UserError, match="is impossible: its gradients are of several batches"):
        Chain({"sharpness": Sharpness(), "progressive_batching": Method()})
