"""Products with the Hessian through the engine, and Hutchinson's estimate of its diagonal from them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from memory import LAYERS, PassCost, batch_of, engine_of, gradients, small_model, trained, weights
from torch import Tensor, nn
from whole_runs import run_with

from cramming.architectures import BertConfig
from cramming.batch import Batch
from cramming.config import PretrainConfig
from cramming.engine import Engine
from cramming.errors import UserError
from cramming.method import Forward, Method
from cramming.train import Run, train
from efficient_training.hutchinson import Hutchinson
from efficient_training.layer_dropping import LayerDropping
from rst.clock import Clock

objective = Method().objective


def signs(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    random = torch.Generator().manual_seed(2)
    return {p: torch.randint(0, 2, p.shape, generator=random).float() * 2 - 1 for p in model.parameters()}


def flat(products: dict[nn.Parameter, Tensor]) -> Tensor:
    return torch.cat([product.flatten() for product in products.values()])


# ---- the engine's product ----


def test_a_product_leaves_gradients_as_they_are_and_is_charged_as_three_passes() -> None:
    engine, batch = engine_of(), batch_of(4)
    engine.backward(batch, objective)
    gathered = gradients(engine.model)
    spent = engine.clock.spent_s
    product = engine.hessian_product(batch, objective, signs(engine.model), "hessian")
    assert torch.equal(gradients(engine.model), gathered)
    assert flat(product).norm() > 0
    assert engine.clock.spent_s - spent == 3 * 3 * 4 * (1 + LAYERS)
    assert engine.clock.counts["hessian"]["forward_backward"]["passes"] == 3


def test_products_of_microbatches_add_up_to_that_of_the_batch() -> None:
    engine, batch = engine_of(), batch_of(6, "document")
    whole = flat(engine.hessian_product(batch, objective, signs(engine.model), "hessian"))
    parts = [engine.hessian_product(part, objective, signs(engine.model), "hessian") for part in batch.split(2)]
    torch.testing.assert_close(sum(map(flat, parts)), whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize(("precision", "within"), [("bfloat16", 0.05), ("float16", 1e-6)])
def test_in_low_precision_it_is_the_same_but_for_rounding(precision: str, within: float) -> None:
    """Under float16 it is worked out in float32: at the loss scale it would leave the range."""
    full, low, batch = engine_of(), engine_of(precision=precision), batch_of(4)
    exact = flat(full.hessian_product(batch, objective, signs(full.model), "hessian"))
    found = low.hessian_product(batch, objective, signs(low.model), "hessian")
    assert {product.dtype for product in found.values()} == {torch.float32}
    assert (flat(found) - exact).norm() < within * exact.norm()


def test_layers_that_are_not_active_and_weights_that_are_frozen_have_none() -> None:
    model = small_model()
    model.active_layers = (1,)  # type: ignore[assignment]
    frozen = next(model.blocks[1].parameters()).requires_grad_(False)  # type: ignore[union-attr,operator]
    engine = engine_of(model)
    found = engine.hessian_product(batch_of(2), objective, signs(model), "hessian")
    assert frozen not in found
    assert not any(p in found for p in model.blocks[0].parameters())  # type: ignore[union-attr]
    assert sum(p in found for p in model.blocks[1].parameters()) > 5  # type: ignore[union-attr,misc]


def test_running_out_of_memory_says_what_may_fit() -> None:
    def too_large(forward: Forward, batch: Batch) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = engine_of()
    with pytest.raises(UserError, match=r"out of memory with 6 sequences.*give impl\.microbatch_size=3 or less"):
        engine.hessian_product(batch_of(6), too_large, signs(engine.model), "hessian")


# ---- the estimate ----


class Listener(torch.optim.SGD):
    """Keeps what it is told."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.told: list[dict[nn.Parameter, Tensor]] = []

    def update_diagonal(self, estimates: dict[nn.Parameter, Tensor]) -> None:
        self.told.append(dict(estimates))


def listening(model: nn.Module, microbatch_size: int = 100, method: Method | None = None) -> Run:
    """A run whose optimizer only listens."""
    clock = Clock({"main": PassCost()}, 1e9)
    engine = Engine(model, Listener(model), clock, microbatch_size=microbatch_size)  # type: ignore[arg-type]
    stream: Any = SimpleNamespace(store=SimpleNamespace(seq_length=batch_of(1).length))
    chosen = method or Hutchinson()
    return Run(PretrainConfig(), model, engine, stream, clock, chosen, lambda p: 1.0, lambda p: 8)  # type: ignore[arg-type]


def estimates(run: Run, batch: Batch, steps: int) -> list[dict[nn.Parameter, Tensor]]:
    """Of steps at which nothing moves."""
    for _ in range(steps):
        run.step += run.method.update(run, batch, 1.0, lambda factor: 1)
    told: list[dict[nn.Parameter, Tensor]] = run.engine.optimizer.told  # type: ignore[attr-defined]
    return told


