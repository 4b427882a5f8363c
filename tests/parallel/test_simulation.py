"""The laws of ranks where no machine has so many: the simulator that drives the sampler, the clock and the plans."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming.data.stream import Stream
from cramming.errors import UserError
from cramming.lengths import BatchSize, Lengths
from cramming.parallel.ranks import Ranks, here, standing_for
from cramming.saving.layout import Outline, Rows
from cramming.scaling import plans, simulate
from cramming.scaling.simulation import ORDERS, LawBroken, Setting, check_steps, journey, peak_bytes
from rst.clock import Clock
from rst.costs import FlopsCost
from rst.table import CostTable

TABLE = CostTable.load(Path(__file__).parents[2] / "rst" / "tables" / "rtx3090.json")
FLOPS = FlopsCost(lambda work: work.sequences * work.length * (1e6 + 10.0 * work.length) * work.layers, 1e12)
SMALL = Setting(FLOPS, 5000, BatchSize(96, 192, 0.5), epochs=2.3, ranks=4, microbatch=16, group=48, shards=60)


@pytest.mark.parametrize(
    ("order", "worlds"), [("shuffled", [1024, 512, 768]), pytest.param("shards", [1024], marks=pytest.mark.full)]
)
def test_a_thousand_ranks_of_a_billion_sequences(order: str, worlds: list[int]) -> None:
    """One whole run of one rank; where the epoch ends, all ranks, and other numbers of them in turns."""
    growing = BatchSize(393_216, 786_432, 0.5)
    run_of = Setting(TABLE, 10**9, growing, epochs=1.005, ranks=1024, microbatch=128, group=393_216, order=order)
    run = journey(run_of, marks=0, rank=1023)
    assert 1e9 < run.drawn < 1.01e9
    assert [mark.behind["stream"]["epoch"] for mark in run.marks] == [0, 1, 1]
    paid = check_steps(run_of, run.marks[1], worlds)
    assert paid == [pytest.approx(paid[0])] * len(worlds), "as many device-seconds on any number of ranks"
    assert peak_bytes(run_of, run.marks[1]) < 2**20


@pytest.mark.parametrize("order", ORDERS)
def test_memory_does_not_grow_with_the_sequences(order: str) -> None:
    def peak(sequences: int) -> int:
        growing, epochs = BatchSize(4096, 4096, 1.0), 4096 * 3.5 / sequences
        large = Setting(TABLE, sequences, growing, epochs=epochs, ranks=16, order=order)
        return peak_bytes(large, journey(large, 0).marks[-1])

    some, many = peak(10**6), peak(10**12)
    assert many < 1.2 * some


@st.composite
def settings_of_runs(draw: st.DrawFn) -> Setting:
    """Runs whose ranks may be 1, 2, 3, 4, 6 or 12."""
    first, last = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    group = draw(st.sampled_from([None, 12, 24]))
    shorter, until = draw(st.sampled_from([((), ()), ((32,), (0.4,)), ((16, 64), (0.2, 0.7))]))
    return Setting(
        FLOPS, draw(st.integers(150, 700)), BatchSize(12 * first, 12 * last, draw(st.sampled_from([0.3, 1.0]))),
        epochs=2.2, ranks=draw(st.sampled_from([1, 2, 4, 12])), microbatch=5, shards=9, seed=draw(st.integers(0, 99)),
        lengths=Lengths(128, shorter, until, unfold=draw(st.booleans())),
        group=group if min(first, last) * 12 >= (group or 0) else None, order=draw(st.sampled_from(ORDERS)),
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(settings_of_runs(), st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=1, max_size=3), st.integers(0, 99))
def test_any_ranks_batches_and_lengths(run_of: Setting, worlds: list[int], which: int) -> None:
    """Wherever a run is taken up, and by however many ranks in turns, it draws what nobody disturbed."""
    run = journey(run_of, marks=2, rank=run_of.ranks - 1)
    check_steps(run_of, run.marks[which % len(run.marks)], [run_of.ranks, *worlds])


def test_an_epoch_has_each_sequence_once() -> None:
    for order in ORDERS:
        seen = []
        simulated = replace(SMALL, order=order, ranks=1).rank()
        while simulated.stream.epoch == 0:
            seen.append(simulated.step().named)
        drawn = np.concatenate(seen)
        ids = drawn[drawn[:, 0] == 0, 1]
        assert len(ids) == len(set(ids.tolist())) == SMALL.sequences
        if order == "shuffled":
            assert sorted(ids.tolist()) == list(range(SMALL.sequences))


def test_ranks_that_do_not_divide_a_step_are_refused_as_a_run_refuses_them() -> None:
    with pytest.raises(UserError, match=r"train\.batch_size=.* cannot be spread evenly over 5 ranks"):
        replace(SMALL, ranks=5)


def broken_rows(change: Callable[[Any], Any]) -> Callable[[Stream, int], Any]:
    """``next_rows`` with something wrong on the last rank."""
    right = Stream.next_rows

    def next_rows(stream: Stream, n: int) -> Any:
        found = right(stream, n)
        return change(found) if here().world > 1 and here().rank == here().world - 1 else found

    return next_rows


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (lambda found: (found[0][::-1].copy(), *found[1:]), "4 ranks together do not have the batch"),
        (lambda found: (found[0], found[1] + 1, found[2]), "4 ranks together do not have the batch"),
        (lambda found: tuple(one[:-1] for one in found), "could not broadcast"),
    ],
    ids=["another order", "another epoch", "less work"],
)
def test_wrong_slices_are_found(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], law: str) -> None:
    mark = journey(SMALL, 0).marks[0]
    monkeypatch.setattr(Stream, "next_rows", broken_rows(change))
    with pytest.raises((LawBroken, ValueError), match=law):
        check_steps(SMALL, mark, [4])


def test_ranks_that_draw_alike_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = journey(SMALL, 0).marks[0]
    right = Stream.next_rows

    def all_as_the_first(stream: Stream, n: int) -> Any:
        with standing_for(Ranks(rank=0, world=here().world)):
            return right(stream, n)

    monkeypatch.setattr(Stream, "next_rows", all_as_the_first)
    with pytest.raises(LawBroken, match="together do not have the batch"):
        check_steps(SMALL, mark, [2])


def test_a_clock_of_its_own_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = journey(SMALL, 0).marks[0]
    right = Clock.charge
    monkeypatch.setattr(
        Clock, "charge",
        lambda clock, work, account="train": right(clock, replace(work, layers=11 + (here().rank != 2)), account),
    )  # fmt: skip
    with pytest.raises(LawBroken, match="clock and stream of rank 2 of 4 are not those of rank 0"):
        check_steps(SMALL, mark, [4])


def test_a_position_that_is_not_saved_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = journey(SMALL, 1).marks[1]
    monkeypatch.setattr(Stream, "load_state_dict", lambda stream, state: stream._seek(state["epoch"], 0))
    with pytest.raises(LawBroken, match="elsewhere"):
        check_steps(SMALL, mark, [4])


TENSORS = st.dictionaries(
    st.text("ab.", min_size=1, max_size=4),
    st.builds(lambda shape, shared: Outline(tuple(shape), sharded=shared and bool(shape)),
              st.lists(st.integers(1, 300), max_size=2), st.booleans()),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(TENSORS, st.integers(1, 40), st.integers(1, 40))
def test_checkpoints_of_any_ranks_are_read_by_any(tensors: dict[str, Outline], writers: int, readers: int) -> None:
    plans.check_writing(tensors, writers)
    assert plans.check_reading(tensors, writers, readers) <= writers


@pytest.mark.parametrize("sharded", [True, False])
def test_checkpoints_of_a_thousand_ranks(sharded: bool) -> None:
    tensors = plans.outlines("bert_tiny", 128, sharded=sharded)
    wrote = plans.check_writing(tensors, 1024)
    assert wrote.pieces < 2 * len(tensors) + 1024
    for readers in (512, 768):
        assert plans.check_reading(tensors, 1024, readers) <= 1024


def test_a_row_that_nobody_writes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": Outline((64, 1000), sharded=True)}
    right = plans.written_by

    def short(tensors: Any, world: int, rank: int) -> dict[str, Rows]:
        return {name: Rows(rows.start, rows.length - (rank == 3)) for name, rows in right(tensors, world, rank).items()}

    monkeypatch.setattr(plans, "written_by", short)
    with pytest.raises(LawBroken, match="rows 31 to 32 of a are left out, or there twice"):
        plans.check_writing(tensors, 8)


def test_work_that_one_rank_does_for_all_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"a": Outline((64, 10_000), sharded=True)}
    monkeypatch.setattr(plans, "written_by", lambda of, world, rank: {} if rank else {"a": Rows(0, 64)})
    with pytest.raises(LawBroken, match="one of 8 ranks writes 2560000 of 2560000 bytes"):
        plans.check_writing(tensors, 8)


WORDS = "ranks=8 worlds=[4,6] sequences=20000 batch=480 batch_initial=240 group=120 shards=50 arch=bert_tiny"


def test_the_command_says_what_it_checked(capsys: pytest.CaptureFixture[str]) -> None:
    simulate.command(WORDS.split())
    out = capsys.readouterr().out
    assert "shuffled: a rank of 8 went through" in out
    assert "by 8, 4, 6, 8 ranks in turns: slices disjoint" in out
    assert "checkpoint of bert_tiny, shared by all ranks" in out


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("worlds=[7]", "cannot be spread evenly over 7 ranks"),
        ("order=[shards,shard]", "order=shard is unknown"),
        ("sequences=10", "less than a batch"),
        ("ranks=0", "ranks=0 must be above 0"),
    ],
)
def test_a_wrong_word_is_one_line(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        simulate.command([*WORDS.split(), word])
    assert "\n" not in str(error.value)


@pytest.mark.scale
def test_the_command_as_it_is_documented() -> None:
    simulate.command([])
