"""Low precision: a copy that follows the float32 weights, and float16 with a loss scale that finds its level."""

import math
from collections.abc import Callable

import pytest
import torch
from memory import batch_of, engine_of, gradients, same, small_model, weights
from torch import Tensor

from cramming import precision as precision_module
from cramming.batch import Batch
from cramming.engine import Engine
from cramming.errors import UserError
from cramming.method import Forward, Method

OPTIMIZERS = ["adamw", "adam", "sgd", "lion"]
LOW = ["bfloat16", "float16"]
objective = Method().objective
infinity, not_a_number = math.inf, math.nan


def train_step(engine: Engine, batch: Batch) -> None:
    engine.backward(batch, objective)
    engine.step(1.0)


def computed_from_its_weights(engine: Engine) -> bool:
    """Whether the engine computes what a new one computes from the same float32 weights: its copy is up to date."""
    fresh = small_model(seed=99)
    fresh.load_state_dict(engine.model.state_dict())
    batch = batch_of(6)
    other = engine_of(fresh, precision=engine.precision)
    return torch.equal(engine.losses(batch, "check"), other.losses(batch, "check"))


# ---- the copy ----


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_copy_follows_every_step_of_every_optimizer(precision: str, fused: bool, optimizer: str) -> None:
    """Fused kernels write weights without the mark that autograd leaves on a tensor written in place."""
    engine, batch = engine_of(optimizer=optimizer, precision=precision, lr=0.02), batch_of(8)
    for group in engine.optimizer.param_groups:
        group["fused"] = fused  # lion has one form and does not look
    before = engine.losses(batch, "check")
    for _ in range(3):
        train_step(engine, batch)
        assert computed_from_its_weights(engine)
    assert engine.losses(batch, "check").mean() < before.mean() - 0.1, "training gets somewhere"


def edit_in_place(model: torch.nn.Module) -> None:
    """What a method that grows or averages weights does."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)


def load(model: torch.nn.Module) -> None:
    """What a resume does."""
    model.load_state_dict(small_model(seed=5).state_dict())


def copy_one_tensor(model: torch.nn.Module) -> None:
    """A single parameter is enough."""
    with torch.no_grad():
        next(model.parameters()).copy_(next(small_model(seed=5).parameters()))


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("change", [edit_in_place, load, copy_one_tensor])
def test_the_copy_follows_weights_written_in_place(precision: str, change: Callable[[torch.nn.Module], None]) -> None:
    engine, batch = engine_of(precision=precision), batch_of(6)
    before = engine.losses(batch, "check")
    change(engine.model)
    assert computed_from_its_weights(engine)
    assert not torch.equal(engine.losses(batch, "check"), before)


def test_the_float32_weights_take_steps_too_small_for_the_copy() -> None:
    """The reason for having them: bfloat16 has 8 bits, most steps of 1e-5 would be rounded away."""
    engine, batch = engine_of(precision="bfloat16", lr=1e-5), batch_of(4)
    before = weights(engine.model)
    train_step(engine, batch)
    after = weights(engine.model)
    assert after.dtype == torch.float32
    assert not torch.equal(after, before)
    assert (after.bfloat16() == before.bfloat16()).float().mean() > 0.9


@pytest.mark.parametrize("precision", LOW)
def test_gradients_come_close_to_those_of_float32(precision: str) -> None:
    """Accumulated in float32 over microbatches; float16's still carry the loss scale until the step."""
    exact, rounded = engine_of(), engine_of(precision=precision)
    for part in batch_of(8, "document").split(2):
        exact.backward(part, objective)
        rounded.backward(part, objective)
    found = gradients(rounded.model) / rounded.state_dict()["scale"]
    assert found.dtype == torch.float32
    assert (found - gradients(exact.model)).norm() < (2e-2 if precision == "bfloat16" else 3e-3) * found.norm()


# ---- the loss scale ----


def with_scale(scale: float, optimizer: str = "adamw", **options: object) -> Engine:
    """A float16 engine at a given scale, by way of its state."""
    engine = engine_of(optimizer=optimizer, precision="float16", **options)  # type: ignore[arg-type]
    engine.load_state_dict({**engine.state_dict(), "scale": scale})
    return engine


def test_the_scale_does_not_change_the_step() -> None:
    """Powers of two only move exponents; a higher scale keeps gradients that a lower one loses to zero."""
    engines = [with_scale(scale, "sgd", clip_norm=0.1) for scale in (2.0**10, 2.0**12)]
    before = weights(engines[0].model)
    for engine in engines:
        train_step(engine, batch_of(4))
    low, high = (weights(engine.model) - before for engine in engines)
    assert (low - high).norm() < 1e-3 * high.norm()
    assert engines[0].grad_norm == pytest.approx(engines[1].grad_norm, rel=1e-4)
    assert engines[0].loss == engines[1].loss


