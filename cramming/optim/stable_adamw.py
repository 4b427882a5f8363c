"""StableAdamW: AdamW that slows down where the second moment lags behind the gradient, instead of clipping it.

Wortsman et al., "Stable and low-precision training for large-scale vision-language models"
(https://arxiv.org/abs/2304.13013, algorithm 2); ModernBERT's optimizer (https://arxiv.org/abs/2412.13663).
pytorch-optimizer's counts steps by group.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cramming.optim.config import Adaptive
from cramming.optim.own import Own, State, moments, update_moments
from cramming.registry import register


class StableAdamW(Own):
    """RMS = sqrt(mean(g^2 / max(v, eps^2))), by tensor;  lr / max(1, RMS) is the rate of the step and of the decay."""

    def begin(self, parameter: Tensor, group: State) -> State:
        return moments(parameter)

    def update(self, group: State, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        # Betas that make the means right from the first step on, without a correction of their own (section 3.3).
        betas = [[_debiased(beta, state["step"]) for state in states] for beta in group["betas"]]
        first, second = update_moments(states, gradients, *betas)
        squares = torch._foreach_mul(gradients, gradients)
        torch._foreach_div_(squares, torch._foreach_clamp_min(second, group["eps"] ** 2))
        rates = [group["lr"] / square.mean().sqrt().clamp(min=1.0) for square in squares]
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, [1.0 - group["weight_decay"] * rate for rate in rates])
        roots = torch._foreach_sqrt(second)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(first, roots)
        torch._foreach_mul_(updates, rates)
        torch._foreach_sub_(parameters, updates)


def _debiased(beta: float, step: int) -> float:
    """beta (1 - beta^(t-1)) / (1 - beta^t): 0 in the first step, beta in the end."""
    return beta * (1.0 - beta ** (step - 1)) / (1.0 - beta**step)


@register("train/optim", "stable_adamw")
@dataclass
class StableAdamWConfig(Adaptive):
    """AdamW with each tensor's update clipped; weight decay is decoupled, p <- p (1 - rate wd).

    Defaults: ModernBERT's. Its decay of 1e-5 a step is not multiplied by the rate; 0.0125 is that over 8e-4.
    """

    shards = True

    kind: str = "stable_adamw"
    lr: float = 8e-4
    weight_decay: float = 0.0125
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        options = {"lr": self.lr, "betas": (self.betas[0], self.betas[1]), "eps": self.eps}
        return StableAdamW(groups, {**options, "weight_decay": self.weight_decay})
