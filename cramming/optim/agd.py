"""Automatic gradient descent: no learning rate, the step follows from the gradients and the shape of the network.

Bernstein et al., "Automatic Gradient Descent: Deep Learning without Hyperparameters" (https://arxiv.org/abs/2304.05187,
algorithm 1), as Cramming has it. The paper's networks have no biases and no norms; what those count as is in
``groups.fan_ratio``. No library has it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cramming.optim.config import OptimConfig
from cramming.optim.groups import VECTOR, fan_ratio
from cramming.registry import register


class Agd(torch.optim.Optimizer):
    """G = mean of s |g|, s = sqrt(out / in);  p <- p - lr / L log((1 + sqrt(1 + 4 G)) / 2) s g / |g|.

    L is the number of tensors that have a gradient, and the mean is over them: a network with half its layers active is
    half as deep. Blocks of a block-diagonal matrix are matrices.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the gradients there are."""
        assert closure is None, "the engine calls the model, an optimizer does not"
        used = [(group, p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not used:
            return
        norms = [_norm(gradient, group["role"]) for group, _, gradient in used]
        ratios = [fan_ratio(p, group["role"]) for group, p, _ in used]
        summary = torch.stack([ratio * norm.sum() for ratio, norm in zip(ratios, norms, strict=True)]).sum()
        length = math.log((1.0 + math.sqrt(1.0 + 4.0 * float(summary) / len(used))) / 2.0) / len(used)
        for (group, p, gradient), ratio, norm in zip(used, ratios, norms, strict=True):
            direction = (gradient / norm).nan_to_num_()  # a gradient of 0 has none
            p.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"] * length * ratio)


def _norm(gradient: Tensor, role: str) -> Tensor:
    """The Frobenius norm of a tensor, or of each of its matrices; kept as dimensions."""
    found: Tensor = torch.linalg.vector_norm(gradient, dim=None if role == VECTOR else (-2, -1), keepdim=True)
    return found


@register("train/optim", "agd")
@dataclass
class AgdConfig(OptimConfig):
    """Steps without a rate: ``lr``, the authors' gain, multiplies them, so that a schedule can; they take a constant.

    Weight decay, none by default, is decoupled. No state. The paper begins with orthogonal weights, Cramming's recipe
    too; here the architecture's own initialization stays.
    """

    by_role = True
    shards = True

    kind: str = "agd"
    lr: float = 1.0
    weight_decay: float = 0.0

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return Agd(groups, {"lr": self.lr, "weight_decay": self.weight_decay})
