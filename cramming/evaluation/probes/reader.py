"""A trained model as probes ask it: frozen, without dropout, sequences of equal length together.

Nothing is ever padded: sequences that are passed together are equally long. So padding cannot leak in any family of
models, and what a text gives does not depend on the texts beside it beyond rounding.

Shape legend: B sequences, S positions, P predicted, H hidden, V vocabulary, R texts, F features.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cramming.batch import Batch
from cramming.data.stream import Stream
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.exchange.weights import LONGEST
from cramming.model import Model
from cramming.progress import ProgressSink
from cramming.train import Run

_TOKENS = 4096  # of a pass; fits the memory of whatever trained the model

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Reader:
    """What a probe may ask.

    Attributes:
        hidden: final hidden states: a batch -> (B, S, H).
        logits: at the predicted positions: a batch -> (B, P, V).
        model: the same model, for its depth; nobody calls it.
        tokenizer: its tokenizer.
        device: where batches live.
        stream: of the corpus, for its held-out part; None: there is none.
    """

    hidden: Callable[[Batch], Tensor]
    logits: Callable[[Batch], Tensor]
    model: Model
    tokenizer: Tokenizer
    device: torch.device
    stream: Stream | None = None

    @staticmethod
    def of_run(run: Run) -> "Reader":
        """The model of a run, with the weights it has now, through its engine: nothing is charged."""
        engine = run.engine
        return Reader(
            engine.uncharged_hidden, engine.uncharged_logits, run.model, run.stream.store.tokenizer, engine.device,
            run.stream,
        )  # fmt: skip

    @staticmethod
    def of_model(model: Model, tokenizer: Tokenizer) -> "Reader":
        """A model in evaluation mode that belongs to no run."""
        device = next(model.parameters()).device

        def hidden(batch: Batch) -> Tensor:
            with torch.no_grad():
                return model.hidden(batch)

        def logits(batch: Batch) -> Tensor:
            with torch.no_grad():
                scores: Tensor = model(batch, logits=True)
                return scores

        return Reader(hidden, logits, model, tokenizer, device)

    @property
    def longest(self) -> int:
        """Tokens of the longest text it reads."""
        return min(int(self.model.max_positions), LONGEST)

    @contextmanager
    def at_layer(self, layer: int | None) -> Iterator[None]:
        """A context in which ``hidden`` gives the states after the first so many of the layers that are active.

        Raises:
            UserError: there are fewer, or the model cannot run some of its layers.
        """
        before = self.model.active_layers
        if layer is not None and layer > len(before):
            raise UserError(f"probe.layer={layer}, but the model has {len(before)} layers: give at most that")
        try:
            if layer is not None:
                self.model.active_layers = tuple(before)[:layer]
            yield
        finally:
            self.model.active_layers = before

    def sentence(self, ids: Sequence[int] | Ids, limit: int) -> Ids:
        """Ids of a text between [CLS] and [SEP], cut to ``limit`` tokens in all."""
        kept = np.asarray(ids, dtype=np.int64)[: max(0, limit - 2)]
        return np.concatenate([[self.tokenizer.cls_id], kept, [self.tokenizer.sep_id]])

    def batch(self, inputs: Ids, positions: Ids | None = None, labels: Ids | None = None) -> Batch:
        """Equally long sequences (B, S), with the positions (B, P) at which logits are wanted."""
        tokens = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.int64)).to(self.device)
        rows = torch.zeros(len(tokens), dtype=torch.int64, device=self.device)
        places = rows[:, None] if positions is None else torch.from_numpy(positions).to(self.device)
        right = torch.zeros_like(places) if labels is None else torch.from_numpy(labels).to(self.device)
        weights = torch.ones_like(places, dtype=torch.float32)
        return Batch(rows, rows, tokens, places, right, weights, None, weights.sum())

    def states(self, texts: Sequence[Ids]) -> Iterator[tuple[Ids, Tensor]]:
        """Final hidden states of texts: numbers of some, (B,), and theirs, (B, S, H) float32; each text once."""
        for rows in together([len(text) for text in texts]):
            yield rows, self.hidden(self.batch(np.stack([texts[row] for row in rows]))).float()

    def pooled(self, texts: Sequence[Ids], progress: ProgressSink) -> NDArray[np.float64]:
        """The mean of each text's final hidden states, (R, H), [CLS] and [SEP] among them.

        As sentence embeddings of BERT are pooled (Reimers & Gurevych 2019, https://arxiv.org/abs/1908.10084).
        """
        features: NDArray[np.float64] | None = None
        for rows, states in self.states(texts):
            means = states.mean(1).double().cpu().numpy()
            if features is None:
                features = np.empty((len(texts), means.shape[1]))
            features[rows] = means
            progress.advance(len(rows))
        assert features is not None, "no texts"
        return features


def together(lengths: Sequence[int]) -> Iterator[Ids]:
    """Numbers of sequences to pass together: equally long, about 4096 tokens, in an order that is always the same."""
    listed = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(listed, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(listed[order])) + 1):
        if len(rows):
            size = max(1, _TOKENS // max(1, int(listed[rows[0]])))
            yield from np.split(rows, range(size, len(rows), size))
