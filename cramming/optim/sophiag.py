"""Sophia-G: momentum over an estimate of the curvature's diagonal, clipped (https://arxiv.org/abs/2305.14342).

Algorithm 3 with the Gauss-Newton-Bartlett estimator (algorithm 2), in the form of the authors' code:

    p <- p (1 - lr wd);  m <- b1 m + (1 - b1) g;  p <- p - lr sign(m) min(1, |m| / (rho bs h + eps))
    every k steps:  h <- b2 h + (1 - b2) g' g'

g' is the gradient of the mean loss of B tokens at labels that the model itself sampled; B g' g' estimates the diagonal.
The authors keep g' g' and multiply by ``bs``, a constant, in every step; B tokens an estimate and ``bs = B`` are the
same. Here B is part of h unless ``bs`` is given, so that estimates of different sizes mean the same. Nothing corrects
means for having begun at zero, as there: before its first estimate every coordinate moves by exactly lr.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.optim.config import Moments
from cramming.optim.own import Own, State
from cramming.registry import register


class SophiaG(Own):
    """State by parameter: ``exp_avg`` (m), ``hessian`` (h). Groups carry ``betas``, ``rho``, ``bs``, ``eps``."""

    def begin(self, parameter: Tensor, group: State) -> State:
        return {"exp_avg": torch.zeros_like(parameter), "hessian": torch.zeros_like(parameter)}

    def update(self, group: State, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        means, curvatures = [state["exp_avg"] for state in states], [state["hessian"] for state in states]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(means, gradients, 1 - group["betas"][0])
        bounds = torch._foreach_mul(curvatures, _bound(group))
        torch._foreach_add_(bounds, group["eps"])
        moves = torch._foreach_div(means, bounds)  # sign(m) min(1, |m| / bound) is m / bound cut off at 1 and -1
        torch._foreach_clamp_min_(moves, -1.0)
        torch._foreach_clamp_max_(moves, 1.0)
        torch._foreach_add_(parameters, moves, alpha=-group["lr"])

    @torch.no_grad()
    def update_hessian(self, predicted: float = 1.0) -> None:
        """Take up an estimate: h <- b2 h + (1 - b2) B g' g', with g' in ``.grad``; without a gradient h stays.

        Args:
            predicted: B, how many tokens g' is the mean of; of no effect where ``bs`` is given.
        """
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                gradients = [p.grad for p in parameters]
                curvatures = [self._begun(p, group)["hessian"] for p in parameters]
                beta, tokens = group["betas"][1], predicted if group["bs"] is None else 1.0
                torch._foreach_mul_(curvatures, beta)
                torch._foreach_addcmul_(curvatures, gradients, gradients, (1 - beta) * tokens)

    def curvature(self) -> dict[str, float]:
        """The L2 norm of the estimate h, and the share of coordinates that are not clipped: |m| < rho bs h."""
        square, inside, count = 0.0, 0, 0
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state:
                    state = self.state[p]
                    square += float(state["hessian"].norm()) ** 2
                    inside += int((state["exp_avg"].abs() < _bound(group) * state["hessian"]).sum())
                    count += p.numel()
        return {"hessian_norm": math.sqrt(square), "unclipped_share": inside / max(1, count)}

    def _begun(self, parameter: Tensor, group: State) -> State:
        """A parameter's state, which an estimate may begin before the first step does."""
        state: State = self.state[parameter]
        if not state:
            state.update(step=0, **self.begin(parameter, group))
        return state


def _bound(group: State) -> float:
    """What h is multiplied with."""
    return float(group["rho"] * (1.0 if group["bs"] is None else group["bs"]))


@register("train/optim", "sophiag")
@dataclass
class SophiaGConfig(Moments):
    """Sophia-G; it brings the method ``hessian``, which makes the estimates.

    Defaults: what the earlier study tuned to (https://arxiv.org/abs/2307.06440, appendix): rate, decay, rho, one
    estimate in 10 steps of half a batch; betas are the paper's.

    Attributes:
        rho: the smaller, the more coordinates are clipped; the paper wants 0.1 to 0.5 of them not to be.
        bs: the authors' constant, tokens of a batch; None: the tokens that each estimate really is of. The study had
            196608, all tokens of its batch, for estimates of at most 16384 of them.
        eps: keeps the denominator from zero.
        hessian_every_steps: k, optimizer steps from one estimate to the next.
        hessian_sequences: fresh sequences of an estimate; None: half of a batch.
    """

    shards = True

    kind: str = "sophiag"
    lr: float = 4e-4
    weight_decay: float = 0.015
    betas: list[float] = field(default_factory=lambda: [0.965, 0.99])
    rho: float = 0.01
    bs: float | None = None
    eps: float = 1e-15
    hessian_every_steps: int = 10
    hessian_sequences: int | None = None

    needs_method: ClassVar[str | None] = "hessian"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rho", "eps"):
            self._require(name, math.ulp(0.0), math.inf, "a finite number above 0")
        if self.bs is not None:
            self._require("bs", 1.0, math.inf, "a number of tokens from 1, or null")
        for name in ("hessian_every_steps", "hessian_sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"train.optim.{name}={value} must be a whole number from 1")

    def method_options(self) -> dict[str, Any]:
        return {"hessian_every_steps": self.hessian_every_steps, "hessian_sequences": self.hessian_sequences}

    def build(self, groups: "list[dict[str, Any]]") -> "torch.optim.Optimizer":
        given = {"lr": self.lr, "weight_decay": self.weight_decay, "betas": tuple(self.betas)}
        return SophiaG(groups, {**given, "rho": self.rho, "bs": self.bs, "eps": self.eps})
