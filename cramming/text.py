"""Durations, amounts and quantities as people read them. ASCII only, so that any log file can hold them."""

import math
from typing import Literal

Unit = Literal["s", "steps"]
"""What a budget counts: seconds (reference or wall), or optimizer steps under ``rst=steps``."""


def duration(seconds: float | None) -> str:
    """Two units at most: ``9.4s``, ``42s``, ``4m 05s``, ``3h 20m``, ``2d 04h``; ``-`` if it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if 0 < seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d {hours % 24:02d}h"


def amount(value: float | None, unit: Unit) -> str:
    """An amount of budget: a duration, or ``1,200 steps``."""
    if unit == "s" or value is None:
        return duration(value)
    return f"{value:,.0f} step{'' if value == 1 else 's'}"


def quantity(n: float, unit: str) -> str:
    """A rough count: ``12.3 MB``, ``1.4 M tokens``, ``17 files``."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= factor:
            return f"{n / factor:.1f} {prefix}{'' if unit == 'B' else ' '}{unit}"
    return f"{n:.0f} {unit}"


def number(value: float | None, form: str) -> str:
    """``value`` in the given format; ``-`` if there is none or it is not finite."""
    return "-" if value is None or not math.isfinite(value) else format(value, form)
