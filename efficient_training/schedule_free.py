"""What ``train/optim=schedule_free`` brings along: the average of its way is what is validated, exported, fine-tuned.

Defazio et al., "The Road Less Scheduled" (https://arxiv.org/abs/2405.15682). Costs nothing of the budget; a checkpoint
holds the weights once more.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.method import Method
from cramming.optim.schedule_free import ScheduleFree as Optimizer
from cramming.registry import register

if TYPE_CHECKING:
    from cramming.train import Run


@register("method", "schedule_free")
@dataclass
class ScheduleFree(Method):
    """Lend the model the optimizer's average where it is evaluated."""

    def __post_init__(self) -> None:
        self._run: Run | None = None

    def setup(self, run: "Run") -> None:
        _optimizer(run)
        self._run = run

    @contextmanager
    def evaluating(self, run: "Run") -> Iterator[None]:
        averages = _optimizer(run).average()
        kept = {parameter: parameter.detach().clone() for parameter in averages}
        try:
            _write(averages)
            yield
        finally:
            _write(kept)  # copies, so that a run that is validated stays to the last bit the run it was

    def state_dict(self) -> dict[str, Any]:
        if self._run is None:
            return {}
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._run.model.named_parameters()}
        return {"weights": {names[p]: x for p, x in _optimizer(self._run).average().items()}}

    def lent(self, state: Mapping[str, Any]) -> Mapping[str, Tensor]:
        weights: Mapping[str, Tensor] = state["weights"]
        return weights


def _optimizer(run: "Run") -> Optimizer:
    optimizer = run.engine.optimizer
    if not isinstance(optimizer, Optimizer):
        raise UserError(
            "method=schedule_free belongs to train/optim=schedule_free, which brings it along; leave it out"
        )
    return optimizer


@torch.no_grad()
def _write(values: Mapping[Tensor, Tensor]) -> None:
    for parameter, value in values.items():
        parameter.copy_(value)
