"""How well masked tokens are predicted, by how common they are in the corpus that was trained on.

Common tokens are learnt first, and most of the loss is theirs; what a longer budget buys is in the others. Tokens are
put into bands by their count in a sample of the training rows: tenths of the corpus (by token mass, common to rare), or
powers of ten of the rank. Beside each band stands what is possible without looking at the sentence: always the most
common token, and the loss of the counts themselves.

Shape legend: V vocabulary, B sequences, P predicted, N sequences in all.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cramming.data.stream import Stream
from cramming.errors import UserError
from cramming.evaluation.probes.config import ProbeOptions
from cramming.evaluation.probes.reader import Reader
from cramming.evaluation.probes.result import Result, of_clustered_share
from cramming.progress import ProgressSink

MASK_RATE, MASK_SEED = 0.15, 0  # as validation has them
COUNTED_TOKENS = 10_000_000  # of the training rows, evenly spread, at most
_BATCH_SIZE = 32
_ROWS_AT_A_TIME = 4096
_UNSEEN = "not seen"

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Bands:
    """Every token of the vocabulary in one band.

    Attributes:
        names: of the bands, common tokens first; the last is of tokens that the sample does not have.
        of: (V,) each token's band.
        rare: (V,) whether it is of the rarer half of the corpus.
    """

    names: tuple[str, ...]
    of: Counts
    rare: NDArray[np.bool_]


def counts(stream: Stream, limit: int = COUNTED_TOKENS) -> Counts:
    """How often each token is in the training rows, or in a sample of them of about ``limit`` tokens: (V,).

    Special tokens and padding count nothing: they are never predicted.
    """
    store, split = stream.store, stream.split
    rows = min(split.train_rows, max(1, limit // store.seq_length))
    places = np.arange(rows, dtype=np.int64) * split.train_rows // rows
    found = np.zeros(store.tokenizer.vocab_size, dtype=np.int64)
    for first in range(0, rows, _ROWS_AT_A_TIME):
        # The training part is in a shuffled order, so that reading in order of the rows is quicker.
        tokens, lengths = store.read(np.sort(split.train(places[first : first + _ROWS_AT_A_TIME])))
        if lengths is not None:
            tokens = tokens[np.arange(store.seq_length) < lengths[:, None]]
        found += np.bincount(tokens.ravel(), minlength=len(found))
    found[store.tokenizer.special_ids] = 0
    return found


def bands(found: Counts, kind: str) -> Bands:
    """Tokens by how common they are.

    Args:
        found: (V,) counts.
        kind: ``mass``: a token is in the tenth of the corpus that begins before it, when tokens stand in order of their
            counts (equals by their ids); ``rank``: 1 to 10, 11 to 100 and so on.
    """
    order = np.argsort(-found, kind="stable")
    total = int(found.sum())
    before = np.empty(len(found), dtype=np.int64)
    before[order] = np.cumsum(found[order]) - found[order]
    rank = np.empty(len(found), dtype=np.int64)
    rank[order] = np.arange(len(found))
    if kind == "mass":
        names = [f"{10 * tenth}-{10 * tenth + 10} %" for tenth in range(10)]
        of = before * 10 // max(1, total)
    else:
        edges = [10**power for power in range(1, 5)]
        names = [*(f"{low + 1:,}-{high:,}" for low, high in pairwise((0, *edges))), f"{edges[-1] + 1:,}-"]
        of = np.searchsorted(edges, rank, side="right")
    of = np.where(found > 0, of, len(names))
    return Bands((*names, _UNSEEN), of, (2 * before >= total) | (found == 0))


@torch.no_grad()
def probe(reader: Reader, options: ProbeOptions, progress: ProgressSink) -> Result:
    """Accuracy on the tokens that make up the rarer half of the corpus ("rare"); accuracy and loss of every band.

    Raises:
        UserError: nothing is held out.
    """
    stream = reader.stream
    if stream is None or not stream.split.heldout_rows:
        raise UserError("probes=frequency asks about held-out sequences, and there are none (data.heldout_fraction=0)")
    found = counts(stream)
    by = bands(found, options.bands)
    commonest = int(found.argmax())
    unigram = np.log((found + 1.0) / (found + 1.0).sum())  # one more each: no token is impossible
    limit = stream.split.heldout_rows if options.max_eval_rows is None else options.max_eval_rows
    progress.stage("masked tokens by frequency", min(limit, stream.split.heldout_rows), "sequences")
    labels, rights, losses, owners = [], [], [], []
    sequences = 0
    for batch in stream.heldout(_BATCH_SIZE, mask_rate=MASK_RATE, mask_seed=MASK_SEED, limit=limit):
        logits = reader.logits(batch).float()
        used = (batch.weights > 0).cpu().numpy()
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none").view_as(batch.labels)
        labels.append(batch.labels.cpu().numpy()[used])
        rights.append((logits.argmax(-1) == batch.labels).cpu().numpy()[used])
        losses.append(loss.double().cpu().numpy()[used])
        owners.append(sequences + used.nonzero()[0])
        sequences += len(batch)
        progress.advance(len(batch))
    asked = _Asked(
        labels=np.concatenate(labels),
        rights=np.concatenate(rights),
        losses=np.concatenate(losses),
        owners=np.concatenate(owners),
        sequences=sequences,
        unigram=unigram,
        commonest=commonest,
    )
    parts = {name: asked.numbers(by.of[asked.labels] == band) for band, name in enumerate(by.names)}
    for band, name in enumerate(by.names):
        parts[name]["tokens"] = float((by.of == band).sum())
    rare = by.rare[asked.labels]
    of_all, of_rare = asked.numbers(np.ones_like(rare)), asked.numbers(rare)
    return Result(
        probe="frequency",
        of="held-out",
        metric="rare accuracy",
        score=of_rare["score"],
        chance=of_rare["chance"],
        interval=asked.interval(rare),
        examples=int(rare.sum()),
        also={
            "rare_loss": of_rare["loss"],
            "rare_unigram_loss": of_rare["unigram_loss"],
            "accuracy": of_all["score"],
            "loss": of_all["loss"],
            "unigram_loss": of_all["unigram_loss"],
        },
        parts={name: numbers for name, numbers in parts.items() if numbers["tokens"]},
        setting={"bands": options.bands, "sequences": sequences, "counted_tokens": int(found.sum())},
    )


@dataclass(frozen=True)
class _Asked:
    """Predicted tokens one by one."""

    labels: Counts
    rights: NDArray[np.bool_]
    losses: NDArray[np.float64]
    owners: Counts  # the sequence each is of
    sequences: int
    unigram: NDArray[np.float64]  # (V,) log-probability by count
    commonest: int

    def numbers(self, some: NDArray[np.bool_]) -> dict[str, float | None]:
        """Means over some of them; None where there are none."""
        examples = int(some.sum())
        interval = self.interval(some)

        def mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float | None:
            return float(values[some].mean()) if examples else None

        return {
            "score": mean(self.rights),
            "chance": mean(self.labels == self.commonest),
            "low": interval[0] if interval else None,
            "high": interval[1] if interval else None,
            "loss": mean(self.losses),
            "unigram_loss": mean(-self.unigram[self.labels]),
            "examples": float(examples),
        }

    def interval(self, some: NDArray[np.bool_]) -> tuple[float, float] | None:
        """Of the accuracy on some of them; tokens of one sequence are not independent, sequences are."""
        right = np.bincount(self.owners[some & self.rights], minlength=self.sequences)
        whole = np.bincount(self.owners[some], minlength=self.sequences)
        return of_clustered_share(right.astype(np.float64), whole.astype(np.float64))
