"""Which backends there are, and which of them does a piece of work: the one asked for, or the next that can.

A backend is a module for each operation. That of ``gated_long_conv`` has

    convolution_lacks(given) -> why it cannot do this, or None;  convolve(given);  convolve_back(given, gradient)

and that of ``block_diagonal_glu`` has ``glu_lacks``, ``glu_forward(given, keep)`` and ``glu_back(given, kept,
gradient)``; ``operands.py`` says what they are given. Nothing is imported before it is needed. ``reference`` is not
among them: it is plain torch under autograd, which the operations call themselves.

What one backend keeps for its way back (``kept``) only that one reads. So who does a piece of work is decided once in a
process for operands of the same sizes, and stays, whatever is built or refused between the way there and the way back.
"""

import importlib
import logging
import re
import threading
from collections.abc import Hashable
from types import ModuleType
from typing import Any

import torch

from cramming.suggest import nearest

_log = logging.getLogger(__name__)
AUTO, REFERENCE = "auto", "reference"
NAMES = (REFERENCE, "torch", "triton", "cuda")
# What does the work where a backend cannot, in this order.
FALLBACKS: dict[str, tuple[str, ...]] = {"torch": (), "triton": ("torch",), "cuda": ("triton", "torch")}
_MODULES = {
    ("gated_long_conv", "torch"): "torch_convolution",
    ("gated_long_conv", "triton"): "triton_convolution",
    ("gated_long_conv", "cuda"): "cuda_convolution",
    ("block_diagonal_glu", "torch"): "torch_glu",
    ("block_diagonal_glu", "triton"): "triton_glu",
    ("block_diagonal_glu", "cuda"): "cuda_glu",
}
LACKS = {"gated_long_conv": "convolution_lacks", "block_diagonal_glu": "glu_lacks"}
_said: set[tuple[str, str, str]] = set()
_refused: dict[tuple[str, str, str, torch.dtype], str] = {}
# Of pieces of work that were done, those asked for last at the end; more kinds than any pass has.
_decided: dict[Hashable, ModuleType] = {}
_MOST_DECIDED = 1 << 14
_deciding = threading.Lock()


def check(backend: str) -> None:
    """Refuse a name that is none.

    Raises:
        ValueError: there is no such backend.
    """
    if backend != AUTO and backend not in NAMES:
        raise ValueError(f"backend={backend} is unknown{nearest(backend, (AUTO, *NAMES))}")


def module(op: str, backend: str, given: Any) -> ModuleType:
    """The module of an operation that does this work: that of the backend asked for, or of the next one that can.

    The same one whenever operands of these sizes and this type are on this device again.

    Args:
        op: ``gated_long_conv`` or ``block_diagonal_glu``.
        backend: a name but ``reference``, or ``auto``: on a GPU the first of ``cuda``, ``triton``, ``torch`` that can;
            elsewhere ``torch``.
        given: the operands.
    """
    first = given[0]
    sizes = tuple(None if part is None else tuple(part.shape) for part in given)
    kind = op, backend, first.device, first.dtype, sizes
    with _deciding:
        found = _decided.pop(kind, None) or _decide(op, backend, given)
        _decided[kind] = found
        if len(_decided) > _MOST_DECIDED:
            del _decided[next(iter(_decided))]
    return found


def _decide(op: str, backend: str, given: Any) -> ModuleType:
    """The first that can."""
    first, wanted = given[0], backend
    if backend == AUTO:
        wanted = "cuda" if first.device.type == "cuda" else "torch"
    for name in (wanted, *FALLBACKS[wanted]):
        why = _refused.get((op, name, first.device.type, first.dtype))
        if why is None:
            found, why = of(op, name)
            if found is not None:
                why = getattr(found, LACKS[op])(given)
                if why is None:
                    return found
        if backend != AUTO:
            _say(op, name, str(why))
    raise AssertionError("torch takes everything")


def of(op: str, name: str) -> tuple[ModuleType | None, str | None]:
    """The module of a backend for an operation; or None, and why it cannot be imported."""
    try:
        return importlib.import_module(f"cramming.kernels.{_MODULES[op, name]}"), None
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # not installed, not built, or not for here
        way_out = "" if name != "cuda" or "make kernels" in str(error) else "; make kernels builds it"
        return None, f"{str(error).strip().partition(chr(10))[0]}{way_out}"


def refuse(op: str, name: str, device: torch.device, dtype: torch.dtype, why: str) -> None:
    """Leave a backend out from now on, whoever asks for it: on such a device it computes what is wrong in this type.

    What it has done already it goes on with, for operands of the same sizes: it may be on its way back.
    """
    _refused[op, name, device.type, dtype] = why


def _say(op: str, name: str, why: str) -> None:
    """One line for every reason: of two that differ in numbers only, such as sizes, one is said."""
    reason = op, name, re.sub(r"\d+", "#", why)
    if reason not in _said:
        _said.add(reason)
        _log.warning("%s: %s cannot do this here (%s): the next backend does it", op, name, why)
