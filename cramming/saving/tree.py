"""A state as JSON and tensors: a tree of dicts, lists, tuples, tensors, numbers, strings, booleans and None."""

import math
from collections.abc import Mapping
from typing import Any

import torch


def outline(state: Any, path: str = "") -> tuple[Any, dict[str, torch.Tensor]]:
    """A state as a JSON value with references, and the tensors they refer to, which are those of the state.

    Raises:
        TypeError: a leaf of another type, named by its path.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, torch.Tensor):
            if node.layout is not torch.strided or node.dtype is torch.complex128:  # safetensors knows neither
                raise refused(path, f"{node.layout} tensor of {node.dtype}")
            name = path
            while name in tensors or name == "__metadata__":  # {"a.b": ...} beside {"a": {"b": ...}}; a reserved word
                name += "'"
            tensors[name] = node.detach()
            return {"$tensor": name}
        if isinstance(node, float) and not math.isfinite(node):
            return {"$float": float.__repr__(node)}  # numpy's float64 is a float with a repr of its own
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        if isinstance(node, Mapping):
            items = [(key, walk(value, f"{path}.{key}" if path else str(key))) for key, value in node.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key in node):
                return dict(items)
            return {"$items": [[walk(key, f"{path}.$key"), value] for key, value in items]}
        if isinstance(node, (list, tuple)):
            values = [walk(value, f"{path}.{index}") for index, value in enumerate(node)]
            return values if isinstance(node, list) else {"$tuple": values}
        raise refused(path, type(node).__name__)

    def refused(path: str, what: str) -> TypeError:
        return TypeError(f"state {path or '(root)'} has type {what}, which a checkpoint cannot hold")

    return walk(state, path), tensors


def flatten(state: Any, path: str = "") -> tuple[Any, dict[str, torch.Tensor]]:
    """The same with copies in the processor's memory, which what happens to the state does not change.

    Raises:
        TypeError: a leaf of another type, named by its path.
    """
    tree, tensors = outline(state, path)
    # One copy each: safetensors refuses tensors that share memory, and a view would save its whole base.
    return tree, {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def unflatten(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The state that ``flatten`` took apart."""
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$float" in tree:
        return float(tree["$float"])
    if "$tuple" in tree:
        return tuple(unflatten(value, tensors) for value in tree["$tuple"])
    if "$items" in tree:
        return {unflatten(key, tensors): unflatten(value, tensors) for key, value in tree["$items"]}
    return {key: unflatten(value, tensors) for key, value in tree.items()}
