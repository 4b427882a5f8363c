"""Schedule-free AdamW: no schedule that knows the end; an average of the way takes the place of the cool-down.

Defazio et al., "The Road Less Scheduled" (https://arxiv.org/abs/2405.15682, algorithm 1). Gradients are taken at y, the
parameters while training; x, the average, is what is validated and exported, see the method ``schedule_free``.
pytorch-optimizer's weighs the average by group, and moves from y to x and back in place, which rounds: a run that is
validated would be another than one that is not.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.optim.config import Adaptive
from cramming.optim.own import Own, State, corrections
from cramming.parallel.tensors import own_rows
from cramming.registry import register


class ScheduleFree(Own):
    """y = (1 - beta1) z + beta1 x;  z <- z - rate (g / (sqrt(v) + eps) + wd y);  x <- (1 - c) x + c z.

    rate = lr sqrt(1 - beta2^t), c = rate^2 over the sum of all so far. State holds z, x is worked out of y and z.
    """

    def begin(self, parameter: Tensor, group: State) -> State:
        return {"z": parameter.clone(), "exp_avg_sq": torch.zeros_like(parameter), "weight": 0.0}

    def update(self, group: State, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        beta1, beta2 = group["betas"]
        zs, second = [state["z"] for state in states], [state["exp_avg_sq"] for state in states]
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)
        roots = torch._foreach_sqrt(second)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(gradients, roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        rates = [group["lr"] * known**0.5 for known in corrections(states, beta2)]
        shares = [_share(state, rate) for state, rate in zip(states, rates, strict=True)]
        averages = averaged(parameters, zs, beta1)
        torch._foreach_mul_(updates, rates)
        torch._foreach_sub_(zs, updates)
        torch._foreach_lerp_(averages, zs, shares)
        torch._foreach_lerp_(averages, zs, 1.0 - beta1)
        torch._foreach_copy_(own_rows(parameters), own_rows(averages))

    def average(self) -> dict[Tensor, Tensor]:
        """Parameter -> x; of one that never had a gradient, itself."""
        found: dict[Tensor, Tensor] = {}
        with torch.no_grad():
            for group in self.param_groups:
                known = [p for p in group["params"] if "z" in self.state.get(p, {})]
                xs = averaged(known, [self.state[p]["z"] for p in known], group["betas"][0])
                found |= dict(zip(known, xs, strict=True))
        return found


def averaged(ys: list[Tensor], zs: list[Tensor], beta1: float) -> list[Tensor]:
    """x = z + (y - z) / beta1; new tensors."""
    return list(torch._foreach_lerp(zs, ys, 1.0 / beta1)) if ys else []


def _share(state: State, rate: float) -> float:
    """What the newest z counts for in the average; its weight is noted."""
    state["weight"] += rate**2
    return float(rate**2 / state["weight"]) if state["weight"] else 0.0


@register("train/optim", "schedule_free")
@dataclass
class ScheduleFreeConfig(Adaptive):
    """AdamW without a schedule: ``train/schedule=constant`` with a warm-up is meant to go with it.

    Weight decay is decoupled, at y. A schedule that falls is followed, its late steps then count less in the average.
    Defaults: the authors'.
    """

    needs_method = "schedule_free"
    shards = True

    kind: str = "schedule_free"
    lr: float = 2.5e-3
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.betas[0] == 0.0:
            raise UserError(
                f"train.optim.betas={list(self.betas)}: with 0 first no average can be told from z; use 0.9"
            )

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        options = {"lr": self.lr, "betas": (self.betas[0], self.betas[1]), "eps": self.eps}
        return ScheduleFree(groups, {**options, "weight_decay": self.weight_decay})
