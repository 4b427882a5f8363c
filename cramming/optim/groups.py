"""What an optimizer does with which parameter, in one place: decay, rates of their own, and roles.

A role says what a parameter is to the model. Optimizers that treat matrices and vectors differently ask for it
(``OptimConfig.by_role``) and get groups of one role each:

* ``hidden``: a matrix inside a block, (..., out, in), the last two dimensions larger than 1. Muon orthogonalizes it.
* ``outside``: a matrix outside the blocks: embeddings, heads. Muon leaves it to AdamW, as its author says to.
* ``vector``: biases, weights of norms, per-channel filters. LAMB gives it no trust ratio, as ALBERT's does not.

Of parameters that nobody said anything about, whoever has two dimensions larger than 1 counts as ``hidden``.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cramming.errors import UserError

if TYPE_CHECKING:
    import torch

OWN = ("lr", "weight_decay", "norm")  # what a parameter may have of its own
HIDDEN, OUTSIDE, VECTOR = "hidden", "outside", "vector"


def parameter_groups(
    model: "torch.nn.Module", decay_norms: bool = False, decay_biases: bool = False
) -> "list[dict[str, Any]]":
    """A model's trainable parameters as groups in torch's form: decayed, not decayed, with rate or decay of their own.

    Biases and the weights of normalization layers, which are the one-dimensional parameters, are not decayed: the group
    carries ``weight_decay=0``. What the model's ``parameter_options()`` says of a parameter wins: those with the same
    learning rate and decay are a group, which carries them. The order is that of the model's parameters, so that an
    optimizer's state can be taken up again by position. Tied parameters appear once. ``roles`` lists what each
    parameter of a group is; see the module.

    Args:
        model: any module; a ``Model`` may have ``parameter_options``.
        decay_norms: decay one-dimensional weights as well.
        decay_biases: decay biases as well.

    Raises:
        UserError: options of a parameter there is not, or others than a ``Model`` may give.
    """
    own = _own_options(model)
    inside = {id(parameter) for parameter in getattr(model, "blocks", model).parameters()}
    groups: dict[tuple[tuple[str, float], ...], dict[str, Any]] = {
        (): {"params": [], "roles": [], "name": "decayed"},
        (("weight_decay", 0.0),): {"params": [], "roles": [], "name": "not_decayed", "weight_decay": 0.0},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = "bias" in name.rsplit(".", maxsplit=1)[-1]
            said = dict(own.get(name, {}))
            is_norm = bool(said.pop("norm", parameter.ndim < 2))
            role = VECTOR if is_bias or is_norm else role_by_shape(parameter)
            if role == HIDDEN and id(parameter) not in inside:
                role = OUTSIDE
            decayed = decay_biases if is_bias else decay_norms or not is_norm
            usual = {} if decayed else {"weight_decay": 0.0}
            options = {**usual, **said}
            key = tuple(sorted(options.items()))
            title = ",".join(f"{option}={value:g}" for option, value in key)
            group = groups.setdefault(key, {"params": [], "roles": [], "name": title, **options})
            group["params"].append(parameter)
            group["roles"].append(role)
    return [group for group in groups.values() if group["params"]]


def role_by_shape(parameter: "torch.Tensor") -> str:
    """``hidden`` for a matrix, or several of one shape in leading dimensions; else ``vector``."""
    return HIDDEN if parameter.ndim >= 2 and min(parameter.shape[-2:]) > 1 else VECTOR


def of_one_role(groups: "list[dict[str, Any]]") -> "list[dict[str, Any]]":
    """The same parameters in the same order within each role, every group of one ``role``."""
    found = []
    for group in groups:
        told = [group["role"]] * len(group["params"]) if "role" in group else None
        roles = group.get("roles") or told or [role_by_shape(parameter) for parameter in group["params"]]
        options = {key: value for key, value in group.items() if key not in ("params", "roles")}
        for role in dict.fromkeys(roles):
            members = [p for p, its_role in zip(group["params"], roles, strict=True) if its_role == role]
            name = {"name": f"{group['name']} {role}"} if "name" in group else {}
            found.append({**options, **name, "role": role, "params": members})
    return found


def without_roles(groups: "list[dict[str, Any]]") -> "list[dict[str, Any]]":
    """The groups for an optimizer that treats all parameters alike."""
    return [{key: value for key, value in group.items() if key != "roles"} for group in groups]


def fan_ratio(parameter: "torch.Tensor", role: str) -> float:
    """sqrt(out / in), the natural spectral norm of a layer (https://arxiv.org/abs/2304.05187, section 3).

    A vector of n is a layer from 1 to n, so that one step moves its coordinates as far, in the mean, as those of a
    matrix move the coordinates of its output. An embedding counts as the head it is tied to: from H to V.
    """
    if role == VECTOR:
        return math.sqrt(parameter.numel())
    rows, columns = parameter.shape[-2:]
    return math.sqrt(rows / columns)


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
