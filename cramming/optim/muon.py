"""Muon: momentum whose matrices are made orthogonal, for the hidden matrices; AdamW for all else.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (https://kellerjordan.github.io/posts/muon/),
with Liu et al., "Muon is Scalable for LLM Training" (https://arxiv.org/abs/2502.16982, equation 4): updates as long as
AdamW's, so that both parts share a rate and a decay. Torch's takes two-dimensional parameters only, and M2-BERT's are
block-diagonal, (blocks, out, in); pytorch-optimizer's flattens those to one matrix and counts AdamW's steps by group.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.optim.config import Adaptive, can_fuse
from cramming.optim.groups import HIDDEN
from cramming.optim.own import Own, State, decay
from cramming.parallel.tensors import spread_like, whole
from cramming.registry import register

_QUINTIC = (3.4445, -4.7750, 2.0315)  # of the authors' iteration
_SMALLEST_NORM = 1e-7
_LIKE_ADAMW = 0.2  # the RMS of an update of AdamW's, by Liu et al.


class Muon(Own):
    """m <- mu m + (1 - mu) g;  p <- p (1 - lr wd) - lr 0.2 sqrt(max(out, in)) orthogonal(g + mu (m - g))."""

    def begin(self, parameter: Tensor, group: State) -> State:
        return {"momentum_buffer": torch.zeros_like(parameter)}

    def update(self, group: State, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        buffers, momentum = [state["momentum_buffer"] for state in states], group["momentum"]
        torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
        decay(parameters, group["lr"] * group["weight_decay"])
        for parameter, direction in zip(parameters, ahead, strict=True):
            length = _LIKE_ADAMW * max(parameter.shape[-2:]) ** 0.5
            # A matrix whose rows are spread over ranks has to be whole: each rank works all of it out.
            update = orthogonal(whole(direction), group["iterations"]).to(parameter.dtype)
            parameter.add_(spread_like(update, parameter), alpha=-group["lr"] * length)


def orthogonal(matrix: Tensor, iterations: int) -> Tensor:
    """(..., out, in) -> the same: about U V^T of each matrix U S V^T, its singular values between 0.7 and 1.2.

    Newton's and Schulz's iteration in bfloat16, as published; in float64 for matrices that are.
    """
    x: Tensor = matrix if matrix.dtype == torch.float64 else matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_SMALLEST_NORM)
    a, b, c = _QUINTIC
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Joined(torch.optim.Optimizer):
    """Two optimizers as one, each for groups of its own: one state, one list of groups, one step.

    Args:
        parts: the optimizers, over different parameters.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts: tuple[torch.optim.Optimizer, ...] = ()
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self._share()

    def __setstate__(self, state: State) -> None:
        """What loading a state ends with: the parts then work on what was loaded."""
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """A step of each part."""
        assert closure is None, "the engine calls the model, an optimizer does not"
        for part in self.parts:
            part.step()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last


@register("train/optim", "muon")
@dataclass
class MuonConfig(Adaptive):
    """Muon for matrices inside the model's blocks, AdamW for embeddings, heads, biases and norms; see ``groups``.

    Weight decay is decoupled, p <- p (1 - lr wd), for both. A fused projection (queries, keys and values in one matrix)
    is one matrix. Defaults: rate and betas of ``adamw`` here, momentum and decay of Liu et al.

    Attributes:
        momentum: decay rate of Muon's running mean.
        nesterov: look one step ahead.
        iterations: of Newton's and Schulz's method.
        betas: AdamW's.
        eps: AdamW's.
    """

    by_role = True
    shards = True

    kind: str = "muon"
    lr: float = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("momentum", 0.0, 1.0, "a number from 0 to below 1")
        if self.iterations < 1:
            raise UserError(f"train.optim.iterations={self.iterations} orthogonalizes nothing; give 1 or more")

    @property
    def priced_as(self) -> str:
        return f"{self.kind}-{self.iterations}"

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        hidden = [group for group in groups if group["role"] == HIDDEN]
        rest = [group for group in groups if group["role"] != HIDDEN]
        options = {"momentum": self.momentum, "nesterov": self.nesterov, "iterations": self.iterations}
        parts: list[torch.optim.Optimizer] = []
        if hidden:
            parts.append(Muon(hidden, {**options, "lr": self.lr, "weight_decay": self.weight_decay}))
        if rest:
            parts.append(torch.optim.AdamW(**{**self.arguments(rest), "fused": can_fuse(rest)}))
        return Joined(*parts)
