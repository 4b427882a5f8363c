"""Normalization over the hidden dimension, by name.

Shape legend: H hidden.
"""

import torch
from torch import Tensor, nn


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


def make_norm(kind: str, hidden: int, eps: float) -> nn.Module:
    """``layernorm``, ``rmsnorm``, ``scalenorm`` (one gain) or ``unitnorm`` (a gain for each feature): (..., H) -> same.

    Raises:
        ValueError: another kind.
    """
    if kind == "layernorm":
        return nn.LayerNorm(hidden, eps=eps)
    if kind == "rmsnorm":
        return nn.RMSNorm(hidden, eps=eps)
    if kind in ("scalenorm", "unitnorm"):
        return ScaleNorm(hidden, eps, elementwise=kind == "unitnorm")
    raise ValueError(f"norm={kind!r} is not one of layernorm, rmsnorm, scalenorm, unitnorm")
