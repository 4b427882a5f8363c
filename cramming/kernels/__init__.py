"""The two operations of Monarch Mixer that are worth kernels of their own, each by several backends.

``gated_long_conv`` mixes positions, ``block_diagonal_glu`` channels; docs/kernels.md follows the data through each.
Backends compute the same function: ``reference`` is its definition, ``torch`` runs on every device, ``triton`` and
``cuda`` on GPUs; ``backends`` says which of them there are here, and one that cannot do what it is asked gives way to
the next with a line in the log.
"""

from cramming.kernels.gated_feed_forward import block_diagonal_glu
from cramming.kernels.long_convolution import gated_long_conv

__all__ = ["block_diagonal_glu", "gated_long_conv"]
