"""Sharpness-aware minimization around any optimizer (https://arxiv.org/abs/2010.01412, algorithm 1).

The step is the inner optimizer's, with the gradient of a point a little up the slope: p + e, with e of length rho along
the gradient of all parameters together (equation 2). In a run the method ``sharpness`` makes that second gradient.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.optim.config import OptimConfig
from cramming.parallel.tensors import own_rows, whole
from cramming.registry import lookup, register
from cramming.suggest import nearest

_EPS = 1e-12  # keeps a gradient of zero from being divided by


@contextmanager
def ascended(parameters: Iterable[Tensor], rho: float) -> Iterator[None]:
    """Inside, parameters that have a gradient are e = rho g / |g| further; then what they were, to the last bit.

    A common factor of all gradients, such as a loss scale, does not matter. Gradients may be dropped inside.
    """
    moved = [p for p in parameters if p.grad is not None]
    slopes = [p.grad for p in moved if p.grad is not None]
    kept = [p.detach().clone() for p in moved]
    with torch.no_grad():
        norm = float(whole(torch.nn.utils.get_total_norm(slopes)))
        torch._foreach_add_(moved, slopes, alpha=rho / (norm + _EPS))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(own_rows(moved), own_rows(kept))


class Sam(torch.optim.Optimizer):
    """An optimizer whose ``step`` makes the second gradient itself if it is told how; groups and state are its own.

    Args:
        inner: makes the steps.
        rho: length of e.
    """

    def __init__(self, inner: torch.optim.Optimizer, rho: float) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.rho = inner, rho
        self.period: int = getattr(inner, "period", 1)
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """The inner optimizer's step.

        Args:
            closure: drops the gradients, works out the loss and its gradients, and returns it; called here and at
                p + e. None: the gradients there are those of p + e already, as the engine calls it.
        """
        if closure is None:
            self.inner.step()
            return None
        with torch.enable_grad():
            loss = closure()
            with ascended((p for group in self.param_groups for p in group["params"]), self.rho):
                closure()
        self.inner.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state


@register("train/optim", "sam")
@dataclass
class SamConfig(OptimConfig):
    """Sharpness-aware minimization around AdamW or any other, such as ``train.optim.inner=lion``.

    It brings the method ``sharpness``, whose second pass is paid for. Defaults: AdamW as by itself; rho is the paper's.

    Attributes:
        lr: of the inner optimizer.
        weight_decay: of the inner optimizer.
        inner: an optimizer that needs no method of its own.
        options: its other options, such as {betas: [0.9, 0.98]}.
        rho: length of the way up the slope; 0: none, and no second pass.
    """

    kind: str = "sam"
    lr: float = 1e-3
    weight_decay: float = 0.01
    inner: str = "adamw"
    options: Any = None  # a dictionary; one that is typed as such takes no new keys from a command line
    rho: float = 0.05

    needs_method: ClassVar[str | None] = "sharpness"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("rho", 0.0, math.inf, "a finite number from 0")
        self.options = dict(self.options or {})
        self._inner()

    @property
    def priced_as(self) -> str:
        return self._inner().priced_as

    @property
    def shards(self) -> bool:  # type: ignore[override]
        return self._inner().shards

    def method_options(self) -> dict[str, Any]:
        return {"rho": self.rho}

    def choose(self, groups: "list[dict[str, Any]]") -> "list[dict[str, Any]]":
        return self._inner().choose(groups)

    def build(self, groups: "list[dict[str, Any]]") -> "torch.optim.Optimizer":
        return Sam(self._inner().build(groups), self.rho)

    def _inner(self) -> OptimConfig:
        """The inner optimizer's configuration.

        Raises:
            UserError: there is none of that name, it has no such option, or it needs a method itself.
        """
        cls: type[OptimConfig] = lookup("train/optim", self.inner)
        if cls.needs_method is not None:
            raise UserError(
                f"train.optim.inner={self.inner} needs the method {cls.needs_method} itself; give another, or "
                f"train/optim={self.inner} method=sharpness"
            )
        known = {f.name for f in fields(cls)} - {f.name for f in fields(OptimConfig)}
        for name in self.options:
            if name not in known:
                raise UserError(f"train.optim.options: {self.inner} has no {name!r}{nearest(name, known)}")
        return cls(lr=self.lr, weight_decay=self.weight_decay, **self.options)
