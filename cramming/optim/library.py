"""``train/optim=library train.optim.name=...``: the hundred and more of pytorch-optimizer, as they are.

https://github.com/kozistr/pytorch_optimizer. No formula of theirs is tested here, only that a run can have them: that
it can be killed and resumed to the same bits, that a parameter without a gradient stays as it is, that nothing moves
where the schedule is at 0. Most count steps by group, so that layers which begin later are treated as old ones. What
cannot be had is in ``REFUSED``, with the reason; a test works both lists out anew.
"""

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from cramming.errors import UserError
from cramming.optim.config import OptimConfig
from cramming.optim.groups import HIDDEN
from cramming.registry import register
from cramming.suggest import nearest

_PERIOD = 10  # steps that are measured together for a price: some do a part of their work every so many
_OURS = ("params", "lr", "weight_decay")
WANTS_MORE = "it wants the model, or arguments that no option gives"
WANTS_GRAPH = "it differentiates gradients once more; train/optim=adahessian and sophiag have that done by the engine"
WANTS_MATRICES = "it takes matrices only"
UNSAVED = "a checkpoint cannot hold its state"
UNEQUAL = "a run that is resumed with it does not continue to the last bit"
UNSCHEDULED = "it moves, or fails, where the schedule is at 0"
ELSEWHERE = "what it trains is not what is to be validated; train/optim=schedule_free has that done"
_REASONS = {
    WANTS_MORE: "a2grad adalomo adammini alig bsam demo distributedmuon lbfgs lomo ranger21",
    WANTS_GRAPH: "adahessian sophiah",
    WANTS_MATRICES: "spectralsphere",
    UNSAVED: "adashift conda kron rose scalableshampoo",
    UNEQUAL: "lorarite",
    UNSCHEDULED: "adafactor adago apollodqn asgd ftrl gravity nero srmm",
    ELSEWHERE: "schedulefreeadamw schedulefreeradam schedulefreesgd splus",
}
REFUSED = {name: reason for reason, those in _REASONS.items() for name in those.split()}


def names() -> list[str]:
    """Every name the library knows, sorted."""
    from pytorch_optimizer import get_supported_optimizers

    return sorted(get_supported_optimizers())


@register("train/optim", "library")
@dataclass
class Library(OptimConfig):
    """One of pytorch-optimizer's; weight decay as that one has it.

    Attributes:
        name: which.
        options: its other options, such as {betas: [0.9, 0.98], weight_decouple: true}.
    """

    by_role: ClassVar[bool] = True

    kind: str = "library"
    lr: float = 1e-3
    weight_decay: float = 0.0
    name: str = ""
    options: Any = None  # a dictionary; one that is typed as such takes no new keys from a command line

    def __post_init__(self) -> None:
        super().__post_init__()
        self.options = dict(self.options or {})
        if not self.name:
            raise UserError("train/optim=library needs the name of one, such as train.optim.name=adabelief")
        if self.name not in (known := names()):
            raise UserError(f"train.optim.name={self.name}: the library has no such{nearest(self.name, known)}")
        if self.name in REFUSED:
            raise UserError(f"train.optim.name={self.name} cannot be used: {REFUSED[self.name]}")
        signature = inspect.signature(self._class().__init__).parameters
        taken = {key for key, p in signature.items() if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self", *_OURS}
        for key in self.options:
            if key not in taken:
                raise UserError(f"train.optim.options: {self.name} has no {key!r}{nearest(key, taken)}")
        if self.weight_decay and "weight_decay" not in signature:
            raise UserError(f"train.optim.weight_decay={self.weight_decay}: {self.name} has none; leave it out")

    @property
    def priced_as(self) -> str:
        return f"{self.kind}-{self.name}"

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from pytorch_optimizer.optimizer.muon.base import MuonBase

        cls = self._class()
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in self.options.items()}
        if self.weight_decay:
            options["weight_decay"] = self.weight_decay
        if issubclass(cls, MuonBase):  # these want to be told which matrices are hidden
            groups = [{**group, "use_muon": group["role"] == HIDDEN} for group in groups]
        try:
            optimizer: torch.optim.Optimizer = cls(groups, lr=self.lr, **options)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"train.optim.name={self.name}: {error}") from error
        optimizer.period = _PERIOD  # type: ignore[attr-defined]
        return optimizer

    def _class(self) -> Any:
        from pytorch_optimizer import load_optimizer

        return load_optimizer(self.name)
