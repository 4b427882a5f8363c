"""What a user may say about an architecture: one file for each family, without torch.

Adding a family is adding a file here (a dataclass registered under ``arch`` whose ``build`` imports its model), the
model beside the others in ``cramming/architectures``, and a YAML file for each of its sizes in ``config/arch``.
"""

import importlib
import pkgutil

from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.bert import BertConfig
from cramming.architectures.configs.crammed import ClassificationHeadConfig, CrammedConfig

__all__ = ["ArchConfig", "BertConfig", "ClassificationHeadConfig", "CrammedConfig"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
