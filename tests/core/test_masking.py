"""Masking is a pure function of (mask seed, epoch, sequence id, position), with exact counts and published odds."""

import math

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from memory import CPU, VOCABULARY, FakeTokenizer, batch_of, same, store
from torch import Tensor

from cramming.batch import Batch
from cramming.data.masking import Masking
from cramming.data.stream import slots

TOKENIZER = FakeTokenizer()
MASKING = Masking.of(VOCABULARY, TOKENIZER.mask_id, TOKENIZER.special_ids, CPU)
SPECIAL = torch.tensor(TOKENIZER.special_ids)
REAL = VOCABULARY - len(SPECIAL)
unhurried = settings(deadline=None, derandomize=True, max_examples=60)
rates = st.floats(0.02, 0.95)
seeds = st.integers(0, 2**40)


def real_tokens(sequences: int, length: int) -> Tensor:
    """(B, S) of tokens that may all be predicted."""
    return torch.randint(len(SPECIAL), VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(1))


def mask(
    tokens: Tensor,
    *,
    ids: Tensor | None = None,
    epoch: int = 0,
    lengths: Tensor | None = None,
    seed: int = 0,
    rate: float = 0.15,
    slots_: int | None = None,
) -> Batch:
    """Mask with row numbers 0, 1, ... and just enough slots, unless told otherwise."""
    ids = torch.arange(len(tokens)) if ids is None else ids
    places = slots_ or slots(tokens.shape[1], rate)
    return MASKING(tokens, ids, torch.full_like(ids, epoch), lengths, seed=seed, rate=rate, slots=places)


def predicted(batch: Batch) -> Tensor:
    """(B, S) bool: what is predicted."""
    found = torch.zeros(batch.inputs.shape)
    return found.scatter_add_(1, batch.positions, batch.weights) > 0


def corpus(layout: str) -> tuple[Tensor, Tensor | None]:
    """All rows of the test corpus, with special tokens and, in the document layout, padding."""
    rows = store(layout)
    tokens, lengths = rows.read(torch.arange(rows.rows).numpy())
    return torch.from_numpy(tokens).long(), None if lengths is None else torch.from_numpy(lengths)


@unhurried
@given(seed=seeds, rate=rates, length=st.integers(1, 150))
@example(seed=0, rate=0.07, length=150)  # 10.500000000000002, which single precision rounds to 10
def test_every_sequence_predicts_the_same_number_of_tokens(seed: int, rate: float, length: int) -> None:
    """round(rate x S) of them, where S tokens may be predicted; at different positions."""
    batch = mask(real_tokens(8, length), seed=seed, rate=rate)
    assert batch.weights.sum(1).tolist() == [round(rate * length)] * 8
    assert all(len(set(row)) == len(row) for row in batch.positions.tolist())
    assert batch.normalizer == batch.weights.sum()


@unhurried
@given(seed=seeds, rate=rates)
def test_documents_predict_by_their_own_length(seed: int, rate: float) -> None:
    """round(rate x length) of as many slots as the longest would need, or all its real tokens where those are fewer."""
    tokens, lengths = corpus("document")
    assert lengths is not None
    batch = mask(tokens, lengths=lengths, seed=seed, rate=rate)
    real = (~torch.isin(tokens, SPECIAL)).sum(1).tolist()
    wanted = [min(round(rate * n), r) for n, r in zip(lengths.tolist(), real, strict=True)]
    assert batch.weights.sum(1).tolist() == wanted
    assert batch.positions.shape == (len(tokens), slots(tokens.shape[1], rate))


def test_special_tokens_and_padding_are_never_predicted() -> None:
    for layout in ("packed", "document"):
        tokens, lengths = corpus(layout)
        batch = mask(tokens, lengths=lengths, rate=0.9)
        shown = predicted(batch)
        assert shown.any()
        assert not torch.isin(tokens[shown], SPECIAL).any()
        assert torch.equal(batch.inputs[~shown], tokens[~shown]), "what is not predicted stays as it is"
        assert set(TOKENIZER.special_ids) & set(batch.inputs[shown].tolist()) == {TOKENIZER.mask_id}


def test_padding_is_known_by_the_length_whatever_token_it_holds() -> None:
    lengths = torch.tensor([3, 10, 20])
    beyond = torch.arange(20) >= lengths[:, None]
    assert not (predicted(mask(real_tokens(3, 20), lengths=lengths, rate=0.95)) & beyond).any()


def test_slots_without_a_candidate_weigh_nothing() -> None:
    """A row with 2 real tokens and 6 slots predicts both, once each."""
    tokens = torch.full((3, 12), TOKENIZER.sep_id)
    tokens[:, [4, 9]] = 40
    batch = mask(tokens, rate=0.5)
    assert batch.weights.sum(1).tolist() == [2, 2, 2]
    assert predicted(batch).nonzero()[:, 1].tolist() == [4, 9] * 3
    assert all(len(set(row)) == 6 for row in batch.positions.tolist())


