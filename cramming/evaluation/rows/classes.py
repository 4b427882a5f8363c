"""What a file of a known task says in its label column, as the number the task gives it."""

import math
from functools import cache
from typing import Any

from cramming.errors import UserError
from cramming.evaluation.tasks.task import Task

_LONG = 40  # characters from which a value is a text rather than a label
_SHOWN = 60
# STS-B's scale; what lies outside of it comes from another column.
_RANGES = {"stsb": (0.0, 5.0)}


def class_of(task: Task, value: Any, where: str) -> int | float | None:
    """The label of a row.

    Args:
        task: whose labels may be named or numbered, in words, as numbers or as true and false.
        value: as the file has it.
        where: the file and the row, for messages.

    Returns:
        A class, or a number in a regression; None: nobody says (nothing, or -1).

    Raises:
        UserError: it is no label of the task.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if task.kind == "regression":
        return _number(task, value, where)
    known = _spelled(task.labels)
    spelled = str(value)
    if spelled not in known:
        spelled = spelled.strip().lower().removesuffix(".0" if isinstance(value, float) else "")
    if spelled not in known:
        raise _outside(task, value, where)
    return known[spelled]


@cache
def _spelled(labels: tuple[str, ...]) -> dict[str, int | None]:
    """Every way to write a class: its number, or its name in small letters or as it is."""
    numbered: dict[str, int | None] = {str(place): place for place in range(len(labels))} | {"-1": None}
    named = {spelling: place for place, name in enumerate(labels) for spelling in (name, name.lower())}
    return numbered | named


def _number(task: Task, value: Any, where: str) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{where}: the label is {shown(value)}, no number{_swapped(value)}") from None
    if number == -1:
        return None
    low, high = _RANGES.get(task.name, (-math.inf, math.inf))
    if not low <= number <= high or not math.isfinite(number):
        raise UserError(f"{where}: the label is {number:g}; {task.title}'s are from {low:g} to {high:g}")
    return number


def _outside(task: Task, value: Any, where: str) -> UserError:
    known = ", ".join(f"{name} ({place})" for place, name in enumerate(task.labels))
    return UserError(f"{where}: the label is {shown(value)}; {task.title}'s are: {known}{_swapped(value)}")


def _swapped(value: Any) -> str:
    long = isinstance(value, str) and len(value) >= _LONG
    return "; that is a text: are its columns swapped, or is it another task's file?" if long else ""


def shown(value: Any) -> str:
    """A value in a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
