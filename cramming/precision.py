"""Mixed precision: float32 weights, passes on a copy of them in 16 bits (https://arxiv.org/abs/1710.03740).

The copy is refreshed once for each optimizer step, not cast in every microbatch; its gradients are added to the float32
ones after every microbatch.
"""

import copy
from collections.abc import Collection
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCALE_GROWS_EVERY = 2000  # steps without an overflow; the defaults of torch.amp.GradScaler
FIRST_SCALE = 2.0**16  # of float16's loss

M = TypeVar("M", bound=nn.Module)


class WorkingCopy(Generic[M]):
    """What passes run on: the model itself in float32, else a copy of it.

    Args:
        model: float32 weights.
        precision: ``float32``, ``bfloat16`` or ``float16``.
        shared: names of parameters that passes read as they are.
        own_gradients: keep the memory of float32 gradients from step to step, for whoever has no use for them after a
            step.
        once: the copy holds until the weights change; else weights are cast again for every microbatch.

    Attributes:
        module: what passes run on.
        pairs: each of the model's parameters, but for the shared ones, beside the module's.
    """

    def __init__(
        self, model: M, precision: str, shared: Collection[str] = (), *, own_gradients: bool = False, once: bool = True
    ) -> None:
        self.model, self._once = model, once
        self.module: M = model if precision == "float32" else copy.deepcopy(model).to(DTYPES[precision])
        for name in shared:
            place, _, key = name.rpartition(".")
            setattr(self.module.get_submodule(place), key, model.get_parameter(name))
        twins = zip(model.named_parameters(), self.module.parameters(), strict=True)
        self.pairs = [(parameter, twin) for (name, parameter), twin in twins if name not in shared]
        self._versions: list[int] = []
        self._gradients: dict[nn.Parameter, Tensor] | None = {} if own_gradients else None

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
        first: list[tuple[Tensor, Tensor]] = []
        for parameter, computed in self.pairs:
            gradient, computed.grad = computed.grad, None
            if gradient is None:
                continue
            if parameter.grad is not None:
                parameter.grad.add_(gradient)
            else:
                parameter.grad = self._memory(parameter)
                first.append((parameter.grad, gradient))
        if first:
            torch._foreach_copy_([wide for wide, _ in first], [gradient for _, gradient in first])
        if not self._once:
            self._versions = []

    def _memory(self, parameter: nn.Parameter) -> Tensor:
        """For a gradient, its values whatever they are."""
        if self._gradients is None:
            return torch.empty_like(parameter)
        if parameter not in self._gradients:
            self._gradients[parameter] = torch.empty_like(parameter)
        return self._gradients[parameter]
