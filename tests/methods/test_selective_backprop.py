"""Selective backprop keeps what the paper's law says, as often as it says, and loses nothing on the way."""

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from memory import run_of
from scipy import stats
from torch import Tensor

from cramming.batch import Batch
from cramming.errors import UserError
from efficient_training import selective_backprop
from efficient_training.selective_backprop import SelectiveBackprop, percentiles, uniform
from rst.clock import Clock
from rst.costs import StepsCost
from tests.architectures.golden import load

Losses = Callable[[Tensor], Tensor]


def numbered(ids: Tensor) -> Batch:
    """Sequences of which nothing matters but their numbers."""
    column = ids[:, None]
    return Batch(ids, torch.zeros_like(ids), column, column * 0, column, torch.ones(column.shape), None, torch.ones(()))


class Stage:
    """A run as far as a selector looks at it: candidates 0, 1, 2, ... whose losses are a function of their number."""

    def __init__(self, method: SelectiveBackprop, losses: Losses, batch: int, last: float = math.inf) -> None:
        self.method, self.batch, self.passes, self.drawn, self.last = method, batch, 0, 0, last
        engine = SimpleNamespace(losses=lambda candidates, account: losses(candidates.ids))
        stream = SimpleNamespace(length=1, device=torch.device("cpu"))
        clock = Clock({"main": StepsCost()}, 1e9)
        self.run: Any = SimpleNamespace(
            config=SimpleNamespace(seed=3), engine=engine, stream=stream, clock=clock, batch_size=lambda _: batch
        )
        method.setup(self.run)

    def draw(self, n: int) -> Batch | None:
        if self.drawn + n > self.last:
            return None
        self.passes, self.drawn = self.passes + 1, self.drawn + n
        return numbered(torch.arange(self.drawn - n, self.drawn))

    def next(self) -> list[int] | None:
        """Numbers of the next batch."""
        batch = self.method.next_batch(self.run, self.draw, self.batch)
        return None if batch is None else batch.ids.tolist()

    @property
    def waiting(self) -> list[int]:
        return [number for part in self.method.state_dict()["waiting"] for number in part["ids"].tolist()]


def at_random(ids: Tensor) -> Tensor:
    """Independent losses, the same for the same number on every machine; many are equal."""
    return torch.tensor([np.random.default_rng(number).integers(0, 1000) / 100 for number in ids.tolist()])


# ---- which are kept ----


