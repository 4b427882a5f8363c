"""What curricula order rows by: each a number for every row, small ones first.

Shape legend: n rows, S positions, V vocabulary.

All numbers are whole ones, so that an order is the same on every machine. Each is a sum over a row's tokens of a
table's entries, which for special tokens are zero unless it is said otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError

Key = Callable[[NDArray[np.integer]], NDArray[np.integer]]
"""Tokens (n, S) -> keys (n,), each from 0 to 2^32 - 1."""

FULL_STOPS = ".。"
_FRACTION_BITS = 20  # of a probability's logarithm
_MEAN_BITS = 26  # of a row's mean of them
_LOWEST_LOG2 = -64  # no probability of add-one smoothing over fewer than 2^63 tokens is lower
# How byte-level tokenizers write the bytes that do not begin a character, 0x80 to 0xBF: see GPT-2's encoder.py.
_CONTINUATIONS = frozenset(map(chr, (*range(0xA1, 0xAD), *range(0xAE, 0xC0), *range(0x122, 0x144))))


@dataclass(frozen=True)
class Measure:
    """One thing to order rows by."""

    build: Callable[[Tokenizer, NDArray[np.int64] | None], Key]
    counts: bool = False  # needs to know how often each id is in the training rows, (V,)


def rarity(tokenizer: Tokenizer, counts: NDArray[np.int64] | None) -> Key:
    """The mean of log2 of the tokens' unigram probabilities, add-one smoothed; the rarest row first.

    All tokens count but [CLS] and padding: [SEP] and [UNK] are part of the text, as in the study's own order.
    """
    assert counts is not None
    left_out = [tokenizer.cls_id, tokenizer.pad_id]
    smoothed = counts + 1.0
    smoothed[left_out] = 1.0  # any number: they are not looked at
    log2 = np.log2(smoothed / (smoothed.sum() - len(left_out)))
    surprise = np.rint((log2 - _LOWEST_LOG2) * (1 << _FRACTION_BITS)).astype(np.int64)
    surprise[left_out] = 0
    present = np.ones(tokenizer.vocab_size, dtype=np.int64)
    present[left_out] = 0

    def key(tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        sums: NDArray[np.int64] = surprise[tokens].sum(axis=1)
        return (sums << (_MEAN_BITS - _FRACTION_BITS)) // np.maximum(1, present[tokens].sum(axis=1))

    return key


def sentence_length(tokenizer: Tokenizer, counts: NDArray[np.int64] | None) -> Key:
    """The number of full stops; many, so short sentences, first.

    Raises:
        UserError: the tokenizer has no token for a full stop.
    """
    ids = full_stops(tokenizer)
    if not ids:
        raise UserError(
            "data.order=sentence_length counts full stops, and the tokenizer has no token for one; "
            "use data.order=word_length, or another data.tokenizer"
        )
    table = np.zeros(tokenizer.vocab_size, dtype=np.int32)
    table[ids] = 1
    return _most_first(table)


def fragments(tokenizer: Tokenizer, counts: NDArray[np.int64] | None) -> Key:
    """The number of [SEP]: of documents that end in the row; many first."""
    table = np.zeros(tokenizer.vocab_size, dtype=np.int32)
    table[tokenizer.sep_id] = 1
    return _most_first(table)


def word_length(tokenizer: Tokenizer, counts: NDArray[np.int64] | None) -> Key:
    """The number of characters of the decoded text: rows of many short or broken words first."""
    table = characters(tokenizer)
    return lambda tokens: table[tokens].sum(axis=1)


def _most_first(table: NDArray[np.int32]) -> Key:
    return lambda tokens: tokens.shape[1] - table[tokens].sum(axis=1)


def full_stops(tokenizer: Tokenizer) -> list[int]:
    """The ids of tokens that end a sentence: one full stop, with other punctuation but no letter or digit beside it.

    So ``.``, ``."`` and ``。」`` are, and ``...``, ``3.`` and ``e.g`` are none.
    """
    special = set(tokenizer.special_ids)
    found = []
    for number in range(tokenizer.vocab_size):
        text = "" if number in special else tokenizer.decode([number])
        stops = sum(map(text.count, FULL_STOPS))
        if stops == 1 and not any(character.isalnum() for character in text):
            found.append(number)
    return found


def characters(tokenizer: Tokenizer) -> NDArray[np.int32]:
    """How many characters each token adds to a decoded text behind another word, (V,); special tokens none."""
    special = set(tokenizer.special_ids)
    ordinary = [number for number in range(tokenizer.vocab_size) if number not in special]
    word = next(number for number in ordinary if tokenizer.decode([number]).strip().isalnum())
    before = len(tokenizer.decode([word]))
    added = np.zeros(tokenizer.vocab_size, dtype=np.int32)
    for number in ordinary:
        text = tokenizer.decode([word, number])
        # A part of a character decodes to a replacement; it counts where the character begins.
        broken = "\ufffd" in text
        added[number] = (
            len([c for c in tokenizer.token(number) if c not in _CONTINUATIONS]) if broken else len(text) - before
        )
    return added


KEYS = {
    "rarity": Measure(rarity, counts=True),
    "sentence_length": Measure(sentence_length),
    "word_length": Measure(word_length),
    "fragments": Measure(fragments),
}
