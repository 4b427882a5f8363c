"""``Work`` and ``Clock``: what a budget is, and how it is spent. Read it as documentation."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rst import KINDS, Clock, StepsCost, WallClockCost, Work


class PerSequence:
    """A price list for tests: so many seconds a sequence, and so many an update."""

    def __init__(self, forward: float, forward_backward: float, update: float = 0.0) -> None:
        self.prices = {"forward": forward, "forward_backward": forward_backward}
        self.update = update

    def seconds(self, work: Work) -> float:
        return self.update if work.kind == "update" else self.prices[work.kind] * work.sequences


def one_pass(sequences: int = 1, model: str = "main") -> Work:
    return Work("forward_backward", sequences, 128, 16, model)


def test_a_clock_starts_at_zero_and_advances_by_what_is_charged() -> None:
    clock = Clock({"main": PerSequence(1.0, 3.0, 0.5)}, budget_s=16.0)
    assert (clock.spent_s, clock.progress, clock.exhausted) == (0.0, 0.0, False)
    assert clock.charge(one_pass(2)) == 6.0
    assert clock.charge(Work("forward", 1, 128, 16)) == 1.0
    assert clock.charge(Work("update"), "optimizer") == 0.5
    assert clock.spent_s == 7.5
    assert clock.progress == 7.5 / 16
    assert clock.ledger == {"train": 7.0, "optimizer": 0.5}
    assert clock.counts == {
        "train": {"forward_backward": {"passes": 1, "sequences": 2}, "forward": {"passes": 1, "sequences": 1}},
        "optimizer": {"update": {"passes": 1, "sequences": 0}},
    }


def test_a_free_account_is_written_down_but_not_counted() -> None:
    clock = Clock({"main": PerSequence(1.0, 3.0)}, budget_s=10.0, free=["selection"])
    clock.charge(Work("forward", 1000, 128, 16), "selection")
    assert (clock.spent_s, clock.progress, clock.exhausted) == (0.0, 0.0, False)
    assert clock.ledger["selection"] == 1000.0
    assert clock.counts["selection"]["forward"] == {"passes": 1, "sequences": 1000}


def test_the_budget_may_be_overrun_but_progress_may_not() -> None:
    clock = Clock({"main": PerSequence(1.0, 3.0)}, budget_s=9.0)
    clock.charge(one_pass(2))
    assert not clock.exhausted
    clock.charge(one_pass(1))
    assert clock.exhausted  # spending all of it is spending it
    clock.charge(one_pass(1))
    assert clock.spent_s == 12.0
    assert clock.progress == 1.0


def test_stop_at_ends_the_run_with_the_schedule_laid_out_over_the_whole_budget() -> None:
    clock = Clock({"main": PerSequence(1.0, 3.0)}, budget_s=24.0, stop_at_s=12.0)
    clock.charge(one_pass(4))
    assert clock.exhausted
    assert clock.progress == 0.5
    assert Clock({"main": StepsCost()}, budget_s=1.0, stop_at_s=5.0).exhausted is False
    beyond = Clock({"main": PerSequence(1.0, 3.0)}, budget_s=3.0, stop_at_s=12.0)
    beyond.charge(one_pass())
    assert beyond.exhausted  # an end after the budget does not prolong it


def test_every_model_has_its_own_price() -> None:
    clock = Clock({"main": PerSequence(1.0, 3.0), "proxy": PerSequence(0.25, 0.75)}, budget_s=100.0)
    clock.charge(one_pass(4))
    clock.charge(one_pass(4, model="proxy"), "selection")
    assert clock.ledger == {"train": 12.0, "selection": 3.0}


@pytest.mark.parametrize("wrong", [{"sequences": -1}, {"length": -128}, {"layers": -1}])
def test_work_cannot_be_negative(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=str(*wrong.values())):
        Work("forward", **wrong)


def test_unknown_kinds_and_models_are_refused_by_name() -> None:
    clock = Clock({"main": StepsCost()}, budget_s=1.0)
    with pytest.raises(ValueError, match=r"'backward'.*forward_backward"):
        Work("backward")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'proxy'.*main"):
        clock.charge(one_pass(model="proxy"))
    assert clock.ledger == {}, "what is refused leaves no trace"


@pytest.mark.parametrize("price", [-1.0, math.nan, math.inf])
def test_a_price_that_is_no_amount_of_time_is_refused(price: float) -> None:
    clock = Clock({"main": PerSequence(price, price)}, budget_s=1.0)
    with pytest.raises(ValueError, match="finite"):
        clock.charge(one_pass())
    assert (clock.spent_s, clock.ledger) == (0.0, {})


@pytest.mark.parametrize("budget_s", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_is_positive_and_finite(budget_s: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        Clock({"main": StepsCost()}, budget_s)
    with pytest.raises(ValueError, match="stop_at"):
        Clock({"main": StepsCost()}, 1.0, stop_at_s=budget_s)


works = st.builds(
    Work,
    kind=st.sampled_from(KINDS),
    sequences=st.integers(0, 10_000),
    length=st.just(128),
    layers=st.integers(0, 16),
)
charges = st.lists(st.tuples(works, st.sampled_from(["train", "selection", "hessian"])), max_size=60)
prices = st.floats(0, 10, allow_subnormal=False)


@given(charges=charges, forward=prices, both=prices, update=prices)
def test_law_the_ledger_holds_everything_and_the_budget_pays_what_is_not_free(
    charges: list[tuple[Work, str]], forward: float, both: float, update: float
) -> None:
    cost = PerSequence(forward, both, update)
    clock = Clock({"main": cost}, budget_s=1e4, free=["selection"])
    for work, account in charges:
        clock.charge(work, account)
    for account in ("train", "selection", "hessian"):
        mine = [work for work, where in charges if where == account]
        assert clock.ledger.get(account, 0.0) == pytest.approx(math.fsum(map(cost.seconds, mine)), rel=1e-12)
        for kind in KINDS:
            of_kind = [work for work in mine if work.kind == kind]
            count = clock.counts.get(account, {}).get(kind, {"passes": 0, "sequences": 0})
            assert count == {"passes": len(of_kind), "sequences": sum(work.sequences for work in of_kind)}
    paid = math.fsum(seconds for account, seconds in clock.ledger.items() if account != "selection")
    assert clock.spent_s == pytest.approx(paid, rel=1e-12)


@given(charges=charges, split=st.integers(0, 60), both=prices)
def test_law_a_restored_clock_goes_on_to_the_last_bit(charges: list[tuple[Work, str]], split: int, both: float) -> None:
    def fresh() -> Clock:
        return Clock({"main": PerSequence(both / 3, both, 0.1)}, budget_s=1e4, free=["selection"])

    undisturbed, before, after = fresh(), fresh(), fresh()
    for work, account in charges:
        undisturbed.charge(work, account)
    for work, account in charges[:split]:
        before.charge(work, account)
    saved = json.dumps(before.state_dict(), allow_nan=False)
    after.load_state_dict(json.loads(saved))
    before.charge(one_pass(7))  # neither a saved state nor a restored clock follows the clock it came from
    for work, account in charges[split:]:
        after.charge(work, account)
    assert json.dumps(after.state_dict(), sort_keys=True) == json.dumps(undisturbed.state_dict(), sort_keys=True)
    assert after.progress == undisturbed.progress


def test_a_state_is_a_copy() -> None:
    clock = Clock({"main": PerSequence(1.0, 3.0)}, budget_s=10.0)
    clock.charge(one_pass())
    state = clock.state_dict()
    clock.charge(one_pass())
    assert (state["spent_s"], state["ledger"]["train"]) == (3.0, 3.0)
    assert state["counts"]["train"]["forward_backward"]["passes"] == 1
    clock.load_state_dict(state)
    clock.charge(one_pass())
    assert state["counts"]["train"]["forward_backward"]["passes"] == 1


def test_time_nobody_pays_for_is_forgotten_by_wall_clock_prices_only() -> None:
    time_s = 100.0
    clock = Clock({"main": WallClockCost(now=lambda: time_s), "proxy": StepsCost()}, budget_s=60.0)
    time_s += 5.0
    clock.charge(one_pass())
    time_s += 1000.0  # validation
    clock.restart()
    time_s += 7.0
    clock.charge(one_pass())
    assert clock.ledger == {"train": 12.0}
