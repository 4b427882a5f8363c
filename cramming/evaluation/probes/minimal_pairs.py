"""Minimal pairs: is the grammatical one of two sentences the likelier one to the model?

A masked language model gives a sentence a pseudo-log-likelihood: the sum over its tokens of the log-probability of each
where it alone is masked (Salazar et al. 2020, https://arxiv.org/abs/1910.14659). Of words of several pieces that is too
kind, because the rest of the word gives a piece away; ``word_l2r`` masks the pieces behind it in its word, too (Kauf &
Ivanova 2023, https://arxiv.org/abs/2305.10588).

Shape legend: R sentences, S positions, M maskings of all sentences, B of a pass, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from numpy.typing import NDArray

from cramming.errors import UserError
from cramming.evaluation.probes.config import ProbeOptions
from cramming.evaluation.probes.grammar import Pair, pairs
from cramming.evaluation.probes.reader import Ids, Reader, together
from cramming.evaluation.probes.result import Result, of_share
from cramming.evaluation.probes.sampling import sampled
from cramming.evaluation.rows import tables
from cramming.progress import ProgressSink

_SAME = 1e-6  # nearer than this is rounding of float32, and neither sentence is the likelier
_PHENOMENON = ("UID", "phenomenon", "linguistics_term", "field")  # columns that may name it, BLiMP's first
_OF_BLIMP = "sentence_good", "sentence_bad"


def read(options: ProbeOptions) -> list[Pair]:
    """The pairs to ask about: of a file, or our own.

    Raises:
        UserError: a file that is missing or has no such columns, or a pair that is none.
    """
    if options.pairs is None:
        return pairs()
    table = tables.read(Path(options.pairs), "probe.pairs", (*_OF_BLIMP, *_PHENOMENON))
    for column in _OF_BLIMP:
        if not table.has(column):
            raise UserError(f"{table.name} has no column {column!r}; minimal pairs have {' and '.join(_OF_BLIMP)}")
    named = next((column for column in _PHENOMENON if table.has(column)), None)
    found = []
    for row in table.rows:
        good, bad = (str(row.values.get(column) or "").strip() for column in _OF_BLIMP)
        if not good or not bad or good == bad:
            raise UserError(f"{table.at(row)} is no pair of two different sentences; repair or remove the row")
        found.append(Pair(good, bad, str(row.values.get(named) or "") if named else ""))
    if not found:
        raise UserError(f"{table.name} has no rows: minimal pairs have {' and '.join(_OF_BLIMP)}")
    return found


def probe(reader: Reader, asked: Sequence[Pair], options: ProbeOptions, progress: ProgressSink) -> Result:
    """Accuracy at telling which sentence of a pair is right; a pair of equals counts half.

    Pairs with a sentence that is longer than the model takes are left out, and that is said.

    Raises:
        UserError: no pair is short enough.
    """
    asked, remarks = sampled(asked, options.max_eval_rows, "pairs")
    tokenized = _tokenized(reader, [sentence for pair in asked for sentence in (pair.good, pair.bad)])
    fits = [
        max(len(good.ids), len(bad.ids)) <= reader.longest
        for good, bad in zip(tokenized[::2], tokenized[1::2], strict=True)
    ]
    if not all(fits):
        remarks = (*remarks, f"{len(fits) - sum(fits):,} pairs are longer than {reader.longest} tokens and left out")
        asked = [pair for pair, short in zip(asked, fits, strict=True) if short]
        tokenized = [one for row, one in enumerate(tokenized) if fits[row // 2]]
    if not asked:
        raise UserError(f"every pair has a sentence longer than the {reader.longest} tokens that this model takes")
    scores = _scored(reader, tokenized, options.pll, progress).reshape(-1, 2)
    margins = scores[:, 0] - scores[:, 1]
    right = np.where(np.abs(margins) <= _SAME, 0.5, margins > 0)
    phenomena = defaultdict(list)
    for pair, value in zip(asked, right, strict=True):
        phenomena[pair.phenomenon].append(float(value))
    return Result(
        probe="minimal_pairs",
        of="embedded" if options.pairs is None else Path(options.pairs).stem,
        metric="accuracy",
        score=float(right.mean()),
        chance=0.5,
        interval=of_share(float(right.sum()), len(right)),
        examples=len(right),
        also={"margin": float(margins.mean()), "ties": float((right == 0.5).sum())},
        parts={name: _share(values) for name, values in sorted(phenomena.items()) if name},
        setting={"pll": options.pll},
        remarks=remarks,
    )


def _share(values: list[float]) -> dict[str, float | None]:
    interval = of_share(sum(values), len(values))
    assert interval is not None
    score = sum(values) / len(values)
    return {"score": score, "chance": 0.5, "low": interval[0], "high": interval[1], "examples": float(len(values))}


class _Tokenized(NamedTuple):
    """A sentence: ids with [CLS] and [SEP], and the word each piece between them is of."""

    ids: Ids
    words: list[int | None]


def _tokenized(reader: Reader, sentences: Sequence[str]) -> list[_Tokenized]:
    # The words a piece belongs to are known to the library's tokenizer only.
    backend = tokenizers.Tokenizer.from_str(reader.tokenizer.to_json())
    backend.encode_special_tokens = True
    encoded = backend.encode_batch(list(sentences), add_special_tokens=False)
    return [_Tokenized(reader.sentence(one.ids, len(one.ids) + 2), one.word_ids) for one in encoded]


def pseudo_log_likelihoods(
    reader: Reader, sentences: Sequence[str], rule: str, progress: ProgressSink
) -> NDArray[np.float64]:
    """The pseudo-log-likelihood of each sentence, natural logarithm: -> (R,).

    Args:
        reader: the model.
        sentences: texts of one segment, no longer than the model takes.
        rule: ``original`` or ``word_l2r``.
        progress: gets the number of maskings that are done.
    """
    return _scored(reader, _tokenized(reader, sentences), rule, progress)


def _scored(reader: Reader, sentences: Sequence[_Tokenized], rule: str, progress: ProgressSink) -> NDArray[np.float64]:
    """``pseudo_log_likelihoods`` of what is tokenized."""
    texts = [sentence.ids for sentence in sentences]
    progress.stage("minimal pairs", sum(len(text) - 2 for text in texts), "tokens")
    owners = np.repeat(np.arange(len(texts)), [len(text) - 2 for text in texts])
    places = np.concatenate([np.arange(1, len(text) - 1) for text in texts])  # in the sentence, [CLS] at 0
    found = np.empty(len(owners))
    for some in together([len(texts[owner]) for owner in owners]):
        inputs = np.stack([texts[owner] for owner in owners[some]])
        at = places[some, None]
        labels = np.take_along_axis(inputs, at, 1)
        np.put_along_axis(inputs, at, reader.tokenizer.mask_id, 1)
        if rule == "word_l2r":
            for row, (owner, place) in enumerate(zip(owners[some], places[some], strict=True)):
                inputs[row, 1:-1][_rest_of_the_word(sentences[owner].words, place - 1)] = reader.tokenizer.mask_id
        logits = reader.logits(reader.batch(inputs, at, labels))[:, 0, : reader.tokenizer.vocab_size]
        chosen = logits.float().log_softmax(-1).double().cpu().numpy()
        found[some] = chosen[np.arange(len(some)), labels[:, 0]]
        progress.advance(len(some))
    sums: NDArray[np.float64] = np.bincount(owners, found, minlength=len(texts)).astype(np.float64)
    return sums


def _rest_of_the_word(words: list[int | None], piece: int) -> NDArray[np.bool_]:
    """Which pieces of a sentence come behind one of them in its own word: -> (pieces,)."""
    own = words[piece]
    return np.array([number > piece and word == own and own is not None for number, word in enumerate(words)])