def test_labels_are_the_true_tokens() -> None:
    tokens, _ = corpus("packed")
    batch = mask(tokens, rate=0.5)
    assert torch.equal(batch.labels, tokens.gather(1, batch.positions))


@unhurried
@given(seed=seeds, pair=st.tuples(rates, rates))
def test_masks_of_different_rates_are_nested(seed: int, pair: tuple[float, float]) -> None:
    """What a low rate predicts, a high rate predicts too, and shows in the same disguise."""
    tokens, lengths = corpus("document")
    low, high = (mask(tokens, lengths=lengths, seed=seed, rate=rate) for rate in sorted(pair))
    both = predicted(low)
    assert not (both & ~predicted(high)).any()
    assert torch.equal(low.inputs[both], high.inputs[both])


@unhurried
@given(seed=seeds, epoch=st.integers(0, 1000), order=st.permutations(range(10)), cut=st.integers(1, 9))
def test_the_company_of_a_sequence_does_not_change_its_mask(seed: int, epoch: int, order: list[int], cut: int) -> None:
    """(seed, epoch, id) decide, whatever else is in the batch, in whatever order, in however many pieces."""
    tokens, _ = corpus("packed")
    ids = torch.arange(100, 110)
    whole = mask(tokens[ids], ids=ids, seed=seed, epoch=epoch)
    shuffled = ids[order]
    pieces = [mask(tokens[part], ids=part, seed=seed, epoch=epoch) for part in (shuffled[:cut], shuffled[cut:])]
    assert same(Batch.concatenate(pieces), whole.select(torch.tensor(order)))


def test_more_slots_than_needed_change_nothing_but_their_number() -> None:
    """A falling mask rate keeps the slots of its highest value."""
    tokens, _ = corpus("packed")
    exact, roomy = mask(tokens, rate=0.15), mask(tokens, rate=0.15, slots_=12)
    assert torch.equal(exact.inputs, roomy.inputs)
    assert torch.equal(predicted(exact), predicted(roomy))
    assert roomy.weights.shape[1] == 12


def test_epochs_seeds_and_sequences_have_masks_of_their_own() -> None:
    """Two masks of rate r have no more in common than chance: a share r of their positions."""
    tokens, rate = real_tokens(2000, 40), 0.25
    masks = [
        predicted(mask(tokens, rate=rate)),
        predicted(mask(tokens, rate=rate, epoch=1)),
        predicted(mask(tokens, rate=rate, seed=1)),
        predicted(mask(tokens, rate=rate, ids=torch.arange(2000) + 1)),
    ]
    for number, first in enumerate(masks):
        for second in masks[:number]:
            common = int((first & second).sum())
            assert within(common, 2000 * 10, rate)


def test_every_position_is_predicted_equally_often() -> None:
    counts = predicted(mask(real_tokens(4000, 40), rate=0.25)).sum(0)
    assert all(within(int(count), 4000, 0.25) for count in counts)


def test_80_10_10() -> None:
    """80 % [MASK], 10 % a random real token, 10 % as it was (Devlin et al. 2019, section 3.1), at every rank alike."""
    for rate in (0.025, 0.5):  # the first of the ranking, and half of all
        tokens = real_tokens(200_000, 1)[:, 0].view(-1, 40)
        batch = mask(tokens, rate=rate)
        chosen = predicted(batch)
        shown, true = batch.inputs[chosen], tokens[chosen]
        n = len(true)
        assert within(int((shown == TOKENIZER.mask_id).sum()), n, 0.8)
        replaced = (shown != true) & (shown != TOKENIZER.mask_id)
        assert within(int(replaced.sum()), n, 0.1 * (REAL - 1) / REAL)
        assert within(int((shown == true).sum()), n, 0.1 + 0.1 / REAL)


def test_random_tokens_are_drawn_evenly_from_the_real_ones() -> None:
    tokens = torch.full((5000, 40), 30)
    batch = mask(tokens, rate=0.5)
    counts = torch.bincount(batch.inputs[batch.inputs != TOKENIZER.mask_id], minlength=VOCABULARY)
    assert counts[SPECIAL].sum() == 0
    others = [int(count) for token, count in enumerate(counts) if token not in (30, *SPECIAL.tolist())]
    assert len(others) == REAL - 1
    assert all(within(count, 5000 * 20, 0.1 / REAL) for count in others)


def test_the_stream_masks_as_masking_does() -> None:
    """The batches of the other tests, by hand."""
    batch = batch_of(8)
    tokens = torch.from_numpy(store().tokens[batch.ids.numpy()]).long()
    assert same(batch, mask(tokens, ids=batch.ids, rate=0.25, slots_=12))


def within(count: int, n: int, probability: float) -> bool:
    """Whether a count of ``n`` independent events lies within five standard deviations."""
    return abs(count - n * probability) <= 5 * math.sqrt(n * probability * (1 - probability))
