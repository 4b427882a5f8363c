"""Where a transformers network keeps its layers, and how to run some of them.

The networks' own loops go through a ``ModuleList``. To run some layers, or to compute them again in backward, the list
is exchanged for another while the network runs; the layers themselves, and the names of their parameters, stay.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class _InPlaceOf(nn.Module):
    """Stands in for a layer and has its attributes, which the loops of some networks look at."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "layer" else getattr(self.layer, name)


class Recomputed(_InPlaceOf):
    """The layer, keeping only its input for backward."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer gives."""
        return checkpoint(self.layer, *args, use_reentrant=False, **kwargs)


class Skipped(_InPlaceOf):
    """Nothing, in the form of a layer: what comes in goes out."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__(layer)
        self.outputs = outputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first argument, with None for whatever else the layer gives."""
        states = args[0] if args else next(iter(kwargs.values()))
        return (states, *[None] * (self.outputs - 1)) if self.outputs else states


@dataclass(frozen=True)
class Stack:
    """L layers, one after the other.

    Attributes:
        place: the list's dotted path in the network.
        outputs: values in the tuple that a layer gives; 0: it gives a tensor.
    """

    place: str
    outputs: int = 0

    def blocks(self, network: nn.Module) -> nn.ModuleList:
        """The L layers, in the order they run in."""
        listed = network.get_submodule(self.place)
        assert isinstance(listed, nn.ModuleList)
        return listed

    @contextmanager
    def running(self, network: nn.Module, layers: Sequence[int], *, recompute: bool = False) -> Iterator[None]:
        """A context in which the network runs these layers only, with ``recompute`` under gradient checkpointing."""
        blocks = self.blocks(network)
        if tuple(layers) == tuple(range(len(blocks))) and not recompute:
            yield
            return
        chosen: list[nn.Module] = [Recomputed(blocks[i]) if recompute else blocks[i] for i in layers]
        with self._exchanged(network, chosen):
            yield

    @contextmanager
    def _exchanged(self, network: nn.Module, layers: list[nn.Module]) -> Iterator[None]:
        parent, _, name = self.place.rpartition(".")
        # Some loops want at least one.
        listed = nn.ModuleList(layers or [Skipped(self.blocks(network)[0], self.outputs)])
        with exchanged(network.get_submodule(parent), name, listed):
            yield


@dataclass(frozen=True)
class SharedStack(Stack):
    """Layers that are one and the same several times, as in ALBERT: G groups, each applied L / G times in a row."""

    def blocks(self, network: Any) -> nn.ModuleList:
        groups, config = super().blocks(network), network.config
        times = config.num_hidden_layers / config.num_hidden_groups
        return nn.ModuleList(groups[int(i / times)] for i in range(config.num_hidden_layers))

    @contextmanager
    def _exchanged(self, network: Any, layers: list[nn.Module]) -> Iterator[None]:
        config = network.config
        with (
            super()._exchanged(network, layers),
            exchanged(config, "num_hidden_groups", len(layers)),
            exchanged(config, "num_hidden_layers", len(layers)),
        ):
            yield


@contextmanager
def exchanged(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A context in which an attribute is another."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def find(network: Any) -> Stack | None:
    """The one list of layers of a network, or None where there is none or more than one; lists within do not count."""
    layers = getattr(network.config, "num_hidden_layers", None)
    if hasattr(network.config, "num_hidden_groups"):
        return SharedStack(f"{network.base_model_prefix}.encoder.albert_layer_groups", 0)
    found: dict[str, nn.ModuleList] = {}
    for place, module in network.named_modules():
        inside = any(place.startswith(f"{outer}.") for outer in found)
        if inside or not isinstance(module, nn.ModuleList) or not any(True for _ in module.parameters()):
            continue
        alike = len({type(block) for block in module}) == 1 and not isinstance(module[0], nn.ModuleList)
        if alike and len(module) == (layers or len(module)):
            found[place] = module
    return Stack(next(iter(found))) if len(found) == 1 else None


def verified(network: nn.Module, stack: Stack, run: Callable[[], object]) -> Stack | None:
    """The stack as it was found to work, or None: the network does not run just the layers it is told to.

    Args:
        network: its own loop is put to the test.
        stack: as ``find`` gave it.
        run: passes something through the network.
    """
    if isinstance(stack, SharedStack):
        return stack
    blocks = stack.blocks(network)
    calls: list[int] = []
    outputs: list[int] = []

    def called(layer: int) -> Callable[..., None]:
        def note(module: nn.Module, args: object, output: object) -> None:
            calls.append(layer)
            outputs.append(len(output) if isinstance(output, tuple) else 0)

        return note

    handles = [block.register_forward_hook(called(layer)) for layer, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            run()
            if calls != list(range(len(blocks))) or len(set(outputs)) != 1:
                return None
            stack = Stack(stack.place, outputs[0])
            for chosen in (list(range(0, len(blocks), 2)), [len(blocks) - 1], []):
                calls.clear()
                with stack.running(network, chosen):
                    run()
                if calls != chosen:
                    return None
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None  # its loop wants all of them
    finally:
        for handle in handles:
            handle.remove()
    return stack