def test_an_overflow_halves_the_scale_and_skips_the_step() -> None:
    engine, batch = with_scale(2.0**40), batch_of(4)
    before = weights(engine.model)
    train_step(engine, batch)
    state = engine.state_dict()
    assert state["scale"] == 2.0**39
    assert torch.equal(weights(engine.model), before)
    assert engine.skipped_steps == 1
    assert engine.loss_scale.skipped_in_a_row == 0, "a scale that is too high is no sign of a run gone wrong"
    while engine.state_dict()["scale"] < state["scale"] * 2 and torch.equal(weights(engine.model), before):
        train_step(engine, batch)
    assert 1 < engine.state_dict()["scale"] < 2.0**39, "it comes down until steps are taken"


def test_the_scale_doubles_after_enough_good_steps_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision_module.SCALE_GROWS_EVERY == 2000
    monkeypatch.setattr(precision_module, "SCALE_GROWS_EVERY", 3)
    engine, batch, scales = with_scale(2.0**6), batch_of(2), []
    for step in range(8):
        engine.backward(batch, overflowing if step == 1 else objective)
        engine.step(0.1)
        scales.append(math.log2(engine.state_dict()["scale"]))
    #         good 1, overflow, good 1, 2, 3: doubled, good 1, 2, 3: doubled
    assert scales == [6, 5, 5, 5, 6, 6, 6, 7]


def test_the_scale_and_its_count_are_part_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "SCALE_GROWS_EVERY", 3)
    engine, batch = with_scale(2.0**6), batch_of(2)
    for _ in range(2):
        train_step(engine, batch)
    resumed = engine_of(precision="float16", optimizer="adamw")
    resumed.model.load_state_dict(engine.model.state_dict())
    resumed.load_state_dict(engine.state_dict())
    for one in (engine, resumed):
        train_step(one, batch)
    assert engine.state_dict()["scale"] == 2.0**7
    assert same(resumed.state_dict(), engine.state_dict())


# ---- what is not finite ----


def overflowing(forward: Forward, batch: Batch) -> Tensor:
    return objective(forward, batch) * infinity


def undefined(forward: Forward, batch: Batch) -> Tensor:
    return objective(forward, batch) * not_a_number


def steep(forward: Forward, batch: Batch) -> Tensor:
    """A finite loss with an infinite gradient."""
    loss = objective(forward, batch)
    return loss + (loss - loss.detach()).sqrt()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrong", [overflowing, undefined, steep])
def test_a_step_that_is_not_finite_is_skipped_counted_and_paid(
    precision: str, wrong: Callable[[Forward, Batch], Tensor]
) -> None:
    """Weights and optimizer stay as they were; one bad microbatch of two is enough."""
    engine, batch = engine_of(optimizer="adamw", precision=precision, lr=1e-3, clip_norm=0.5), batch_of(4)
    train_step(engine, batch)
    before, spent_s = (weights(engine.model), engine.state_dict()["optimizer"]), engine.clock.spent_s
    first, second = batch.split(2)
    engine.backward(first, objective)
    engine.backward(second, wrong)
    assert engine.step(1.0) == 1, "its budget is spent"
    assert same((weights(engine.model), engine.state_dict()["optimizer"]), before)
    assert (engine.skipped_steps, engine.loss_scale.skipped_in_a_row) == (1, 1)
    assert engine.clock.spent_s > spent_s
    train_step(engine, batch)
    assert (engine.skipped_steps, engine.loss_scale.skipped_in_a_row) == (1, 0)
    assert math.isfinite(engine.loss), "nothing of the bad step is left"
    assert not torch.equal(weights(engine.model), before[0])


def test_too_many_skipped_steps_in_a_row_end_the_run_with_the_way_out() -> None:
    """Also where it was resumed between them."""
    engine, batch = engine_of(max_skipped_steps=2), batch_of(2)
    for attempt in (undefined, undefined, objective, undefined, undefined):
        engine.backward(batch, attempt)
        engine.step(1.0)
    resumed = engine_of(max_skipped_steps=2)
    resumed.load_state_dict(engine.state_dict())
    resumed.backward(batch, undefined)
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row.*lower train\.optim\.lr"):
        resumed.step(1.0)
    assert resumed.skipped_steps == 5


def test_float16_ends_too_once_its_scale_can_fall_no_further() -> None:
    """A loss that is not a number is no matter of scale."""
    engine, batch = with_scale(4.0, max_skipped_steps=3), batch_of(2)
    steps = 0

    def forever() -> None:
        nonlocal steps
        while steps < 100:
            engine.backward(batch, undefined)
            engine.step(1.0)
            steps += 1

    with pytest.raises(UserError, match="not finite in 4 steps in a row"):
        forever()
    assert steps == 5  # 4 -> 2 -> 1, then the four that count, of which the last ends it
