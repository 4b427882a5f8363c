"""The loop: whole steps within a budget, rates that follow progress, no dependence on the microbatch size."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import LAYERS, PassCost, gradients, run_of, same, small_model, trained, weights
from small_methods import KeepHardest, RandomDepth

from cramming.batch import Batch
from cramming.checkpoint import flatten, unflatten
from cramming.method import Draw, Method
from cramming.schedule import Linear, OneCycle, Ramp
from cramming.train import Run, random_state, set_random_state, train

STEP_PRICE = 8 * 3 * (1 + LAYERS) + 1  # of a batch of 8 under PassCost
unhurried = settings(deadline=None, derandomize=True, max_examples=15)


def rates(run: Run) -> list[float]:
    """Train, and give the learning rate of every step."""
    seen: list[float] = []
    train(run, lambda r: seen.append(r.engine.optimizer.param_groups[0]["lr"]))
    return seen


# ---- the end of the budget ----


@unhurried
@given(budget=st.floats(0.5, 6 * STEP_PRICE) | st.integers(1, 6).map(lambda n: float(n * STEP_PRICE)))
def test_a_budget_ends_after_a_whole_step(budget: float) -> None:
    """The first step that reaches it is the last; what it costs beyond is less than that step."""
    run = trained(run_of(budget=budget, costs=PassCost()))
    assert run.step == math.ceil(budget / STEP_PRICE)
    assert 0 <= run.clock.spent_s - budget < STEP_PRICE
    assert run.clock.progress == 1.0
    assert not gradients(run.model).any(), "no gradient is left"
    assert run.clock.counts["optimizer"]["update"]["passes"] == run.step
    assert run.clock.counts["train"]["forward_backward"]["sequences"] == 8 * run.step, "and none was left unused"


def test_a_finished_run_does_nothing_more() -> None:
    run = trained(run_of(budget=3))
    before = run.state_dict()
    trained(run, lambda r: pytest.fail("no step may be taken"))
    assert same(run.state_dict(), before)


def test_every_step_is_observed_once_and_in_order() -> None:
    seen: list[int] = []
    trained(run_of(budget=5), lambda run: seen.append(run.step))
    assert seen == [1, 2, 3, 4, 5]


def test_a_selection_that_ends_the_budget_leaves_the_weights_alone() -> None:
    """Scoring 8 costs 24 and gives 1, so a budget of 100 is gone before a batch of 8 is there."""
    run = trained(run_of(KeepHardest(1 / 8), budget=100, costs=PassCost()), lambda r: pytest.fail("no step"))
    assert run.step == 0
    assert torch.equal(weights(run.model), weights(small_model()))
    assert run.clock.ledger == {"selection": 120.0}


# ---- progress ----


def test_stopping_early_keeps_the_schedule_of_the_whole_budget() -> None:
    """And going on afterwards is as if it had never stopped."""
    whole, stopped = run_of(budget=10, schedule=Linear()), run_of(budget=10, stop_at=4, schedule=Linear())
    all_rates, first_rates = rates(whole), rates(stopped)
    assert first_rates == all_rates[:4]
    assert stopped.clock.progress == 0.4
    going_on = run_of(budget=10, schedule=Linear())
    going_on.load_state_dict(stopped.state_dict())
    assert rates(going_on) == all_rates[4:]
    assert torch.equal(weights(going_on.model), weights(whole.model))


@pytest.mark.parametrize("schedule", [OneCycle(), Linear(warmup=0.3)])
def test_the_rate_of_a_step_follows_the_progress_at_its_start(schedule: OneCycle | Linear) -> None:
    """base_lr x schedule(progress), where progress is what the steps before have cost."""
    run = run_of(budget=5 * STEP_PRICE + 1, costs=PassCost(), schedule=schedule, lr=0.02)
    assert rates(run) == [0.02 * schedule(step * STEP_PRICE / run.clock.budget_s) for step in range(6)]


def test_a_scoring_pass_is_progress_before_the_step_it_is_for() -> None:
    run = run_of(KeepHardest(1.0), budget=1000, costs=PassCost(), schedule=Linear())
    price = 8 * (1 + LAYERS)
    assert rates(run)[:2] == [1e-3 * Linear()(spent / 1000) for spent in (price, STEP_PRICE + 2 * price)]


def test_the_batch_size_may_follow_progress() -> None:
    """From 2 to 8 over the first half; the microbatch size need not divide what lies between."""
    ramp = Ramp(2, 8, 0.5)
    sizes: list[int] = []

    class Watch(Method):
        def next_batch(self, run: Run, draw: Draw, n: int) -> Batch | None:
            sizes.append(n)
            return draw(n)

    run = trained(run_of(Watch(), budget=12, batch_size=lambda progress: round(ramp(progress))))
    assert sizes == [round(ramp(step / 12)) for step in range(12)]
    assert sizes[0] == 2
    assert sizes[6:] == [8] * 6
    assert run.clock.counts["train"]["forward_backward"]["sequences"] == sum(sizes)


def test_the_mask_rate_may_follow_progress() -> None:
    ramp = Ramp(0.5, 0.25)
    predicted: list[float] = []

    class Watch(Method):
        def next_batch(self, run: Run, draw: Draw, n: int) -> Batch | None:
            batch = draw(n)
            assert batch is not None
            predicted.append(float(batch.weights.sum()) / n)
            return batch

    trained(run_of(Watch(), budget=4, mask_rate=ramp))
    assert predicted == [round(24 * ramp(step / 4)) for step in range(4)]


# ---- microbatches and draw groups ----


class Remembered(RandomDepth):
    """Writes down which layers each group ran through."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[int, int, tuple[int, ...]]] = []

    @contextmanager
    def thinned(self, run: Run, group: Batch) -> Iterator[None]:
        with super().thinned(run, group):
            self.drawn.append((run.step, group.index, run.model.active_layers))  # type: ignore[arg-type]
            yield


