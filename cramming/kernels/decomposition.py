"""The operations as torch's own, for whoever counts or records what is computed inside."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from cramming.kernels import gated_feed_forward, long_convolution

_INSIDE: dict[Any, Callable[..., Any]] = {
    torch.ops.cramming.gated_long_conv.default: long_convolution.forward,
    torch.ops.cramming.gated_long_conv_backward.default: long_convolution.backward,
    torch.ops.cramming.block_diagonal_glu.default: gated_feed_forward.forward,
    torch.ops.cramming.block_diagonal_glu_backward.default: gated_feed_forward.backward,
}


def decomposes(operation: Any) -> bool:
    """Whether this is an operation of ours."""
    return operation in _INSIDE


def run_decomposed(operation: Any, arguments: Sequence[Any]) -> Any:
    """What an operation of ours gives, by torch's operations, whatever backend it was to be.

    Args:
        operation: as a dispatch mode meets it.
        arguments: all of them; the last one is the backend.
    """
    return _INSIDE[operation](*arguments[:-1], "torch")
