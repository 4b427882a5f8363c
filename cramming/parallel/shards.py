"""The model's weights spread over ranks, by torch's FSDP2 (``fully_shard``; https://arxiv.org/abs/2304.11277).

A rank keeps some rows of every parameter in float32, their gradients and the optimizer's state for them. Weights are
gathered in the precision of the passes where a pass needs them, block by block, and let go of after it; gradients are
added up in float32, averaged over ranks, and each rank gets its rows.
"""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from cramming.architectures.layers import weights_state
from cramming.model import Model
from cramming.parallel.ranks import here
from cramming.precision import DTYPES


def shard(model: Model, precision: str) -> None:
    """Spread the rows of a model's parameters over the ranks; it is the same module with other parameters then.

    What is gathered together: every block, where blocks have weights of their own; all that is outside of blocks; and,
    each by itself, what stays float32 when a model goes to 16 bits and what is read before its block runs.

    Args:
        model: float32 weights, the same on all ranks.
        precision: of the passes.
    """
    # Losses and logits are views, which nothing here writes to.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(next(model.parameters()).device.type, (here().world,))
    low = _dtypes(model, DTYPES[precision])
    for name, buffer in list(model.named_buffers()):
        place, _, key = name.rpartition(".")
        setattr(model.get_submodule(place), key, buffer.to(low[name]))
    wide = [module for module in model.modules() if _stays_wide(module, low, DTYPES[precision], model)]
    units = dict.fromkeys([*wide, *model.read_apart, *(model.blocks if model.separable_layers else ()), model])
    for unit in units:
        dtype = None if unit in wide else DTYPES[precision]
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "hidden")


class Shards:
    """Passes on a model whose weights ``shard`` has spread.

    Gradients are averaged where a draw group ends, not where a batch does: a layer that the last group leaves out would
    keep what the others gave it to itself. Parameters that no rank used keep the gradient None.

    Attributes:
        module: the model.
        pairs: each of its parameters, beside itself.
    """

    def __init__(self, model: Model) -> None:
        assert isinstance(model, FSDPModule), "share_out comes before the optimizer"
        self.model = self.module = model
        self.pairs = [(p, p) for p in model.parameters()]
        self._apart: list[Any] = list(model.read_apart)
        self._gathered, self._ends_batch = False, True

    def __call__(self, batch: Any, logits: bool) -> Tensor:
        """A pass forward."""
        self._gather()
        output: Tensor = self.model(batch, logits=logits)
        self._let_go()
        return output

    def hidden(self, batch: Any) -> Tensor:
        """Final hidden states."""
        self._gather()
        output: Tensor = self.model.hidden(batch)
        self._let_go()
        return output

    def begin(self, ends_group: bool, ends_batch: bool) -> None:
        """Before a pass with its way back: gradients are averaged with the last one of a draw group."""
        model: Any = self.model
        model.set_requires_gradient_sync(ends_group)
        for unit in (model, *self._apart):  # needed from the first pass to the last: gathered once for a batch
            unit.set_reshard_after_backward(ends_batch, recurse=False)
        self._ends_batch = ends_batch

    def refresh(self) -> None:
        """Weights are cast when they are gathered."""

    def written(self) -> None:
        """Nothing is kept from step to step."""

    def collect(self) -> None:
        """Gradients are where they belong; after the last pass of a batch nothing is gathered any more."""
        if self._ends_batch:
            self._gathered = False

    def _gather(self) -> None:
        """Bring together what is read before the module it belongs to is called."""
        if self._apart and not self._gathered:
            for unit in self._apart:
                unit.unshard()
            weights_state.written()  # in memory that looks as it did
            self._gathered = True

    def _let_go(self) -> None:
        """After a pass that has no way back: whoever looks at the model next finds its parameters."""
        if torch.is_grad_enabled():
            return
        for unit in (self.model, *self._apart):
            unit.reshard()
        self._gathered = False


def _dtypes(model: Model, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """What becomes of parameters and buffers, by name, where a model goes to another precision."""
    tensors = [*model.parameters(), *model.buffers()]
    outline = copy.deepcopy(model, {id(tensor): _without_memory(tensor) for tensor in tensors}).to(dtype)
    return {name: tensor.dtype for name, tensor in _named(outline)}


def _named(model: Model) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers()


def _without_memory(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _stays_wide(module: nn.Module, low: dict[str, torch.dtype], dtype: torch.dtype, model: Model) -> bool:
    """Whether a module's own parameters do not go to a precision."""
    prefix = next(f"{name}." for name, other in model.named_modules() if other is module)
    return any(low[prefix + name] != dtype for name, _ in module.named_parameters(recurse=False))