def test_a_groups_draw_is_a_pure_function_of_seed_step_and_group() -> None:
    """Whatever the microbatch size; other seeds draw otherwise."""
    runs = {
        (size, seed): trained(run_of(Remembered(), microbatch_size=size, seed=seed, budget=8, optimizer="sgd", lr=0.1))
        for size, seed in ((1, 0), (2, 0), (4, 0), (4, 1))
    }
    drawn = {key: run.method.drawn for key, run in runs.items()}  # type: ignore[attr-defined]
    assert drawn[1, 0] == drawn[2, 0] == drawn[4, 0]
    assert drawn[4, 0] != drawn[4, 1]
    assert [entry[:2] for entry in drawn[4, 0]] == [(step, group) for step in range(8) for group in range(2)]
    assert len({entry[2] for entry in drawn[4, 0]}) == 4, "each of the four selections of two layers occurs"
    moved = (weights(runs[4, 0].model) - weights(small_model())).norm()
    for size in (1, 2):
        assert (weights(runs[size, 0].model) - weights(runs[4, 0].model)).norm() < 1e-5 * moved


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_a_run_is_the_same_up_to_rounding_at_any_microbatch_size(layout: str) -> None:
    runs = [
        trained(run_of(microbatch_size=size, layout=layout, optimizer="sgd", lr=0.1, budget=8)) for size in (1, 2, 4, 8)
    ]
    moved = (weights(runs[0].model) - weights(small_model())).norm()
    assert all((weights(run.model) - weights(runs[0].model)).norm() < 1e-5 * moved for run in runs[1:])
    assert all(same(run.stream.state_dict(), runs[0].stream.state_dict()) for run in runs)


def test_the_same_seed_is_the_same_run_and_another_is_another() -> None:
    first, again, other = (weights(trained(run_of(seed=seed, budget=3)).model) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_generator_is_named_by_its_purpose() -> None:
    """Not by how often it was asked: the same draw after a resume."""
    run, other = run_of(seed=3), run_of(seed=4)

    def draw(run: Run, *parts: int | str) -> list[float]:
        return torch.rand(4, generator=run.generator(*parts)).tolist()

    assert draw(run, "depth", 5, 0) == draw(run, "depth", 5, 0)
    draws = [draw(run, "depth", 5, 0), draw(run, "depth", 5, 1), draw(run, "depth", 50), draw(run, "select", 5, 0)]
    draws.append(draw(other, "depth", 5, 0))
    assert len({tuple(values) for values in draws}) == 5


# ---- dropout ----


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_dropout_goes_on_where_it_was(precision: str) -> None:
    """The one thing that draws from torch's own generator, which is therefore part of the state."""
    torch.manual_seed(0)
    whole = run_of(budget=6, dropout=0.2, precision=precision)
    halves: list[dict[str, object]] = []
    trained(whole, lambda run: halves.append(copied(run)) if run.step == 3 else None)
    resumed = run_of(budget=6, dropout=0.2, precision=precision)
    torch.manual_seed(777)
    resumed.load_state_dict(halves[0])
    trained(resumed)
    assert torch.equal(weights(resumed.model), weights(whole.model))
    assert same(random_state(), resumed.state_dict()["random"])
    without = trained(run_of(budget=6, precision=precision))
    assert not torch.equal(weights(without.model), weights(whole.model)), "there was dropout"


def copied(run: Run) -> dict[str, object]:
    """A state that training on does not change."""
    return unflatten(*flatten(run.state_dict()))  # type: ignore[no-any-return]


def test_the_random_state_goes_back_and_forth() -> None:
    torch.manual_seed(5)
    before = random_state()
    first = torch.rand(3)
    set_random_state(before)
    assert torch.equal(torch.rand(3), first)
