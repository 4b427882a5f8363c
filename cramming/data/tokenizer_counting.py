"""The words of a text with their counts, as many as training on them has memory for.

In text without spaces words are clauses, of which hardly one comes twice: 16 MB of Japanese have half a million, and
the library's byte pair encoding takes 1.6 GB for them. What such text has to teach is in a part of them.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice, repeat

import tokenizers
from tokenizers import pre_tokenizers, trainers

AT_A_TIME = 20_000  # words in one call of the library, which keeps about 1 kB for each as long as it lasts
_BETWEEN = "\0"  # words; none has it


@dataclass(frozen=True)
class Words:
    """Distinct words and how often each occurs, in a fixed order."""

    texts: list[str]
    counts: list[int]


def count_words(texts: Iterable[str], pre_tokenizer: pre_tokenizers.PreTokenizer, most_characters: int) -> Words:
    """The words of normalized texts: all of them, or the most frequent and a sample of those that are next.

    Args:
        texts: what to count in.
        pre_tokenizer: says where words begin and end.
        most_characters: of all different words together.
    """
    counted: Counter[str] = Counter()
    for text in texts:
        counted.update(word for word, _ in pre_tokenizer.pre_tokenize_str(text))
    sizes: Counter[int] = Counter()  # characters of the words that occur so often
    for word, count in counted.items():
        sizes[count] += len(word)
    room, rarest, share = most_characters, 0, 1.0
    for count in sorted(sizes, reverse=True):
        if sizes[count] > room:
            rarest, share = count, room / sizes[count]
            break
        room -= sizes[count]
    chosen = sorted(
        word for word, count in counted.items() if count > rarest or (count == rarest and _drawn(word, share))
    )
    return Words(chosen, [counted[word] for word in chosen])


def _drawn(word: str, share: float) -> bool:
    """Whether a word belongs to a sample of such a share, the same everywhere."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=7).digest()) < share * (1 << 56)


def learn_pairs(backend: tokenizers.Tokenizer, trainer: trainers.BpeTrainer, words: Words) -> None:
    """Train a byte pair encoding on words; the tokenizer's pre-tokenizer is none afterwards."""
    each = chain.from_iterable(map(repeat, words.texts, words.counts))
    backend.pre_tokenizer = pre_tokenizers.Split(_BETWEEN, "removed")
    backend.train_from_iterator(iter(lambda: _BETWEEN.join(islice(each, AT_A_TIME)), ""), trainer)
    backend.pre_tokenizer = None
