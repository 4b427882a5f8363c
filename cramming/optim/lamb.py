"""LAMB: Adam whose step for each matrix is as long as the matrix, for large batches.

You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (https://arxiv.org/abs/1904.00962,
algorithm 2). pytorch-optimizer's counts steps by group, leaves weight decay out of the ratio, corrects one of the two
means only, and takes no norm above 10.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.optim.config import Adaptive
from cramming.optim.groups import VECTOR
from cramming.optim.own import Own, State, adam_directions, moments, norms
from cramming.registry import register


class Lamb(Own):
    """r = m / (sqrt(v) + eps) + wd p;  p <- p - lr |p| / |r| r, the ratio 1 where either norm is 0 and for vectors."""

    def begin(self, parameter: Tensor, group: State) -> State:
        return moments(parameter)

    def update(self, group: State, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        updates = adam_directions(states, gradients, group["betas"], group["eps"], group["bias_correction"])
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        if group["role"] != VECTOR or group["adapt_vectors"]:
            low, high = group["ratio_min"], group["ratio_max"]
            ratios = []
            for weight, update in zip(norms(parameters), norms(updates), strict=True):
                ratio = torch.where((weight > 0) & (update > 0), weight / update, torch.ones_like(weight))
                ratios.append(ratio.clamp(low, high))
            torch._foreach_mul_(updates, ratios)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


@register("train/optim", "lamb")
@dataclass
class LambConfig(Adaptive):
    """Layer-wise adaptive moments; weight decay is part of the step whose length the weights give.

    Defaults: ALBERT's rate and decay (https://arxiv.org/abs/1909.11942), the paper's algorithm otherwise.

    Attributes:
        bias_correction: divide both means by what they lack at the beginning; ALBERT's code does not, and warms up.
        adapt_vectors: give biases and weights of norms a ratio too.
        ratio_min: the smallest ratio (ExtremeBERT: 0.01).
        ratio_max: the largest, or none (ExtremeBERT: 0.3).
    """

    by_role = True
    shards = True

    kind: str = "lamb"
    lr: float = 1.76e-3
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-6
    bias_correction: bool = True
    adapt_vectors: bool = False
    ratio_min: float = 0.0
    ratio_max: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("ratio_min", 0.0, float("inf"), "a finite number from 0")
        if self.ratio_max is not None and not self.ratio_max >= self.ratio_min:
            raise UserError(f"train.optim.ratio_max={self.ratio_max} is below ratio_min={self.ratio_min}")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return Lamb(
            groups,
            {
                "lr": self.lr,
                "betas": (self.betas[0], self.betas[1]),
                "eps": self.eps,
                "weight_decay": self.weight_decay,
                "bias_correction": self.bias_correction,
                "adapt_vectors": self.adapt_vectors,
                "ratio_min": self.ratio_min,
                "ratio_max": self.ratio_max,
            },
        )
