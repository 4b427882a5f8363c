"""Attention with linear biases (https://arxiv.org/abs/2108.12409), symmetric as in MosaicBERT.

Shape legend: B sequences, A heads, Q queries of a sequence, S positions.
"""

from torch import Tensor


def slopes(heads: int) -> list[float]:
    """How much each of A heads minds distance: 2^(-8/A), 2^(-16/A), ... for a power of two.

    For another number those of the largest power of two below it come first, then every other one of twice that power,
    in the order of the paper's code: released weights depend on it.
    """
    power = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    return first if power == heads else first + slopes(2 * power)[::2][: heads - power]


def alibi(heads: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """-slope |i - j| for every head: (A,), (Q,) or (B, Q), (S,) -> (A, Q, S) or (B, A, Q, S), of the slopes' type.

    Keys may differ between sequences as well, (B, 1, S).

    Nothing is stored, so any length will do.
    """
    distance = (queries[..., :, None] - keys).abs().to(heads.dtype)
    return distance.unsqueeze(-3) * -heads[:, None, None]
