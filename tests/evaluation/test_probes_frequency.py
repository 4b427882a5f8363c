"""Bands of frequency: every token in one, counted on what is trained on, and adding up to validation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import run_of, store, stream

from cramming.errors import UserError
from cramming.evaluation.probes import frequency
from cramming.evaluation.probes.config import ProbeOptions
from cramming.evaluation.probes.reader import Reader
from cramming.progress import Silent
from cramming.validation import validate

COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=60).map(lambda found: np.array(found, dtype=np.int64))


@given(COUNTS, st.sampled_from(["mass", "rank"]))
def test_bands_partition_the_tokens_from_common_to_rare(found: np.ndarray, kind: str) -> None:
    by = frequency.bands(found, kind)
    assert by.of.shape == found.shape
    assert set(by.of) <= set(range(len(by.names)))
    assert ((by.of == len(by.names) - 1) == (found == 0)).all(), "the last band is of tokens that are not there"
    order = np.argsort(-found, kind="stable")
    assert (np.diff(by.of[order]) >= 0).all()
    assert (np.diff(by.rare[order].astype(int)) >= 0).all()


@given(COUNTS)
def test_tenths_of_the_mass_are_tenths_but_for_the_token_on_the_border(found: np.ndarray) -> None:
    by, total = frequency.bands(found, "mass"), found.sum()
    for band in range(10):
        up_to = found[by.of <= band].sum()
        last = found[by.of <= band].min() if up_to else 0
        assert up_to - last < (band + 1) * total / 10 or total == 0
        assert up_to >= (band + 1) * total / 10
    rare = found[by.rare].sum()
    assert rare <= total / 2, "no more than half of the corpus is of the rarer half"


def test_bands_of_ranks() -> None:
    found = np.arange(20_000, 0, -1)
    by = frequency.bands(found, "rank")
    assert by.names == ("1-10", "11-100", "101-1,000", "1,001-10,000", "10,001-", "not seen")
    assert np.bincount(by.of).tolist() == [10, 90, 900, 9000, 10_000]


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_counts_are_those_of_the_training_rows_without_special_tokens_and_padding(layout: str) -> None:
    corpus = store(layout)
    source = stream(corpus)
    expected = np.zeros(corpus.tokenizer.vocab_size, dtype=np.int64)
    for row in source.split.train(np.arange(source.split.train_rows)):
        tokens, lengths = corpus.read(np.array([row]))
        for token in tokens[0, : None if lengths is None else lengths[0]]:
            expected[token] += token not in corpus.tokenizer.special_ids
    assert (frequency.counts(source) == expected).all()  # type: ignore[arg-type]
    fewer = frequency.counts(source, limit=240)
    assert 0 < fewer.sum() <= 240
    assert (fewer <= expected).all()


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_bands_add_up_to_what_validation_measures(layout: str) -> None:
    run = run_of(layout=layout)
    expected = validate(run)
    assert expected is not None
    for bands in ("mass", "rank"):
        result = frequency.probe(Reader.of_run(run), ProbeOptions(bands=bands), Silent())
        assert result.also["loss"] == pytest.approx(expected.loss, rel=1e-6)
        assert result.also["accuracy"] == pytest.approx(expected.accuracy)
        parts = [part for part in result.parts.values() if part["examples"]]
        examples = np.array([part["examples"] for part in parts])
        assert examples.sum() == expected.predicted_tokens
        for key, whole in (("loss", expected.loss), ("score", expected.accuracy)):
            mean = (examples * [part[key] for part in parts]).sum() / examples.sum()  # type: ignore[operator]
            assert mean == pytest.approx(whole, rel=1e-6)
        assert sum(part["tokens"] or 0 for part in result.parts.values()) == run.model.vocab_size


def test_beside_a_band_stands_what_the_commonest_token_gets() -> None:
    run = run_of()
    found = frequency.counts(run.stream)
    result = frequency.probe(Reader.of_run(run), ProbeOptions(), Silent())
    (labels,) = [
        np.concatenate([batch.labels[batch.weights > 0].numpy()])
        for batch in run.stream.heldout(32, mask_rate=0.15, mask_seed=0, limit=100)
    ]
    right = (labels == found.argmax()).sum()
    assert right > 0, "the token must be there, for this to say anything"
    chances = [(part["chance"] or 0) * (part["examples"] or 0) for part in result.parts.values()]
    assert sum(chances) == pytest.approx(right)
    assert result.chance == 0.0
    expected = -np.log((found[labels] + 1) / (found + 1).sum()).mean()
    assert result.also["unigram_loss"] == pytest.approx(expected)


def test_without_a_heldout_part_there_is_nothing_to_ask() -> None:
    reader = Reader.of_run(run_of())
    with pytest.raises(UserError, match="there are none"):
        frequency.probe(Reader(reader.hidden, reader.logits, reader.model, reader.tokenizer, reader.device),
                        ProbeOptions(), Silent())  # fmt: skip
