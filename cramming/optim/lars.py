"""LARS and LARC: gradients as long as a share of the weights they belong to, before any optimizer sees them.

You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks" (https://arxiv.org/abs/1708.03888, equation 6);
LARC caps the rate of each tensor at the learning rate (https://github.com/NVIDIA/apex, ``apex.parallel.LARC``). As in
the earlier systems they go before another optimizer, whose step is its own; pytorch-optimizer's know gradient descent
only, and no LARC.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from cramming.errors import UserError
from cramming.optim.config import OptimConfig
from cramming.optim.groups import VECTOR, of_one_role
from cramming.optim.own import norms
from cramming.registry import lookup, register
from cramming.suggest import nearest

_SMALLEST_RATE = 1e-30  # where a schedule is at 0 nothing moves; but nothing is divided by it
_OF_THE_WRAPPER = ("kind", "lr", "weight_decay", "decay_norms", "decay_biases")


@register("train/optim", "lars")
@dataclass
class Lars(OptimConfig):
    """g <- (g + wd p) tau, tau = trust |p| / (|g| + wd |p| + eps), where neither norm is 0; then the inner optimizer.

    Weight decay is in the gradient, and the inner optimizer decays nothing. Defaults: the earlier study's, around
    ``sgd`` with its options; the rate is ours, there was none.

    Attributes:
        trust_coefficient: length of a gradient as a share of its weights.
        eps: added to the denominator.
        adapt_vectors: biases and weights of norms too, as there.
        inner: the optimizer that takes the step; ``lars`` itself and those that need a method cannot.
        options: the inner optimizer's, such as {momentum: 0.9, nesterov: false}.
    """

    clips: ClassVar[bool] = False

    kind: str = "lars"
    lr: float = 0.5
    weight_decay: float = 0.01
    trust_coefficient: float = 0.02
    eps: float = 1e-8
    adapt_vectors: bool = True
    inner: str = "sgd"
    options: Any = None  # a dictionary; one that is typed as such takes no new keys from a command line

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("trust_coefficient", "eps"):
            self._require(name, 0.0, float("inf"), "a finite number from 0")
        self.options = dict(self.options or {})
        self._inner()

    @property
    def priced_as(self) -> str:
        return f"{self.kind}-{self._inner().priced_as}"

    @property
    def shards(self) -> bool:  # type: ignore[override]
        return self._inner().shards

    def choose(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self._inner().choose(of_one_role(groups))

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        optimizer = self._inner().build(groups)
        decays: list[float] = []

        def before(inner: torch.optim.Optimizer, *_: Any) -> None:
            decays.extend(group["weight_decay"] for group in inner.param_groups)
            for group in inner.param_groups:
                if group["role"] != VECTOR or self.adapt_vectors:
                    self._rescale(group)
                    group["weight_decay"] = 0.0

        def after(inner: torch.optim.Optimizer, *_: Any) -> None:
            for group, value in zip(inner.param_groups, decays, strict=True):
                group["weight_decay"] = value
            decays.clear()

        # Hooks, so that state and groups stay the inner optimizer's own: they are saved, resumed and copied as ever.
        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer

    @torch.no_grad()
    def _rescale(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        if not parameters:
            return
        wd, lr = group["weight_decay"], group["lr"]
        decays, factors = [], []
        for weight, gradient in zip(norms(parameters), norms(gradients), strict=True):
            factor = self.trust_coefficient * weight / (gradient + wd * weight + self.eps)
            if self.clips:
                factor = (factor / max(lr, _SMALLEST_RATE)).clamp(max=1.0)
            known = (weight > 0) & (gradient > 0)  # where a norm is 0 there is no rate to work out, and no decay either
            decays.append(wd * known.to(factor.dtype))
            factors.append(torch.where(known, factor, torch.ones_like(factor)))
        torch._foreach_add_(gradients, torch._foreach_mul(parameters, decays))
        torch._foreach_mul_(gradients, factors)

    def _inner(self) -> OptimConfig:
        cls: Any = lookup("train/optim", self.inner)
        if issubclass(cls, Lars) or cls.needs_method:
            raise UserError(
                f"train.optim.inner={self.inner} cannot stand inside {self.kind}; use one such as sgd or adamw"
            )
        known = {option.name for option in fields(cls)} - {*_OF_THE_WRAPPER}
        for key in self.options:
            if key not in known:
                raise UserError(f"train.optim.options: {self.inner} has no {key!r}{nearest(key, known)}")
        found: OptimConfig = cls(lr=self.lr, weight_decay=self.weight_decay, **self.options)
        return found


@register("train/optim", "larc")
@dataclass
class Larc(Lars):
    """LARS with tau at most 1 after division by the learning rate: no tensor moves faster than it would without."""

    clips: ClassVar[bool] = True

    kind: str = "larc"
