"""How MDS spells a value in bytes: each column has an encoding by name.

All numbers are little-endian. What needs pickle or an image library is not read.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cramming.errors import UserError

_NUMBERS = (
    "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
)  # fmt: skip
# The byte that names an array's type, where the column does not.
_ARRAY_TYPES = {
    8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32",
    64: "uint64", 65: "int64", 66: "float64",
}  # fmt: skip
_TYPE_BYTES = {name: byte for byte, name in _ARRAY_TYPES.items()}
_SHAPE_TYPES = ("uint8", "uint16", "uint32", "uint64")  # of the numbers of a shape, by the lowest two bits of its byte
_MOST_AXES = 63


@dataclass(frozen=True)
class Encoding:
    """One encoding. ``decode`` raises ValueError where the bytes are none of its values."""

    size: int | None  # bytes of every value; None: it varies
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def encoding(name: str, where: str) -> Encoding:
    """The encoding of this name.

    Raises:
        UserError: it is not read here.
    """
    if name in _SIMPLE:
        return _SIMPLE[name]
    kind, *rest = name.split(":")
    if kind == "ndarray" and len(rest) <= 2:
        dtype, shape = (*rest, None, None)[:2]
        lengths = [int(n) if n.isascii() and n.isdigit() else 0 for n in (shape or "1").split(",")]
        if (dtype is None or dtype in _NUMBERS) and all(lengths):
            return _array(dtype, tuple(lengths) if shape else None)
    raise UserError(
        f"{where}: values in the encoding {name!r} are not read; "
        f"there are: {', '.join(_SIMPLE)}, ndarray[:type[:shape]]"
    )


def _number(name: str) -> Encoding:
    dtype = np.dtype(name).newbyteorder("<")
    return Encoding(
        dtype.itemsize, lambda value: np.array(value, dtype).tobytes(), lambda data: np.frombuffer(data, dtype)[0]
    )


def _utf8(data: bytes) -> str:
    return data.decode("utf-8")


_SIMPLE: dict[str, Encoding] = {
    "str": Encoding(None, lambda value: value.encode("utf-8"), _utf8),
    "bytes": Encoding(None, bytes, bytes),
    "int": Encoding(
        8,
        lambda value: int(value).to_bytes(8, "little", signed=True),
        lambda d: int.from_bytes(d, "little", signed=True),
    ),
    "str_int": Encoding(None, lambda value: str(value).encode(), lambda data: int(_utf8(data))),
    "str_float": Encoding(None, lambda value: str(value).encode(), lambda data: float(_utf8(data))),
    "json": Encoding(None, lambda value: json.dumps(value).encode(), lambda data: json.loads(_utf8(data))),
    **{name: _number(name) for name in _NUMBERS},
}


def _array(dtype: str | None, shape: tuple[int, ...] | None) -> Encoding:
    """An array; its type and its shape lie in front of its values, unless the column has them for all."""
    size = None if dtype is None or shape is None else math.prod(shape) * np.dtype(dtype).itemsize

    def encode(value: np.ndarray) -> bytes:
        if value.dtype.name not in _TYPE_BYTES or dtype not in (None, value.dtype.name):
            raise ValueError(f"an array of {value.dtype.name} in a column of {dtype or 'arrays of numbers'}")
        if shape not in (None, value.shape) or not value.size or not 0 < value.ndim <= _MOST_AXES:
            raise ValueError(f"an array of shape {value.shape} in a column of shape {shape or 'with values'}")
        head = b"" if dtype else bytes([_TYPE_BYTES[value.dtype.name]])
        if shape is None:
            width = next(n for n in range(4) if max(value.shape) < 1 << (8 << n))
            head += bytes([value.ndim << 2 | width]) + np.array(value.shape, _SHAPE_TYPES[width]).tobytes()
        return head + value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()

    def decode(data: bytes) -> np.ndarray:
        try:
            found, at = (dtype, 0) if dtype else (_ARRAY_TYPES[data[0]], 1)
            lengths: tuple[int, ...] | np.ndarray = shape or ()
            if shape is None:
                axes, width = data[at] >> 2, data[at] & 3
                lengths = np.frombuffer(data, f"<u{1 << width}", axes, at + 1)
                at += 1 + (axes << width)
            return np.frombuffer(data, np.dtype(found).newbyteorder("<"), offset=at).reshape(lengths)
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f"no array ({error})") from error

    return Encoding(size, encode, decode)