def test_the_estimate_is_the_diagonal_on_average() -> None:
    """Against the whole Hessian, made of products with unit vectors: five standard errors at most.

    The variance of z H z is known too: the sum of the squares beside the diagonal.
    """
    torch.manual_seed(0)
    config = BertConfig(layers=1, hidden=4, heads=1, intermediate=4, init_std=0.5, dropout=0.0, attention_dropout=0.0)
    model, batch, draws = config.build(64, 24).train(False), batch_of(2), 400
    few = [p for name, p in model.named_parameters() if "embeddings" not in name and "head.bias" not in name]
    for parameter in model.parameters():  # the others have too many entries for a whole Hessian
        parameter.requires_grad_(any(parameter is p for p in few))
    run = listening(model)
    sizes = [p.numel() for p in few]
    columns = []
    for index in range(sum(sizes)):
        unit = torch.zeros(sum(sizes))
        unit[index] = 1.0
        zero = {p: torch.zeros_like(p) for p in model.parameters()}
        vector = {p: part.view_as(p) for p, part in zip(few, unit.split(sizes), strict=True)}
        product = run.engine.hessian_product(batch, objective, zero | vector, "hessian")
        columns.append(torch.cat([product[p].flatten() for p in few]))
    whole = torch.stack(columns)
    torch.testing.assert_close(whole, whole.T, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))

    found = torch.stack([torch.cat([told[p].flatten() for p in few]) for told in estimates(run, batch, draws)])
    beside = (whole - whole.diag().diag()).square().sum(1)
    errors = (beside / draws).sqrt()
    floor = 1e-5 * float(whole.abs().max())
    assert ((found.mean(0) - whole.diag()).abs() <= 5 * errors + floor).all()
    assert found.var(0).sum() == pytest.approx(float(beside.sum()), rel=0.2)


def test_every_step_has_signs_of_its_own_and_only_every_kth_an_estimate() -> None:
    run = listening(small_model())
    first, second = estimates(run, batch_of(4), 2)
    assert not torch.equal(flat(first), flat(second))
    again = listening(small_model())
    again.step = 1
    assert torch.equal(flat(estimates(again, batch_of(4), 1)[0]), flat(second)), "a function of the step"
    seldom = listening(small_model(), method=Hutchinson(3))
    assert len(estimates(seldom, batch_of(4), 7)) == 3  # steps 0, 3 and 6


def test_the_microbatch_changes_nothing_beyond_rounding() -> None:
    batch = batch_of(8, "document")
    whole, cut = (flat(estimates(listening(small_model(), size), batch, 1)[0]) for size in (100, 3))
    torch.testing.assert_close(cut, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


def test_it_uses_the_layers_that_the_gradients_had() -> None:
    """So it is a Hessian of the loss that was differentiated, and a layer that all groups dropped has none."""
    dropping = LayerDropping(theta=0.0, sequences_per_draw=4)
    run = run_with({"layer_dropping": dropping}, optimizer="adahessian", budget=8)
    depths: dict[str, list[int]] = {"train": [], "hessian": []}
    charge = run.clock.charge

    def noted(work: Any, account: str = "train") -> float:
        if account in depths:
            depths[account].append(work.layers)
        return charge(work, account)

    run.clock.charge = noted  # type: ignore[method-assign]
    trained(run)
    assert depths["hessian"] == [depth for depth in depths["train"] for _ in range(3)]
    assert min(depths["train"]) < LAYERS


def test_an_estimate_that_is_not_finite_is_left_out() -> None:
    run = run_with({}, optimizer="adahessian", budget=2)
    product = run.engine.hessian_product

    def broken(*arguments: Any) -> dict[nn.Parameter, Tensor]:
        return {p: torch.full_like(h, float("inf")) for p, h in product(*arguments).items()}

    run.engine.hessian_product = broken  # type: ignore[method-assign]
    before = weights(run.model)
    trained(run)
    assert torch.equal(weights(run.model), before), "nothing is known of any parameter"
    run.clock.budget_s, run.engine.hessian_product = 3, product  # type: ignore[method-assign]
    trained(run)
    assert not torch.equal(weights(run.model), before)
    assert torch.isfinite(weights(run.model)).all()


def test_training_with_it_descends() -> None:
    """One batch again and again, at a hundredth of the default rate."""
    run = run_with({}, optimizer="adahessian", budget=30)
    batch, losses = run.draw(8), []
    run.stream.draw = lambda n: batch  # type: ignore[method-assign]
    for group in run.engine.optimizer.param_groups:
        group["base_lr"] = 0.015
    train(run, lambda run: losses.append(run.engine.loss))
    assert losses[-1] < losses[0] - 0.5


def test_an_optimizer_that_has_no_use_for_it_is_refused() -> None:
    with pytest.raises(UserError, match="AdamW has no use for the Hessian's diagonal; use train/optim=adahessian"):
        run_with({"hutchinson": Hutchinson()})
    with pytest.raises(UserError, match="hessian_every_steps=0"):
        Hutchinson(0)
