"""Sequences and batches that grow: functions of progress, exact costs, the same masks wherever a row is cut."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import CPU, LAYERS, LENGTH, PassCost, run_of, same, store, trained, weights

from cramming.batch import Batch
from cramming.checkpoint import flatten, unflatten
from cramming.data.stream import Split, Stream, slots
from cramming.errors import UserError
from cramming.lengths import BatchSize, Lengths
from cramming.method import Draw, Method
from cramming.train import Run

unhurried = settings(deadline=None, derandomize=True, max_examples=60)


def lengths(mode: str = "truncate") -> Lengths:
    """6 tokens, then 12, then the whole row of 24."""
    return Lengths(LENGTH, (6, 12), (0.25, 0.5), mode == "unfold")


def stream_of(curriculum: Lengths, layout: str = "packed", rate: float = 0.25) -> Stream:
    corpus: Any = store(layout)
    split = Split(corpus.rows, 0.1)
    return Stream(
        corpus, split, seed=0, mask_rate=lambda: rate, max_mask_rate=rate, device=CPU, lengths=curriculum
    )  # fmt: skip


def drawn(curriculum: Lengths, progress: float, n: int, layout: str = "packed") -> Batch:
    source = stream_of(curriculum, layout)
    source.begin_step(progress)
    return source.draw(n)


def predicted(batch: Batch) -> torch.Tensor:
    """(B, S) bool: what is predicted."""
    found = torch.zeros(batch.inputs.shape)
    return found.scatter_add_(1, batch.positions, batch.weights) > 0


# ---- which length, which size ----


@pytest.mark.parametrize(
    ("progress", "length"), [(0.0, 6), (0.2499, 6), (0.25, 12), (0.4999, 12), (0.5, LENGTH), (1.0, LENGTH)]
)
def test_each_length_lasts_until_its_share_of_the_budget(progress: float, length: int) -> None:
    assert lengths()(progress) == length


def test_lengths_may_also_shrink_and_come_back() -> None:
    curriculum = Lengths(24, (12, 6, 12), (0.1, 0.2, 0.3))
    assert [curriculum(p) for p in (0.0, 0.15, 0.25, 0.3)] == [12, 6, 12, 24]
    assert curriculum.all == (24, 6, 12)
    assert Lengths(24).all == (24,)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (((32,), ()), "equally many"),
        (((128,), (0.5,)), "128 is not a length from 4 to below"),
        (((3,), (0.5,)), "3 is not a length"),
        (((32, 64), (0.5, 0.5)), "ascending"),
        (((32, 64), (0.5, 0.2)), "ascending"),
        (((32,), (0.0,)), "between 0 and 1"),
        (((32,), (1.0,)), "between 0 and 1"),
        (((32,), (math.nan,)), "between 0 and 1"),
        (((48,), (0.5,), True), r"48 does not divide data\.seq_length=128.*32 does"),
    ],
)
def test_lengths_that_make_no_curriculum_are_refused(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Lengths(128, *arguments)


def test_crammings_batch_ramp() -> None:
    """min(floor(share x 8192 / 128) + 1) x 128, 8192) over 60 % of the budget: the reference's formula (spec 3.4)."""
    size = BatchSize(128, 8192, 0.6)
    for progress in np.linspace(0.0, 1.0, 977):
        share = float(progress) / 0.6
        assert size(float(progress)) == min((math.floor(share * 8192 / 128) + 1) * 128, 8192)
    assert size(0.6) == size(1.0) == 8192


@unhurried
@given(
    start=st.integers(1, 4096), end=st.integers(1, 4096), until=st.floats(0.01, 1.0), at=st.lists(st.floats(0.0, 1.0))
)
def test_a_growing_batch_climbs_equal_stairs_from_end_to_end(
    start: int, end: int, until: float, at: list[float]
) -> None:
    size = BatchSize(start, end, until)
    assert size(0.0) == start
    assert size(until) == size(1.0) == end
    assert all(size(progress) % math.gcd(start, end) == 0 for progress in at)
    sizes = [size(progress) for progress in sorted(at)]
    assert sizes == sorted(sizes, reverse=end < start)


