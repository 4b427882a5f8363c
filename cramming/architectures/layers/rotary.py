"""Rotary position embedding (https://arxiv.org/abs/2104.09864).

Shape legend: B sequences, A heads, Q queries or keys of a sequence, D width of a head.
"""

from typing import Any

import torch
from torch import Tensor

BASE = 10000.0  # as published; longer contexts take a larger one


class _Turn(torch.autograd.Function):
    """Backward turns the gradient by the same angles the other way, so nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """(B, A, Q, D), 2 x (Q, D) or (B, 1, Q, D) -> (B, A, Q, D)."""
        ctx.save_for_backward(cosine, sine)
        return _turned(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """(B, A, Q, D) -> (B, A, Q, D), which can be differentiated again."""
        cosine, sine = ctx.saved_tensors
        return _Turn.apply(gradient, cosine, -sine), None, None  # type: ignore[no-untyped-call]


def angles(positions: Tensor, width: int, base: float, dtype: torch.dtype) -> Tensor:
    """Cosines and signed sines of position * base^(-2i/D), in float32 or wider: bfloat16 knows no 257.

    Args:
        positions: (Q,), or (B, Q) where they differ between sequences.
        width: D, even.
        base: also called theta.
        dtype: of what will be turned.

    Returns:
        (2, Q, D) or (2, B, 1, Q, D).
    """
    wide = torch.promote_types(dtype, torch.float32)
    frequencies = base ** (torch.arange(width // 2, device=positions.device, dtype=wide) / -(width // 2))
    found = positions.to(wide)[..., None] * frequencies  # (Q, D/2) or (B, Q, D/2)
    if positions.dim() == 2:
        found = found[:, None]
    cosine, sine = found.cos(), found.sin()
    return torch.stack((torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)))


def turn(x: Tensor, by: Tensor) -> Tensor:
    """Each pair (x_i, x_{i+D/2}) turned by the angle of i: (B, A, Q, D), ``angles`` -> (B, A, Q, D) of its type.

    The halves of a head are the two sides of the pairs, as in GPT-NeoX.
    """
    turned: Tensor = _Turn.apply(x, by[0], by[1])  # type: ignore[no-untyped-call]
    return turned


def rotate(x: Tensor, positions: Tensor, base: float = BASE) -> Tensor:
    """``x`` turned by its positions, so that q.k depends on the distance only; arguments as of ``angles``."""
    return turn(x, angles(positions, x.shape[-1], base, x.dtype))


def _turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x times the cosines, and its halves exchanged times the sines: whole rows, which a processor likes best."""
    half = x.shape[-1] // 2
    wide = x.to(cosine.dtype)
    exchanged = torch.cat((wide[..., half:], wide[..., :half]), dim=-1)
    return (wide * cosine).addcmul_(exchanged, sine).to(x.dtype)
