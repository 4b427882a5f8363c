"""Knowing when weights have changed, whoever changed them, so that what is worked out from them can be kept.

They have where their versions differ, where any optimizer has taken a step (fused ones raise no version) and, on a CPU,
where looking is cheap next to a pass, where the values themselves differ.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


class _Steps:
    """How many steps optimizers of this process have taken, and other times that weights were written unseen."""

    taken = 0

    @classmethod
    def count(cls, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cls.taken += 1


register_optimizer_step_post_hook(_Steps.count)


def written() -> None:
    """Say that weights may be others than before, where nothing else would tell."""
    _Steps.taken += 1


class WeightsState:
    """How some weights were when they were last looked at. A copy or a pickle of it has seen nothing."""

    def __init__(self) -> None:
        self._signature: tuple[Any, ...] = ()
        self._values: list[Tensor] = []
        self._name = object()

    def now(self, weights: Sequence[Tensor]) -> object:
        """The same object as long as the weights stay what they are, then another one."""
        found = signature(weights)
        values = list(weights) if weights[0].device.type == "cpu" else []
        unseen = not values and any(weight.is_inference() for weight in weights)  # nothing would tell of a change
        same = not unseen and found == self._signature and len(values) == len(self._values)
        if not (same and all(map(torch.equal, values, self._values))):
            self._signature, self._name = found, object()
            with torch.inference_mode(False):
                self._values = [value.detach().clone() for value in values]
        return self._name

    def __reduce__(self) -> tuple[type["WeightsState"], tuple[()]]:
        return WeightsState, ()


def signature(weights: Sequence[Tensor]) -> tuple[Any, ...]:
    """What changes when weights are written, except in place behind torch's back (``weight.data``)."""
    versions = [None if weight.is_inference() else weight._version for weight in weights]
    return _Steps.taken, *versions, *((weight.data_ptr(), weight.device, weight.dtype) for weight in weights)
