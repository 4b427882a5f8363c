"""Rotary position embedding (https://arxiv.org/abs/2104.09864).

Shape legend: B sequences, A heads, Q queries or keys of a sequence, D width of a head, P positions.
"""

import torch
from torch import Tensor

BASE = 10000.0  # as published; longer contexts take a larger one


def rotate(x: Tensor, positions: Tensor, base: float = BASE) -> Tensor:
    """Each pair (x_i, x_{i+D/2}) turned by position * base^(-2i/D), so that q.k depends on the distance only.

    The halves of a head are the two sides of the pairs, as in GPT-NeoX. Angles are float32 whatever ``x`` is: bfloat16
    cannot tell the positions above 256 apart.

    Args:
        x: (B, A, Q, D), D even.
        positions: (Q,), or (B, Q) where they differ between sequences.
        base: also called theta.

    Returns:
        (B, A, Q, D) of ``x``'s type.
    """
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    frequencies = base ** (torch.arange(half, device=x.device, dtype=wide) / -half)
    angles = positions.to(wide)[..., None] * frequencies  # (Q, D/2) or (B, Q, D/2)
    if positions.dim() == 2:
        angles = angles[:, None]
    cosine, sine = angles.cos(), angles.sin()
    first, second = x[..., :half], x[..., half:]
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, dim=-1).to(x.dtype)
