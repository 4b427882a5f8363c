"""AdamW whose steps are as long as the weights they move, for models trained from scratch with Adafactor's rates.

From nanoT5 (https://arxiv.org/abs/2309.02373, section 3.2), which the earlier study's T5 and Cramming took over. No
library has it.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cramming.optim.config import Adaptive
from cramming.optim.own import Own, State, corrections, decay, moments, norms, update_moments
from cramming.registry import register

_SMALLEST_SCALE = 1e-3


class AdamWScale(Own):
    """p <- p - lr c max(1e-3, RMS(p)) m / (sqrt(v) + eps), c = sqrt(1 - beta2^t) / (1 - beta1^t); p <- p - lr wd p."""

    def begin(self, parameter: Tensor, group: State) -> State:
        return moments(parameter)

    def update(self, group: State, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        first, second = update_moments(states, gradients, *group["betas"])
        roots = torch._foreach_sqrt(second)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(first, roots)
        if group["correct_bias"]:
            means, squares = (corrections(states, beta) for beta in group["betas"])
            torch._foreach_mul_(updates, [b**0.5 / a for a, b in zip(means, squares, strict=True)])
        scales = [
            (norm / p.numel() ** 0.5).clamp(min=_SMALLEST_SCALE)
            for norm, p in zip(norms(parameters), parameters, strict=True)
        ]
        torch._foreach_mul_(updates, scales)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
        decay(parameters, group["lr"] * group["weight_decay"])


@register("train/optim", "adamw_scale")
@dataclass
class AdamWScaleConfig(Adaptive):
    """AdamW relative to the size of each tensor; weight decay is decoupled and comes after the step.

    Defaults: nanoT5's rate and no decay, as the earlier study's T5 had it.

    Attributes:
        correct_bias: correct both means for their beginning.
    """

    shards = True

    kind: str = "adamw_scale"
    lr: float = 2e-2
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-6
    correct_bias: bool = True

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        options = {"lr": self.lr, "betas": (self.betas[0], self.betas[1]), "eps": self.eps}
        return AdamWScale(groups, {**options, "weight_decay": self.weight_decay, "correct_bias": self.correct_bias})
