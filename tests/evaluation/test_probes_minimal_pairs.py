"""Minimal pairs: pseudo-log-likelihoods by definition, what chance gets, and what a file may say."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import probed
import pytest
import torch
from torch import Tensor

from cramming.architectures import BertConfig
from cramming.batch import Batch
from cramming.errors import UserError
from cramming.evaluation.probes import minimal_pairs
from cramming.evaluation.probes.config import ProbeOptions
from cramming.evaluation.probes.grammar import Pair, pairs
from cramming.evaluation.probes.reader import Reader
from cramming.progress import Silent

SENTENCES = ["the cat sat.", "a", "cats see the dogs now", "dogs", "the cat sat.", "we see a dog"]


def small_reader() -> Reader:
    """A small model whose every part matters."""
    words = probed.letters()
    torch.manual_seed(0)
    model = BertConfig(layers=2, hidden=32, heads=2, intermediate=64, init_std=0.3).build(words.vocab_size, 32)
    return Reader.of_model(model.eval(), words)


def by_hand(reader: Reader, sentence: str, rule: str) -> float:
    """One token at a time, straight from the definition."""
    words = reader.tokenizer
    ids: list[int] = []
    word_of: list[int] = []
    for number, word in enumerate(sentence.replace(".", " .").split()):
        pieces = words.encode_lists([word])[0]
        ids += pieces
        word_of += [number] * len(pieces)
    total = 0.0
    for place in range(len(ids)):
        masked = list(ids)
        for other in range(len(ids)):
            behind = rule == "word_l2r" and other > place and word_of[other] == word_of[place]
            if other == place or behind:
                masked[other] = words.mask_id
        inputs = torch.tensor([[words.cls_id, *masked, words.sep_id]])
        one = torch.zeros(1, dtype=torch.int64)
        at = torch.tensor([[place + 1]])
        batch = Batch(one, one, inputs, at, torch.zeros_like(at), torch.ones(1, 1), None, torch.tensor(1.0))
        with torch.no_grad():
            logits: Tensor = reader.model(batch, logits=True)[0, 0]
        total += float(logits[: words.vocab_size].log_softmax(-1)[ids[place]])
    return total


@pytest.mark.parametrize("rule", ["original", "word_l2r"])
def test_pseudo_log_likelihood_is_that_of_one_token_at_a_time(rule: str) -> None:
    reader = small_reader()
    found = minimal_pairs.pseudo_log_likelihoods(reader, SENTENCES, rule, Silent())
    np.testing.assert_allclose(found, [by_hand(reader, sentence, rule) for sentence in SENTENCES], rtol=1e-5)
    assert len(set(np.round(found, 3))) == len(SENTENCES) - 1, "sentences must differ in it, for this to say anything"


def test_the_two_rules_differ_only_in_words_of_several_pieces() -> None:
    reader = small_reader()
    first, second = (
        minimal_pairs.pseudo_log_likelihoods(reader, ["a b c", "cat b c"], rule, Silent())
        for rule in ("original", "word_l2r")
    )
    assert first[0] == pytest.approx(second[0], abs=1e-6)
    assert abs(first[1] - second[1]) > 1e-3


def test_a_sentence_is_worth_the_same_whatever_is_asked_beside_it() -> None:
    reader = small_reader()
    together = minimal_pairs.pseudo_log_likelihoods(reader, SENTENCES, "original", Silent())
    alone = [minimal_pairs.pseudo_log_likelihoods(reader, [one], "original", Silent())[0] for one in SENTENCES]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_embedded_pairs_are_a_hundred_and_more_different_ones() -> None:
    made = pairs()
    assert len({pair.good for pair in made}) == len({pair.bad for pair in made}) == len(made) == 128
    assert set(Counter(pair.phenomenon for pair in made).values()) == {16}
    assert not {pair.good for pair in made} & {pair.bad for pair in made}


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_knows_words_but_no_sentences_gets_exactly_half_of_every_phenomenon(seed: int) -> None:
    words = probed.whole_words()
    known = torch.randn(words.vocab_size, generator=torch.Generator().manual_seed(seed))
    reader = probed.reader_of(words, logits=lambda batch: known.expand(*batch.positions.shape, -1))
    result = minimal_pairs.probe(reader, pairs(), ProbeOptions(), Silent())
    assert result.score == result.chance == 0.5
    assert {name: part["score"] for name, part in result.parts.items()} == dict.fromkeys(result.parts, 0.5)
    assert len(result.parts) == 8


def test_a_model_to_which_all_is_alike_gets_half_by_ties() -> None:
    asked = [pair for pair in pairs() if len(pair.good.split()) == len(pair.bad.split())]
    result = minimal_pairs.probe(probed.reader_of(probed.whole_words()), asked, ProbeOptions(), Silent())
    assert (result.score, result.also["ties"], result.also["margin"]) == (0.5, len(asked), 0.0)
    assert result.examples == len(asked)


def test_a_model_that_knows_the_rule_gets_all_right() -> None:
    """It finds a token likely where the sentence with it is one of the good ones."""
    words = probed.whole_words()
    good = {tuple(words.encode_lists([pair.good])[0]) for pair in pairs()}

    def logits(batch: Batch) -> Tensor:
        scores = torch.zeros(*batch.positions.shape, words.vocab_size)
        for row, (inputs, place) in enumerate(zip(batch.inputs.tolist(), batch.positions[:, 0].tolist(), strict=True)):
            whole = [*inputs[1:place], int(batch.labels[row, 0]), *inputs[place + 1 : -1]]
            scores[row, 0, batch.labels[row, 0]] = 5.0 * (tuple(whole) in good)
        return scores

    result = minimal_pairs.probe(probed.reader_of(words, logits=logits), pairs(), ProbeOptions(), Silent())
    assert result.score == 1.0
    assert result.interval is not None
    assert 0.95 < result.interval[0] < 0.99, "a hundred right do not prove that all are"


def test_a_file_is_asked_about_by_its_phenomena(tmp_path: Path) -> None:
    rows = [
        {"sentence_good": "the cat sat", "sentence_bad": "the zat sat", "UID": "letters", "field": "spelling"},
        {"sentence_good": "zzz", "sentence_bad": "aaa", "UID": "other", "field": "spelling"},
    ]
    file = tmp_path / "blimp.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ProbeOptions(pairs=str(file))
    asked = minimal_pairs.read(options)
    assert asked == [Pair("the cat sat", "the zat sat", "letters"), Pair("zzz", "aaa", "other")]
    words = probed.letters()
    known = -torch.arange(words.vocab_size).float() / 10  # a letter is the likelier the earlier it comes
    reader = probed.reader_of(words, logits=lambda batch: known.expand(*batch.positions.shape, -1))
    result = minimal_pairs.probe(reader, asked, options, Silent())
    assert (result.label, result.score) == ("minimal_pairs/blimp", 0.5)
    assert {name: part["score"] for name, part in result.parts.items()} == {"letters": 1.0, "other": 0.0}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"sentence_good": "a b", "bad": "a c"}\n', "no column 'sentence_bad'"),
        ('{"sentence_good": "a b", "sentence_bad": "a b"}\n', "line 1 is no pair of two different sentences"),
        ('{"sentence_good": "a b", "sentence_bad": "a c"}\n{"sentence_good": "", "sentence_bad": "c"}\n', "line 2"),
    ],
)
def test_a_file_that_has_no_pairs_is_refused(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=says):
        minimal_pairs.read(ProbeOptions(pairs=str(file)))


def test_pairs_longer_than_the_model_are_left_out_and_said() -> None:
    reader = probed.reader_of(probed.letters())
    long = [Pair("a", "b " * 63, ""), Pair("a " * 63, "b", "")]
    found = minimal_pairs.probe(reader, [*long, Pair("a " * 62, "b " * 62, "")], ProbeOptions(), Silent())
    assert (found.examples, found.score) == (1, 0.5)
    assert found.remarks == ("2 pairs are longer than 64 tokens and left out",)
    with pytest.raises(UserError, match="every pair has a sentence longer than the 64 tokens"):
        minimal_pairs.probe(reader, long, ProbeOptions(), Silent())


def test_a_sample_of_many_pairs_is_of_all_phenomena_and_always_the_same() -> None:
    many = [Pair(f"{letter} a", f"{letter} b", letter) for letter in "cdefghij" for _ in range(100)]
    reader = probed.reader_of(probed.letters())
    first, second = (minimal_pairs.probe(reader, many, ProbeOptions(max_eval_rows=200), Silent()) for _ in range(2))
    assert first == second
    counted: dict[str, float] = defaultdict(float)
    for name, part in first.parts.items():
        counted[name] += part["examples"] or 0.0
    assert sum(counted.values()) == first.examples == 200
    assert len(counted) == 8
    assert min(counted.values()) > 10
    assert first.remarks == ("200 of 800 pairs",)
