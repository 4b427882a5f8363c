"""Normalization over the hidden dimension, by name.

Shape legend: H hidden.
"""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Float32LayerNorm(nn.LayerNorm):
    """LayerNorm whose weights stay in float32 when the model around it goes to 16 bits; its output does not.

    A norm is worked out in float32 in any case; the weights are what 16 bits round: next to 1 bfloat16 knows steps of
    1/128 only, and a smaller change does not act until it has grown.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., H) of the type of ``x``."""
        wide = x.to(self.weight.dtype)
        return F.layer_norm(wide, self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.element_size() >= 4 else tensor.to(moved.device, torch.float32)

        return super()._apply(wide, recurse)


class ScaleNorm(nn.Module):
    """x g / max(|x|, eps) with the L2 norm over H (https://arxiv.org/abs/1910.05895).

    The gain g is one number, as published, starting at H^(-1/2) as in the Cramming code; or one for each feature,
    starting at 1, which that code's successor calls RMSNorm, though its output has norm 1 and not root mean square 1.
    """

    def __init__(self, hidden: int, eps: float, elementwise: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden) if elementwise else torch.tensor(hidden**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., H); the norm is taken in float32."""
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).clamp(min=self.eps)
        return (x * (self.weight / length)).to(x.dtype)


def make_norm(kind: str, hidden: int, eps: float, bias: bool = True) -> nn.Module:
    """``layernorm``, ``rmsnorm``, ``scalenorm`` (one gain) or ``unitnorm`` (a gain for each feature): (..., H) -> same.

    ``layernorm_float32`` is ``layernorm`` with weights that stay in float32. Without ``bias`` both have none, which the
    others never have.

    Raises:
        ValueError: another kind.
    """
    if kind == "layernorm":
        return nn.LayerNorm(hidden, eps=eps, bias=bias)
    if kind == "layernorm_float32":
        return Float32LayerNorm(hidden, eps=eps, bias=bias)
    if kind == "rmsnorm":
        return nn.RMSNorm(hidden, eps=eps)
    if kind in ("scalenorm", "unitnorm"):
        return ScaleNorm(hidden, eps, elementwise=kind == "unitnorm")
    raise ValueError(f"norm={kind!r} is not one of layernorm, layernorm_float32, rmsnorm, scalenorm, unitnorm")
