"""Words from memory: the fast way is the slow way, for every kind of tokenizer and everything done to text first."""

import json
from functools import cache

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from cramming.data.sources import source
from cramming.data.sources.source import bounded
from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizer_kinds import trained
from cramming.data.tokenizer_words import APART, SPACED
from cramming.data.tokenizing import Encoder

# Runs of white space, too, so that they are tokens: where one is cut must show.
TEXTS = ["a b ab aB a.b bab 漢 é ß i̇ abba baab' -- [a] " * 3, "ab ba bb aa " * 20, "a  b   a \n\n b\n\n\na \t b" * 9]
STUDY = ("quotes", "nfd", "lowercase", "strip_accents", "spaces", "ascii")
CASES = {
    ("wordpiece", None): APART,
    ("wordpiece", STUDY): APART,
    ("wordpiece", ("nfkc", "lowercase")): APART,
    ("bpe", None): SPACED,
    ("bpe", ()): SPACED,
    ("bpe", STUDY): SPACED,
    ("bpe", ("ascii", "spaces", "nfkd", "strip_accents")): SPACED,
    ("unigram", None): APART,
    ("unigram", STUDY): APART,
    ("unigram", ("nfkd", "strip_accents", "nfc")): APART,
}


@cache
def tokenizer_of(kind: str, normalize: tuple[str, ...] | None) -> Tokenizer:
    return Tokenizer(trained(kind, TEXTS, 115 if kind == "wordpiece" else 300, normalize)[0])


SPECIAL = " \t\n\r\x0b\x0c\x1c\x85\xa0\u3000\u2581abAB.'-[]é\u0301漢か\u3099🙂ßİ\u00a8`"


@pytest.mark.parametrize(("kind", "normalize"), CASES)
@settings(max_examples=120, deadline=None, database=None)
@given(text=st.text(alphabet=st.one_of(st.sampled_from(SPECIAL), st.characters(codec="utf-8"))))
@example(text="a\u00a8  b \u2013 c  \n d 's 'sun\u3000  x\x1c y\u2581 z")
@example(text="  a  ")
def test_word_by_word_equals_whole(kind: str, normalize: tuple[str, ...] | None, text: str) -> None:
    tokenizer = tokenizer_of(kind, normalize)
    encoder = encoder_of(kind, normalize)
    expected = tokenizer.encode_batch([text])[0]
    np.testing.assert_array_equal(encoder.encode(text), expected)
    np.testing.assert_array_equal(encoder.encode(text), expected, "from memory")


@cache
def encoder_of(kind: str, normalize: tuple[str, ...] | None) -> Encoder:
    return Encoder(tokenizer_of(kind, normalize))


@pytest.mark.parametrize(("case", "rule"), CASES.items())
def test_trained_tokenizers_are_fast(case: tuple[str, tuple[str, ...] | None], rule: str) -> None:
    assert tokenizer_of(*case).word_rule == rule


def foreign(normalizer: object, pre_tokenizer: object) -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend = tokenizers.Tokenizer(models.WordLevel({token: i for i, token in enumerate(special)}, "<unk>"))
    backend.add_special_tokens(special)
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    return Tokenizer(backend)


def test_foreign_tokenizers_are_fast_only_where_that_is_sure() -> None:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert foreign(None, gpt2).word_rule == SPACED
    assert foreign(None, pre_tokenizers.Whitespace()).word_rule == APART
    assert foreign(normalizers.Lowercase(), pre_tokenizers.Whitespace()).word_rule == APART
    assert foreign(normalizers.Replace("a b", "c"), pre_tokenizers.Whitespace()).word_rule is None
    assert foreign(normalizers.Prepend("x"), pre_tokenizers.Whitespace()).word_rule is None
    assert foreign(None, pre_tokenizers.ByteLevel(add_prefix_space=True)).word_rule is None
    assert foreign(None, pre_tokenizers.Metaspace()).word_rule is None
    assert foreign(None, None).word_rule is None
    parts = json.loads(tokenizer_of("bpe", None)._json)
    parts["model"]["dropout"] = 0.1
    assert Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(parts))).word_rule is None


def test_only_short_words_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cramming.data.tokenizing._REMEMBERED_WORDS", 4)
    for kind in ("wordpiece", "bpe"):
        encoder = Encoder(tokenizer_of(kind, None))
        encoder.encode("x a b " + 40 * "ab")
        assert set(encoder._memory) - {"x"} == {"a", "b"}
        encoder.encode("x aa bb ab ba a")
        assert set(encoder._memory) - {"x"} == {"a", "b"}, "the first words stay"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize(
    "text",
    [
        "ab ba  \n  bb aa\n\n\nabba " * 20,
        "ababか\u3099。「あい」、」かきく…。けこ" * 20,
        "baaba\u3000bbab" * 20,
    ],
)
def test_cutting_changes_no_ids(monkeypatch: pytest.MonkeyPatch, kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind, None)
    expected = tokenizer.encode_batch([text])[0].tolist()
    for size in range(30, 60):
        monkeypatch.setattr(source, "PIECE_CHARACTERS", size)
        pieces = list(bounded(text))
        assert "".join(pieces) == text
        assert max(map(len, pieces)) <= size
        assert len(pieces) > 1
        assert [i for ids in tokenizer.encode_batch(pieces) for i in ids.tolist()] == expected


def test_what_has_no_place_to_cut_is_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PIECE_CHARACTERS", 10)
    assert list(bounded("ab" * 12)) == ["ab" * 5, "ab" * 5, "abab"]
    assert list(bounded(" " * 25)) == [" " * 9, " " * 9, " " * 7]
