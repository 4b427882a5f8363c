"""Dicts of numbers that others wrote as pickles, read without running anything that is in them.

A pickle is a program for a machine that can call any function. The ones read here only push whole numbers and floats
and put them into one dict; any other instruction is refused by its name before anything is made of it.
``pickletools.genops`` (Python's own) only takes the instructions apart.
"""

import pickletools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cramming.errors import UserError

# PROTO .. LONG_BINPUT: headers and notes of what was pickled before, which numbers never refer to.
_NOTHING = ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT")
_WHOLE = ("BININT", "BININT1", "BININT2", "LONG1")
_FLOAT = "BINFLOAT"
_STRINGS = ("SHORT_BINUNICODE", "BINUNICODE", "UNICODE")
_REFUSED = "only whole numbers and floats in one dict are read, and nothing in it is run"


def read_numbers(data: bytes, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """A pickled ``{whole number: float}`` as its keys (K,) and values (K,), in the order they were written.

    Args:
        data: the pickle, as Python writes it by default (protocols 2 to 5).
        name: what messages call it.

    Raises:
        UserError: it holds anything else, or is damaged.
    """
    keys: list[int] = []
    values: list[float] = []
    strings: list[str] = []  # the latest ones; a function is asked for by its module and its name
    begun = ended = False
    for kind, argument in _instructions(data, name):
        if kind == _FLOAT and len(keys) == len(values) + 1:
            values.append(argument)
        elif kind in _WHOLE and len(keys) == len(values) and abs(argument) < 1 << 63:
            keys.append(argument)
        elif kind == "EMPTY_DICT" and not begun:
            begun = True
        elif kind in ("MARK", "SETITEM", "SETITEMS") and begun and len(keys) == len(values):
            continue
        elif kind == "STOP":
            ended = True
        elif kind in _STRINGS:
            strings = [*strings[-1:], str(argument)]
        elif kind not in _NOTHING:
            raise UserError(f"{name} holds {_named(kind, argument, strings)}: {_REFUSED}")
    if strings:
        raise UserError(f"{name} holds {_named('STOP', None, strings)}: {_REFUSED}")
    if not (begun and ended) or len(keys) != len(values):
        raise UserError(f"{name} is damaged: it is no dict of numbers")
    return np.array(keys, dtype=np.int64), np.array(values, dtype=np.float64)


def _instructions(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
    """Name and argument of every instruction."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            yield opcode.name, argument
    except ValueError as error:
        raise UserError(f"{name} is damaged: it is no pickle, or ends in its middle ({error})") from error


def _named(kind: str, argument: object, strings: list[str]) -> str:
    if kind == "GLOBAL":
        return str(argument).replace(" ", ".")
    if kind == "STACK_GLOBAL" and len(strings) == 2:
        return ".".join(strings)
    if strings:
        return f"the text {strings[-1]!r}"
    return f"a {kind} where there is no place for one" if kind in (*_WHOLE, _FLOAT) else f"a {kind}"
