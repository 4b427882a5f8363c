"""Prodigy: Adam that estimates how far it has to go, and takes its learning rate from that.

Mishchenko and Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner" (https://arxiv.org/abs/2306.06101,
algorithm 4). pytorch-optimizer's takes the rate of the first group for all, and adds up in float32.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.optim.config import Adaptive
from cramming.optim.own import Own, State, decay, moments
from cramming.parallel.tensors import whole
from cramming.registry import register

_OVERALL = ("d", "r")  # kept in every group, the same in all: what is known of the whole


class Prodigy(Own):
    """Adam's means of d g and (d g)^2; d grows with how well gradients agree with the way already gone.

    r <- sqrt(beta2) r + (1 - sqrt(beta2)) lr d^2 <g, p0 - p>, s the same of lr d^2 g; d <- max(d, d_coef r / |s|_1);
    p <- p - lr d m / (sqrt(v) + d eps). Rates of parameters differ where groups say so; d is one for all.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step from the gradients there are."""
        assert closure is None, "the engine calls the model, an optimizer does not"
        used = [
            (group, p, p.grad, self.stepped(p, group))
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not used:
            return
        first = self.param_groups[0]
        d, beta3 = first["d"], first["betas"][1] ** 0.5
        agreement, lengths = [], []
        for group, p, gradient, state in used:
            weight = (1.0 - beta3) * d * d * group["lr"]
            agreement.append(weight * torch.sum(gradient * (state["p0"] - p), dtype=torch.float64))
            state["s"].mul_(beta3).add_(gradient, alpha=weight)
            lengths.append(state["s"].abs().sum(dtype=torch.float64))
        r = beta3 * first["r"] + float(whole(torch.stack(agreement).sum()))
        length = float(whole(torch.stack(lengths).sum()))
        grown = max(d, first["d_coef"] * r / length) if length > 0 else d
        for group, p, gradient, state in used:
            self._move(group, p, gradient, state, d)
        for group in self.param_groups:
            group["d"], group["r"] = min(grown, d * group["growth"]), r

    def begin(self, parameter: Tensor, group: State) -> State:
        return {**moments(parameter), "p0": parameter.clone(), "s": torch.zeros_like(parameter)}

    def _move(self, group: State, p: Tensor, gradient: Tensor, state: State, d: float) -> None:
        beta1, beta2 = group["betas"]
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.mul_(beta1).add_(gradient, alpha=(1.0 - beta1) * d)
        second.mul_(beta2).addcmul_(gradient, gradient, value=(1.0 - beta2) * d * d)
        rate = d * group["lr"]
        if group["bias_correction"]:
            rate *= (1.0 - beta2 ** state["step"]) ** 0.5 / (1.0 - beta1 ** state["step"])
        decay([p], d * group["lr"] * group["weight_decay"])
        p.addcdiv_(first, second.sqrt().add_(d * group["eps"]), value=-rate)


@register("train/optim", "prodigy")
@dataclass
class ProdigyConfig(Adaptive):
    """A learning rate that finds itself; ``lr`` and the schedule multiply it, and 1 is what the authors advise.

    Weight decay is decoupled, p <- p (1 - d lr wd). Defaults: the authors'.

    Attributes:
        d0: the first estimate of the distance.
        d_coef: multiplies the estimate.
        growth: the largest factor of d in a step, or none.
        bias_correction: correct both means for their beginning.
    """

    shards = True

    kind: str = "prodigy"
    lr: float = 1.0
    weight_decay: float = 0.0
    d0: float = 1e-6
    d_coef: float = 1.0
    growth: float | None = None
    bias_correction: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("d0", "d_coef"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise UserError(f"train.optim.{name}={getattr(self, name)} must be a finite number above 0")
        if self.growth is not None and not self.growth > 1.0:
            raise UserError(f"train.optim.growth={self.growth} lets nothing grow; give a factor above 1, or null")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        options = {"lr": self.lr, "betas": (self.betas[0], self.betas[1]), "eps": self.eps}
        options |= {"weight_decay": self.weight_decay, "bias_correction": self.bias_correction, "d_coef": self.d_coef}
        growth = float("inf") if self.growth is None else self.growth
        return Prodigy(groups, {**options, "growth": growth, "d": self.d0, "r": 0.0})
