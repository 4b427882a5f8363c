"""What the benchmarks here share: their command line, the spread of repeated measurements, the file of a result."""

from __future__ import annotations

import datetime
import json
import os
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cramming.cli import parse
from cramming.errors import UserError
from cramming.recording.environment import cpu_model, environment, git_revision

if TYPE_CHECKING:  # what prepares data is measured in processes without torch
    import torch

RESULTS = Path(__file__).parent / "results"

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


def named(device: torch.device) -> str:
    """A GPU's name, or the processor's."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def circumstances(device: torch.device | None = None) -> dict[str, Any]:
    """On what, how and when something is measured, None being the processor: part of every result."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "revision": git_revision(),
        "environment": environment("cpu" if device is None or device.type == "cpu" else named(device)),
    }


def folder(device: torch.device) -> Path:
    """Where the results of today and of this machine belong: ``<date>-<machine>``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    words = f"{named(device)} {cores} cores" if device.type == "cpu" else named(device)
    machine = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return RESULTS / f"{datetime.date.today().isoformat()}-{machine}"


def keep(result: dict[str, Any], out: str | Path, page: str | None = None) -> None:
    """Write a result as JSON if a file was named, and its page, if it has one, as Markdown beside it."""
    if not out:
        return
    file = Path(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    if page is not None:
        file.with_suffix(".md").write_text(page)
