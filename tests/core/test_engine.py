"""The engine: gradients that do not depend on how a batch is cut, and a price for every call of the model."""

from collections.abc import Callable

import pytest
import torch
from memory import (
    LAYERS,
    LENGTH,
    VOCABULARY,
    PassCost,
    batch_of,
    endless_clock,
    engine_of,
    gradients,
    same,
    small_model,
    weights,
)
from torch import Tensor

from cramming.batch import Batch
from cramming.engine import Engine
from cramming.method import Forward, Method
from rst.work import Work

objective = Method().objective


class Recorded(PassCost):
    """A price list that remembers what it was asked."""

    def __init__(self) -> None:
        self.works: list[Work] = []

    def seconds(self, work: Work) -> float:
        self.works.append(work)
        return super().seconds(work)


def accumulate(engine: Engine, batch: Batch, microbatch_size: int) -> Engine:
    """The gradient of a batch in pieces, as the loop does it."""
    for part in batch.split(microbatch_size):
        engine.backward(part, objective)
    return engine


def relative(a: Tensor, b: Tensor) -> float:
    """Distance over size."""
    return float((a - b).norm() / b.norm())


# ---- accumulation ----


@pytest.mark.parametrize("layout", ["packed", "document"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_gradients_and_weights_do_not_depend_on_the_microbatch_size(layout: str, size: int) -> None:
    """8, 4, 2 and 1 microbatches agree to 1e-6 in float32, though each predicts another number of tokens.

    The step is plain descent: Adam divides by the size of a gradient and would turn the rounding of one that is exactly
    zero, as that of a key's bias, into a full step.
    """
    batch = batch_of(8, layout)
    whole, cut = accumulate(engine_of(), batch, 8), accumulate(engine_of(), batch, size)
    assert relative(gradients(cut.model), gradients(whole.model)) < 1e-6
    whole.step(1.0)
    cut.step(1.0)
    assert relative(weights(cut.model), weights(whole.model)) < 1e-6
    assert relative(weights(whole.model), weights(small_model())) > 1e-3, "the step went somewhere"
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)


def test_a_mean_over_microbatches_would_not_pass() -> None:
    """What the law forbids: normalizing each microbatch by its own tokens gives another gradient on the same batch."""
    batch = batch_of(8, "document")
    right, wrong = accumulate(engine_of(), batch, 8), engine_of()
    for start in range(0, 8, 2):
        part = batch.select(torch.arange(start, start + 2))
        wrong.backward(part, lambda forward, b: objective(forward, b) / 4)
    assert relative(gradients(wrong.model), gradients(right.model)) > 1e-2


def test_the_loss_of_a_step_is_the_mean_over_its_predicted_tokens() -> None:
    engine, batch = engine_of(), batch_of(8, "document")
    with torch.no_grad():
        per_token = engine.model(batch)
    accumulate(engine, batch, 2).step(1.0)
    assert engine.loss == pytest.approx(float(per_token[batch.weights > 0].mean()), rel=1e-6)


def test_the_loss_of_a_step_is_that_of_the_training_passes_alone() -> None:
    """A second pass, or an estimate made between steps, is charged to an account of its own and not added to it."""
    engine, batch = engine_of(), batch_of(4)
    engine.backward(batch, objective, "curvature")
    engine.optimizer.zero_grad()
    value = engine.backward(batch, objective)
    engine.step(1.0)
    assert engine.loss == float(value)


# ---- charging ----


def test_every_pass_is_charged_for_what_it_did() -> None:
    """Kind, sequences, padded length, active layers; in the account named."""
    costs = Recorded()
    engine, batch = engine_of(clock=endless_clock(costs), microbatch_size=4), batch_of(6)
    engine.backward(batch, objective)
    engine.model.active_layers = (1,)
    engine.backward(next(batch.split(2)), objective, "second_pass")
    engine.losses(batch, "selection")
    engine.model.active_layers = ()
    engine.logits(batch, "hessian")
    engine.step(1.0)
    assert costs.works == [
        Work("forward_backward", 6, LENGTH, LAYERS),
        Work("forward_backward", 2, LENGTH, 1),
        Work("forward", 4, LENGTH, 1),
        Work("forward", 2, LENGTH, 1),
        Work("forward", 4, LENGTH, 0),
        Work("forward", 2, LENGTH, 0),
        Work("update"),
    ]
    prices = {"train": 3 * 6 * 3, "second_pass": 3 * 2 * 2, "selection": 6 * 2, "hessian": 6, "optimizer": 1}
    assert engine.clock.ledger == prices
    assert engine.clock.spent_s == sum(prices.values())


def test_an_objective_that_runs_the_model_twice_pays_twice() -> None:
    def twice(forward: Forward, batch: Batch) -> Tensor:
        return objective(forward, batch) + 0.1 * forward(batch, logits=True).square().mean()

    engine, batch = engine_of(), batch_of(4)
    engine.backward(batch, twice)
    assert engine.clock.counts["train"]["forward_backward"] == {"passes": 2, "sequences": 8}


def test_passes_without_a_gradient_run_without_dropout_and_those_for_validation_are_not_charged() -> None:
    engine, batch = engine_of(small_model(dropout=0.5)), batch_of(4)
    first, second = engine.uncharged_logits(batch), engine.uncharged_logits(batch)
    assert first.shape == (*batch.labels.shape, VOCABULARY)
    assert torch.equal(first, second)
    assert engine.clock.ledger == {}
    assert torch.equal(engine.logits(batch, "selection"), first)
    assert torch.equal(engine.losses(batch, "selection"), engine.losses(batch, "selection"))
    assert list(engine.clock.ledger) == ["selection"]
    assert engine.backward(batch, objective) != engine.backward(batch, objective), "dropout is back"


def test_another_model_is_asked_and_charged_by_its_name() -> None:
    engine, teacher, batch = engine_of(), small_model(seed=7), batch_of(4)
    engine.clock.costs["teacher"] = PassCost()
    teacher.active_layers = (0,)  # type: ignore[assignment]
    expected = teacher(batch, logits=True).detach()
    engine.add_model("teacher", teacher)
    assert torch.equal(engine.logits(batch, "teacher", of="teacher"), expected)
    assert engine.clock.counts["teacher"]["forward"]["sequences"] == 4
    assert engine.clock.ledger == {"teacher": 4 * 2}, "one layer and the rest"
    assert not any(p.requires_grad for p in teacher.parameters())


def test_gradients_that_are_spent_move_nothing_and_are_gone() -> None:
    engine, batch = engine_of(clip_norm=0.01), batch_of(4)
    before = [p.detach().clone() for p in engine.model.parameters()]
    engine.backward(batch, objective, "hessian")
    norms: list[float] = []

    def use() -> None:
        gradients = [p.grad for p in engine.model.parameters() if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    assert engine.spend_gradients(use)
    assert norms == [pytest.approx(0.01, rel=1e-4)], "clipped"
    assert all(torch.equal(p, old) for p, old in zip(engine.model.parameters(), before, strict=True))
    assert all(p.grad is None for p in engine.model.parameters())
    next(engine.model.parameters()).grad = torch.full_like(before[0], float("nan"))
    assert not engine.spend_gradients(use)
    assert len(norms) == 1


def test_losses_are_means_over_each_sequence() -> None:
    """(B,), whatever the microbatch size; without a gradient."""
    batch = batch_of(6, "document")
    one, other = engine_of(microbatch_size=6), engine_of(microbatch_size=4)
    losses = one.losses(batch, "selection")
    with torch.no_grad():
        per_token = one.model(batch)
    by_hand = [float(row[weight > 0].mean()) for row, weight in zip(per_token, batch.weights, strict=True)]
    assert losses.tolist() == pytest.approx(by_hand, rel=1e-5)
    assert other.losses(batch, "selection").tolist() == pytest.approx(by_hand, rel=1e-5)
    assert not losses.requires_grad
    assert not gradients(one.model).any()


def test_logits_explain_the_losses() -> None:
    engine, batch = engine_of(microbatch_size=4), batch_of(6)
    logits = engine.logits(batch, "hessian")
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
    losses = (by_hand.view_as(batch.weights) * batch.weights).sum(1) / batch.weights.sum(1)
    assert torch.allclose(engine.losses(batch, "hessian"), losses, rtol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["forward", "forward_backward"])
@pytest.mark.parametrize("layers", [(), (0,), (0, 1)])
def test_measuring_a_pass_leaves_no_trace(precision: str, kind: str, layers: tuple[int, ...]) -> None:
    engine, batch = engine_of(optimizer="adamw", precision=precision), batch_of(4)
    accumulate(engine, batch, 2).step(1.0)
    engine.model.active_layers = (1,)
    before = state_of(engine)
    engine.probe(kind, batch, layers)()  # type: ignore[arg-type]
    assert same(state_of(engine), before)
    assert engine.model.active_layers == (1,)
    assert all(p.grad is None for p in engine.model.parameters())


def state_of(engine: Engine) -> dict[str, object]:
    """All that a pass could have changed."""
    return {
        "weights": weights(engine.model),
        "engine": engine.state_dict(),
        "clock": engine.clock.state_dict(),
        "loss": engine.loss,
    }


# ---- steps ----


def test_a_step_sets_every_rate_to_its_base_times_the_factor_and_drops_the_gradients() -> None:
    engine = engine_of(lr=0.5)
    engine.optimizer.param_groups[1]["base_lr"] = 2.0
    accumulate(engine, batch_of(4), 4)
    assert engine.step(0.25) == 1
    assert [group["lr"] for group in engine.optimizer.param_groups] == [0.125, 0.5]
    assert all(p.grad is None for p in engine.model.parameters())


def test_the_norm_reported_is_that_of_the_whole_gradient_before_clipping() -> None:
    engine = accumulate(engine_of(clip_norm=1e-3), batch_of(8), 4)
    norm = float(gradients(engine.model).norm())
    engine.step(1.0)
    assert engine.grad_norm == pytest.approx(norm, rel=1e-6)
    assert norm > 1e-3


@pytest.mark.parametrize("share", [0.1, 0.9, 1.1, 10.0])
def test_clipping_is_torchs(share: float) -> None:
    """Gradients longer than the limit are shortened to it, shorter ones left alone."""
    plain = accumulate(engine_of(), batch_of(8), 8)
    parameters = list(plain.model.parameters())
    limit = share * float(gradients(plain.model).norm())
    clipped = accumulate(engine_of(clip_norm=limit), batch_of(8), 8)
    torch.nn.utils.clip_grad_norm_(parameters, limit)
    plain.step(1.0)
    clipped.step(1.0)
    assert torch.equal(weights(clipped.model), weights(plain.model))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lion"])
def test_a_layer_that_no_sequence_used_is_left_alone(precision: str, optimizer: str) -> None:
    """No gradient, no decay, no optimizer state; and it takes part again as soon as it is active."""
    engine = engine_of(
        optimizer=optimizer, precision=precision, lr=0.01, hyperparameters={"weight_decay": 0.5}, clip_norm=1.0
    )
    idle, active = engine.model.blocks  # type: ignore[misc]
    before = weights(idle), weights(active)
    engine.model.active_layers = (1,)
    accumulate(engine, batch_of(4), 2)
    assert all(p.grad is None for p in idle.parameters())
    assert all(p.grad is not None for p in active.parameters())
    engine.step(1.0)
    assert torch.equal(weights(idle), before[0])
    assert not torch.equal(weights(active), before[1])
    assert all(p not in engine.optimizer.state for p in idle.parameters())
    engine.model.active_layers = (0, 1)
    accumulate(engine, batch_of(4), 2).step(1.0)
    assert not torch.equal(weights(idle), before[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_layer_that_one_group_used_gets_the_gradient_of_that_group(precision: str) -> None:
    first, second = batch_of(8).split(4)
    both, alone = engine_of(precision=precision), engine_of(precision=precision)
    for engine, layers, part in ((both, (0, 1), first), (both, (1,), second), (alone, (0, 1), first)):
        engine.model.active_layers = layers
        engine.backward(part, objective)
    blocks = [engine.model.blocks for engine in (both, alone)]
    assert torch.equal(gradients(blocks[0][0]), gradients(blocks[1][0]))  # type: ignore[index]
    assert not torch.equal(gradients(blocks[0][1]), gradients(blocks[1][1]))  # type: ignore[index]


def test_no_layer_at_all_still_trains_the_rest() -> None:
    engine = engine_of()
    engine.model.active_layers = ()
    before = weights(engine.model.embeddings)  # type: ignore[arg-type]
    accumulate(engine, batch_of(4), 2).step(1.0)
    assert not torch.equal(weights(engine.model.embeddings), before)  # type: ignore[arg-type]


# ---- memory ----


def limited(model: torch.nn.Module, sequences: int, message: str) -> Callable[..., Tensor]:
    """The model's forward on a device with room for so many sequences."""
    forward = model.forward

    def within(batch: Batch, logits: bool = False) -> Tensor:
        if len(batch) > sequences:
            raise RuntimeError(message)
        return forward(batch, logits)

    return within


@pytest.mark.parametrize(
    ("room", "way_out"),
    [(4, "impl.microbatch_size=4 fits"), (3, "impl.microbatch_size=2 fits"), (0, "one sequence alone does not fit")],
)
@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 824633720832 bytes. Error code 12 (Cannot allocate memory)",
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
    ],
)
def test_out_of_memory_is_one_line_with_the_size_that_fits(
    room: int, way_out: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of()
    monkeypatch.setattr(engine.model, "forward", limited(engine.model, room, message))
    with pytest.raises(ValueError, match=way_out) as caught:
        engine.backward(batch_of(8), objective)
    assert "out of memory with 8 sequences of 24 tokens" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_of_the_model_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    monkeypatch.setattr(engine.model, "forward", limited(engine.model, 0, "shapes cannot be multiplied (3x4 and 5x6)"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        engine.backward(batch_of(8), objective)


def test_the_compilers_limit_leaves_room_for_the_shapes_of_a_curriculum() -> None:
    """Its default of 8 variants of a block is what two lengths take; past it blocks would run uncompiled."""
    engine_of(compile=True)
    assert torch._dynamo.config.recompile_limit >= 64