@pytest.mark.parametrize("until", [0.0, -0.5, 1.5, math.nan])
def test_a_ramp_needs_a_share_to_climb_in(until: float) -> None:
    with pytest.raises(UserError, match=r"batch_size_ramp=.*is not a share"):
        BatchSize(8, 16, until)


# ---- what is drawn ----


def test_truncating_takes_the_beginnings_of_the_same_rows() -> None:
    short, whole = drawn(lengths(), 0.0, 7), drawn(lengths(), 1.0, 7)
    assert torch.equal(short.ids, whole.ids)
    tokens = torch.from_numpy(store().tokens[whole.ids.numpy()].astype(np.int64))
    assert torch.equal(short.inputs.masked_fill(predicted(short), 0), tokens[:, :6].masked_fill(predicted(short), 0))
    assert short.inputs[:, 0].eq(store().tokenizer.cls_id).all(), "a row begins with [CLS], cut or not"
    assert short.positions.shape == (7, slots(6, 0.25))


def test_unfolding_cuts_rows_into_pieces_that_follow_one_another() -> None:
    batch, whole = drawn(lengths("unfold"), 0.0, 20), drawn(lengths("unfold"), 1.0, 5)
    assert batch.ids.tolist() == whole.ids.repeat_interleave(4).tolist()
    restored = batch.inputs.scatter(1, batch.positions, batch.labels).reshape(5, LENGTH)
    assert torch.equal(restored, whole.inputs.scatter(1, whole.positions, whole.labels)), "nothing is lost"
    firsts = torch.arange(20) % 4 == 0
    assert batch.inputs[firsts, 0].eq(store().tokenizer.cls_id).all()
    assert not batch.inputs[~firsts, 0].eq(store().tokenizer.cls_id).any(), "only a row's first piece has its [CLS]"


def test_pieces_of_a_row_have_masks_of_their_own() -> None:
    """Were they masked by (seed, epoch, id, position in the piece), all four would predict the same places."""
    batch = drawn(lengths("unfold"), 0.3, 80)
    first, second = batch.positions[0::2, 0], batch.positions[1::2, 0]
    assert (first == second).sum() < 12  # about 40 / 12 by chance
    assert predicted(batch).sum(1).tolist() == [3] * 80


def test_a_rows_tokens_are_ranked_alike_however_it_is_cut() -> None:
    """A function of the position in the row: what a truncated row predicts is ranked first in the first piece too."""
    truncated, unfolded = drawn(lengths(), 0.0, 10), drawn(lengths("unfold"), 0.0, 40)
    assert torch.equal(truncated.inputs, unfolded.inputs[0::4])
    whole = drawn(Lengths(LENGTH), 0.0, 10)
    for short, full in zip(truncated.positions.tolist(), whole.positions.tolist(), strict=True):
        common = [position for position in full if position in short]
        assert common == [position for position in short if position in common], "in the same order"


def test_without_a_curriculum_nothing_changes() -> None:
    plain, curriculum = stream_of(Lengths(LENGTH)), stream_of(lengths())
    curriculum.begin_step(0.5)
    for n in (3, 150):
        assert same(plain.draw(n), curriculum.draw(n))


def test_padded_documents_are_truncated_to_what_they_have() -> None:
    batch, whole = drawn(lengths(), 0.0, 30, "document"), drawn(lengths(), 1.0, 30, "document")
    assert batch.lengths is not None
    assert whole.lengths is not None
    assert batch.lengths.tolist() == whole.lengths.clamp(max=6).tolist()
    assert len(set(batch.lengths.tolist())) > 1


@unhurried
@given(n=st.integers(1, 30), progress=st.sampled_from([0.0, 0.3, 0.9]))
def test_rows_are_consumed_whole(n: int, progress: float) -> None:
    """So the position of a stream is two integers at every length; a draw is as many sequences as were asked for."""
    source = stream_of(lengths("unfold"))
    source.begin_step(progress)
    assert len(source.draw(n)) == n
    assert source.state_dict() == {"epoch": 0, "offset": math.ceil(n / source.lengths.pieces(source.length))}


