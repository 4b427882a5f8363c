"""What the benchmarks here share: their command line, the spread of repeated measurements, the file of a result."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from cramming.cli import parse
from cramming.errors import UserError

Options = TypeVar("Options")


def asked(options: type[Options], about: str | None) -> Options:
    """The options typed as ``key=value``; ``--help`` shows ``about`` and the defaults.

    Raises:
        UserError: anything else was typed.
    """
    defaults = options()
    shown = " ".join(f"{field.name}={getattr(defaults, field.name)}" for field in fields(defaults))  # type: ignore[arg-type]
    found, words = parse(sys.argv[1:], options, f"{about}\nOptions: {shown}")
    if words:
        raise UserError(f"{words[0]!r} is not key=value")
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles, and every value (two or more)."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "quartiles": [low, high], "pairs": list(values)}


def keep(result: dict[str, Any], out: str) -> None:
    """Write a result as JSON, if a file was named."""
    if out:
        Path(out).write_text(json.dumps(result, indent=1) + "\n")
