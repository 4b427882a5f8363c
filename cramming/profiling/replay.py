"""The limit of a training step: its matrix products and Fourier transforms, and nothing else.

What a step multiplies is recorded while it runs: forward, both products of backward, attention's, the vocabulary's at
predicted positions, every operand with its shape and memory layout. The replay does the same work on random numbers.
Seconds of the replay over seconds of a step are the step's share of its limit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cramming.batch import Batch
from cramming.kernels.decomposition import decomposes, run_decomposed

_FIRST_FACTOR = {  # its place among the arguments; the second comes next
    torch.ops.aten.mm: 0,
    torch.ops.aten.bmm: 0,
    torch.ops.aten.addmm: 1,
    torch.ops.aten.baddbmm: 1,
}
_TRANSFORMS = (torch.ops.aten._fft_r2c, torch.ops.aten._fft_c2r, torch.ops.aten._fft_c2c)


@dataclass(frozen=True)
class Operand:
    """Shape and memory layout of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> "Operand":
        """A tensor's."""
        return Operand(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def tensor(self, device: torch.device) -> Tensor:
        """Random numbers laid out so."""
        span = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        kind = self.dtype if self.dtype.is_complex else torch.float32
        return torch.randn(span, device=device, dtype=kind).to(self.dtype).as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class Call:
    """A product of two operands, or a Fourier transform of one with the ``rest`` of its arguments."""

    operands: tuple[Operand, ...]
    transform: Callable[..., Tensor] | None = None
    rest: tuple[Any, ...] = ()

    @property
    def operations(self) -> int:
        """A multiply-add of a product counted as 2; transforms are not counted."""
        if self.transform is not None:
            return 0
        one, other = self.operands
        rows = 1
        for size in one.shape[:-1]:
            rows *= size
        return 2 * rows * one.shape[-1] * other.shape[-1]


class Recorder(TorchDispatchMode):
    """Notes every matrix product and Fourier transform that runs, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if decomposes(func):  # what it multiplies is inside
            with self:
                return run_decomposed(func, args)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in an operation of ours such a function arrives whole
                return func.decompose(*args, **(kwargs or {}))
        operation = func.overloadpacket  # with the memory for its result given or not
        if operation in _FIRST_FACTOR:
            one, other = args[_FIRST_FACTOR[operation] :][:2]
            if one.shape[-2] > 1:  # else a sum of rows, such as a bias's gradient
                self.calls.append(Call((Operand.of(one), Operand.of(other))))
        elif operation in _TRANSFORMS:
            rest = tuple(tuple(value) if isinstance(value, list) else value for value in args[1:])
            self.calls.append(Call((Operand.of(args[0]),), operation.default, rest))
        return func(*args, **(kwargs or {}))


def recorded(model: nn.Module, batch: Batch, microbatch_size: int, gradients: bool = True) -> list[Call]:
    """What the passes of one training step of ``model`` multiply, attention written out whatever form the step has.

    Args:
        model: in the precision of the passes; ``Model`` of this package. It is left with gradients.
        batch: on the model's device.
        microbatch_size: sequences of a pass.
        gradients: with the way back of each pass.
    """
    model.attention = "math"  # type: ignore[assignment]
    with Recorder() as recorder, torch.set_grad_enabled(gradients):
        for part in batch.split(microbatch_size):
            loss = (model(part) * part.weights).sum() / part.normalizer
            if loss.requires_grad:
                loss.backward()
    return recorder.calls


class Replay:
    """The calls of a step, to be done again.

    Args:
        calls: in their order.
        device: where.

    Attributes:
        flops: floating-point operations of them all.
    """

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        # Operands of one kind share their memory, as those of neighbouring layers share what an allocator gives out.
        made = {operand: operand.tensor(device) for operand in {o for call in calls for o in call.operands}}
        self.flops: float | None = float(sum(call.operations for call in calls))
        self._work = [(call.transform, tuple(made[o] for o in call.operands), call.rest) for call in calls]

    @torch.no_grad()
    def block(self) -> None:
        """All of them once."""
        for transform, operands, rest in self._work:
            if transform is None:
                torch.matmul(*operands)
            else:
                transform(*operands, *rest)
