"""What backends are given and what they give back. The public functions have checked it: see there for the meaning.

Shape legend of ``gated_long_conv``: C channels, B sequences, S positions, R taps of one direction, D directions (1
forward, or 2: and backward), K filters (1, or 2: with the residual one), F frequencies of a kept transform.

Shape legend of ``block_diagonal_glu``: T tokens, p pairs of blocks of gates and of values, q blocks of the outer layer
(a multiple of p), i inputs and o outputs of an inner block, n = o p / q inputs and m outputs of an outer one.
"""

from typing import NamedTuple

from torch import Tensor


class Convolution(NamedTuple):
    """Operands of ``gated_long_conv``. Floating-point ones but z and u are of ``wide``: float32, float64 beside it."""

    z: Tensor  # (3C, B, S): x1, x2, v, before the short convolution
    u: Tensor | None  # (C, B, S), of z's type; None: there is no residual convolution
    taps: Tensor  # (D, C, R)
    taps_residual: Tensor | None  # (D', C, R')
    bias: Tensor  # (C,)
    bias_residual: Tensor | None  # (C,)
    short_weight: Tensor  # (3C, 3): the oldest position first
    short_bias: Tensor  # (3C,)
    mask: Tensor | None  # (B, S) bool
    spectra: Tensor | None = None  # (K, C, F, 2): what ``torch_convolution.spectra_of`` gives of taps and biases


class ConvolutionGradients(NamedTuple):
    """Gradients of ``Convolution``'s floating-point operands, of their shapes and types; None for those that are."""

    z: Tensor
    u: Tensor | None
    taps: Tensor
    taps_residual: Tensor | None
    bias: Tensor
    bias_residual: Tensor | None
    short_weight: Tensor
    short_bias: Tensor


class Glu(NamedTuple):
    """Operands of ``block_diagonal_glu``, all of one type."""

    x: Tensor  # (T, 2 p i)
    w_gate: Tensor  # (p, o, i)
    w_value: Tensor  # (p, o, i)
    w_out: Tensor  # (q, m, n)
    bias: Tensor | None  # (q m,)


class GluGradients(NamedTuple):
    """Gradients of ``Glu``."""

    x: Tensor
    w_gate: Tensor
    w_value: Tensor
    w_out: Tensor
    bias: Tensor | None
