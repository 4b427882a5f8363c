"""Whether an optimizer of torch's takes its step in one kernel: how it was built says so, and no saved state."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_HOW = ("fused", "foreach")  # what torch keeps among the options of a group


def is_fused(optimizer: "torch.optim.Optimizer") -> bool | None:
    """Whether steps are taken in one kernel; None: this optimizer was not built to."""
    said = [group["fused"] for group in optimizer.param_groups if group.get("fused") is not None]
    return any(said) if said else None


def unfuse(optimizer: "torch.optim.Optimizer") -> None:
    """Have steps taken parameter by parameter, where they would be in one kernel."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            group["fused"] = group["foreach"] = False


def load(optimizer: "torch.optim.Optimizer", state: Mapping[str, Any]) -> None:
    """Take up a saved state, with steps taken as this optimizer was built to, whatever it is that was saved."""
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    how = [{**saved, **{key: own[key] for key in _HOW if key in own}} for saved, own in groups]
    optimizer.load_state_dict({**state, "param_groups": how})