@pytest.mark.parametrize("prefix", ["r0.", "r1.", "r2."])
def test_the_earlier_systems_selections(prefix: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its probabilities and, given its coin tosses, its batches after the same passes, and what is left over."""
    description, groups = load(shared, "selective_backprop")
    (case,) = (run for run in description["runs"] if run["prefix"] == prefix)
    cases = groups[prefix.rstrip(".")]
    ids, losses = cases["input.example_ids"].flatten(), cases["input.losses"].flatten()
    sampled, probabilities = cases["expected.sampled"].flatten(), cases["expected.probs"].flatten()
    chances: list[Tensor] = []

    def tossed(seed: int, first: int, n: int) -> Tensor:
        return torch.where(sampled[first : first + n] == 1, 0.0, 1.0)

    def remembered(candidates: Tensor, history: Tensor) -> Tensor:
        chances.append(percentiles(candidates, history) ** case["scale"])
        return percentiles(candidates, history)

    monkeypatch.setattr(selective_backprop, "uniform", tossed)
    monkeypatch.setattr(selective_backprop, "percentiles", remembered)
    batch, at_a_time = case["mini_batch_size"], case["forward_batch"]
    assert torch.equal(ids, torch.arange(len(ids)))
    stage = Stage(
        SelectiveBackprop(case["scale"], case["history_maxlen"] / batch, at_a_time),
        lambda numbers: losses[numbers],
        batch,
        last=len(ids),
    )
    found: list[list[int] | None] = [None] * case["num_forward_batches"]
    while (trained_on := stage.next()) is not None:
        found[stage.passes - 1] = trained_on
    expected = case["microbatches_of_example_ids_per_step"]
    assert found == [step and [number for part in step for number in part] for step in expected]
    assert stage.waiting == case["left_over"]
    assert torch.cat(chances).numpy() == pytest.approx(probabilities.numpy(), abs=1e-6)


@pytest.mark.parametrize("distinct", [3, 50, 10**9])
def test_percentiles_are_scipys(distinct: int) -> None:
    random = np.random.default_rng(distinct)
    history = torch.tensor(random.integers(0, distinct, 70) / 8, dtype=torch.float32)
    losses = torch.cat([history[:20], torch.tensor([-1.0, 1e12])])
    expected = stats.percentileofscore(history.numpy(), losses.numpy(), kind="rank") / 100
    assert percentiles(losses, history).numpy() == pytest.approx(expected, abs=1e-12)


def test_percentiles_by_hand() -> None:
    """Of [1, 2, 2, 4]: 1 ranks 1st, the two 2 share ranks 2 and 3, 4 ranks 4th; 3 has three below it and no equal."""
    history = torch.tensor([2.0, 4.0, 1.0, 2.0])
    assert percentiles(torch.tensor([1.0, 2.0, 4.0, 3.0, 0.5]), history).tolist() == [0.25, 0.625, 1.0, 0.75, 0.0]


def test_a_selection_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beta 2, a history of 4, two candidates at a time, batches of 2.

    Losses 5, 1 | 3, 3 | 9, 2. History after each pass: [5, 1], [5, 1, 3, 3], [3, 3, 9, 2]; percentiles 1, 1/2 | 5/8,
    5/8 | 1, 1/4; chances 1, 1/4 | 25/64, 25/64 | 1, 1/16. With the draws below: 0 kept, 1 not | 2 kept, 3 not |
    4 kept, 5 not.
    """
    draws = torch.tensor([0.999, 0.26, 0.39, 0.40, 0.999, 0.07])
    monkeypatch.setattr(selective_backprop, "uniform", lambda seed, first, n: draws[first : first + n].double())
    losses = torch.tensor([5.0, 1.0, 3.0, 3.0, 9.0, 2.0])
    method = SelectiveBackprop(beta=2.0, history_batches=2.0, candidates_per_pass=2)
    stage = Stage(method, lambda numbers: losses[numbers], batch=2, last=6)
    assert stage.next() == [0, 2]
    assert method.columns() == {"kept_share": 0.5, "candidates": 4.0, "dropped_waiting": 0.0}
    assert method.state_dict()["history"].tolist() == [5.0, 1.0, 3.0, 3.0]
    assert stage.next() is None
    assert stage.waiting == [4]
    assert method.state_dict()["history"].tolist() == [3.0, 3.0, 9.0, 2.0]


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 3.0])
def test_sequences_are_kept_as_often_as_percentile_to_the_beta(beta: float) -> None:
    """In each tenth of the percentiles (a chi-square test over all) and altogether, where it is 1 / (beta + 1)."""
    method = SelectiveBackprop(beta, history_batches=4.0, candidates_per_pass=32)
    stage = Stage(method, at_random, batch=64, last=32 * 250)
    kept: set[int] = set()
    while (batch := stage.next()) is not None:
        kept.update(batch)
    kept.update(stage.waiting)
    history: deque[float] = deque(maxlen=256)
    counted, expected, spread = np.zeros(10), np.zeros(10), np.zeros(10)
    for start in range(0, stage.drawn, 32):
        numbers = range(start, start + 32)
        losses = at_random(torch.tensor(numbers)).numpy()
        history.extend(losses)
        shares = stats.percentileofscore(np.array(history), losses, kind="rank") / 100
        for number, share in zip(numbers, shares, strict=True):
            tenth, chance = min(9, int(share * 10)), share**beta
            counted[tenth] += number in kept
            expected[tenth] += chance
            spread[tenth] += chance * (1 - chance)
    assert stats.chi2.sf(((counted - expected) ** 2 / spread).sum(), df=10) > 0.01
    share = len(kept) / stage.drawn
    assert share == pytest.approx(1 / (beta + 1), abs=3 * math.sqrt(share * (1 - share) / stage.drawn))
    assert method.columns()["candidates"] == stage.drawn


