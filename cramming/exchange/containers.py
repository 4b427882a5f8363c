"""Tensors out of the files that weights are kept in. Nothing is unpickled that could run code.

Accepted: safetensors; PyTorch files (a bare state dict; or one inside a trainer's file, such as Composer's
``{"state": {"model": ...}}`` or a list with the optimizer's state before it); either of them in shards with an index;
names with the prefixes that wrappers leave (``model.``, ``module.``, ``_orig_mod.``).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cramming.errors import UserError

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# Where a folder's weights are looked for, in this order; an index names its shards.
NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pth",
)
_WRAPPERS = ("model.", "module.", "_orig_mod.")
# Where trainers keep the state dict: keys to follow, the first that is there.
_INSIDE = (("state", "model"), ("model",), ("state_dict",), ("model_state_dict",), ("module",))
# Trainers' files name classes of these packages beside the tensors: clocks, metrics, random states. They are taken for
# empty shells and left out; classes of other packages are refused.
_SHELLS = ("composer", "datetime", "deepspeed", "numpy", "omegaconf", "torchmetrics", "transformers")
_UNSUPPORTED = re.compile(r"\bGLOBAL ([A-Za-z_][\w.]*)")
_MOST_SHELLS = 64  # different classes in one file


class Shell:
    """In place of an object of a class that is not loaded: takes whatever state it is given and keeps none."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Shell":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def weights_of(folder: Path) -> Path:
    """The file, or the index of files, that holds a folder's weights.

    Raises:
        UserError: there is none, or several of which none has a usual name.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES) if folder.is_dir() else []
    if len(others) == 1:
        return others[0]
    if others:
        raise UserError(f"{folder} holds several files of weights ({', '.join(o.name for o in others)}): name one")
    raise UserError(f"{folder} holds no weights: neither {' nor '.join(NAMES)}")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file or an index, without wrappers' prefixes; and what else a trainer's file says.

    Raises:
        UserError: it is not there, cut off or damaged, holds code, or holds no tensors.
    """
    rest: dict[str, Any] = {}
    if path.name.endswith(".index.json"):
        tensors = _shards(path)
    elif path.suffix == ".safetensors":
        tensors = _safetensors(path)
    else:
        tensors, rest = _torch(path)
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return unwrapped(tensors), rest


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers put before all of them, and with today's words for a norm's weights."""
    found = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    while prefix := next((p for p in _WRAPPERS if all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return {re.sub(r"LayerNorm\.(gamma|beta)$", _today, name): tensor for name, tensor in found.items()}


def _today(old: re.Match[str]) -> str:
    """BERT's first names for a norm's weights, which the oldest checkpoints have."""
    return "LayerNorm.weight" if old[1] == "gamma" else "LayerNorm.bias"


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def shards_of(index: Path) -> list[Path]:
    """The files that an index names.

    Raises:
        UserError: it is no index, or names something elsewhere.
    """
    shards = [index.parent / str(name) for name in sorted(set(_places(index).values()))]
    for shard in shards:
        if shard.parent != index.parent or shard.suffix not in SUFFIXES:
            raise UserError(f"{index} names {shard.name!r}, which is no shard beside it")
    return shards


def _places(index: Path) -> dict[str, str]:
    """Which file each tensor is in."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): str(file) for tensor, file in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of shards ({_line(error)})") from error


def _shards(index: Path) -> dict[str, Tensor]:
    places = _places(index)
    tensors: dict[str, Tensor] = {}
    for shard in shards_of(index):
        tensors |= _safetensors(shard) if shard.suffix == ".safetensors" else _torch(shard)[0]
    if missing := sorted(set(places) - set(tensors)):
        raise UserError(f"{index} promises {missing[0]!r}, which {places[missing[0]]} lacks")
    return tensors


def _torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    content = _loaded(path)
    if isinstance(content, (list, tuple)):  # the earlier study's training checkpoint: optimizer, model, ...
        content = next((part for part in content if _is_state(part)), None)
    rest = content if isinstance(content, Mapping) else {}
    for keys in _INSIDE:
        inner = content
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            content = inner
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no state dict but a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path} holds a {type(value).__name__} under {name!r}, where a tensor must be")
    found = {str(name): tensor for name, tensor in content.items()}
    return found, {} if rest is content else dict(rest)


def _loaded(path: Path) -> Any:
    """A PyTorch file's content, read by PyTorch's own reader that knows tensors and plain values."""
    shells: list[str] = []
    while True:
        try:
            with torch.serialization.safe_globals([(Shell, name) for name in shells]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise _unreadable(path, error) from error
        except Exception as error:  # the reader raises what its parts raise: of zip, of pickle, of its own
            named = _UNSUPPORTED.search(str(error))
            if named is None:
                raise _unreadable(path, error) from error
            if named[1].split(".")[0] not in _SHELLS or named[1] in shells or len(shells) == _MOST_SHELLS:
                raise UserError(
                    f"{path} holds code ({named[1]}), which is never run: save its state dict alone, as safetensors"
                ) from error
            shells.append(named[1])


def _is_state(part: Any) -> bool:
    return isinstance(part, Mapping) and len(part) > 0 and all(isinstance(value, Tensor) for value in part.values())


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} is not there")
    return UserError(f"{path} cannot be read as weights, it is cut off, damaged or something else ({_line(error)})")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()).split("from a trusted source. ")[-1]  # PyTorch's advice on unpickling
    return text[:160] or type(error).__name__
