"""What every encoder of this package is: embeddings, blocks of which some are active, a head, and a way to run them.

Shape legend: B sequences, S positions, P predicted, H hidden, E width of the embeddings, L layers, V vocabulary,
T tokens after unpadding, N predicted tokens of the batch, C labels, K kept of a sequence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.attention_forms import chosen, lacking, resolve_form
from cramming.architectures.layers.heads import ClassificationHead, MaskedLanguageHead
from cramming.architectures.layers.unpadding import Layout, Queries
from cramming.batch import Batch
from cramming.model import Model
from cramming.plain import described
from rst.work import Kind, Work

_NEARLY_FULL = 0.875  # of a batch's cells hold tokens


@dataclass(frozen=True)
class Part:
    """Tokens that alone go through some of the layers (https://arxiv.org/abs/2203.13240)."""

    rows: Tensor  # (T',) int64, ascending: theirs among all T
    layout: Layout  # of them alone
    places: range  # of the layers, among the active ones; the last of those is not one


class Encoder(Model):
    """Embeddings and L blocks. Any ascending subset of the blocks may be active; the others stay out of the graph.

    A subclass sets ``head``.

    Args:
        embeddings: ``embeddings(inputs, layout, token_types)`` gives (T, H), and the word matrix (V, E) for a tied
            decoder.
        blocks: ``block(x, layout, queries)`` maps (T, H) to (T, H), or to (N, H) at the slots in use of ``queries``;
            what ``prepared`` has for it follows these.
        vocab_size: V.
        max_positions: the longest sequence it takes, in tokens.
        final_norm: after the last block; None: nothing.
        attend_padding: padding is taken for text, so that it changes what tokens beside it become. Some released
            checkpoints were trained so; nothing else should be.
    """

    head: nn.Module
    drops_tokens = True
    scales_layers = True

    def __init__(
        self,
        embeddings: nn.Module,
        blocks: Iterable[nn.Module],
        vocab_size: int,
        max_positions: int,
        *,
        final_norm: nn.Module | None = None,
        attend_padding: bool = False,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.attend_padding = attend_padding
        self.vocab_size, self.max_positions = vocab_size, max_positions
        self.active_layers = tuple(range(len(self.blocks)))

    @property
    def active_layers(self) -> tuple[int, ...]:
        """Indices of the blocks that run, ascending."""
        return self._active

    @active_layers.setter
    def active_layers(self, layers: Iterable[int]) -> None:
        chosen = tuple(layers)
        if list(chosen) != sorted(set(chosen)) or not set(chosen) <= set(range(self.layers)):
            raise ValueError(f"active_layers={chosen} is not an ascending subset of 0..{self.layers - 1}")
        self._active = chosen

    @property
    def attention(self) -> str:
        """How attention is computed, see ``layers/attention_forms.py``; setting it sets it in every block that attends.

        A form that cannot do what a layer needs gives way to another there; ``attention_lacks`` says why.
        """
        return self._attention[0].form if self._attention else "auto"

    @attention.setter
    def attention(self, form: str) -> None:
        resolve_form(form, next(self.parameters()).device, self.max_positions)
        for module in self._attention:
            module.form = form

    def attention_lacks(self, form: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why attention cannot be computed in a form, on a device in a precision; None if it can."""
        layers = self._attention
        if not layers and form != "auto":
            return "this architecture has no attention"
        found = (lacking(form, layer.asked(layer.dropout), device, dtype) for layer in layers)
        return next((why for why in found if why is not None), None)

    def fast_paths(self, length: int | None = None) -> dict[str, str]:
        """What was chosen for speed on this device, for sequences of ``length`` tokens (default: the longest).

        Attention in float32 and on full batches; what differs from that in 16 bits, and there without padding.
        """
        device, length = next(self.parameters()).device, length or self.max_positions

        def taken(dtype: torch.dtype, unpadded: bool) -> str:
            asked = dict.fromkeys(m.asked(m.dropout if m.training else 0.0) for m in self._attention)
            found = (chosen(self.attention, need, device, dtype, length, unpadded=unpadded) for need in asked)
            return ", ".join(dict.fromkeys(found))

        forms = {
            "attention": taken(torch.float32, False),
            "attention_in_16_bits": taken(torch.bfloat16, False),
            "attention_unpadded": taken(torch.bfloat16, "unpadding" not in self.plain),
        }
        if forms["attention_unpadded"] == forms["attention_in_16_bits"]:
            del forms["attention_unpadded"]
        if forms["attention_in_16_bits"] == forms["attention"]:
            del forms["attention_in_16_bits"]
        return {**forms, **described(self.all_ways, self.plain)}

    @property
    def ways(self) -> frozenset[str]:  # type: ignore[override]
        """Padding that is attended to has to be computed."""
        return frozenset() if self.attend_padding else frozenset({"unpadding"})

    def layout(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Layout:
        """Which cells of (B, S) are computed, and which of them together; arguments as of ``Layout.of``."""
        if self.attend_padding:
            return Layout.of(inputs, starts=starts)
        # Documents that are apart have rows of their own in any case.
        return Layout.of(inputs, mask, lengths, starts, computed="unpadding" in self.plain and starts is None)

    def prepared(self, layout: Layout) -> Mapping[int, tuple[Any, ...]]:
        """What active blocks are called with besides, by layer: worked out for all of them at once, not compiled."""
        return {}

    def hidden(self, batch: Batch) -> Tensor:
        """Final hidden states, zero at padding: -> (B, S, H)."""
        layout = self.layout(batch.inputs, lengths=batch.lengths, starts=batch.starts)
        states = layout.scatter(self.encode(batch.inputs, layout)[0])
        if batch.lengths is not None and (self.attend_padding or layout.cells is None):  # padding was computed
            states = states * (torch.arange(batch.length, device=states.device) < batch.lengths[:, None])[..., None]
        return states

    def work(self, kind: Kind, batch: Batch, of: str = "main") -> Work:
        """What a pass over ``batch`` is to the clock, with the layers that only its kept tokens go through."""
        depth, short = len(self.active_layers), len(self._places(batch))
        kept = 0 if batch.kept is None or not short else batch.kept.shape[1]
        return Work(kind, len(batch), batch.length, depth, of, short_length=kept, short_layers=short)

    def encode(
        self,
        inputs: Tensor,
        layout: Layout,
        token_types: Tensor | None = None,
        queries: Queries | None = None,
        part: Part | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of all tokens or of ``queries``, and the word matrix: (B, S) -> (T, H) or (N, H), (V, E).

        Tokens that are not of ``part`` pass its layers by as they are.
        """
        x, decoder = self.embeddings(inputs, layout, token_types)
        whole, grid, prepared = x, layout, self.prepared(layout)
        for place, layer in enumerate(self.active_layers):
            if part is not None and place == part.places.start:
                whole, x, grid = x, x[part.rows], part.layout
            if part is not None and place == part.places.stop:
                x, grid = whole.index_copy(0, part.rows, x), layout
            wanted, before = queries if place == len(self.active_layers) - 1 else None, x
            given = (x, grid, wanted, *prepared.get(layer, ()))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self.blocks[layer], *given, use_reentrant=False)
            else:
                x = self.blocks[layer](*given)
            if self.layer_scales and layer in self.layer_scales:
                x = torch.lerp(before if wanted is None else wanted.select(before), x, self.layer_scales[layer])
        if queries is not None and not self.active_layers:
            x = queries.select(x)
        return x if self.final_norm is None else self.final_norm(x), decoder

    def _places(self, batch: Batch) -> range:
        """Which of the active layers the tokens kept go through alone; never the last one."""
        depth = len(self.active_layers)
        if batch.kept is None or not depth:
            return range(0)
        first, end = (round(share * depth) for share in batch.kept_depth)
        return range(first, max(first, min(end, depth - 1)))

    def _part(self, batch: Batch, layout: Layout) -> Part | None:
        """The tokens kept; None where no layer runs on them alone."""
        places = self._places(batch)
        if batch.kept is None or not places:
            return None
        rows, each = layout.rows_of(batch.kept), batch.kept.shape[1]
        if batch.lengths is not None:  # a sequence shorter than what is kept keeps all it has
            rows = rows[batch.kept < batch.lengths[:, None]]
        return Part(rows.flatten(), layout.part(rows.flatten(), None if batch.lengths is not None else each), places)

    @property
    def _attention(self) -> list[SelfAttention]:
        return [module for module in self.modules() if isinstance(module, SelfAttention)]


class MaskedLanguageModel(Encoder):
    """An encoder that predicts masked tokens, and computes nothing at other positions that it need not."""

    head: MaskedLanguageHead

    @property
    def ways(self) -> frozenset[str]:  # type: ignore[override]
        return super().ways | {"predicted_positions"}

    def forward(self, batch: Batch, logits: bool = False) -> Tensor:
        """Losses at predicted positions, -> (B, P) float32, finite in empty slots; or logits there, -> (B, P, V)."""
        layout = self.layout(batch.inputs, lengths=batch.lengths, starts=batch.starts)
        if "predicted_positions" in self.plain:
            return self._everywhere(batch, layout, logits)
        # Where sequences differ in length so does the number of slots in use, and shapes vary anyway.
        fixed = batch.lengths is None or logits or "unpadding" in self.plain
        kept = None if fixed else batch.weights.flatten().nonzero().squeeze(1)
        queries = Queries(layout.rows_of(batch.positions), kept)
        x, decoder = self.encode(batch.inputs, layout, queries=queries, part=self._part(batch, layout))
        if logits:
            scores: Tensor = self.head(x, decoder)
            return scores.view(*batch.positions.shape, -1)
        losses: Tensor = self.head.losses(x, decoder, queries.take(batch.labels.flatten()))
        if kept is not None:
            losses = losses.new_zeros(batch.labels.numel()).index_copy(0, kept, losses)
        return losses.view(batch.labels.shape)

    def _everywhere(self, batch: Batch, layout: Layout, logits: bool) -> Tensor:
        """The same, with all tokens through the last layer, the head and the vocabulary."""
        x, decoder = self.encode(batch.inputs, layout, part=self._part(batch, layout))
        rows = layout.rows_of(batch.positions)
        if logits:
            scores: Tensor = self.head(x, decoder)
            return scores[rows]
        slots = batch.positions.where(batch.weights > 0, batch.length)  # empty ones: a column that is cut off
        labels = batch.inputs.new_zeros(len(batch), batch.length + 1).scatter(1, slots, batch.labels)[:, :-1]
        losses: Tensor = self.head.losses(x, decoder, layout.gather(labels))
        return losses[rows]

    def flops(self, length: int, predicted: int, layers: int) -> float:
        """Floating-point operations of one sequence forward, a multiply-add counted as 2, products only.

        Args:
            length: tokens of the sequence.
            predicted: predicted positions among them.
            layers: active blocks, the first ones; the last works out its output at predicted positions only.
        """
        total = 2 * length * _weights(getattr(self.embeddings, "projection", None))
        for place, block in enumerate(self.blocks[:layers], start=1):
            attention = [module for module in block.modules() if isinstance(module, SelfAttention)]
            seen = sum(module.hidden * module.seen(length) for module in attention)
            keys_and_values = sum(2 * module.hidden * module.hidden for module in attention)
            rows = predicted if place == layers else length
            total += 2 * length * keys_and_values + 2 * rows * (_weights(block) - keys_and_values)
            total += 4 * rows * seen
        head = _weights(self.head)
        if self.head.decoder is None:
            head += self.embeddings.word.weight.numel()  # type: ignore[union-attr,operator]
        return float(total + 2 * predicted * head)


class Classifier(Encoder):
    """An encoder that decides about whole sequences; its input is tokens, not masked ones."""

    head: ClassificationHead

    def layout(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Layout:
        if mask is not None and starts is None and self._pays(mask):
            return Layout(inputs.shape[0], inputs.shape[1], mask=mask.bool())
        layout = super().layout(inputs, mask, lengths, starts)
        if self.head.pool_padding and layout.mask is not None:  # padding is computed, and attended to by nothing
            return Layout(layout.sequences, layout.length, mask=layout.mask)
        return layout

    def forward(  # type: ignore[override]
        self, inputs: Tensor, mask: Tensor | None = None, token_types: Tensor | None = None
    ) -> Tensor:
        """Logits of each sequence: (B, S), (B, S) true where a token is, (B, S) -> (B, C)."""
        if self.head.reads_first:  # then the last layer works on nothing else
            layout = self.layout(inputs, mask)
            first = Queries(layout.rows_of(inputs.new_zeros(len(inputs), 1)))
            states = self.encode(inputs, layout, token_types, first)[0][:, None]
        else:
            states = self.states(inputs, mask, token_types)
        logits: Tensor = self.head(states, None if mask is None else mask.bool())
        return logits

    def states(self, inputs: Tensor, mask: Tensor | None = None, token_types: Tensor | None = None) -> Tensor:
        """Final hidden states, zero at padding unless the head pools it: (B, S), (B, S), (B, S) -> (B, S, H)."""
        layout = self.layout(inputs, mask)
        states = layout.scatter(self.encode(inputs, layout, token_types)[0])
        if layout.cells is None and layout.mask is not None and not self.head.pool_padding:  # padding was computed
            states = states * layout.mask[..., None]
        return states

    def _pays(self, mask: Tensor) -> bool:
        """Whether to compute padding, too: so little of it costs less than leaving it out.

        Left out, products have another number of rows in nearly every batch, and the first of each shape takes longer
        on a processor; and sequences are attended to in several groups (benchmarks/finetuning.py).
        """
        if self.attend_padding or len(self._attention) < len(self.blocks):  # other ways of mixing need zeros there
            return False
        return int(mask.sum()) >= _NEARLY_FULL * mask.numel()


def _weights(module: nn.Module | None) -> int:
    """Entries of the matrices that a token is multiplied with in a module."""
    return 0 if module is None else sum(p.numel() for p in module.parameters() if p.dim() == 2)
