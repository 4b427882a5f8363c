"""Every family's options and small models, for tests of what all of them owe."""

from typing import Any

import torch
from omegaconf import OmegaConf

from cramming.architectures import ArchConfig
from cramming.model import Model
from cramming.registry import lookup
from tests.conftest import REPOSITORY

VOCABULARY = 97
FILES = sorted((REPOSITORY / "config" / "arch").glob("*.yaml"))
TINY = tuple(file.stem for file in FILES if file.stem.endswith("_tiny"))  # one for each family


def arch(name: str, **options: Any) -> ArchConfig:
    """What ``arch=<name>`` chooses, with options changed."""
    content = OmegaConf.load(REPOSITORY / "config" / "arch" / f"{name}.yaml")
    (schema,) = (entry for entry in content.pop("defaults") if entry != "_self_")
    typed = OmegaConf.structured(lookup("arch", schema.removeprefix("schema_")))
    found = OmegaConf.to_object(OmegaConf.merge(typed, content, options))
    assert isinstance(found, ArchConfig)
    return found


def built(options: ArchConfig, length: int = 20, seed: int = 0) -> Model:
    """A model whose weights are large enough that every part of it matters to the output."""
    torch.manual_seed(seed)
    model = options.build(VOCABULARY, length)
    assert isinstance(model, Model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "filters" not in name:  # generated from what is multiplied by ten inside a sine
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()
