"""Dropout, in less time on a processor: there torch draws a number of 32 bits for each element, one at a time.

Sixteen bits are enough: an element is dropped with probability round(65536 p) / 65536, and what is kept is divided by
the probability of just that, so that the mean is what it was.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BITS = 16


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        """Any shape -> the same."""
        count = x.numel()
        words = torch.empty(-(-count * _BITS // 64), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[:count].view(x.shape)
        dropped = min(round(p * 2**_BITS), 2**_BITS - 1)
        kept = _ones(bits.ge_(dropped - 2 ** (_BITS - 1)), x.dtype)
        ctx.save_for_backward(kept)
        ctx.scale = 2**_BITS / (2**_BITS - dropped)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Any shape -> the same."""
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None


def _ones(kept: Tensor, dtype: torch.dtype) -> Tensor:
    """0 and 1 in int16 as floating-point numbers; overwrites them.

    In 16 bits an integer product gives the number's bits: choosing by truth values, or converting them, takes several
    times as long.
    """
    if dtype.itemsize != 2:
        return kept.to(dtype)
    one = int(torch.ones((), dtype=dtype).view(torch.int16))
    return kept.mul_(one).view(dtype)


def dropout(x: Tensor, p: float) -> Tensor:
    """``torch.nn.functional.dropout``, in training, with other draws on a processor."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    dropped: Tensor = _Dropout.apply(x, p)  # type: ignore[no-untyped-call]
    return dropped


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` through ``dropout``."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Any shape -> the same."""
        return dropout(x, self.p) if self.training and self.p else x


def exchange(model: nn.Module) -> None:
    """Put ``Dropout`` in the place of each of torch's in a model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))
