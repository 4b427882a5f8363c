"""Token dropping (Hou et al. 2022, "Token Dropping for Efficient BERT Pretraining", https://arxiv.org/abs/2203.13240).

In the layers of the middle only the tokens that matter run: the predicted ones, special ones, and those whose words
have been hard to predict so far, by a running mean of the masked-language loss of each vocabulary id. The others pass
these layers by as they are and rejoin before the last layer, at their own positions. Validation sees every token in
every layer.

Saves what the dropped tokens would cost in those layers and costs nothing of its own; the price of a pass is that of
its shorter layers (``rst.work.Work.short_layers``), so ``rst=calibrate`` also measures passes of that length. Where the
authors' first thinned layer still attends to the tokens it drops, that layer runs whole here, as the one before the
first thinned one.

Shape legend: B sequences, S positions, P prediction slots, K kept of S, V vocabulary.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cramming.batch import Batch
from cramming.errors import UserError
from cramming.hashing import key, mix
from cramming.method import Draw, Forward, Method
from cramming.parallel.ranks import here
from cramming.registry import register
from cramming.suggest import nearest

if TYPE_CHECKING:
    from cramming.train import Run

WAYS = ("loss", "random")
_FIXED_POINT = 1 << 20  # losses are summed as whole numbers, so that their order does not matter, on any device


@register("method", "token_dropping")
@dataclass
class TokenDropping(Method):
    """Drop the tokens that matter least in the layers of the middle.

    Attributes:
        share: of each sequence's tokens that is dropped; 0 drops none.
        from_depth: share of the active layers that run on all tokens before the thinned ones begin.
        to_depth: share of the active layers where the thinned ones end; the last layer is never one of them.
        momentum: of the running loss: a batch moves that of the words predicted in it by 1 - momentum.
        initial_loss: of words that were never predicted; high, so that they are kept.
        by: ``loss`` drops the words of the lowest running loss, ``random`` any (the paper's baseline).

    Raises:
        UserError: an option outside its range.
    """

    share: float = 0.5
    from_depth: float = 0.5
    to_depth: float = 1.0
    momentum: float = 0.995
    initial_loss: float = 10.0
    by: str = "loss"

    def __post_init__(self) -> None:
        for name, low, high in (("share", 0, 1), ("from_depth", 0, 1), ("to_depth", 0, 1), ("momentum", 0, 1)):
            value = getattr(self, name)
            if not low <= value <= high or (name == "share" and value == 1):
                raise UserError(f"method.token_dropping.{name}={value} is a share: give 0 to 1, such as 0.5")
        if self.from_depth >= self.to_depth:
            raise UserError(
                f"method.token_dropping.from_depth={self.from_depth} must lie below to_depth={self.to_depth}: between "
                "them are the layers that run on some tokens only"
            )
        if not math.isfinite(self.initial_loss):
            raise UserError(f"method.token_dropping.initial_loss={self.initial_loss} must be finite, such as 10")
        if self.by not in WAYS:
            raise UserError(f"method.token_dropping.by={self.by} is unknown{nearest(self.by, WAYS)}")
        self.losses = torch.empty(0)  # (V,) float32: running mean of the loss of each id
        self._special = torch.empty(0, dtype=torch.bool)  # (V,): ids that are always kept
        self._sums = torch.empty(0, dtype=torch.int64)  # (V,) losses of this step's predictions, in fixed point
        self._counts = torch.empty(0, dtype=torch.int64)  # (V,) and how many there were
        self._groups: set[int] = set()  # draw groups of this step that have had their first passes
        self._noting = False

    def kept(self, length: int) -> int:
        """K, how many of a sequence's ``length`` tokens go through the thinned layers."""
        return length - round(self.share * length)

    def thins(self, length: int) -> Collection[int]:
        """The lengths that the thinned layers see."""
        return (self.kept(length),) if self.share else ()

    def setup(self, run: "Run") -> None:
        """Look at the model and the vocabulary.

        Raises:
            UserError: a model whose layers need all tokens, too few layers, or too few tokens kept.
        """
        model, stream = run.model, run.stream
        self.losses = torch.full((model.vocab_size,), self.initial_loss, device=stream.device)
        self._special = torch.zeros(model.vocab_size, dtype=torch.bool, device=stream.device)
        self._special[stream.store.tokenizer.special_ids] = True
        self._sums, self._counts = torch.zeros((2, model.vocab_size), dtype=torch.int64, device=stream.device)
        if not self.share:
            return
        if not model.drops_tokens:
            raise UserError(
                f"method=token_dropping does not work with {type(model).__name__}, whose layers need every token: "
                "choose a family of attention encoders (bert, crammed, mosaic, roberta, modern), or leave it out"
            )
        first, end = round(self.from_depth * model.layers), round(self.to_depth * model.layers)
        if first >= min(end, model.layers - 1):
            raise UserError(
                f"method.token_dropping.from_depth={self.from_depth} and to_depth={self.to_depth} leave no layer of "
                f"{model.layers} to drop tokens in (never the last one): lower from_depth"
            )
        if self.kept(stream.length) < stream.slots:
            raise UserError(
                f"method.token_dropping.share={self.share} keeps {self.kept(stream.length)} of {stream.length} tokens, "
                f"and {stream.slots} of them are predicted: give less"
            )

    def next_batch(self, run: "Run", draw: Draw, n: int) -> Batch | None:
        """The next batch, with the positions chosen that go through all layers."""
        batch = draw(n)
        if batch is None or not self.share:
            return batch
        chosen = self.choose(batch, run.config.seed)
        return replace(batch, kept=chosen, kept_depth=(self.from_depth, self.to_depth))

    def choose(self, batch: Batch, seed: int) -> Tensor:
        """Positions to keep: predicted ones first, then special tokens, then the hardest words; -> (B, K) ascending.

        Words of equal loss are told apart by a hash of (seed, epoch, sequence, position, word).
        """
        position = torch.arange(batch.length, device=batch.inputs.device)
        ranks = self.losses[batch.inputs] if self.by == "loss" else torch.zeros_like(batch.inputs, dtype=torch.float32)
        ranks = ranks.masked_fill(self._special[batch.inputs], torch.finfo(torch.float32).max)
        predicted = torch.zeros_like(ranks).scatter_(1, batch.positions, batch.weights) > 0
        ranks = ranks.masked_fill(predicted, math.inf)
        if batch.lengths is not None:
            ranks = ranks.masked_fill(position >= batch.lengths[:, None], -math.inf)
        sequence = mix(mix(batch.epochs + key("token_dropping", seed)) ^ mix(batch.ids))
        shuffled = mix(mix(sequence[:, None] + position) + batch.inputs).argsort(1)
        order = ranks.gather(1, shuffled).sort(dim=1, descending=True, stable=True).indices
        best = shuffled.gather(1, order[:, : self.kept(batch.length)])
        return best.sort(1).values

    def before_step(self, run: "Run") -> None:
        """Forget which groups have been seen."""
        self._groups.clear()

    @contextmanager
    def thinned(self, run: "Run", group: Batch) -> Iterator[None]:
        """Note losses in a group's first passes only: a second one, such as sharpness-aware, is at other weights."""
        self._noting = group.index not in self._groups
        self._groups.add(group.index)
        try:
            yield
        finally:
            self._noting = False

    def objective(self, forward: Forward, batch: Batch) -> Tensor:
        """The baseline's loss; what each word's was is written down."""
        losses = forward(batch)
        if self._noting and self.share and self.by == "loss":
            self._note(losses.detach(), batch)
        return (losses * batch.weights).sum() / batch.normalizer

    def after_step(self, run: "Run") -> None:
        """Move the running losses of the words that were predicted, on whichever rank."""
        if self.share and self.by == "loss":
            here().sum_(self._sums)
            here().sum_(self._counts)
        means = (self._sums.double() / (_FIXED_POINT * self._counts.clamp(min=1))).to(self.losses.dtype)
        moved = self.losses.lerp(means, 1 - self.momentum)
        self.losses = torch.where(self._counts > 0, moved, self.losses)
        self._sums.zero_()
        self._counts.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The running losses."""
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.losses = state["losses"].to(self._special.device)

    def _note(self, losses: Tensor, batch: Batch) -> None:
        """(B, P) losses of the batch's labels."""
        used, labels = (batch.weights > 0) & losses.isfinite(), batch.labels.flatten()
        fixed = (losses.where(used, 0.0).double() * _FIXED_POINT).round().long()
        self._sums.index_add_(0, labels, fixed.flatten())
        self._counts.index_add_(0, labels, used.long().flatten())
