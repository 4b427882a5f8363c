"""Released checkpoints of other systems, one file for each family: their names for what we name, and their mathematics.

A new family is one file here with functions registered by ``family``, ``detector`` and ``writer``.
"""

import importlib
import pkgutil

from cramming.architectures.references.plan import (
    CLASSIFICATION,
    DETECTORS,
    FAMILIES,
    HEADS,
    MLM,
    REGRESSION,
    WRITERS,
    Plan,
    Source,
    completed,
    completer,
    detector,
    family,
    with_padding,
    writer,
)

__all__ = [
    "CLASSIFICATION",
    "DETECTORS",
    "FAMILIES",
    "HEADS",
    "MLM",
    "REGRESSION",
    "WRITERS",
    "Plan",
    "Source",
    "completed",
    "completer",
    "detector",
    "family",
    "with_padding",
    "writer",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
