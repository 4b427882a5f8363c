"""A state copied to the processor's memory, which is all that a training step waits for when saving."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from cramming.saving.files import MODEL, NAMES
from cramming.saving.layout import Outline, Rows, chunk, written_by
from cramming.saving.tree import outline


@dataclass(frozen=True)
class Snapshot:
    """What one rank writes of a state.

    Attributes:
        tree: the state without its tensors and its weights, as JSON values.
        outlines: every tensor of the state by name, weights with ``files.MODEL`` in front; the same on all ranks.
        tensors: copies, (rows, ...), of what this rank writes.
    """

    tree: Any
    outlines: Mapping[str, Outline]
    tensors: Mapping[str, Tensor]


def whole(state: Mapping[str, Any], kept: bool = True) -> Snapshot:
    """All of a state, on one rank; of a state that ranks share, all of them must call it.

    Args:
        state: ``state["model"]`` maps names to tensors.
        kept: whether this is the rank that writes it; the others only hand over what they have.
    """
    tree, tensors = _named(state)
    copies = {}
    for name, tensor in tensors.items():
        together = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # one at a time
        if kept:
            # One copy each: safetensors refuses tensors that share memory, and a view would save its whole base.
            copies[name] = together.to("cpu", copy=True).contiguous()
    return Snapshot(tree, {name: _outline(tensor) for name, tensor in tensors.items()}, copies)


def share(state: Mapping[str, Any], world: int, rank: int) -> Snapshot:
    """What a rank writes of a state that ranks share: the rows it holds, and its part of what all hold.

    Args:
        state: ``state["model"]`` maps names to tensors; tensors that are not spread over ranks are equal on all.
        world: how many ranks there are.
        rank: this one.

    Raises:
        TypeError: a tensor is spread over ranks in another way than by rows.
    """
    tree, tensors = _named(state)
    outlines = {name: _outline(tensor) for name, tensor in tensors.items()}
    copies = {}
    for name, rows in written_by(outlines, world, rank).items():
        copies[name] = _rows(name, tensors[name], rows, world, rank).to("cpu", copy=True).contiguous()
    return Snapshot(tree, outlines, copies)


def _named(state: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    tree, tensors = outline({key: value for key, value in state.items() if key != "model"})
    _, weights = outline(state["model"])
    return tree, {**{MODEL + name: tensor for name, tensor in weights.items()}, **tensors}


def _outline(tensor: Tensor) -> Outline:
    return Outline(tuple(tensor.shape), NAMES[tensor.dtype], is_shared(tensor))


def is_shared(tensor: Tensor) -> bool:
    """Whether each rank holds a part of it."""
    return isinstance(tensor, DTensor) and any(not isinstance(one, Replicate) for one in tensor.placements)


def _rows(name: str, tensor: Tensor, rows: Rows, world: int, rank: int) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor if not tensor.ndim else tensor[rows.start : rows.end]
    local = tensor.to_local()
    if not is_shared(tensor):
        return local if not local.ndim else local[rows.start : rows.end]
    if tensor.placements != (Shard(0),) or tensor.device_mesh.size() != world:
        raise TypeError(f"state {name} is spread over ranks as {tensor.placements}, which a checkpoint cannot hold")
    assert rows == chunk(tensor.shape[0], world, rank), name
    assert len(local) == rows.length, name
    return local
