"""Every method at two settings: one that acts within a few steps, one that must be the baseline bit for bit.

A run in memory (``memory.run_of``) has batches of 8 sequences and two layers. Each method adds itself to both tables.
"""

from collections.abc import Callable

from cramming.method import Method
from efficient_training.selective_backprop import SelectiveBackprop

ACTIVE: dict[str, Callable[[], Method]] = {
    "selective_backprop": lambda: SelectiveBackprop(candidates_per_pass=6),
}
NEUTRAL: dict[str, Callable[[], Method]] = {
    "selective_backprop": lambda: SelectiveBackprop(beta=0.0, candidates_per_pass=4),
}
