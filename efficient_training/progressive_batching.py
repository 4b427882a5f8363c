"""Progressive batching: a step waits, and gathers batches, until its gradient is known well enough.

The mean of the gradients of n batches is used once a test says that it stands out from their noise:

* ``norm``: variance / n < theta |mean|^2, the variance being that of batches, summed over all weights (De et al. 2017,
  "Automated Inference with Adaptive Batches", https://arxiv.org/abs/1610.05792; Bollapragada et al. 2018, "Adaptive
  Sampling Strategies for Stochastic Optimization", https://arxiv.org/abs/1710.11258).
* ``inner_product``: (g.m - |m|^2)^2 / (n - 1) < theta |m|^4, with the latest gradient g and the mean m of those before
  it: the latter paper's inner product test with one gradient in place of all, which would have to be kept (see also
  "A Progressive Batching L-BFGS Method for Machine Learning", https://arxiv.org/abs/1802.05374).
* ``cosine``: the cosine between g and m, averaged over the weight tensors, is above theta.

Formulas and defaults are those of the earlier system (github.com/JonasGeiping/cramming, progressive batching). Costs
nothing of its own: passes are paid as ever, so fewer and larger steps are taken. In memory, and in a checkpoint of a
step that waits, the weights once more in float32. What waits when the budget ends is dropped: no step is taken with a
gradient that did not pass.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cramming.batch import Batch
from cramming.errors import UserError
from cramming.method import Method, Step
from cramming.parallel.tensors import whole
from cramming.registry import register
from cramming.suggest import nearest

if TYPE_CHECKING:
    from cramming.train import Run

RULES = ("norm", "inner_product", "cosine")


@register("method", "progressive_batching")
@dataclass
class ProgressiveBatching(Method):
    """Defer the step until a test of the gradient's variance passes.

    Attributes:
        rule: which test.
        theta: its threshold.
        min_batches: batches that a step has at least; 1 takes every step, as a single batch has no variance.
        max_batches: with so many a step is taken whatever the test says.
        monotone: a step has at least as many batches as the one before it.

    Raises:
        UserError: an option outside its range.
    """

    rule: str = "norm"
    theta: float = 0.9
    min_batches: int = 2
    max_batches: int = 128
    monotone: bool = False

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UserError(f"method.progressive_batching.rule={self.rule} is unknown{nearest(self.rule, RULES)}")
        if not 0 < self.theta < math.inf:
            raise UserError(f"method.progressive_batching.theta={self.theta} must be above 0 and finite, such as 0.9")
        if self.rule == "cosine" and self.theta >= 1:
            raise UserError(
                f"method.progressive_batching.theta={self.theta}: no cosine is above that; give less than 1"
            )
        if not 1 <= self.min_batches <= self.max_batches:
            raise UserError(
                f"method.progressive_batching.min_batches={self.min_batches} must lie between 1 and max_batches="
                f"{self.max_batches}"
            )
        self._device = torch.device("cpu")
        self._least = self.min_batches
        self._used = 0  # batches of the latest step
        self._mean: dict[str, Tensor] = {}  # by parameter, of the gradients gathered
        self._squares = 0.0  # sum of squared differences from it, over batches and weights (Welford's M2)
        self._batches = 0  # gathered

    def setup(self, run: "Run") -> None:
        """Find out where gradients are."""
        self._device = run.engine.device

    def update(self, run: "Run", batch: Batch, factor: float, step: Step) -> int:
        """Take the batch's gradient into the mean; step with that if the test passes.

        Under float16 gradients carry the loss scale, which is one and the same between two steps and cancels in every
        test. A gradient that is not finite is handed on as it is, for the engine to skip the step and lower the scale;
        what was gathered before it is dropped.
        """
        parameters = dict(run.model.named_parameters())
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        if not bool(torch.isfinite(torch.nn.utils.get_total_norm(list(gradients.values())))):
            run.engine.average(self._batches + 1)
            self._forget()
            return step(factor)
        passes = self._passes(gradients, list(parameters))
        for name, parameter in parameters.items():
            parameter.grad = self._mean.get(name) if passes else None
        if not passes:
            return 0
        run.engine.average(self._batches)
        self._used = self._batches
        if self.monotone:
            self._least = max(self._least, self._used)
        self._forget()
        return step(factor)

    def columns(self) -> dict[str, float]:
        """Batches of the latest step."""
        return {"batches": float(self._used)}

    def state_dict(self) -> dict[str, Any]:
        """What was gathered, and how many batches a step needs and the latest had."""
        return {
            "mean": self._mean,
            "squares": self._squares,
            "batches": self._batches,
            "least": self._least,
            "used": self._used,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self._mean = {name: tensor.to(self._device) for name, tensor in state["mean"].items()}
        self._squares, self._batches = state["squares"], state["batches"]
        self._least, self._used = state["least"], state["used"]

    def _forget(self) -> None:
        self._mean, self._squares, self._batches = {}, 0.0, 0

    def _passes(self, gradients: dict[str, Tensor], order: list[str]) -> bool:
        """Gather the gradients of one more batch; whether the step may be taken.

        A parameter that some batch did not use has the gradient zero there. Sums run in one order, so that a run that
        goes on does so to the last bit.
        """
        self._batches += 1
        n = self._batches
        if n == 1:
            self._mean = {name: g.clone() for name, g in gradients.items()}  # ranks write the next ones over these
            return self._least <= 1
        # Over all weights: squares added, g.m, |m|^2 before, |mean|^2 now; and cosines with how many there are.
        sums = torch.zeros(6, dtype=torch.float64, device=self._device)
        for name in order:
            if name in gradients or name in self._mean:
                sums += self._gather(name, gradients.get(name))
        added, inner, before, now, cosines, tensors = sums.tolist()
        self._squares += added
        if n < self._least:
            return False
        if n >= self.max_batches:
            return True
        if self.rule == "norm":
            return self._squares / (n - 1) / n < self.theta * now
        if self.rule == "inner_product":
            return (inner - before) ** 2 / (n - 1) < self.theta * before**2
        return cosines > self.theta * tensors

    def _gather(self, name: str, gradient: Tensor | None) -> Tensor:
        """Welford's update of one parameter: https://doi.org/10.1080/00401706.1962.10490022; -> (6,) sums."""
        before = self._mean.get(name)
        if before is None:
            assert gradient is not None
            before = torch.zeros_like(gradient)
        g = torch.zeros_like(before) if gradient is None else gradient
        difference = g - before
        mean = self._mean[name] = before + difference / self._batches
        dots = [_dot(*pair) for pair in ((difference, g - mean), (g, before), (before, before), (mean, mean), (g, g))]
        added, inner, square, now, own = whole(torch.stack(dots)).unbind()
        known = ((square > 0) & (own > 0)).double()
        cosine = inner / (square * own).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        return torch.stack([added, inner, square, now, cosine * known, known])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dtype=torch.float64)
