"""Weight averaging: what is validated, exported and fine-tuned is an average of the weights along the way.

``lawa``: the mean of the latest ``last_k`` snapshots (Kaddour 2022, "Stop Wasting My Time! Saving Days of ImageNet and
BERT Training with Latest Weight Averaging", https://arxiv.org/abs/2209.14981, algorithm 1). ``ema``: an exponential
moving average (Polyak & Juditsky 1992; with the decay as in https://arxiv.org/abs/1703.01780), corrected for its
beginning as Adam's moments are (https://arxiv.org/abs/1412.6980, section 3), so that it owes nothing to the first
weights: after t updates it is sum of decay^(t-i) w_i over sum of decay^(t-i).

Costs nothing of the budget: training goes on with the weights themselves. An average takes the memory of the weights in
float32 once (``ema``, where the model is) or ``last_k`` times (``lawa``, in the processor's memory), a checkpoint
as much more, and validation the weights once more on the device.

A change of the active layers makes another model of which earlier weights are no part: the average begins anew.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Optional

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.method import Method
from cramming.registry import register
from cramming.suggest import nearest

if TYPE_CHECKING:
    from cramming.train import Run

AVERAGES = ("ema", "lawa")
_EVERY_STEPS = {"ema": 1, "lawa": 100}

Named = dict[str, Tensor]  # by parameter, float32


@register("method", "weight_averaging")
@dataclass
class WeightAveraging(Method):
    """Lend the model an average of its weights where it is evaluated.

    Attributes:
        average: ``lawa`` or ``ema``.
        every_steps: optimizer steps between the weights that are averaged; None: 100 for ``lawa``, 1 for ``ema``.
        last_k: how many snapshots ``lawa`` averages; 1 with ``every_steps=1`` evaluates the weights themselves.
        decay: of ``ema``, for each update; 0 evaluates the latest weights themselves.

    Raises:
        UserError: an option outside its range.
    """

    average: str = "lawa"
    every_steps: Optional[int] = None  # noqa: UP045 (OmegaConf reads this form)
    last_k: int = 6
    decay: float = 0.999

    excludes: ClassVar[Mapping[str, str]] = {
        "schedule_free": "each of them has an average of its own that the model is evaluated with"
    }

    def __post_init__(self) -> None:
        if self.average not in AVERAGES:
            raise UserError(
                f"method.weight_averaging.average={self.average} is unknown{nearest(self.average, AVERAGES)}"
            )
        for name in ("every_steps", "last_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"method.weight_averaging.{name}={value} must be a whole number from 1")
        if not 0 <= self.decay < 1:
            raise UserError(f"method.weight_averaging.decay={self.decay} must lie in [0, 1), such as 0.999")
        self._device = torch.device("cpu")
        self._step = 0  # the step the weights were looked at last: one that is deferred is not another
        self._layers: tuple[int, ...] = ()  # active in what is averaged
        self._moving: Named = {}
        self._updates = 0  # in it
        self._snapshots: list[Named] = []  # oldest first

    def setup(self, run: "Run") -> None:
        """Find out where the model is."""
        self._device = run.engine.device

    def after_step(self, run: "Run") -> None:
        """Take the weights into the average, if it is their turn."""
        every = self.every_steps or _EVERY_STEPS[self.average]
        if run.step == self._step or run.step % every:
            return
        self._step = run.step
        layers = tuple(run.model.active_layers)
        if layers != self._layers:
            self._layers, self._moving, self._updates, self._snapshots = layers, {}, 0, []
        weights = {name: parameter.detach() for name, parameter in run.model.named_parameters()}
        if self.average == "lawa":
            self._snapshots = self._snapshots[-self.last_k + 1 :] if self.last_k > 1 else []
            self._snapshots.append({name: tensor.to("cpu", copy=True) for name, tensor in weights.items()})
            return
        self._updates += 1
        if not self._moving:
            self._moving = {name: tensor.clone() for name, tensor in weights.items()}
            return
        share = (1 - self.decay) / (1 - self.decay**self._updates)  # decay / (...) of it is what was there
        torch._foreach_lerp_(list(self._moving.values()), [weights[name] for name in self._moving], share)

    @contextmanager
    def evaluating(self, run: "Run") -> Iterator[None]:
        """The model has the average of its weights; afterwards its own again, to the last bit."""
        parameters, averages = dict(run.model.named_parameters()), _mean(self._moving, self._snapshots)
        kept = {name: parameters[name].detach().clone() for name in averages}
        try:
            _write(parameters, averages)
            yield
        finally:
            _write(parameters, kept)

    def state_dict(self) -> dict[str, Any]:
        """The average, or the snapshots it is made of, and when and of what they were taken."""
        return {
            "step": self._step,
            "layers": list(self._layers),
            "moving": self._moving,
            "updates": self._updates,
            "snapshots": self._snapshots,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._step, self._layers, self._updates = state["step"], tuple(state["layers"]), state["updates"]
        self._moving = {name: tensor.to(self._device) for name, tensor in state["moving"].items()}
        self._snapshots = [{name: t.to("cpu") for name, t in snapshot.items()} for snapshot in state["snapshots"]]

    def lent(self, state: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """The average of a checkpoint; nothing where none was begun yet."""
        return _mean(state["moving"], state["snapshots"])


def _mean(moving: Named, snapshots: list[Named]) -> Named:
    """The moving average, or the mean of snapshots; nothing if there is neither."""
    if not snapshots:
        return moving
    first, *others = snapshots
    total = {name: tensor.clone() for name, tensor in first.items()}
    for snapshot in others:
        torch._foreach_add_(list(total.values()), [snapshot[name] for name in total])
    torch._foreach_div_(list(total.values()), len(snapshots))
    return total


@torch.no_grad()
def _write(parameters: Mapping[str, Tensor], values: Named) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)
