"""Types and devices that operations take."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

SUPPORTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def wide_of(x: Tensor) -> torch.dtype:
    """What is summed in beside x: float64 for float64, float32 for everything narrower.

    Raises:
        TypeError: no operation takes x's type.
    """
    if x.dtype not in SUPPORTED:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED)
        raise TypeError(f"{x.dtype} is no type to compute in here: choose from {names}")
    return torch.promote_types(x.dtype, torch.float32)


def autocast_to(*parts: Tensor | None) -> tuple[Tensor | None, ...]:
    """What autocast would make of these on their device: of its type where it is on, float64 left alone."""
    first = next(part for part in parts if part is not None)
    kind = first.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return parts
    dtype = torch.get_autocast_dtype(kind)
    return tuple(part if part is None or part.dtype == torch.float64 else part.to(dtype) for part in parts)


def as_given(x: Tensor) -> AbstractContextManager[None]:
    """Around products of what is of the types it should be: autocast, if it is on, leaves them alone."""
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)  # type: ignore[return-value]


def same_device(given: tuple[Tensor | None, ...]) -> None:
    """Check that operands, a named tuple, are in one place.

    Raises:
        TypeError: they are not.
    """
    where = {name: part.device for name, part in zip(given._fields, given, strict=True) if part is not None}  # type: ignore[attr-defined]
    if len(set(where.values())) > 1:
        said = ", ".join(f"{name} on {device}" for name, device in where.items())
        raise TypeError(f"operands must be on one device: {said}")
