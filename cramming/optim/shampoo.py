"""Shampoo: gradients times the inverse fourth roots of their own covariances, as long as Adam's steps.

Gupta, Koren, Singer, "Shampoo: Preconditioned Stochastic Tensor Optimization" (https://arxiv.org/abs/1802.09568,
algorithm 1), in the form of Shi et al. (https://arxiv.org/abs/2309.06497, sections 2 and 3), which the earlier study
ran: running means, corrected for their beginning; blocks of large matrices; the length of each block's step from Adam
(grafting). pytorch-optimizer's ``shampoo`` has none of the three, its ``scalableshampoo`` counts steps by group.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.optim.config import Adaptive
from cramming.optim.own import Own, State, adam_directions, decay, moments
from cramming.registry import register


class Shampoo(Own):
    """P = L^(-1/4) M R^(-1/4) with L, R the means of G G^T and G^T G;  W <- W - lr |A| / |P| P, A Adam's step.

    Roots are worked out at a parameter's first gradient and every ``update_every`` steps. Vectors are Adam's.
    """

    def begin(self, parameter: Tensor, group: State) -> State:
        state = moments(parameter)
        if parameter.ndim >= 2:
            blocks = _blocks(parameter, group["block_size"])
            state["left"] = [_square(block, -2) for block in blocks]
            state["right"] = [_square(block, -1) for block in blocks]
            state["left_root"] = [torch.zeros_like(factor) for factor in state["left"]]
            state["right_root"] = [torch.zeros_like(factor) for factor in state["right"]]
        return state

    def update(self, group: State, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        updates = adam_directions(states, gradients, group["betas"], group["grafting_eps"])
        for gradient, state, update in zip(gradients, states, updates, strict=True):
            if gradient.ndim >= 2:
                _precondition(gradient, state, update, group)
        decay(parameters, group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


def _precondition(gradient: Tensor, state: State, adam: Tensor, group: State) -> None:
    """Give Adam's step, block by block, Shampoo's direction; in place."""
    beta2, size = group["betas"][1], group["block_size"]
    known = 1.0 - beta2 ** state["step"]
    due = (state["step"] - 1) % group["update_every"] == 0
    parts = zip(_blocks(gradient, size), _blocks(state["exp_avg"], size), _blocks(adam, size), strict=True)
    for index, (g, mean, step) in enumerate(parts):
        left, right = state["left"][index], state["right"][index]
        left.lerp_(g @ g.mT, 1.0 - beta2)
        right.lerp_(g.mT @ g, 1.0 - beta2)
        if due:
            state["left_root"][index] = inverse_root(left / known, group["eps"])
            state["right_root"][index] = inverse_root(right / known, group["eps"])
        direction = state["left_root"][index] @ mean @ state["right_root"][index]
        length = torch.linalg.matrix_norm(step, keepdim=True)
        norm = torch.linalg.matrix_norm(direction, keepdim=True)
        step.copy_(torch.where(norm > 0, direction * (length / norm), direction))


def inverse_root(factor: Tensor, eps: float) -> Tensor:
    """(A + eps)^(-1/4) of symmetric A, (..., n, n), whose negative eigenvalues are rounding and count as 0."""
    values, vectors = torch.linalg.eigh(factor)
    found: Tensor = (vectors * (values.clamp(min=0.0) + eps).pow(-0.25).unsqueeze(-2)) @ vectors.mT
    return found


def _blocks(matrix: Tensor, size: int) -> list[Tensor]:
    """(..., m, n) -> views of at most ``size`` rows and columns each, of nearly equal sizes."""
    rows = matrix.tensor_split(-(-matrix.shape[-2] // size), dim=-2)
    columns = -(-matrix.shape[-1] // size)
    return [block for row in rows for block in row.tensor_split(columns, dim=-1)]


def _square(block: Tensor, axis: int) -> Tensor:
    """Zeros, (..., n, n), for the side ``axis`` of a block."""
    return block.new_zeros((*block.shape[:-2], block.shape[axis], block.shape[axis]))


@register("train/optim", "shampoo")
@dataclass
class ShampooConfig(Adaptive):
    """Full-matrix preconditioning by side; weight decay is decoupled, p <- p (1 - lr wd).

    Defaults: the earlier study's. Its vectors had full matrices too; here they are Adam's. How often it worked out
    roots it does not say: every 10 steps here.

    Attributes:
        eps: added to eigenvalues before the root.
        grafting_eps: Adam's, for the length of steps.
        block_size: the largest side of a block.
        update_every: steps between inverse roots.
    """

    kind: str = "shampoo"
    lr: float = 5e-4
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6
    grafting_eps: float = 1e-12
    block_size: int = 1024
    update_every: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("grafting_eps", 0.0, float("inf"), "a finite number from 0")
        for name in ("block_size", "update_every"):
            if getattr(self, name) < 1:
                raise UserError(f"train.optim.{name}={getattr(self, name)} must be 1 or more")
        if self.eps == 0.0:
            raise UserError("train.optim.eps=0: not every covariance has an inverse root; give a number above 0")

    @property
    def priced_as(self) -> str:
        return f"{self.kind}-{self.update_every}-{self.block_size}"

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        options = {"lr": self.lr, "betas": (self.betas[0], self.betas[1]), "eps": self.eps}
        options |= {"weight_decay": self.weight_decay, "grafting_eps": self.grafting_eps}
        return Shampoo(groups, {**options, "block_size": self.block_size, "update_every": self.update_every})
