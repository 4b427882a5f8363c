"""Mixed precision: float32 weights, passes on a copy of them in 16 bits (https://arxiv.org/abs/1710.03740).

The copy is refreshed once for each optimizer step, not cast in every microbatch; its gradients are added to the float32
ones after every microbatch.
"""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALE_GROWS_EVERY = 2000  # steps without an overflow; the defaults of torch.amp.GradScaler
FIRST_SCALE = 2.0**16  # of float16's loss

M = TypeVar("M", bound=nn.Module)


class WorkingCopy(Generic[M]):
    """What passes run on: the model itself in float32, else a copy of it.

    Args:
        model: float32 weights.
        precision: ``float32``, ``bfloat16`` or ``float16``.

    Attributes:
        module: what passes run on.
        pairs: each of the model's parameters beside the module's.
    """

    def __init__(self, model: M, precision: str) -> None:
        self.model = model
        self.module: M = model if precision == "float32" else copy.deepcopy(model).to(DTYPES[precision])
        self.pairs = list(zip(model.parameters(), self.module.parameters(), strict=True))
        self._versions: list[int] = []

    @property
    def is_model(self) -> bool:
        """Whether there is no copy."""
        return self.module is self.model

    def refresh(self) -> None:
        """Bring the copy up to date if any weight was written since (by the optimizer, by a method)."""
        if self.is_model:
            return
        versions = [p._version for p, _ in self.pairs]
        if versions != self._versions:
            with torch.no_grad():
                torch._foreach_copy_([c for _, c in self.pairs], [p for p, _ in self.pairs])
            self._versions = versions

    def written(self) -> None:
        """The weights are others now; fused optimizers write them without raising their version."""
        self._versions = []

    def collect(self) -> None:
        """Add the copy's gradients to the float32 ones; a parameter no pass used keeps the gradient None."""
        if self.is_model:
            return
        for parameter, computed in self.pairs:
            if computed.grad is not None:
                if parameter.grad is None:
                    parameter.grad = computed.grad.float()
                else:
                    parameter.grad.add_(computed.grad)
                computed.grad = None
