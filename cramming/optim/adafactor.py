"""Adafactor: Adam's second moment from its sums by row and by column, so that a matrix needs hardly any state.

Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (https://arxiv.org/abs/1804.04235,
algorithms 4 and 5). Torch's always multiplies by the size of the weights and never exceeds 1 / sqrt(t), which the
earlier study switched off; pytorch-optimizer's counts steps by group.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.optim.config import OptimConfig
from cramming.optim.own import Own, State, decay
from cramming.registry import register


class Adafactor(Own):
    """u = g / sqrt(v), v of rank one for matrices;  p <- p (1 - lr wd) - rate u / max(1, RMS(u) / clip_threshold)."""

    def begin(self, parameter: Tensor, group: State) -> State:
        state: State = {} if group["beta1"] is None else {"exp_avg": torch.zeros_like(parameter)}
        if parameter.ndim < 2:
            return {**state, "exp_avg_sq": torch.zeros_like(parameter)}
        columns = parameter.new_zeros(parameter.shape[:-2] + parameter.shape[-1:])
        return {**state, "rows": parameter.new_zeros(parameter.shape[:-1]), "columns": columns}

    def update(self, group: State, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        updates = [_direction(g, s, group) for g, s in zip(gradients, states, strict=True)]
        if group["scale_parameter"]:
            floor = group["eps"][1]
            torch._foreach_mul_(updates, [p.square().mean().sqrt().clamp(min=floor) for p in parameters])
        if group["beta1"] is not None:
            means = [state["exp_avg"] for state in states]
            torch._foreach_lerp_(means, updates, 1.0 - group["beta1"])
            updates = means
        decay(parameters, group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


def _direction(gradient: Tensor, state: State, group: State) -> Tensor:
    """The gradient over the root of its second moment, clipped by its RMS; a new tensor."""
    square = gradient.square().add_(group["eps"][0])
    newest = state["step"] ** group["decay_rate"]  # 1 at first: no correction is needed
    if "rows" in state:
        rows, columns = state["rows"].lerp_(square.mean(-1), newest), state["columns"].lerp_(square.mean(-2), newest)
        by_row = (rows / rows.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1)
        found = columns.rsqrt().unsqueeze(-2) * by_row * gradient
    else:
        found = state["exp_avg_sq"].lerp_(square, newest).rsqrt() * gradient
    clipped: Tensor = found.div_((found.square().mean().sqrt() / group["clip_threshold"]).clamp(min=1.0))
    return clipped


@register("train/optim", "adafactor")
@dataclass
class AdafactorConfig(OptimConfig):
    """A factored second moment; weight decay is decoupled, p <- p (1 - lr wd).

    Defaults: the earlier study's. Its relative step is a schedule here: ``train/schedule=inverse_sqrt``.

    Attributes:
        eps: added to squared gradients; and the smallest size of weights that ``scale_parameter`` knows.
        clip_threshold: the largest RMS of an update.
        decay_rate: the second moment takes the t-th square with weight t^decay_rate.
        beta1: decay rate of a running mean of updates, or none.
        scale_parameter: multiply updates by the RMS of the weights.
    """

    kind: str = "adafactor"
    lr: float = 1e-3
    weight_decay: float = 0.0
    eps: list[float] = field(default_factory=lambda: [1e-30, 1e-3])
    clip_threshold: float = 1.0
    decay_rate: float = -0.8
    beta1: float | None = None
    scale_parameter: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("eps", 0.0, float("inf"), "two finite numbers from 0")
        if len(self.eps) != 2:
            raise UserError(f"train.optim.eps={list(self.eps)} must be two numbers, such as [1e-30,1e-3]")
        if not self.clip_threshold > 0:
            raise UserError(f"train.optim.clip_threshold={self.clip_threshold} must be above 0")
        self._require("decay_rate", -1.0, 0.0, "a number from -1 to below 0")
        if self.beta1 is not None:
            self._require("beta1", 0.0, 1.0, "a number from 0 to below 1")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        options = {"eps": (self.eps[0], self.eps[1]), "clip_threshold": self.clip_threshold, "beta1": self.beta1}
        options |= {"decay_rate": self.decay_rate, "scale_parameter": self.scale_parameter}
        return Adafactor(groups, {**options, "lr": self.lr, "weight_decay": self.weight_decay})
