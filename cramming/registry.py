"""Names a user can type -> the dataclass that describes them.

A registered dataclass is schema, defaults and (through its ``build`` method or by itself) the object. ``register`` also
hands it to Hydra's ConfigStore as ``<group>/schema_<kind>``, so that a YAML file of the group can name it in its
defaults list and every key of it is typed and known. Nothing here imports torch.
"""

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from cramming.errors import UserError
from cramming.suggest import nearest

T = TypeVar("T")

# Config groups whose options carry a ``kind`` that chooses the dataclass. A method's kind is its key under ``method``.
GROUPS = ("arch", "data", "train/optim", "train/schedule", "method", "rst")
PLUGIN_GROUP = "cramming.plugins"

_classes: dict[tuple[str, str], type] = {}


def register(group: str, kind: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: make a dataclass available as ``<group>=...`` under ``kind``."""
    assert group in GROUPS, group

    def decorate(cls: type[T]) -> type[T]:
        from hydra.core.config_store import ConfigStore

        known = _classes.setdefault((group, kind), cls)
        if known.__qualname__ != cls.__qualname__ or known.__module__ != cls.__module__:
            raise UserError(f"{group}={kind} is defined twice: by {known.__module__} and by {cls.__module__}")
        # No package but a method's: a schema lands where the file that names it does, so that options can be mounted.
        package = f"method.{kind}" if group == "method" else None
        ConfigStore.instance().store(group=group, name=f"schema_{kind}", node=cls, package=package)
        return cls

    return decorate


def lookup(group: str, kind: str) -> type:
    """The dataclass registered for ``kind``.

    Raises:
        UserError: nothing of that name; the nearest name is given.
    """
    if (group, kind) not in _classes:
        raise UserError(f"{group} has no {kind!r}{nearest(kind, kinds(group))}")
    return _classes[group, kind]


def kinds(group: str) -> list[str]:
    """Every kind registered in a group, sorted."""
    return sorted(k for g, k in _classes if g == group)


def load_plugins() -> None:
    """Import everything that registers: the core's families, ``efficient_training``, then third-party packages."""
    for module in ("cramming.architectures", "cramming.data", "cramming.optim", "cramming.schedule", "cramming.costs"):
        importlib.import_module(module)
    methods = importlib.import_module("efficient_training")
    for found in pkgutil.iter_modules(methods.__path__):
        importlib.import_module(f"efficient_training.{found.name}")
    for point in entry_points(group=PLUGIN_GROUP):
        point.load()
