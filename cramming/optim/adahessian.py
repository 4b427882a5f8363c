"""AdaHessian: Adam with the Hessian's diagonal in the place of the gradient (https://arxiv.org/abs/2006.00719).

Algorithm 1: with z of +1 and -1 and the diagonal's estimate D = z H z (a method makes it, see ``update_diagonal``),

    D' = |D| averaged over blocks of b neighbours;  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) D' D'
    p <- p - lr ((m / (1 - b1^t)) / ((v / (1 - b2^e))^(power / 2) + eps) + wd p)

after t steps and e estimates of a parameter. The absolute value comes before the average, as in the authors' code.
pytorch-optimizer's counts steps by group, averages only convolutions' kernels, and cannot take D from elsewhere when
its step is called as any other's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cramming.errors import UserError
from cramming.optim.config import Adaptive
from cramming.optim.own import Own, State
from cramming.registry import register


class AdaHessian(Own):
    """A parameter of which there is no estimate yet gathers its mean and stays where it is.

    State by parameter: ``exp_avg`` (m), ``exp_hessian_diag_sq`` (v), ``step`` (t), ``estimates`` (e).
    """

    def begin(self, parameter: Tensor, group: State) -> State:
        return {
            "estimates": 0,
            "exp_avg": torch.zeros_like(parameter),
            "exp_hessian_diag_sq": torch.zeros_like(parameter),
        }

    def update(self, group: State, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        first, second = group["betas"]
        torch._foreach_lerp_([state["exp_avg"] for state in states], gradients, 1 - first)
        known = [(p, state) for p, state in zip(parameters, states, strict=True) if state["estimates"]]
        if not known:
            return
        moved, states = [p for p, _ in known], [state for _, state in known]
        bounds = torch._foreach_div(
            [s["exp_hessian_diag_sq"] for s in states], [1 - second ** s["estimates"] for s in states]
        )
        torch._foreach_pow_(bounds, group["hessian_power"] / 2)
        torch._foreach_add_(bounds, group["eps"])
        lengths = [-group["lr"] / (1 - first ** s["step"]) for s in states]
        torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(moved, [s["exp_avg"] for s in states], bounds, lengths)

    @torch.no_grad()
    def update_diagonal(self, estimates: Mapping[Tensor, Tensor]) -> None:
        """Take up an estimate of the diagonal, by parameter; of others v stays as it is."""
        for group in self.param_groups:
            beta = group["betas"][1]
            for parameter in group["params"]:
                if parameter in estimates:
                    state = self.state[parameter]
                    if not state:
                        state.update(step=0, **self.begin(parameter, group))
                    state["estimates"] += 1
                    averaged = spatial_average(estimates[parameter].abs(), group["block"])
                    state["exp_hessian_diag_sq"].mul_(beta).addcmul_(averaged, averaged, value=1 - beta)


def spatial_average(values: Tensor, block: int) -> Tensor:
    """Each value replaced by the mean of its block of neighbours in a row, of the same shape.

    Vectors stay as they are; the last block of a row is shorter where ``block`` does not divide it.
    """
    width = values.shape[-1] if values.ndim > 1 else 1
    if width == 1 or block == 1:
        return values
    missing = -width % block
    padded = F.pad(values.reshape(-1, width), (0, missing))
    rows = padded.view(padded.shape[0], -1, block)
    sizes = values.new_full((rows.shape[1],), float(block))
    sizes[-1] = block - missing
    means: Tensor = rows.sum(-1) / sizes
    return means.repeat_interleave(block, 1)[:, :width].reshape(values.shape)


@register("train/optim", "adahessian")
@dataclass
class AdaHessianConfig(Adaptive):
    """AdaHessian; it brings the method ``hutchinson``, which makes the estimates.

    Defaults: the earlier systems' ``adahessian``; the block is that of the authors' translation models.

    Attributes:
        hessian_power: of the diagonal in the denominator, above 0 to 1.
        block: b, neighbours in a row of a matrix that are averaged.
        hessian_every_steps: optimizer steps from one estimate to the next.
    """

    kind: str = "adahessian"
    lr: float = 0.15
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6
    hessian_power: float = 1.0
    block: int = 32
    hessian_every_steps: int = 1

    needs_method: ClassVar[str | None] = "hutchinson"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.hessian_power <= 1:
            raise UserError(f"train.optim.hessian_power={self.hessian_power} must be above 0 and at most 1")
        for name in ("block", "hessian_every_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"train.optim.{name}={getattr(self, name)} must be a whole number from 1")

    def method_options(self) -> dict[str, Any]:
        return {"hessian_every_steps": self.hessian_every_steps}

    def build(self, groups: "list[dict[str, Any]]") -> "torch.optim.Optimizer":
        given = {"lr": self.lr, "weight_decay": self.weight_decay, "betas": tuple(self.betas), "eps": self.eps}
        return AdaHessian(groups, {**given, "hessian_power": self.hessian_power, "block": self.block})
