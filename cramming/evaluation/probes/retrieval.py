"""Retrieval: is the passage that belongs to a query the nearest of all, by the cosine of mean states?

Without a file, first halves of held-out sequences look for their second halves. Passages at the same distance are in
every order equally often, so that a model which tells nothing apart gets exactly what chance gives.

Shape legend: E queries, C passages, H hidden.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cramming.errors import UserError
from cramming.evaluation.probes.config import ProbeOptions
from cramming.evaluation.probes.reader import Ids, Reader
from cramming.evaluation.probes.result import Result, of_mean
from cramming.evaluation.probes.sampling import sampled
from cramming.evaluation.probes.sts import directions
from cramming.evaluation.rows import tables
from cramming.progress import ProgressSink

COLUMNS = ("query", "passage")
_SAME = 1e-9  # cosines nearer than this are equal
_SHORTEST = 4  # tokens of a half
_QUERIES_AT_A_TIME = 256


class Sought(NamedTuple):
    """A query and its passage."""

    query: str
    passage: str


def read(path: Path) -> list[Sought]:
    """The pairs of a file.

    Raises:
        UserError: it is missing, has other columns, or nothing to choose from.
    """
    table = tables.read(path, "probe.retrieval", COLUMNS)
    for column in COLUMNS:
        if not table.has(column):
            raise UserError(f"{table.name} has no column {column!r}; pairs to retrieve have {' and '.join(COLUMNS)}")
    found = []
    for row in table.rows:
        query, passage = (row.values.get(column) for column in COLUMNS)
        if not isinstance(query, str) or not isinstance(passage, str) or not query.strip() or not passage.strip():
            raise UserError(f"{table.at(row)} is not a query and a passage; repair or remove the row")
        found.append(Sought(query, passage))
    if len({pair.passage for pair in found}) < 2:
        raise UserError(f"{table.name} has fewer than two passages, so that there is nothing to choose from")
    return found


def probe(reader: Reader, asked: Sequence[Sought] | None, options: ProbeOptions, progress: ProgressSink) -> Result:
    """Mean reciprocal rank of each query's own passage; recall among the first one and five.

    Args:
        reader: the model.
        asked: the pairs; None: halves of held-out sequences.
        options: of the probe.
        progress: gets the number of texts that are done.

    Raises:
        UserError: nothing is held out, where that is needed.
    """
    remarks: tuple[str, ...] = ()
    limit = min(options.max_length, reader.longest)
    if asked is None:
        queries, passages = halves(reader, options.max_eval_rows)
        own = np.arange(len(queries))
    else:
        asked, remarks = sampled(asked, options.max_eval_rows, "pairs")
        numbers = {passage: number for number, passage in enumerate(dict.fromkeys(pair.passage for pair in asked))}
        own = np.array([numbers[pair.passage] for pair in asked])
        ids = reader.tokenizer.encode_lists([*(pair.query for pair in asked), *numbers])
        texts = [reader.sentence(one, limit) for one in ids]
        queries, passages = texts[: len(asked)], texts[len(asked) :]
    progress.stage("retrieval", len(queries) + len(passages), "texts")
    with reader.at_layer(options.layer):
        features = reader.pooled([*queries, *passages], progress)
    found = gains(features[: len(queries)], features[len(queries) :], own)
    chance = expected(0, len(passages))
    of_mrr = of_mean(found["mrr"])
    return Result(
        probe="retrieval",
        of="held-out" if options.retrieval is None else Path(options.retrieval).stem,
        metric="mrr",
        score=float(found["mrr"].mean()),
        chance=chance["mrr"],
        interval=of_mrr,
        examples=len(queries),
        also={
            **{name: float(found[name].mean()) for name in ("recall@1", "recall@5")},
            **{f"chance_{name}": chance[name] for name in ("recall@1", "recall@5")},
            "passages": float(len(passages)),
        },
        setting={"layer": options.layer, "max_length": None if options.retrieval is None else limit},
        remarks=remarks,
    )


def halves(reader: Reader, limit: int | None) -> tuple[list[Ids], list[Ids]]:
    """First and second halves of held-out sequences, each between [CLS] and [SEP].

    Raises:
        UserError: fewer than two are held out.
    """
    stream = reader.stream
    rows = 0 if stream is None else stream.split.heldout_rows
    rows = rows if limit is None else min(rows, limit)
    first: list[Ids] = []
    second: list[Ids] = []
    if stream is not None and rows:
        tokens, lengths = stream.store.read(stream.split.heldout(np.arange(rows, dtype=np.int64)))
        for number, row in enumerate(tokens.astype(np.int64)):
            text = row if lengths is None else row[: lengths[number]]
            text = text[int(text[0] == reader.tokenizer.cls_id) : len(text) - int(text[-1] == reader.tokenizer.sep_id)]
            middle = len(text) // 2
            if middle >= _SHORTEST:
                first.append(reader.sentence(text[:middle], middle + 2))
                second.append(reader.sentence(text[middle : 2 * middle], middle + 2))
    if len(first) < 2:
        raise UserError(
            "probes=retrieval looks for halves of held-out sequences, and fewer than two are held out: give "
            "probe.retrieval=<file with query, passage>"
        )
    return first, second


def gains(queries: NDArray[np.float64], passages: NDArray[np.float64], own: Ids) -> dict[str, NDArray[np.float64]]:
    """Of each query: reciprocal rank of its own passage, and whether it is among the first one and five: 3 x (E,).

    Args:
        queries: (E, H) features.
        passages: (C, H).
        own: (E,) number of each query's passage.
    """
    queries, passages = directions(queries), directions(passages)
    found: dict[str, list[float]] = {"mrr": [], "recall@1": [], "recall@5": []}
    for start in range(0, len(queries), _QUERIES_AT_A_TIME):
        cosines = queries[start : start + _QUERIES_AT_A_TIME] @ passages.T
        targets = np.take_along_axis(cosines, own[start : start + len(cosines), None], 1)
        nearer = (cosines > targets + _SAME).sum(1)
        equal = (np.abs(cosines - targets) <= _SAME).sum(1)
        for before, ties in zip(nearer.tolist(), equal.tolist(), strict=True):
            for name, value in expected(before, ties).items():
                found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


def expected(nearer: int, equal: int) -> dict[str, float]:
    """What a query gains on average where so many passages are nearer than its own, and so many, with it, as near."""
    ranks = np.arange(nearer + 1, nearer + equal + 1)
    return {
        "mrr": float((1 / ranks).mean()),
        "recall@1": float((ranks <= 1).mean()),
        "recall@5": float((ranks <= 5).mean()),
    }
