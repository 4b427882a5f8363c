"""Fresh weights."""

from torch import nn


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
