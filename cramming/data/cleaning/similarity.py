"""Near-duplicates: a document as the set of its word sequences, and that set as a few numbers to compare it by.

MinHash (Broder: On the resemblance and containment of documents, 1997): the share of numbers in which two documents
agree estimates the share of word sequences they have in common (Jaccard). Numbers are joined to bands, and documents
that agree in a whole band are taken for similar (``CleanConfig.bands``); the numbers themselves are not kept.

Shape legend: C characters, W words, T word sequences of a document, D documents, P numbers of a document.
"""

from functools import lru_cache

import numpy as np
from rensa import RMinHash

from cramming.data.cleaning.equality import content_hash
from cramming.data.cleaning.letters import code_points

ALGORITHM = f"rensa R-MinHash {RMinHash.ALGORITHM_VERSION}"  # numbers of another version are not comparable
_SEED = 1
# Words are found in so much of a text at a time: what that takes is about 40 times as many bytes.
_WINDOW = 1 << 18
_OTHER, _LETTER, _ALONE, _UNKNOWN = range(4)
# Scripts that are written without spaces: each letter is a word.
_ALONE_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # Han radicals, kana, bopomofo
    (0x31A0, 0x4DBF),
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit numbers that makes similar ones differ everywhere (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=1)
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """Powers of the multiplier and of its inverse, modulo 2^64, each (window,)."""
    up, down = (np.full(_WINDOW, base, dtype=np.uint64) for base in (_MULTIPLIER, _INVERSE))
    up[0] = down[0] = 1
    return np.cumprod(up), np.cumprod(down)


@lru_cache(maxsize=1)
def _kinds() -> np.ndarray:
    """What each character is to a word; filled as characters are met."""
    return np.full(0x110000, _UNKNOWN, dtype=np.uint8)


def _kind(code: int) -> int:
    if not chr(code).isalnum():
        return _OTHER
    return _ALONE if any(low <= code <= high for low, high in _ALONE_RANGES) else _LETTER


def word_hashes(text: str) -> np.ndarray:
    """A number (W,) uint64 for each word of ``text``: letters and digits, whatever their case, between others."""
    text = text.lower()
    return np.concatenate([_window_words(text[at : at + _WINDOW]) for at in range(0, max(1, len(text)), _WINDOW)])


def _window_words(text: str) -> np.ndarray:
    codes = code_points(text)
    table = _kinds()
    kinds = table[codes]
    if (kinds == _UNKNOWN).any():
        for code in np.unique(codes[kinds == _UNKNOWN]):
            table[code] = _kind(int(code))
        kinds = table[codes]
    before = np.concatenate([[_OTHER], kinds[:-1]])
    starts = np.flatnonzero((kinds == _ALONE) | ((kinds == _LETTER) & (before != _LETTER)))
    if not len(starts):
        return np.empty(0, dtype=np.uint64)
    up, down = _powers()
    # sum of c_t m^t over a word, divided by m^start: the same wherever the word stands.
    terms = np.where(kinds == _OTHER, np.uint64(0), _mixed(codes.astype(np.uint64)) * up[: len(codes)])
    sums = np.add.reduceat(terms, starts)
    return _mixed(sums * down[starts])


def sequence_hashes(text: str, words: int) -> np.ndarray:
    """A number (T,) uint64 for each sequence of ``words`` words; a shorter text is one sequence."""
    hashes = word_hashes(text)
    words = max(1, min(words, len(hashes)))
    count = len(hashes) - words + 1
    if count < 1:  # no word at all: punctuation is what the text is
        return np.frombuffer(content_hash(text).digest(), dtype="<u8").astype(np.uint64)
    sequences = np.zeros(count, dtype=np.uint64)
    for k in range(words):
        sequences = sequences * _MULTIPLIER + hashes[k : k + count]
    return _mixed(sequences)


def band_hashes(documents: list[np.ndarray], bands: int, rows: int) -> np.ndarray:
    """The bands (D, bands) uint64 of documents given as ``sequence_hashes``; equal numbers mean equal bands."""
    if not documents:
        return np.empty((0, bands), dtype=np.uint64)
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(documents), offsets, bands * rows, _SEED)
    numbers = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(documents), bands, rows)
    # The place of a band is part of it: all bands of all documents are compared in one pass.
    hashes = np.broadcast_to(_mixed(np.arange(1, bands + 1, dtype=np.uint64)), (len(documents), bands))
    for row in range(rows):
        hashes = _mixed(hashes * _MULTIPLIER + numbers[:, :, row])
    return hashes
