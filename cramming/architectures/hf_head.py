"""The vocabulary projection of a transformers network at chosen positions, whatever its head is made of.

What a network's head does with a position depends on nothing but the encoder's output there. So the network's own
``forward`` runs, and only what passes between its parts is exchanged: chosen rows take the place of the encoder's
output, and the decoder's input is caught on its way, so that cross entropy is taken without ever keeping the logits.

Shape legend: B sequences, S positions, N chosen rows, E width of the decoder, V vocabulary.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cramming.architectures.layers.cross_entropy import linear_cross_entropy

# How much of the head runs where, fastest first.
FUSED, ROWS, EVERYWHERE = "predicted positions only", "predicted positions only, through logits", "every position"
Inputs = dict[str, Tensor | None]  # of a network, by its own names
Pick = Callable[[Tensor], Tensor]  # (B, S, ...) -> (N, ...)


@dataclass(frozen=True)
class Decoder:
    """The product with the vocabulary matrix: logits = x weight^T + bias.

    Attributes:
        module: whose input, or with ``after`` whose output, is x.
        weight: dotted path of the (V, E) matrix.
        bias: of the (V,) bias; None: there is none.
        after: x is the module's output.
    """

    module: str
    weight: str
    bias: str | None
    after: bool = False


@dataclass(frozen=True)
class Head:
    """How losses are computed: one of ``FUSED``, ``ROWS`` and ``EVERYWHERE``; the first needs to know the decoder."""

    path: str
    decoder: Decoder | None = None

    @property
    def ways(self) -> frozenset[str]:
        """What of ``cramming.plain.WAYS`` it does."""
        known = {FUSED: {"predicted_positions", "cross_entropy"}, ROWS: {"predicted_positions"}}
        return frozenset(known.get(self.path, ()))

    def without(self, plain: Collection[str]) -> "Head":
        """What does not do these; the whole of the logits is made where every position is."""
        if "predicted_positions" in plain:
            return Head(EVERYWHERE)
        return Head(ROWS) if "cross_entropy" in plain and self.path == FUSED else self

    def losses(self, network: Any, inputs: Inputs, pick: Pick, labels: Tensor) -> Tensor:
        """Cross entropy of the picked rows, (N,) float32, at labels (N,)."""
        if self.path != FUSED:
            return F.cross_entropy(self.logits(network, inputs, pick).float(), labels, reduction="none")
        assert self.decoder is not None
        caught: list[Tensor] = []
        with _narrowed(network, pick), _caught(network, self.decoder, caught):
            network(**inputs)
        (x,) = caught
        bias = None if self.decoder.bias is None else _weights(network, self.decoder.bias)
        return linear_cross_entropy(x[0], _weights(network, self.decoder.weight), bias, labels)

    def logits(self, network: nn.Module, inputs: Inputs, pick: Pick) -> Tensor:
        """Logits of the picked rows: -> (N, V)."""
        if self.path == EVERYWHERE:
            return pick(network(**inputs).logits)
        with _narrowed(network, pick):
            scores: Tensor = network(**inputs).logits
        return scores[0]


def accepted(network: nn.Module, inputs: Inputs) -> Inputs:
    """Of some inputs those that a network takes."""
    kind: Any = type(network)
    known = _parameters(kind)
    return {name: value for name, value in inputs.items() if name in known}


@functools.lru_cache(maxsize=64)
def _parameters(kind: Any) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def decoders(network: Any) -> list[Decoder]:
    """Products with the vocabulary matrix that a network may make, those of known heads first."""
    found = []
    disentangled = "lm_predictions.lm_head"  # DeBERTa as published: a product with the embeddings, in no module
    modules = dict(network.named_modules())
    words, decoder = network.get_input_embeddings(), network.get_output_embeddings()
    path = {module: name for name, module in modules.items()}
    if f"{disentangled}.LayerNorm" in modules:
        weight, bias = f"{path[words]}.weight", f"{disentangled}.bias"
        found.append(Decoder(f"{disentangled}.LayerNorm", weight, bias, after=True))
    if isinstance(decoder, nn.Linear) and decoder.out_features == network.config.vocab_size:
        place = path[decoder]
        found.append(Decoder(place, f"{place}.weight", None if decoder.bias is None else f"{place}.bias"))
    return found


@torch.no_grad()
def examined(network: Any, inputs: Inputs, pick: Pick, labels: Tensor) -> Head:
    """The fastest head whose losses are those of the network's own logits.

    Biases and norms of fresh weights are the identity, so they are moved while this is found out: nothing that a
    shortcut leaves out can go unnoticed.
    """
    if network.base_model is network:  # its encoder is no part by itself
        return Head(EVERYWHERE)
    base = {id(parameter) for parameter in network.base_model.parameters()}
    moved = [p for p in network.parameters() if p.dim() < 2 and id(p) not in base]
    before = [parameter.clone() for parameter in moved]
    generator = torch.Generator().manual_seed(0)
    try:
        for parameter in moved:
            parameter.add_(torch.rand(parameter.shape, generator=generator).to(parameter))
        expected = Head(EVERYWHERE).losses(network, inputs, pick, labels)
        for head in (*(Head(FUSED, decoder) for decoder in decoders(network)), Head(ROWS)):
            if _agrees(partial(head.losses, network, inputs, pick, labels), expected):
                return head
    finally:
        for parameter, value in zip(moved, before, strict=True):
            parameter.copy_(value)
    return Head(EVERYWHERE)


def _agrees(compute: Callable[[], Tensor], expected: Tensor) -> bool:
    try:
        losses = compute()
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # the network's parts are put together in another way
    return losses.shape == expected.shape and torch.allclose(losses, expected, rtol=1e-4, atol=1e-4)


@contextmanager
def _narrowed(network: Any, pick: Pick) -> Iterator[None]:
    """A context in which the network's head sees the picked rows, (1, N, H), in the place of the encoder's output."""

    def narrow(module: nn.Module, args: object, output: Any) -> Any:
        rows = pick(output[0])[None]
        if isinstance(output, tuple):
            return (rows, *output[1:])
        output[next(iter(output.keys()))] = rows
        return output

    handle = network.base_model.register_forward_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _caught(network: nn.Module, decoder: Decoder, caught: list[Tensor]) -> Iterator[None]:
    """A context in which what the decoder would multiply goes to ``caught``, and none of it on to the decoder."""
    module = network.get_submodule(decoder.module)

    def catch(x: Tensor) -> Tensor:
        caught.append(x)
        return x[..., :0, :]

    if decoder.after:
        handle = module.register_forward_hook(lambda module, args, output: catch(output))
    else:
        handle = module.register_forward_pre_hook(lambda module, args: (catch(args[0]),))
    try:
        yield
    finally:
        handle.remove()


def _weights(network: nn.Module, name: str) -> Tensor:
    """A parameter, or what stands in its place for a pass."""
    found: Tensor = attrgetter(name)(network)
    return found
