"""Mixed precision: float32 weights, passes on a copy of them in 16 bits (https://arxiv.org/abs/1710.03740).

The copy is refreshed once for each optimizer step, not cast in every microbatch; its gradients are added to the float32
ones after every microbatch.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from cramming.errors import UserError

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

    def __call__(self, batch: Any, logits: bool) -> Tensor:
        """A pass forward."""
        output: Tensor = self.module(batch, logits=logits)
        return output

    def hidden(self, batch: Any) -> Tensor:
        """Final hidden states."""
        found: Tensor = self.module.hidden(batch)  # type: ignore[operator]
        return found

    def begin(self, ends_group: bool, ends_batch: bool) -> None:
        """Before a pass with its way back. One process has all there is to a gradient, wherever a batch ends."""

    def refresh(self) -> None:
        """Bring the copy up to date if any weight was written since (by the optimizer, by a method)."""
        self._bring_up_to_date(self.pairs)

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

    def _bring_up_to_date(self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
        if self.is_model:
            return
        versions = [p._version for p, _ in pairs]
        if versions != self._versions:
            with torch.no_grad():
                torch._foreach_copy_([c for _, c in pairs], [p for p, _ in pairs])
            self._versions = versions

    def _memory(self, parameter: nn.Parameter) -> Tensor:
        """For a gradient, its values whatever they are."""
        if self._gradients is None:
            return torch.empty_like(parameter)
        if parameter not in self._gradients:
            self._gradients[parameter] = torch.empty_like(parameter)
        return self._gradients[parameter]


class LossScale:
    """What the loss is multiplied with before the way back, and which steps were skipped.

    Only float16, whose gradients would vanish, has a scale other than 1: it is halved when they overflow.

    Args:
        precision: of the passes.
        max_skipped_steps: steps in a row that may be skipped.
    """

    def __init__(self, precision: str, max_skipped_steps: int) -> None:
        self.value = FIRST_SCALE if precision == "float16" else 1.0
        self.skipped_steps = 0
        self._float16 = precision == "float16"
        self._max_skipped_steps = max_skipped_steps
        self.skipped_in_a_row = 0
        self._good_steps = 0

    def count(self, finite: bool) -> None:
        """After a step: whether its loss and gradient were finite.

        Raises:
            UserError: more steps in a row were skipped than allowed.
        """
        overflow = not finite and self._float16 and self.value > 1.0
        if overflow:  # expected now and then: the scale was too high
            self.value, self._good_steps = max(1.0, self.value / 2), 0
        elif not finite:
            self.skipped_in_a_row += 1
        elif self._float16:
            self._good_steps += 1
            if self._good_steps >= SCALE_GROWS_EVERY:
                self.value, self._good_steps = self.value * 2, 0
        if finite:
            self.skipped_in_a_row = 0
        self.skipped_steps += not finite
        if self.skipped_in_a_row > self._max_skipped_steps:
            raise UserError(
                f"the loss was not finite in {self.skipped_in_a_row} steps in a row (train.max_skipped_steps="
                f"{self._max_skipped_steps}); the last good checkpoint is kept: lower train.optim.lr or train.clip_norm"
            )

    def state_dict(self) -> dict[str, Any]:
        """The scale and all counts."""
        return {
            "scale": self.value,
            "good_steps": self._good_steps,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self.value, self._good_steps = state["scale"], state["good_steps"]
        self.skipped_steps, self.skipped_in_a_row = state["skipped_steps"], state["skipped_in_a_row"]
