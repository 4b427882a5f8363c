"""What the reference systems computed, as stored beside this repository."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

Groups = dict[str, dict[str, Tensor]]


def load(shared: Path, case: str) -> tuple[dict[str, Any], Groups]:
    """A stored case's description, and its tensors by group (the part of the key before the first dot)."""
    description = json.loads((shared / "golden" / f"{case}.json").read_text())
    groups: Groups = {}
    for key, tensor in load_file(shared / "golden" / f"{case}.safetensors").items():
        group, _, name = key.partition(".")
        groups.setdefault(group, {})[name] = tensor
    return description, groups
