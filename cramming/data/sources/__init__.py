"""Sources of text: one file each. Adding one is adding a file here and a YAML file under ``config/data``."""

import importlib
import pkgutil


def load() -> None:
    """Import every source, so that it registers."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
