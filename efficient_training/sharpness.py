"""Sharpness-aware minimization's second pass (https://arxiv.org/abs/2010.01412).

Before every step the weights go a length rho up the slope, the batch's gradient is taken anew there, the weights come
back to what they were, bit for bit, and the optimizer steps with the second gradient.

Cost: every step's passes a second time, account ``sharpness``: half as many steps for the same budget.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from cramming.batch import Batch
from cramming.errors import UserError
from cramming.method import Method, Step
from cramming.optim.sam import ascended
from cramming.parallel.ranks import here
from cramming.registry import register

if TYPE_CHECKING:
    from cramming.train import Run


@register("method", "sharpness")
@dataclass
class Sharpness(Method):
    """Use the gradient at p + rho g / |g| (equation 2); ``train/optim=sam`` brings it, any optimizer may have it.

    Attributes:
        rho: length of the way up the slope; 0: no second pass.
    """

    rho: float = 0.05

    accounts: ClassVar[tuple[str, ...]] = ("sharpness",)
    excludes: ClassVar[dict[str, str]] = {
        "progressive_batching": "its gradients are of several batches, and the second pass is of one",
    }

    def __post_init__(self) -> None:
        if not 0 <= self.rho < math.inf:
            raise UserError(f"method.sharpness.rho={self.rho} must be a finite number from 0, such as 0.05")
        self._columns: dict[str, float] = {}

    def update(self, run: "Run", batch: Batch, factor: float, step: Step) -> int:
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        if not self.rho or not gradients or not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            return step(factor)  # a gradient that is not finite: the engine skips the step
        del gradients
        above = torch.zeros((), device=run.engine.device)
        with ascended(run.model.parameters(), self.rho):
            run.engine.optimizer.zero_grad(set_to_none=True)
            for group in batch.groups(run.method.sequences_per_draw):
                with run.method.thinned(run, group):  # a pure function of (seed, step, group): the same layers again
                    for microbatch in run.microbatches(group):
                        above += run.engine.backward(microbatch, run.method.objective, "sharpness")
        taken = step(factor)
        self._columns = {"sharpness": float(here().sum_(above)) - run.engine.loss}
        return taken

    def columns(self) -> dict[str, float]:
        """How much higher the loss is at p + e."""
        return self._columns

    def state_dict(self) -> dict[str, Any]:
        return {"columns": self._columns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._columns = state["columns"]
