"""What a label column says: names of classes, numbers, several classes at once, a class for each word.

Several classes in one cell are a list (also one spelled ``["a", "b"]``), or names with ``|`` between them; or with
commas, if no cell of the training file has a ``|``. An empty cell is none of the classes there. Everywhere else an
empty cell, a null and NaN mean that nobody said.
"""

import ast
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cramming.errors import UserError
from cramming.evaluation.rows.tables import Row, Table, similar
from cramming.evaluation.tasks.task import Kind, Label

NOT_JUDGED = -100  # as a word's label
_SHOWN = 60  # characters of a value in a message


def listed(value: Any) -> list[Any] | None:
    """A list, also where a cell spells one as JSON or as Python would print it; None: it is none."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        for spelled in (json.loads, ast.literal_eval):
            try:
                found = spelled(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list):
                return found
    return None


def missing(value: Any) -> bool:
    """Whether nobody said."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or value in ("", [])


def number(value: Any) -> float | None:
    """A finite number, also in writing; None: it is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def named(value: Any) -> str:
    """What a class is called: ``1.0`` of a column of numbers that had gaps is ``1``."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def shown(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sorted: numbers by their size, others by their letters."""
    found = set(names)
    sizes = {name: number(name) for name in found}
    if all(size is not None for size in sizes.values()):
        return tuple(sorted(found, key=lambda name: (sizes[name] or 0.0, name)))
    return tuple(sorted(found))


@dataclass(frozen=True)
class Labels:
    """Reads the label column of a task.

    Attributes:
        kind: of the task.
        column: its name.
        names: of the classes; empty for regression.
    """

    kind: Kind
    column: str
    names: tuple[str, ...]

    def of(self, table: Table, row: Row, words: int = 0) -> Label | None:
        """A row's label; None: nobody said.

        Args:
            table: the row's.
            row: which.
            words: of its text, in token classification.

        Raises:
            UserError: it is none of the task's.
        """
        value = row.values.get(self.column)
        if self.kind == "multilabel" and value is not None:
            present = {self._number_of(table, row, part) for part in self._parts(value)}
            return tuple(int(label in present) for label in range(len(self.names)))
        if missing(value):
            return None
        if self.kind == "regression":
            found = number(value)
            if found is None:
                raise UserError(
                    f"{table.at(row)}: label {shown(value)} of column {self.column!r} is not a number; "
                    "for classes choose eval.kind=classification"
                )
            return found
        if self.kind == "tokens":
            return self._of_words(table, row, value, words)
        value = class_names(table, self.column, [value])[0]
        return None if value is None else self._number_of(table, row, value)

    def known(self, value: Any) -> bool:
        """Whether a class is called so."""
        return named(value) in self._numbers or number(value) in self._by_size

    def _of_words(self, table: Table, row: Row, value: Any, words: int) -> Label:
        parts = each_word(value)
        if len(parts) != words:
            raise UserError(
                f"{table.at(row)} has {len(parts)} labels in {self.column!r} for {words} words; each word needs one"
            )
        return tuple(
            NOT_JUDGED if part is None or number(part) == NOT_JUDGED else self._number_of(table, row, part)
            for part in class_names(table, self.column, parts)
        )

    def _parts(self, value: Any) -> list[Any]:
        parts = listed(value)
        if parts is not None:
            return parts
        whole = isinstance(value, str) and "|" not in value and self.known(value)
        return [value] if whole else separated(value, "|" if "|" in str(value) else ",")

    def _number_of(self, table: Table, row: Row, value: Any) -> int:
        value = class_names(table, self.column, [value])[0]
        found = self._numbers.get(named(value), self._by_size.get(number(value)))
        if found is None:
            close = similar(named(value), self.names) or f"; there are: {', '.join(self.names[:20])}"
            raise UserError(
                f"{table.at(row)}: label {shown(value)} of column {self.column!r} is none of the task's{close}; "
                "they are those of the training rows, or eval.labels"
            )
        return found

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {name: at for at, name in enumerate(self.names)}

    @cached_property
    def _by_size(self) -> Mapping[float | None, int]:
        """So that 1.0 of one file is the 1 of another."""
        return {size: at for at, name in enumerate(self.names) if (size := number(name)) is not None}


def separated(value: Any, separator: str) -> list[str]:
    """The parts of a cell that are not empty."""
    return [part.strip() for part in str(value).split(separator) if part.strip()]


def each_word(value: Any) -> list[Any]:
    """A list, or what stands between blanks."""
    parts = listed(value)
    return str(value).split() if parts is None else parts


def class_names(table: Table, column: str, values: Sequence[Any]) -> list[Any]:
    """Class numbers as names, where the file has them; -1 is how such files leave out a label."""
    names = table.names.get(column)
    if names is None:
        return list(values)
    return [
        (names[value] if 0 <= value < len(names) else None) if isinstance(value, int) else value for value in values
    ]


def names_in(kind: Kind, table: Table, column: str) -> tuple[str, ...]:
    """Names of all classes that a column has, in order: the file's own, else sorted."""
    if kind == "regression":
        return ()
    if column in table.names:
        return table.names[column]
    values = [row.values.get(column) for row in table.rows]
    if kind == "classification":
        return in_order(named(value) for value in values if not missing(value))
    if kind == "tokens":
        parts = [part for value in values if not missing(value) for part in each_word(value)]
        return in_order(named(part) for part in parts if part is not None and number(part) != NOT_JUDGED)
    cells = [value for value in values if value is not None]
    separator = "|" if any("|" in cell for cell in cells if isinstance(cell, str)) else ","
    several = ((listed(cell), cell) for cell in cells)
    return in_order(
        named(part) for parts, cell in several for part in (separated(cell, separator) if parts is None else parts)
    )
