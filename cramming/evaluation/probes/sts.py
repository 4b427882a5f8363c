"""Sentence similarity: does the cosine of two sentences' mean states rank pairs as people do?

Spearman's correlation, as sentence embeddings are usually compared (Reimers & Gurevych 2019,
https://arxiv.org/abs/1908.10084, section 4). No weight is fitted.

Shape legend: E pairs, H hidden.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from cramming.errors import UserError
from cramming.evaluation.probes.config import ProbeOptions
from cramming.evaluation.probes.reader import Reader
from cramming.evaluation.probes.result import Result, of_correlation
from cramming.evaluation.probes.sampling import sampled
from cramming.evaluation.rows import tables
from cramming.progress import ProgressSink

COLUMNS = ("sentence1", "sentence2", "score")


class Rated(NamedTuple):
    """Two sentences and how alike people find them."""

    sentence1: str
    sentence2: str
    score: float


def read(path: Path) -> list[Rated]:
    """The pairs of a file: STS-B's official one, or csv, tsv, jsonl, parquet with the same columns.

    Raises:
        UserError: it is missing, has other columns, or a row of it is none.
    """
    table = tables.read(path, "probe.sts", COLUMNS)
    for column in COLUMNS:
        if not table.has(column):
            raise UserError(f"{table.name} has no column {column!r}; sentence pairs have {', '.join(COLUMNS)}")
    found = []
    for row in table.rows:
        one, other, rated = (row.values.get(column) for column in COLUMNS)
        try:
            score = float(rated if isinstance(rated, int | float) else str(rated))
        except ValueError:
            score = math.nan
        if not math.isfinite(score) or not isinstance(one, str) or not isinstance(other, str):
            raise UserError(f"{table.at(row)} is not two sentences and a number ({rated!r}); repair or remove the row")
        found.append(Rated(one, other, score))
    if len(found) < 2:
        raise UserError(f"{table.name} has {len(found)} pairs, too few for a correlation")
    return found


def probe(reader: Reader, asked: Sequence[Rated], of: str, options: ProbeOptions, progress: ProgressSink) -> Result:
    """The correlation over the pairs."""
    asked, remarks = sampled(asked, options.max_eval_rows, "pairs")
    limit = min(options.max_length, reader.longest)
    sentences = [sentence for pair in asked for sentence in (pair.sentence1, pair.sentence2)]
    texts = [reader.sentence(ids, limit) for ids in reader.tokenizer.encode_lists(sentences)]
    progress.stage("sentence similarity", len(texts), "sentences")
    with reader.at_layer(options.layer):
        features = reader.pooled(texts, progress)
    cosines = cosine(features[0::2], features[1::2])
    score = correlation(cosines, np.array([pair.score for pair in asked]))
    return Result(
        probe="sts",
        of=of,
        metric="spearman",
        score=score,
        chance=0.0,
        interval=of_correlation(score, len(asked), ranks=True),
        examples=len(asked),
        setting={"layer": options.layer, "max_length": limit},
        remarks=remarks,
    )


def cosine(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines of vectors two by two: 2 x (E, H) -> (E,); 0 with a vector of zeros."""
    return np.einsum("eh,eh->e", directions(left), directions(right))


def directions(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors of length 1: (E, H) -> (E, H); those of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def correlation(values: NDArray[np.float64], scores: NDArray[np.float64]) -> float | None:
    """Spearman's correlation; None where one side is constant."""
    if np.ptp(values) == 0 or np.ptp(scores) == 0:
        return None
    return float(spearmanr(values, scores).statistic)
