"""Released checkpoints of other systems, one file for each family: their names for what we name, and their mathematics.

A new family is one file here with a function registered by ``family``; ``FAMILIES`` finds it.
"""

import importlib
import pkgutil

from cramming.architectures.references.plan import (
    CLASSIFICATION,
    FAMILIES,
    HEADS,
    MLM,
    REGRESSION,
    Plan,
    Source,
    family,
)

__all__ = ["CLASSIFICATION", "FAMILIES", "HEADS", "MLM", "REGRESSION", "Plan", "Source", "family"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
