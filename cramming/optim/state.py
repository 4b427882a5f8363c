"""An optimizer's state, moved between parameters: what a layer that is copied takes along."""

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def copy_state(optimizer: torch.optim.Optimizer, sources: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Give parameters the state of others: means, step counts, factors, whatever the optimizer keeps for each.

    Args:
        optimizer: keeps its state by parameter, as torch's contract says.
        sources: parameter -> the one of the same shape whose state it takes; a source without state leaves none.
    """
    taken = {target: copy.deepcopy(optimizer.state.get(source)) for target, source in sources.items()}
    for target, state in taken.items():
        optimizer.state.pop(target, None)
        if state:
            optimizer.state[target] = state


def drop_state(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Forget the state of parameters: the optimizer begins with them anew."""
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
