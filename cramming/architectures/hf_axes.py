"""How the parameters of transformers' BERT-like networks are made up, for growing them into larger ones.

Shape legend: A heads, D width of a head, H hidden, P positions.
"""

import re

from torch import nn

from cramming.architectures.layers.axes import FIXED, POSITIONS, Axes, Axis

_INTO_HEADS = re.compile(r"\.(query|key|value|query_proj|key_proj|value_proj|pos_key_proj|pos_query_proj)\.")
_OUT_OF_HEADS = re.compile(r"\.attention\.(output\.)?dense\.weight$")


def by_heads(network: nn.Module, heads: int) -> dict[str, Axes]:
    """The axes of parameters that are not simply features by features, named as behind ``network.``."""
    found: dict[str, Axes] = {}
    for name, tensor in network.state_dict().items():
        sizes = tuple(tensor.shape)
        if _INTO_HEADS.search(name):  # (A D, H) or (A D,)
            found[f"network.{name}"] = (heads, sizes[0] // heads, *sizes[1:])
        elif _OUT_OF_HEADS.search(name):  # (H, A D)
            found[f"network.{name}"] = (sizes[0], heads, sizes[1] // heads)
        elif name.endswith("position_embeddings.weight"):
            found[f"network.{name}"] = (Axis(sizes[0], POSITIONS), sizes[1])
        elif name.endswith("token_type_embeddings.weight"):
            found[f"network.{name}"] = (Axis(sizes[0], FIXED), sizes[1])
    return found
