"""Training a Unigram tokenizer (Kudo 2018, https://arxiv.org/abs/1804.10959), the same one every time.

The tokenizers library can train one, too, with two faults: it adds up floats in the order of a randomly seeded hash
table, so that no two runs agree, and it takes its first pieces from the list of distinct words without their counts, in
which "from" and "which" occur only once and so are no pieces ("fro" and "m" are). Here the first pieces are those of a
byte pair encoding, several times as many as wanted. Then, as in the paper, expectation maximisation alternates with
pruning what costs least; its expectation counts each word's best segmentation only, which the library finds fast and
exactly.
"""

import math
from collections.abc import Iterable

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from cramming.data.tokenizer_counting import AT_A_TIME, Words, count_words, learn_pairs

_CANDIDATES = 3  # times as many pieces as wanted to begin with
_KEPT_SHARE = 0.75  # of the pieces in each round (the paper's value is 0.8, SentencePiece's 0.75)
_LAST_ROUNDS = 3  # of expectation maximisation once no piece is pruned any more
_DISTINCT_CHARACTERS = 1_500_000  # of all different words; in Japanese that is about as much text
_LONGEST = 16  # characters of a piece, as SentencePiece has it
_UNSEEN = 0.5  # the count of pieces that no best segmentation has
_UNKNOWN = "\0"  # stands for what is no piece; no word has it


def learn(texts: Iterable[str], size: int, pre_tokenizer: pre_tokenizers.PreTokenizer) -> list[tuple[str, float]]:
    """At most ``size`` pieces with their log probabilities, likeliest first; every character of ``texts`` is one.

    Args:
        texts: normalized text.
        size: how many pieces; more than there are characters.
        pre_tokenizer: says where words begin and end; no piece crosses that.
    """
    words = count_words(texts, pre_tokenizer, _DISTINCT_CHARACTERS)
    scores = _first_scores(words, _candidates(words, size * _CANDIDATES))
    while len(scores) > size:
        counts = _counts(words, scores)
        scores = _pruned(_scores(counts), counts, max(size, int(_KEPT_SHARE * len(scores))))
    for _ in range(_LAST_ROUNDS):
        scores = _scores(_counts(words, scores))
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def _candidates(words: Words, size: int) -> list[str]:
    """All characters, and the pieces a byte pair encoding of words would have, first merged first."""
    backend = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, max_token_length=_LONGEST, show_progress=False, special_tokens=[]
    )
    learn_pairs(backend, trainer, words)
    vocabulary: dict[str, int] = backend.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _first_scores(words: Words, pieces: list[str]) -> dict[str, float]:
    """Log probabilities to begin with: how often a piece occurs anywhere times its length, as SentencePiece has it."""
    covered = dict.fromkeys(pieces, 0)
    for word, count in zip(words.texts, words.counts, strict=True):
        for start in range(len(word)):
            for end in range(start + 1, min(start + _LONGEST, len(word)) + 1):
                part = word[start:end]
                if part in covered:
                    covered[part] += count * (end - start)
    return _scores(covered)


def _counts(words: Words, scores: dict[str, float]) -> dict[str, int]:
    """How often each piece is part of a word's best segmentation."""
    pieces = list(scores)
    model = tokenizers.Tokenizer(models.Unigram([(_UNKNOWN, 0.0), *scores.items()], unk_id=0))
    counts = [0] * (1 + len(pieces))
    for start in range(0, len(words.texts), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        for encoded, count in zip(model.encode_batch_fast(words.texts[part]), words.counts[part], strict=True):
            for piece in encoded.ids:
                counts[piece] += count
    return dict(zip(pieces, counts[1:], strict=True))


def _scores(counts: dict[str, int]) -> dict[str, float]:
    """Log probabilities from counts."""
    seen = {piece: max(count, _UNSEEN) for piece, count in counts.items()}
    total = sum(seen.values())
    return {piece: math.log(count / total) for piece, count in seen.items()}


def _pruned(scores: dict[str, float], counts: dict[str, int], size: int) -> dict[str, float]:
    """The ``size`` pieces that cost most log likelihood to lose. Single characters stay, whatever they cost."""
    costs = {
        piece: math.inf if len(piece) == 1 else counts[piece] * (score - _without(piece, scores))
        for piece, score in scores.items()
    }
    kept = set(sorted(scores, key=lambda piece: (-costs[piece], -scores[piece], piece))[:size])
    return {piece: score for piece, score in scores.items() if piece in kept}


def _without(piece: str, scores: dict[str, float]) -> float:
    """The log probability of a piece's text if it were no piece: that of its best segmentation into others."""
    best = [0.0]
    for end in range(1, len(piece) + 1):
        starts = range(end) if end < len(piece) else range(1, end)
        best.append(max(best[start] + scores.get(piece[start:end], -math.inf) for start in starts))
    return best[-1]
