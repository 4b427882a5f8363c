"""Optimizers: one dataclass each, found by name.

``config.py`` has those that torch (adamw, adam, sgd, radam) and lion-pytorch (lion) ship, ``library.py`` any of
pytorch-optimizer's by its own name. The others are written here, because what the libraries have breaks a law that
every optimizer here keeps: each file says which, and ``tests/optim/test_optim_origins.py`` shows it.

Every module of this package is imported, so a new optimizer is one file here (a dataclass registered under
``train/optim`` whose ``build`` returns a ``torch.optim.Optimizer``) and one file in ``config/train/optim``.
"""

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from cramming.errors import UserError
from cramming.optim.config import OptimConfig
from cramming.optim.fusing import is_fused, load, unfuse
from cramming.optim.groups import parameter_groups
from cramming.registry import lookup
from cramming.suggest import nearest

if TYPE_CHECKING:
    import torch

__all__ = ["OptimConfig", "build", "for_model", "is_fused", "load", "parameter_groups", "unfuse"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def build(
    name: str, groups: "Iterable[torch.nn.Parameter | dict[str, Any]]", /, *, lr: float, **hyperparameters: Any
) -> "torch.optim.Optimizer":
    """An optimizer by name.

    Args:
        name: ``adamw``, ``adam``, ``sgd``, ``lion`` or whatever is registered under ``train/optim``.
        groups: parameters, or parameter groups in torch's form, such as ``parameter_groups`` makes; a group's own
            ``lr`` or ``weight_decay`` wins over the one given here.
        lr: learning rate where the schedule's factor is 1.
        **hyperparameters: the optimizer's other options; its defaults are those of its config.

    Returns:
        The optimizer; every group carries ``base_lr``, which a schedule's factor multiplies.

    Raises:
        UserError: an unknown name or hyperparameter (the nearest is given), or a value outside its range.
    """
    cls = lookup("train/optim", name)
    known = {f.name for f in fields(cls)} - {"kind", "lr", "decay_norms", "decay_biases"}  # these are about the groups
    for key in hyperparameters:
        if key not in known:
            raise UserError(f"optimizer {name} has no {key!r}{nearest(key, known)}")
    return _with_base_lr(cls(lr=lr, **hyperparameters), groups)


def for_model(config: OptimConfig, model: "torch.nn.Module", fused: bool = True) -> "torch.optim.Optimizer":
    """The optimizer a config describes, over a model's parameters; in one kernel where torch has one, if ``fused``."""
    optimizer = _with_base_lr(config, parameter_groups(model, config.decay_norms, config.decay_biases))
    if not fused:
        unfuse(optimizer)
    return optimizer


def _with_base_lr(
    config: OptimConfig, groups: "Iterable[torch.nn.Parameter | dict[str, Any]]"
) -> "torch.optim.Optimizer":
    listed = list(groups)
    # Copies, because torch writes its defaults into the groups it is given.
    as_groups = [{**group, "params": list(group["params"])} for group in listed if isinstance(group, dict)]
    if len(as_groups) != len(listed):
        as_groups = [{"params": listed}]
    optimizer = config.build(config.choose(as_groups))
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer
