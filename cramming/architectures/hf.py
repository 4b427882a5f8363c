"""Networks of the transformers library behind our contract (https://github.com/huggingface/transformers).

The library's modules run as they are. What is added around them: the vocabulary projection at predicted positions only,
some of the layers, gradient checkpointing also without dropout, documents apart, and float32 losses for each token.

Shape legend: B sequences, S positions, D sequences apart from one another (B, or the documents in them), P predicted,
N predicted tokens of the batch, H hidden, L layers, V vocabulary, C labels.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cramming.architectures.hf_head import Head, accepted
from cramming.architectures.hf_layers import Stack
from cramming.architectures.layers.attention_forms import CPU_MATH_UP_TO, resolve_form
from cramming.architectures.layers.axes import FIXED, POSITIONS, Axes, Axis
from cramming.architectures.layers.unpadding import Layout
from cramming.batch import Batch
from cramming.errors import UserError
from cramming.model import Model
from cramming.plain import described

_FORMS = {"math": "eager", "sdpa": "sdpa"}  # our names of how attention is computed -> theirs


class TransformersEncoder(Model):
    """A network of transformers, with any head.

    Parameters are named as in the library, behind ``network.``; a language model's encoder and a classifier's are named
    alike.

    Args:
        network: a ``PreTrainedModel`` with a head.
        max_positions: the longest sequence it takes, in tokens.
        stack: its layers; None: they cannot be told apart, so all of them run, always.
        leaks: what is in padding changes what its network makes of tokens, so that padded batches are refused.
    """

    def __init__(self, network: Any, max_positions: int, stack: Stack | None, leaks: bool = False) -> None:
        super().__init__()
        self.network = network
        self.stack, self.leaks = stack, leaks
        self.vocab_size, self.max_positions = int(network.config.vocab_size), max_positions
        self.form = "auto"
        self._layers = len(self.blocks) if stack else int(getattr(network.config, "num_hidden_layers", 1))
        self._active = tuple(range(self._layers))
        self._flops: dict[tuple[int, int, int], float] = {}

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The L layers in the order they run in, the same one several times where it is shared; empty if unknown."""
        return nn.ModuleList() if self.stack is None else self.stack.blocks(self.network)

    @property
    def layers(self) -> int:
        return self._layers

    @property
    def active_layers(self) -> tuple[int, ...]:  # type: ignore[override]
        """Indices of the layers that run, ascending."""
        return self._active

    @active_layers.setter
    def active_layers(self, layers: Iterable[int]) -> None:
        chosen = tuple(layers)
        if list(chosen) != sorted(set(chosen)) or not set(chosen) <= set(range(self.layers)):
            raise ValueError(f"active_layers={chosen} is not an ascending subset of 0..{self.layers - 1}")
        if self.stack is None and len(chosen) < self.layers:
            raise UserError(
                f"arch={self._named} cannot run {len(chosen)} of its {self.layers} layers, as methods that drop or "
                "grow layers and rst=calibrate do: use rst=wallclock, rst=flops or rst=steps, and no such method"
            )
        self._active = chosen

    @property
    def attention(self) -> str:
        """How attention is computed, where the network lets one choose: ``auto``, ``math`` or ``sdpa``."""
        return self.form

    @attention.setter
    def attention(self, form: str) -> None:
        if form not in ("auto", *_FORMS):
            raise ValueError(f"attention={form!r} is not one of auto, {', '.join(_FORMS)}")
        self.form = form

    def attention_lacks(self, form: str, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why attention cannot be computed in a form: it is the network's own, in one way or in two."""
        if form == "auto" or (form in _FORMS and self.network._supports_sdpa):
            return None
        ways = " and ".join(_FORMS) if self.network._supports_sdpa else "no others"
        return f"attention of {self.network.config.model_type!r} is that of transformers, which has {ways}"

    def fast_paths(self, length: int | None = None) -> dict[str, str]:
        """What was chosen for speed on this device, for sequences of ``length`` tokens (default: all lengths)."""
        import transformers

        short, long = self._form(length or 1), self._form(length or self.max_positions)
        attention = short if short == long else f"{short} up to {CPU_MATH_UP_TO} tokens, then {long}"
        return {
            "network": f"transformers {transformers.__version__} {type(self.network).__name__}",
            "attention": attention or "the network's own",
            "padding": "computed, attended to by nothing",
            "last_layer": "every position",
        }

    def hidden(self, batch: Batch) -> Tensor:
        """Final hidden states, zero at padding and between documents: -> (B, S, H)."""
        layout = Layout.of(batch.inputs, lengths=batch.lengths, starts=batch.starts)
        base = self.network.base_model
        with self._running():
            states = base(**accepted(base, self._inputs(batch.inputs, layout)))[0]
        return layout.scatter(layout.unpad(states))

    def flops(self, length: int, predicted: int, layers: int) -> float:
        """Floating-point operations of one sequence forward, a multiply-add counted as 2, products only.

        They are counted while a network of these sizes, without memory for its weights, runs (``FlopCounterMode``).

        Args:
            length: tokens of the sequence.
            predicted: predicted positions among them.
            layers: active layers, the first ones.
        """
        key = (length, predicted, layers)
        if key not in self._flops:
            with torch.device("meta"):
                twin = self._twin(made(type(self.network), copy.deepcopy(self.network.config)))
            try:
                self._flops[key] = _counted(twin, length, predicted, layers)
            except (NotImplementedError, RuntimeError):  # its forward looks at values
                twin = self._twin(self.network)
                self._flops[key] = _counted(twin, length, predicted, layers)
        return self._flops[key]

    def growing_axes(self) -> dict[str, Axes]:
        """How its matrices are made up is not known, so none of them grows; plain tables of positions do."""
        axes: dict[str, Axes] = {}
        for name, tensor in self.state_dict().items():
            owner, _, key = name.rpartition(".")
            table = self.get_submodule(owner)
            # Tables with rows for padding count their positions from behind those.
            grows = owner.endswith("position_embeddings") and getattr(table, "padding_idx", None) is None
            first = POSITIONS if grows and key == "weight" else FIXED
            axes[name] = tuple(Axis(size, FIXED if place else first) for place, size in enumerate(tensor.shape))
        return axes

    @property
    def embeddings(self) -> "WordTable":
        """What importers set the padding of."""
        return WordTable(self.network.get_input_embeddings())

    def _twin(self, network: Any) -> "TransformersEncoder":
        """The same around another network."""
        raise NotImplementedError

    @contextmanager
    def _running(self) -> Iterator[None]:
        """A context in which the network runs the active layers."""
        if self.stack is None:
            yield
            return
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        with self.stack.running(self.network, self._active, recompute=recompute):
            yield

    def _inputs(self, inputs: Tensor, layout: Layout, token_types: Tensor | None = None) -> dict[str, Tensor | None]:
        """What the network is called with: (B, S) -> (D, S)."""
        if self.leaks and layout.cells is not None:
            raise UserError(
                f"arch={self._named} lets what is in padding change the tokens beside it, so sequences must be full: "
                "use data.layout=packed and train.separate_documents=false"
            )
        form = self._form(layout.length)
        if form is not None and self.network.config._attn_implementation != _FORMS[form]:
            self.network.set_attn_implementation(_FORMS[form])
        mask = None if layout.mask is None else layout.mask.long()
        if mask is None and form is None:  # networks of old make one in any case, after looking for padding
            mask = torch.ones((layout.sequences, layout.length), dtype=torch.int64, device=inputs.device)
        grids = {"input_ids": inputs, "token_type_ids": token_types}
        if layout.batch is not None:
            grids = {key: None if grid is None else layout.pad(layout.gather(grid)) for key, grid in grids.items()}
        given = {key: grid for key, grid in grids.items() if grid is not None}
        if not getattr(self.network.config, "type_vocab_size", 0):
            given.pop("token_type_ids", None)
        return accepted(self.network, {**given, "attention_mask": mask})

    def _form(self, length: int) -> str | None:
        """``math`` or ``sdpa`` at this length; None where the network has only one way."""
        if not self.network._supports_sdpa:
            return None
        return resolve_form(self.form, next(self.parameters()).device, length)

    @property
    def _named(self) -> str:
        return f"hf of type {self.network.config.model_type!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TransformersEncoder":
        """Moves and casts; frequencies of rotary positions stay float32, in which transformers' own loading keeps them.

        bfloat16 has eight bits: at position 1000 a frequency that is rounded to it turns the wrong way.
        """
        kept = {n: b for n, b in self.network.named_buffers() if n.endswith("inv_freq")}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            owner, _, key = name.rpartition(".")
            module = self.network.get_submodule(owner)
            moved = getattr(module, key)
            if moved.dtype != buffer.dtype:
                setattr(module, key, buffer.to(moved.device))
        return self


class TransformersLanguageModel(TransformersEncoder):
    """A masked language model of transformers.

    Args:
        network: its ``...ForMaskedLM``.
        max_positions: see ``TransformersEncoder``.
        stack: see there.
        head: how its losses are computed.
        leaks: see there.
    """

    def __init__(self, network: Any, max_positions: int, stack: Stack | None, head: Head, leaks: bool = False) -> None:
        super().__init__(network, max_positions, stack, leaks)
        self.head = head

    @property
    def ways(self) -> frozenset[str]:  # type: ignore[override]
        return self.head.ways

    def forward(self, batch: Batch, logits: bool = False) -> Tensor:
        """Losses at predicted positions, -> (B, P) float32, finite in empty slots; or logits there, -> (B, P, V)."""
        layout = Layout.of(batch.inputs, lengths=batch.lengths, starts=batch.starts)
        rows = layout.rows_of(batch.positions).flatten()
        kept = None if batch.lengths is None or logits else batch.weights.flatten().nonzero().squeeze(1)
        if kept is not None:
            rows = rows[kept]
        cells = rows if layout.cells is None else layout.cells[rows]
        inputs, head = self._inputs(batch.inputs, layout), self.head.without(self.plain)
        with self._running():
            if logits:
                scores = head.logits(self.network, inputs, lambda grid: grid.flatten(0, 1)[cells])
                return scores.view(*batch.positions.shape, -1)
            labels = batch.labels.flatten() if kept is None else batch.labels.flatten()[kept]
            losses = head.losses(self.network, inputs, lambda grid: grid.flatten(0, 1)[cells], labels)
        if kept is not None:
            losses = losses.new_zeros(batch.labels.numel()).index_copy(0, kept, losses)
        return losses.view(batch.labels.shape)

    def fast_paths(self, length: int | None = None) -> dict[str, str]:
        said = described(self.all_ways - {"predicted_positions"}, self.plain)  # ``vocabulary`` says it of the head
        return {**super().fast_paths(length), **said, "vocabulary": self.head.without(self.plain).path}

    def _twin(self, network: Any) -> "TransformersLanguageModel":
        return type(self)(network, self.max_positions, self.stack, self.head, self.leaks)


class TransformersClassifier(TransformersEncoder):
    """A classifier of transformers; its input is tokens, not masked ones."""

    def forward(  # type: ignore[override]
        self, inputs: Tensor, mask: Tensor | None = None, token_types: Tensor | None = None
    ) -> Tensor:
        """Logits of each sequence: (B, S), (B, S) true where a token is, (B, S) -> (B, C)."""
        layout = Layout.of(inputs, mask)
        with self._running():
            logits: Tensor = self.network(**self._inputs(inputs, layout, token_types)).logits
        return logits

    def states(self, inputs: Tensor, mask: Tensor | None = None, token_types: Tensor | None = None) -> Tensor:
        """Final hidden states, whatever they are at padding: (B, S), (B, S), (B, S) -> (B, S, H)."""
        base = self.network.base_model
        with self._running():
            states: Tensor = base(**accepted(base, self._inputs(inputs, Layout.of(inputs, mask), token_types)))[0]
        return states

    def _twin(self, network: Any) -> "TransformersClassifier":
        return type(self)(network, self.max_positions, self.stack, self.leaks)


class WordTable:
    """The table of words of a network, in our terms."""

    def __init__(self, table: Any) -> None:
        self._table = table

    @property
    def padding_id(self) -> int | None:
        """A token whose lookup gives no gradient; None: there is none."""
        return None if self._table.padding_idx is None else int(self._table.padding_idx)

    @padding_id.setter
    def padding_id(self, token: int | None) -> None:
        self._table.padding_idx = token


def made(kind: Any, config: Any) -> Any:
    """A network of the class ``kind`` with fresh float32 weights, in evaluation mode."""
    network = kind._from_config(config, dtype=torch.float32)
    network.tie_weights()  # which some versions leave for later where there is no memory for weights
    return network.eval()


def _counted(model: TransformersEncoder, length: int, predicted: int, layers: int) -> float:
    """What the flop counter counts in a pass over one sequence."""
    device = next(model.parameters()).device
    before, model.active_layers = model.active_layers, tuple(range(layers))
    inputs = torch.zeros((1, length), dtype=torch.int64, device=device)
    model.form = "math"
    try:
        with FlopCounterMode(display=False) as counter:  # which trips over parameters where gradients are off
            if isinstance(model, TransformersClassifier):
                model(inputs)
            else:
                positions = torch.zeros((1, predicted), dtype=torch.int64, device=device)
                weights, one = positions.float(), inputs[:, 0]
                model(Batch(one, one, inputs, positions, positions, weights, None, weights.sum()))
    finally:
        model.active_layers = before
    return float(counter.get_total_flops())
