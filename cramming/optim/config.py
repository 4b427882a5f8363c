"""The optimizers that torch and lion-pytorch ship, as options: ``train/optim=<kind>``.

Each class is schema, defaults and, through ``build``, the optimizer.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from cramming.errors import UserError
from cramming.optim.groups import of_one_role, without_roles
from cramming.registry import register

if TYPE_CHECKING:
    import torch


@dataclass
class OptimConfig:
    """What every optimizer has.

    Attributes:
        kind: name of the optimizer.
        lr: learning rate where the schedule's factor is 1.
        weight_decay: strength of the decay; see each optimizer for what it multiplies.
        decay_norms: decay the weights of normalization layers too, as the earlier study did by accident.
        decay_biases: decay biases too, as systems do that give every parameter to one optimizer group.
        shards: whether it works on parameters whose rows ranks share (``impl.parallel=fsdp``).
        needs_method: a method this optimizer cannot do without (a curvature estimate, say), appended to the run's
            with ``method_options()`` unless the run has it with options of its own.

    Raises:
        UserError: a value outside its range, named.
    """

    kind: str
    lr: float
    weight_decay: float
    decay_norms: bool = False
    decay_biases: bool = False

    needs_method: ClassVar[str | None] = None
    shards: ClassVar[bool] = False
    by_role: ClassVar[bool] = False  # wants groups of one role each, see ``groups``

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay"):
            self._require(name, 0.0, math.inf, "a finite number from 0")

    @property
    def priced_as(self) -> str:
        """By what name the measured price of an update is kept: another where an option changes what an update is."""
        return self.kind

    def method_options(self) -> dict[str, Any]:
        """Options of the method the optimizer needs, as this optimizer's options say."""
        return {}

    def build(self, groups: "list[dict[str, Any]]") -> "torch.optim.Optimizer":
        """The optimizer over parameter groups in torch's form; ``cramming.optim.build`` adds ``base_lr``."""
        raise NotImplementedError

    def choose(self, groups: "list[dict[str, Any]]") -> "list[dict[str, Any]]":
        """The groups as this optimizer wants them: of one role each, or without roles."""
        return of_one_role(groups) if self.by_role else without_roles(groups)

    def _require(self, name: str, low: float, below: float, wanted: str) -> None:
        """Every value of the option ``name`` must lie in [low, below)."""
        value = getattr(self, name)
        for number in value if isinstance(value, list | tuple) else [value]:
            if not low <= number < below:  # also refuses NaN
                raise UserError(f"train.optim.{name}={value} must be {wanted}")


@dataclass
class Moments(OptimConfig):
    """Two decay rates of running means."""

    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2:
            raise UserError(f"train.optim.betas={list(self.betas)} must be two numbers, such as [0.9,0.98]")
        self._require("betas", 0.0, 1.0, "numbers from 0 to below 1")


@dataclass
class Adaptive(Moments):
    """Adam's family: a term that keeps denominators from zero."""

    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("eps", 0.0, math.inf, "a finite number from 0")

    def arguments(self, groups: "list[dict[str, Any]]") -> dict[str, Any]:
        return {
            "params": groups,
            "lr": self.lr,
            "betas": (self.betas[0], self.betas[1]),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "fused": can_fuse(groups),
        }


@register("train/optim", "adamw")
@dataclass
class AdamW(Adaptive):
    """Adam with decoupled weight decay, p <- p (1 - lr wd) (https://arxiv.org/abs/1711.05101, algorithm 2).

    Defaults: the earlier study's (https://arxiv.org/abs/2307.06440, after https://arxiv.org/abs/2212.14034).
    """

    shards = True

    kind: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-12

    def build(self, groups: "list[dict[str, Any]]") -> "torch.optim.Optimizer":
        import torch

        return torch.optim.AdamW(**self.arguments(groups))


@register("train/optim", "adam")
@dataclass
class Adam(Adaptive):
    """Adam with weight decay as an L2 penalty, g <- g + wd p (https://arxiv.org/abs/1412.6980, algorithm 1).

    Defaults: the earlier study's ``adam_classic``.
    """

    shards = True

    kind: str = "adam"
    lr: float = 5e-4
    weight_decay: float = 0.01

    def build(self, groups: "list[dict[str, Any]]") -> "torch.optim.Optimizer":
        import torch

        return torch.optim.Adam(**self.arguments(groups))


@register("train/optim", "radam")
@dataclass
class RAdam(Adaptive):
    """Adam that waits for its second moment to be known (https://arxiv.org/abs/1908.03265, algorithm 2), from torch.

    Weight decay is an L2 penalty, g <- g + wd p, unless ``decoupled``. Defaults: the earlier study's ``radam``.
    """

    shards = True

    kind: str = "radam"
    lr: float = 5e-4
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6
    decoupled: bool = False

    def build(self, groups: "list[dict[str, Any]]") -> "torch.optim.Optimizer":
        import torch

        arguments = {key: value for key, value in self.arguments(groups).items() if key != "fused"}  # it has no such
        return torch.optim.RAdam(**arguments, decoupled_weight_decay=self.decoupled)


@register("train/optim", "sgd")
@dataclass
class Sgd(OptimConfig):
    """Gradient descent with (Nesterov's) momentum and weight decay as an L2 penalty, g <- g + wd p.

    Torch's form: v <- m v + g, p <- p - lr (g + m v) with Nesterov's momentum, p - lr v without.
    """

    shards = True

    kind: str = "sgd"
    lr: float = 5e-4
    weight_decay: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("momentum", 0.0, 1.0, "a number from 0 to below 1")
        if self.nesterov and self.momentum == 0.0:
            raise UserError("train.optim.nesterov=true needs train.optim.momentum above 0; set nesterov=false")

    def build(self, groups: "list[dict[str, Any]]") -> "torch.optim.Optimizer":
        import torch

        # Not fused: that kernel refuses a parameter whose first gradient comes later than the others', as that of a
        # layer that was not active before does (torch 2.13: "expected Tensor ... but got NoneType").
        return torch.optim.SGD(
            groups,
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )


@register("train/optim", "lion")
@dataclass
class Lion(Moments):
    """Sign of an interpolated momentum (https://arxiv.org/abs/2302.06675, program 1), from lion-pytorch.

    Weight decay is decoupled and follows the schedule, p <- p (1 - lr wd): every coordinate moves by exactly lr, so
    the rate is smaller and the decay larger than AdamW's. Defaults: what the earlier study tuned to
    (https://arxiv.org/abs/2307.06440, appendix).
    """

    shards = True

    kind: str = "lion"
    lr: float = 7e-4
    weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr == 0.0:  # lion-pytorch asserts it
            raise UserError("train.optim.lr=0 is refused by lion; give a rate above 0")

    def build(self, groups: "list[dict[str, Any]]") -> "torch.optim.Optimizer":
        import lion_pytorch

        optimizer: torch.optim.Optimizer = lion_pytorch.Lion(
            groups, lr=self.lr, betas=(self.betas[0], self.betas[1]), weight_decay=self.weight_decay
        )
        return optimizer


def can_fuse(groups: "Iterable[dict[str, Any]]") -> bool:
    """Whether torch's one-kernel step applies: floating-point parameters on devices that have it."""
    parameters = [p for group in groups for p in group["params"]]
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
