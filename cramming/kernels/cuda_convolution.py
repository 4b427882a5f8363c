"""``gated_long_conv`` by the compiled kernels: which of their two families does what.

Toeplitz products (``cuda_toeplitz``) are for 16-bit signals of at most ``SHORT`` positions: so many, matrix units
multiply in less time than transforms exchange theirs. Transforms (``cuda_transform``) do the rest.

Shape legend: ``operands.py``.
"""

from types import ModuleType

import torch
from torch import Tensor

from cramming.kernels import cuda, cuda_toeplitz, cuda_transform
from cramming.kernels.operands import Convolution, ConvolutionGradients

SHORT = 512  # positions


def family(given: Convolution) -> ModuleType:
    """The module that does this: by type and length alone, so that the same operands take the same way everywhere."""
    if given.z.dtype in cuda_toeplitz.DTYPES and given.z.shape[2] <= SHORT:
        return cuda_toeplitz
    return cuda_transform


def convolution_lacks(given: Convolution) -> str | None:
    """Why the compiled kernels cannot do this, or None."""
    if given.z.dtype == torch.float64:
        return "compiled kernels are for float32, bfloat16 and float16, not float64"
    why: str | None = cuda.lacks(given.z.device) or family(given).convolution_lacks(given)
    return why


def convolve(given: Convolution) -> Tensor:
    """-> (C, B, S)."""
    mixed: Tensor = family(given).convolve(given)
    return mixed


def convolve_back(given: Convolution, gradient: Tensor) -> ConvolutionGradients:
    """(C, B, S) -> gradients of what ``convolve`` was given."""
    slopes: ConvolutionGradients = family(given).convolve_back(given, gradient)
    return slopes