def test_validation_is_at_full_length_whatever_the_training_is_at() -> None:
    early, late = stream_of(lengths("unfold")), stream_of(Lengths(LENGTH))
    early.begin_step(0.0)
    batches = [list(source.heldout(5, mask_rate=0.15, mask_seed=0, limit=10)) for source in (early, late)]
    assert same(batches[0], batches[1])
    assert batches[0][0].length == LENGTH


# ---- a run ----


class Watch(Method):
    """Writes down the shape of every batch."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def next_batch(self, run: Run, draw: Draw, n: int) -> Batch | None:
        batch = draw(n)
        assert batch is not None
        self.shapes.append(tuple(batch.inputs.shape))
        return batch


def curriculum_run(mode: str, **options: Any) -> Run:
    """8 rows a step, growing from 2 over the first half of the budget, and the lengths above."""
    curriculum, size = lengths(mode), BatchSize(2, 8, 0.5)
    run = run_of(batch_size=lambda p: size(p) * curriculum.pieces(curriculum(p)), **options)
    run.stream.lengths = curriculum
    return run


SIZES = [2, 2, 4, 4, 6, 6, *[8] * 10]  # stairs of 2, which divides both ends; the progress of step i is i / 16


class TokenCost(PassCost):
    """PassCost by the token."""

    def seconds(self, work: Any) -> float:
        return super().seconds(work) * (work.length or 1)


def test_every_step_has_the_length_of_the_progress_at_its_start_and_pays_for_it() -> None:
    watch = Watch()
    run = trained(curriculum_run("unfold", method=watch, budget=16))
    assert watch.shapes == [(s * n, LENGTH // n) for s, n in zip(SIZES, [4] * 4 + [2] * 4 + [1] * 8, strict=True)]
    assert run.clock.counts["train"]["forward_backward"]["sequences"] == sum(rows for rows, _ in watch.shapes)

    price = 3 * (1 + LAYERS)
    watch = Watch()
    run = trained(curriculum_run("truncate", method=watch, budget=4000.0, costs=TokenCost()))
    assert {length for _, length in watch.shapes} == {6, 12, LENGTH}
    assert run.clock.ledger["train"] == sum(rows * length * price for rows, length in watch.shapes)


def test_microbatches_of_short_sequences_have_as_many_tokens() -> None:
    run = curriculum_run("unfold", microbatch_size=2)
    for progress, sequences in ((0.0, 8), (0.3, 4), (0.9, 2)):
        run.stream.begin_step(progress)
        assert {len(part) for part in run.microbatches(run.draw(16))} == {sequences}


@pytest.mark.parametrize(("mode", "layout"), [("truncate", "packed"), ("truncate", "document"), ("unfold", "packed")])
def test_a_curriculum_goes_on_where_it_was(mode: str, layout: str) -> None:
    """From any step, to the last bit: nothing but the progress decides lengths and sizes."""
    states: list[Any] = []
    whole = curriculum_run(mode, layout=layout, budget=16)
    trained(whole, lambda run: states.append(unflatten(*flatten(run.state_dict()))))
    for step in (1, 4, 7, 8):
        resumed = curriculum_run(mode, layout=layout, budget=16)
        resumed.load_state_dict(states[step - 1])
        trained(resumed)
        assert torch.equal(weights(resumed.model), weights(whole.model)), step
        assert same(resumed.state_dict()["stream"], whole.state_dict()["stream"])


@pytest.mark.parametrize("mode", ["truncate", "unfold"])
def test_the_microbatch_size_changes_nothing_beyond_rounding(mode: str) -> None:
    """Also where it does not divide the sizes the batch has on its way."""
    runs = [
        trained(curriculum_run(mode, microbatch_size=size, optimizer="sgd", lr=0.1, budget=8)) for size in (1, 4, 8)
    ]
    start = run_of().model
    moved = (weights(runs[0].model) - weights(start)).norm()
    assert all((weights(run.model) - weights(runs[0].model)).norm() < 1e-5 * moved for run in runs[1:])
