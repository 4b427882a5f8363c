"""Which parameters are decayed, and which have a learning rate or a decay of their own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cramming.errors import UserError

if TYPE_CHECKING:
    import torch

OWN = ("lr", "weight_decay", "norm")  # what a parameter may have of its own


def parameter_groups(
    model: "torch.nn.Module", decay_norms: bool = False, decay_biases: bool = False
) -> "list[dict[str, Any]]":
    """A model's trainable parameters as groups in torch's form: decayed, not decayed, with rate or decay of their own.

    Biases and the weights of normalization layers, which are the one-dimensional parameters, are not decayed: the group
    carries ``weight_decay=0``. What the model's ``parameter_options()`` says of a parameter wins: those with the same
    learning rate and decay are a group, which carries them. The order is that of the model's parameters, so that an
    optimizer's state can be taken up again by position. Tied parameters appear once.

    Args:
        model: any module; a ``Model`` may have ``parameter_options``.
        decay_norms: decay one-dimensional weights as well.
        decay_biases: decay biases as well.

    Raises:
        UserError: options of a parameter there is not, or others than a ``Model`` may give.
    """
    own = _own_options(model)
    groups: dict[tuple[tuple[str, float], ...], dict[str, Any]] = {
        (): {"params": [], "name": "decayed"},
        (("weight_decay", 0.0),): {"params": [], "name": "not_decayed", "weight_decay": 0.0},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = "bias" in name.rsplit(".", maxsplit=1)[-1]
            said = dict(own.get(name, {}))
            is_norm = bool(said.pop("norm", parameter.ndim < 2))
            decayed = decay_biases if is_bias else decay_norms or not is_norm
            usual = {} if decayed else {"weight_decay": 0.0}
            options = {**usual, **said}
            key = tuple(sorted(options.items()))
            named = {"params": [], "name": ",".join(f"{option}={value:g}" for option, value in key), **options}
            groups.setdefault(key, named)["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _own_options(model: "torch.nn.Module") -> Mapping[str, Mapping[str, float]]:
    """The model's word on its parameters, checked."""
    ask = getattr(model, "parameter_options", None)
    own: Mapping[str, Mapping[str, float]] = {} if ask is None else ask()
    names = {name for name, _ in model.named_parameters()}
    for name, options in own.items():
        if name not in names or not set(options) <= set(OWN):
            raise UserError(
                f"options {dict(options)} of parameter {name!r}: there is none, or they are not among {OWN}"
            )
    return own
