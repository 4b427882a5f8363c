"""JSON that every reader accepts: no NaN, no infinity, plain types."""

import json
import math
import numbers
import os
from collections.abc import Mapping
from typing import Any


def strict(value: Any, where: str = "") -> Any:
    """The same value in types every JSON reader accepts: NaN and infinities become null, tuples lists, numpy plain.

    Raises:
        TypeError: a leaf that JSON has no word for; its place is named.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): strict(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(
        f"{where.lstrip('.') or 'the value'} is a {type(value).__name__}, which JSON cannot hold: {value!r}"
    )


def dumps(value: Any, indent: int | None = None) -> str:
    """``value`` as strict JSON; keys keep their order."""
    return json.dumps(strict(value), indent=indent, allow_nan=False, ensure_ascii=False)
