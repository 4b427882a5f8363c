"""Fresh weights."""

import math

from torch import Tensor, nn

from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.feedforward import FeedForward


def initialize(model: nn.Module, std: float) -> None:
    """Matrices normal with this standard deviation, biases zero; norms stay as they are made: the identity."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def spread(kind: str, hidden: int, layers: int, std: float) -> float:
    """Standard deviation of the named initialization, the earlier systems' formulas.

    ``normal``: ``std`` itself; ``small`` (https://arxiv.org/abs/1910.05895); ``megatron``; ``wang`` (as in GPT-J's
    code); ``deepnorm``: the gain of https://arxiv.org/abs/2203.00555, taken for the deviation of every matrix.

    Raises:
        ValueError: another kind.
    """
    match kind:
        case "normal":
            return std
        case "small":
            return float((2 / (5 * hidden)) ** 0.5)
        case "megatron":
            return float((1 / (3 * hidden)) ** 0.5)
        case "wang":
            return float(2 / (layers * hidden**0.5))
        case "deepnorm":
            return float((8 * layers) ** -0.25)
    raise ValueError(f"init={kind!r} is not one of normal, small, megatron, wang, deepnorm")


def initialize_by_place(model: nn.Module, kind: str, std: float, cutoff: float) -> None:
    """Fresh weights by where a matrix is: inside, or the last of a sublayer, whose outputs L layers add up.

    ``full_megatron``: normal with ``std``, last ones with std / sqrt(2L), nothing beyond ``cutoff`` deviations, as
    released for ModernBERT, where matrices of a head count as last ones and a classifier has H^(-1/2).
    ``fan_in``: 1 / sqrt(inputs), cut at 3. ``mitchell``: the same, the last ones of layer i with
    1 / sqrt(2 (i + 1) inputs). ``normal``: ``initialize``. ``uniform``: between -std and std, as released for NeoBERT.
    Biases are zero; norms stay as they are made.

    Raises:
        ValueError: another kind.
    """
    if kind == "normal":
        initialize(model, std)
        return
    last = _last_of_sublayers(model)
    layers = max(last.values(), default=-1) + 1
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        inputs, weight = module.weight.shape[1], module.weight
        match kind:
            case "uniform":
                nn.init.uniform_(weight, -std, std)
            case "full_megatron":
                smaller = name in last or name.startswith("head.")
                spread = std / math.sqrt(2 * layers) if smaller else std
                _truncated(weight, inputs**-0.5 if name == "head.classifier" else spread, cutoff)
            case "fan_in" | "mitchell":
                halved = 2 * (last[name] + 1) if kind == "mitchell" and name in last else 1
                _truncated(weight, (halved * inputs) ** -0.5, 3.0)
            case _:
                raise ValueError(f"init={kind!r} is not one of full_megatron, mitchell, fan_in, normal, uniform")


def _last_of_sublayers(model: nn.Module) -> dict[str, int]:
    """The matrices whose outputs are added to the residual stream, each with its layer."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, SelfAttention | FeedForward):
            last = "output" if isinstance(module, SelfAttention) else "contract"
            found[f"{name}.{last}"] = int(name.split(".")[1])  # blocks.<layer>.<sublayer>
    return found


def _truncated(weight: Tensor, std: float, cutoff: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-cutoff * std, b=cutoff * std)
