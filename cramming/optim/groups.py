"""Which parameters are decayed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def parameter_groups(model: "torch.nn.Module", decay_norms: bool = False) -> "list[dict[str, Any]]":
    """A model's trainable parameters as (at most) two groups in torch's form: decayed and not.

    Biases and the weights of normalization layers, which are the one-dimensional parameters, are not decayed: the group
    carries ``weight_decay=0``. The order is that of the model's parameters, so an optimizer state can be taken up
    again by position. Tied parameters appear once.

    Args:
        model: any module.
        decay_norms: decay one-dimensional weights as well; biases never are.
    """
    decayed: list[torch.nn.Parameter] = []
    kept: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = "bias" in name.rsplit(".", maxsplit=1)[-1]
            is_norm = parameter.ndim < 2
            (kept if is_bias or (is_norm and not decay_norms) else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "name": "decayed"},
        {"params": kept, "name": "not_decayed", "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