def test_draws_are_uniform_and_depend_on_seed_and_number_alone() -> None:
    draws = uniform(0, 0, 20_000)
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(draws, uniform(1, 0, 20_000))[0, 1]) < 0.03
    assert torch.equal(draws[7:107], torch.cat([uniform(0, 7, 40), uniform(0, 47, 60)]))
    assert draws.min() >= 0
    assert draws.max() < 1


# ---- what waits ----


@pytest.mark.parametrize(("batch", "at_a_time"), [(16, 8), (16, 5), (3, 3), (8, 128)])
def test_nothing_is_lost_and_nothing_trains_twice(batch: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All batches and what waits, one after another, are the kept sequences in stream order."""
    chosen: list[int] = []
    original = SelectiveBackprop._choose

    def watched(method: SelectiveBackprop, losses: Tensor, seed: int) -> Tensor:
        first = method.state_dict()["candidates"]
        keep = original(method, losses, seed)
        chosen.extend((first + keep.nonzero().flatten()).tolist())
        return keep

    monkeypatch.setattr(SelectiveBackprop, "_choose", watched)
    stage = Stage(SelectiveBackprop(candidates_per_pass=at_a_time), at_random, batch)
    found: list[int] = []
    for step in range(1, 30):
        numbers = stage.next()
        assert numbers is not None
        found += numbers
        assert len(found) == step * batch
        assert len(stage.waiting) < min(at_a_time, batch), "a batch's last pass is the one that fills it"
    assert found + stage.waiting == chosen == sorted(chosen)


def test_scoring_at_a_time_is_at_most_a_batch_and_at_most_the_history() -> None:
    sizes: list[int] = []

    def noted(numbers: Tensor) -> Tensor:
        sizes.append(len(numbers))
        return at_random(numbers)

    Stage(SelectiveBackprop(), noted, batch=8).next()
    assert set(sizes) == {8}
    sizes.clear()
    stage = Stage(SelectiveBackprop(history_batches=1.5), noted, batch=8)
    stage.batch = 64  # sequences that are a quarter as long, say, and four times as many
    stage.next()
    assert set(sizes) == {12}


def test_beta_0_passes_the_stream_on() -> None:
    stage = Stage(SelectiveBackprop(beta=0.0, candidates_per_pass=5), at_random, batch=16)
    assert [stage.next() for _ in range(3)] == [list(range(n, n + 16)) for n in (0, 16, 32)]
    assert stage.method.columns()["kept_share"] == 1.0


# ---- losses that are no numbers ----


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_neither_kept_nor_remembered(bad: float) -> None:
    """And the others are judged as if it had not been there: with it in the history, every percentile would shift."""

    def losses(numbers: Tensor) -> Tensor:
        return torch.where(numbers % 3 == 1, bad, at_random(numbers))

    for beta in (0.0, 1.0):
        stage = Stage(SelectiveBackprop(beta, candidates_per_pass=6), losses, batch=12)
        found = [number for _ in range(6) for number in stage.next() or []]
        assert len(found) == 72
        assert not any(number % 3 == 1 for number in found)
        history = stage.method.state_dict()["history"]
        assert len(history) == 39
        assert torch.isfinite(history).all()
        finite = [number for number in range(stage.drawn) if number % 3 != 1]
        assert torch.equal(history, at_random(torch.tensor(finite))[-39:])


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta": -0.5}, r"beta=-0\.5 must be"),
        ({"beta": math.nan}, "beta=nan must be"),
        ({"beta": math.inf}, "beta=inf must be"),
        ({"history_batches": 0.0}, r"history_batches=0\.0 must be above 0"),
        ({"history_batches": math.nan}, "history_batches=nan must be above 0"),
        ({"candidates_per_pass": 0}, "candidates_per_pass=0 must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"^method.selective_backprop.{says}"):
        SelectiveBackprop(**options)


def test_a_history_shorter_than_a_pass_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"history_batches=0\.5 remembers 4 losses, fewer than the 8 .* give at least 1"
    ):
        run_of(SelectiveBackprop(history_batches=0.5))
    run_of(SelectiveBackprop(history_batches=0.5, candidates_per_pass=4))


def test_the_history_is_the_studys_at_the_studys_batch() -> None:
    for batch, remembered in ((1536, 4992), (64, 208), (8, 26)):
        stage = Stage(SelectiveBackprop(), at_random, batch)
        assert stage.method._capacity == remembered
