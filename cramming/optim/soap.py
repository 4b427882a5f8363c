"""SOAP: Adam in the eigenbases of Shampoo's factors.

Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (https://arxiv.org/abs/2409.11321, algorithms 3, 4).
pytorch-optimizer's counts steps by group and begins bases in the first of them: a parameter that comes later has none
in its first step.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.optim.config import Adaptive
from cramming.optim.own import Own, State, adam_directions, decay, moments
from cramming.registry import register


class Soap(Own):
    """N = Q_L (M' / (sqrt(V) + eps)) Q_R^T with M' = Q_L^T M Q_R and V the mean of (Q_L^T G Q_R)^2;  W <- W - lr N.

    L and R are the means of G G^T and G^T G, Q_L and Q_R their eigenvectors: exact at a parameter's first gradient,
    which moves nothing, then a step of orthogonal iteration every ``update_every``. A side longer than ``max_dim`` has
    no basis of its own. Vectors are Adam's.
    """

    def begin(self, parameter: Tensor, group: State) -> State:
        state = moments(parameter)
        if parameter.ndim >= 2:
            gradient = parameter.grad
            assert gradient is not None
            for side, factor in _outer(gradient, group["max_dim"]).items():
                state[side] = factor.mul_(1.0 - group["shampoo_beta"])
                state[f"{side}_basis"] = torch.linalg.eigh(state[side]).eigenvectors.flip(-1).contiguous()
        return state

    def update(self, group: State, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        rate = group["lr"]
        vectors = [(p, g, s) for p, g, s in zip(parameters, gradients, states, strict=True) if p.ndim < 2]
        if vectors:
            plain, plain_gradients, plain_states = (list(part) for part in zip(*vectors, strict=True))
            directions = adam_directions(plain_states, plain_gradients, group["betas"], group["eps"])
            torch._foreach_add_(plain, directions, alpha=-rate)
            decay(plain, rate * group["weight_decay"])
        for parameter, gradient, state in zip(parameters, gradients, states, strict=True):
            if parameter.ndim >= 2:
                self._move(group, parameter, gradient, state)

    def _move(self, group: State, parameter: Tensor, gradient: Tensor, state: State) -> None:
        steps = state["step"] - 1  # the first gradient only begins the bases
        if not steps:
            return
        beta1, beta2 = group["betas"]
        first, second = state["exp_avg"].lerp_(gradient, 1.0 - beta1), state["exp_avg_sq"]
        second.lerp_(_into(gradient, state).square_(), 1.0 - beta2)
        direction = _into(first, state).div_(second.sqrt().add_(group["eps"]))
        corrected = (1.0 - beta2**steps) ** 0.5 / (1.0 - beta1**steps)
        parameter.add_(_out_of(direction, state), alpha=-group["lr"] * corrected)
        decay([parameter], group["lr"] * group["weight_decay"])
        for side, factor in _outer(gradient, group["max_dim"]).items():
            state[side].lerp_(factor, 1.0 - group["shampoo_beta"])
        if steps % group["update_every"] == 0:
            _turn(state)


def _outer(gradient: Tensor, max_dim: int) -> State:
    """G G^T and G^T G, (..., out, out) and (..., in, in), of the sides that have a basis."""
    found: State = {}
    if gradient.shape[-2] <= max_dim:
        found["left"] = gradient @ gradient.mT
    if gradient.shape[-1] <= max_dim:
        found["right"] = gradient.mT @ gradient
    return found


def _into(matrix: Tensor, state: State) -> Tensor:
    """Q_L^T X Q_R; a new tensor."""
    found = state["left_basis"].mT @ matrix if "left" in state else matrix.clone()
    return found @ state["right_basis"] if "right" in state else found


def _out_of(matrix: Tensor, state: State) -> Tensor:
    """Q_L X Q_R^T."""
    found = state["left_basis"] @ matrix if "left" in state else matrix
    return found @ state["right_basis"].mT if "right" in state else found


def _turn(state: State) -> None:
    """Algorithm 4: Q <- QR(P Q), the basis first sorted by what it makes of P, and the second moment with it."""
    for side, axis in (("left", -2), ("right", -1)):
        if side in state:
            factor, basis = state[side], state[f"{side}_basis"]
            image = factor @ basis
            order = torch.sort((basis * image).sum(-2), descending=True, stable=True).indices  # (..., n)
            along = order.unsqueeze(-1) if axis == -2 else order.unsqueeze(-2)
            state["exp_avg_sq"] = state["exp_avg_sq"].take_along_dim(along, axis)
            basis = torch.linalg.qr(image.take_along_dim(order.unsqueeze(-2), -1)).Q
            state[f"{side}_basis"] = basis.contiguous()  # by rows, as a checkpoint returns it: products depend on it


@register("train/optim", "soap")
@dataclass
class SoapConfig(Adaptive):
    """Adam where Shampoo would turn the gradient to; weight decay is decoupled, after the step.

    Defaults: the authors', but for ``max_dim``, 10,000 there: a side of 8,192 words would take minutes on a processor.

    Attributes:
        shampoo_beta: decay rate of L and R; the second of ``betas`` where it is null.
        update_every: steps between turns of the bases.
        max_dim: the longest side of a matrix that has a basis.
    """

    kind: str = "soap"
    lr: float = 3e-3
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.95, 0.95])
    shampoo_beta: float | None = None
    update_every: int = 10
    max_dim: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shampoo_beta is not None:
            self._require("shampoo_beta", 0.0, 1.0, "a number from 0 to below 1")
        for name in ("update_every", "max_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"train.optim.{name}={getattr(self, name)} must be 1 or more")

    @property
    def priced_as(self) -> str:
        return f"{self.kind}-{self.update_every}-{self.max_dim}"

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        options = {"lr": self.lr, "betas": (self.betas[0], self.betas[1]), "eps": self.eps, "max_dim": self.max_dim}
        options |= {"weight_decay": self.weight_decay, "update_every": self.update_every}
        beta = self.betas[1] if self.shampoo_beta is None else self.shampoo_beta
        return Soap(groups, {**options, "shampoo_beta": beta})
