"""Which tensors of a saved state belong to a parameter that ranks share, and so are shared the same way."""

import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cramming.saving.files import MODEL
from cramming.saving.sharded import Placing
from cramming.saving.snapshot import is_shared

_OF_OPTIMIZER = re.compile(r"engine\.optimizer\.state\.(\d+)\..+")
_GRADIENT = re.compile(r"engine\.gradients\.(\d+)")


def placing(model: nn.Module, optimizer: Optimizer) -> Placing:
    """The places of a run's state: a parameter's own, and those of what has its name or number, and its shape.

    Args:
        model: parameters that are spread over ranks are ``DTensor``.
        optimizer: over them; its state is numbered by parameter.
    """
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    in_order = list(model.parameters())

    def place(name: str, shape: tuple[int, ...]) -> DeviceMesh | None:
        if name.startswith(MODEL):
            owner = named.get(name.removeprefix(MODEL))
        elif match := _OF_OPTIMIZER.fullmatch(name):
            owner = stepped[int(match[1])] if int(match[1]) < len(stepped) else None
        elif match := _GRADIENT.fullmatch(name):
            owner = in_order[int(match[1])] if int(match[1]) < len(in_order) else None
        elif name.startswith("method."):
            owner = _ending(name, named)
        else:
            owner = None
        if isinstance(owner, DTensor) and is_shared(owner) and tuple(owner.shape) == shape:
            return owner.device_mesh
        return None

    return place


def _ending(name: str, named: Mapping[str, Tensor]) -> Tensor | None:
    """The parameter whose name a method keeps something under."""
    words = name.split(".")
    return next((named[end] for i in range(1, len(words)) if (end := ".".join(words[i:])) in named), None)
