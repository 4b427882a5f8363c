"""Tensors of which every rank holds some rows."""

from collections.abc import Iterable

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over ranks, together on each of them; others as they are. All ranks have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_rows(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's part of each, in place: for operations on single numbers that torch has for plain tensors only."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def spread_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A tensor that every rank has whole, spread as another of its shape is: each keeps its rows."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
