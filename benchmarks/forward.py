"""Forward passes of every family against transformers' implementation of the same model, in pairs.

    python benchmarks/forward.py
    python benchmarks/forward.py mode=train archs=[bert,m2] lengths=[2048,8192]
    python benchmarks/forward.py mode=published size=base batches=m2 out=published.json

``mode=infer``: token ids to logits, in evaluation, with weights of low precision; ours gives them at the predicted
positions. ``output=hidden`` leaves the head out on every side. ``mode=train``: token ids to the loss, keeping what
backward needs. ``mode=published`` times what the M2 study timed: the encoder from hidden states and the head at every
position, in training mode with dropout, gradients enabled, float32 weights cast once by an outer autocast.

Theirs: ``autocast`` over float32 weights; ``low``, weights of low precision; ``predicted``, the latter with their head
at the predicted positions only, as somebody would write it who knows that most of it is not needed.
README.md has the protocol.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.architectures import Case, dense_labels, their_head
from benchmarks.comparison import Mode, Options, run
from benchmarks.grid import Builders, Context, Side
from benchmarks.reporting import asked
from cramming.architectures.encoder import Encoder
from cramming.architectures.layers.unpadding import Layout
from cramming.cli import run_command
from cramming.engine import DTYPES
from cramming.errors import UserError
from cramming.kernels import choice
from cramming.model import Model

INFER, TRAIN, PUBLISHED = "infer", "train", "published"
HIDDEN, LOGITS = "hidden", "logits"
PUBLISHED_DROPOUT = 0.1
_CALLS = {"cuda": 30, "cpu": 2}  # of a block in mode=published; the study took 30
# Kinds whose encoder takes hidden states and a mask to add; of others the pass begins with their embeddings' norm.
_SEPARABLE = ("bert", "megatron-bert", "roberta", "roberta-prelayernorm")


@dataclass
class ForwardOptions(Options):
    """What the command line may change."""

    mode: str = INFER  # or train, published
    output: str = LOGITS  # or hidden; of mode=infer

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, known in (("mode", (INFER, TRAIN, PUBLISHED)), ("output", (LOGITS, HIDDEN))):
            if getattr(self, key) not in known:
                raise UserError(f"{key}={getattr(self, key)} is unknown: choose from {', '.join(known)}")

    def block_calls(self) -> int:
        """Passes in a block."""
        return self.calls or (_CALLS[self.where().type] if self.mode == PUBLISHED else 1)


class Passes:
    """Some passes one after another; what each leaves behind is dropped before the next."""

    loss: float | None = None

    def __init__(self, call: Callable[[], Any], options: ForwardOptions, flops: float | None = None) -> None:
        self._call, self._calls = call, options.block_calls()
        self._inference = options.mode == INFER
        self.flops = flops and flops * self._calls

    def block(self) -> None:
        """The passes."""
        with torch.inference_mode() if self._inference else nullcontext():
            for _ in range(self._calls):
                self._call()


class _Given(nn.Module):
    """In the place of embeddings: hidden states that are there already, and the word matrix."""

    def __init__(self, states: Tensor, words: nn.Parameter) -> None:
        super().__init__()
        self.states, self.word = states, words

    def forward(self, inputs: Tensor, layout: Layout, token_types: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """-> (T, H), (V, E)."""
        return self.states, self.word


def ours(case: Case, options: ForwardOptions) -> Passes:
    """Our passes."""
    device, dtype = options.where(), DTYPES[options.passes_in()]
    model = case.our_model().to(device).train(options.mode != INFER)
    choice.use(model, device, dtype, length=case.length, sequences=case.sequences)
    if options.compile:
        for block in model.blocks:
            block.compile()
    if options.mode == PUBLISHED:
        states = torch.randn(case.sequences, case.length, case.size.hidden, device=device)
        return Passes(from_hidden(model, states, case.batch().inputs.to(device)), options)
    model.to(dtype)
    batch = case.batch().to(device)
    if options.output == HIDDEN and options.mode == INFER:
        return Passes(lambda: model.hidden(batch), options)
    flops = case.sequences * model.flops(case.length, batch.positions.shape[1], model.layers)
    if options.mode == INFER:
        return Passes(lambda: model(batch, logits=True), options, flops)
    return Passes(lambda: (model(batch) * batch.weights).sum() / batch.normalizer, options, flops)


def theirs(case: Case, options: ForwardOptions, low: bool, narrowed: bool = False) -> Passes:
    """Passes of transformers; ``narrowed``: its head at the predicted positions only."""
    device, dtype = options.where(), DTYPES[options.passes_in()]
    counterpart = case.counterpart()
    model: Any = counterpart.build(options.their_attention)
    model.to(device).train(options.mode != INFER)
    if options.their_compile:
        model.compile()
    if options.mode == PUBLISHED:
        states = torch.randn(case.sequences, case.length, model.get_input_embeddings().weight.shape[1], device=device)
        return Passes(theirs_from_hidden(model, counterpart.model_type, states), options)
    if low:
        model.to(dtype)
    batch = case.batch()
    inputs, labels = batch.inputs.to(device), dense_labels(batch).to(device)
    cells = (torch.arange(case.sequences)[:, None] * case.length + batch.positions).flatten().to(device)

    def call() -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=not low and dtype != torch.float32):
            if options.mode == TRAIN:
                return model(input_ids=inputs, labels=labels).loss  # type: ignore[no-any-return]
            if options.output == LOGITS and not narrowed:
                return model(input_ids=inputs).logits  # type: ignore[no-any-return]
            states: Tensor = model.base_model(input_ids=inputs)[0]
            return their_head(model, states.flatten(0, 1)[cells]) if narrowed else states

    return Passes(call, options)


def sides(options: ForwardOptions, case: Case) -> Builders:
    """Ours, and theirs in the ways that the mode knows."""
    found: dict[str, Callable[[], Side]] = {"autocast": partial(theirs, case, options, low=False)}
    if options.mode != PUBLISHED:
        found["low"] = partial(theirs, case, options, low=True)
    if options.mode == INFER and options.output == LOGITS:
        found["predicted"] = partial(theirs, case, options, low=True, narrowed=True)
    if options.passes_in() == "float32":
        found["float32"] = found.pop("autocast")
        found.pop("low", None)
    return options.with_beside(case, partial(ours, options=options), found)


def within(options: ForwardOptions) -> Context:
    """What all blocks run in: in ``mode=published`` an autocast that lasts, so that weights are cast once."""
    if options.mode == PUBLISHED and options.passes_in() != "float32":
        return partial(torch.autocast, options.where().type, dtype=DTYPES[options.passes_in()])
    return nullcontext


def from_hidden(model: Model, states: Tensor, inputs: Tensor) -> Callable[[], Tensor]:
    """Our encoder and head from hidden states, at every position: (B, S, H), (B, S) for the layout -> (B*S, V).

    Raises:
        UserError: the model is transformers' own, and the other side has timed it.
    """
    if not isinstance(model, Encoder):
        raise UserError("transformers' own module: both sides are the same code")
    words: Any = model.embeddings.word
    model.embeddings = _Given(states.flatten(0, 1), words.weight)
    head: Any = model.head

    def call() -> Tensor:
        x, decoder = model.encode(inputs, model.layout(inputs))
        return head(x, decoder)  # type: ignore[no-any-return]

    return call


def theirs_from_hidden(model: Any, kind: str, states: Tensor) -> Callable[[], Tensor]:
    """Their encoder and head likewise, with the study's mask of ones to add: (B, S, H) -> (B, S, V)."""
    if kind not in _SEPARABLE:
        return lambda: model(inputs_embeds=states).logits  # type: ignore[no-any-return]
    dtype = torch.get_autocast_dtype(states.device.type) if torch.is_autocast_enabled() else states.dtype
    ones = torch.ones(1, 1, states.shape[1], states.shape[1], device=states.device, dtype=dtype)
    encoder = model.base_model.encoder
    return lambda: their_head(model, encoder(states, attention_mask=ones)[0])


def main() -> None:
    """Parse, measure, print."""
    options = asked(ForwardOptions, __doc__)
    dropout = PUBLISHED_DROPOUT if options.mode == PUBLISHED else 0.0
    name = f"forward, mode={options.mode}"
    run(options, Mode(name, partial(sides, options), options.block_calls(), dropout, within(options)))


if __name__ == "__main__":
    run_command(main)
