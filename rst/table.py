"""Measured prices: seconds by kind of work, sequence length and number of active layers.

The file is JSON. Seconds are those of one reference microbatch of ``sequences`` sequences; the price of any other
number is taken as proportional. One optimizer update costs ``update_s``, whatever the depth.

    {"format": 1,
     "sequences": 128,
     "forward":          {"128": {"0": 0.0047, "1": 0.0104, ...}},      # length -> active layers, 0 to L -> seconds
     "forward_backward": {"128": {"0": 0.0115, "1": 0.0252, ...}},
     "update_s": 0.0,
     "provenance": {"device": ..., "architecture": ..., "precisions": [...], "software": {...}, "date": ...,
                    "source": ..., "notes": [...]}}

A table is refused when it cannot be right: a price that is not positive and finite, a depth that is missing, more
layers that do not cost more, a forward pass that costs as much as forward and backward, or an entry far from the line
through its column (layers all cost the same, so time is a line in depth from 1 layer on; no layers at all may cost less
than the line says, because the last layer can be cheaper than the others: its output is needed at few positions only).
"""

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rst.work import Work

FORMAT = 1
# An entry may lie off the line by this share of the line's value, or by this share of one layer's cost if that is more:
# few layers leave little to take a share of. Misprints are off by much more, effects of caches by less.
LINE_TOLERANCE = 0.15
LAYER_TOLERANCE = 0.5

Column = tuple[float, ...]  # seconds of a reference microbatch with 0, 1, ..., L active layers


class TableError(ValueError):
    """A cost table that cannot be read, cannot be right, or has no price for a piece of work: one line."""


@dataclass(frozen=True)
class Provenance:
    """Where a table's numbers come from; ``architecture`` and ``precisions`` decide whether it fits a run."""

    device: str
    architecture: str
    precisions: tuple[str, ...]
    software: Mapping[str, str]
    date: str
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CostTable:
    """A cost model read from, or written to, a JSON file; checked whenever one is made.

    Attributes:
        sequences: size of the reference microbatch the seconds are for.
        forward: length in tokens -> seconds by number of active layers.
        forward_backward: the same for forward and backward.
        update_s: seconds of one optimizer update.
        provenance: where the numbers come from.
        origin: what messages call this table, usually its file.

    Raises:
        TableError: naming ``origin``, the entry and what is wrong with it.
    """

    sequences: int
    forward: Mapping[int, Column]
    forward_backward: Mapping[int, Column]
    update_s: float
    provenance: Provenance
    origin: str = "cost table"

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise TableError(f"{self.origin}: sequences is {self.sequences}; must be at least 1")
        if not 0 <= self.update_s < math.inf:
            raise TableError(f"{self.origin}: update_s is {self.update_s}; must be finite and not negative")
        if not self.forward or self.forward.keys() != self.forward_backward.keys():
            raise TableError(
                f"{self.origin}: lengths of forward ({_listed(self.forward)}) and forward_backward "
                f"({_listed(self.forward_backward)}) must be the same, and at least one"
            )
        if len({len(column) for column in (*self.forward.values(), *self.forward_backward.values())}) != 1:
            raise TableError(f"{self.origin}: every kind and length must have the same numbers of layers")
        for kind, columns in (("forward", self.forward), ("forward_backward", self.forward_backward)):
            for length, column in columns.items():
                _check_column(column, f"{self.origin}: {kind}, length {length}")
        for length, column in self.forward.items():
            for layers, (forward, both) in enumerate(zip(column, self.forward_backward[length], strict=True)):
                if forward >= both:
                    raise TableError(
                        f"{self.origin}: forward, length {length}, {layers} layers: {forward} s is not less than the "
                        f"{both} s of forward_backward"
                    )

    @property
    def layers(self) -> int:
        """L, the largest number of active layers with a price."""
        return len(next(iter(self.forward.values()))) - 1

    def seconds(self, work: Work) -> float:
        """The price of ``work``, proportional to its sequences.

        Short layers cost what so many layers add to one layer at their length: table(length, layers - short layers) +
        table(short length, 1 + short layers) - table(short length, 1). What they add to none would not do: the first
        layer of a column is the last of the model, which can be cheaper, and that one is never short.

        Raises:
            TableError: a length or number of layers that the table does not have.
        """
        if work.kind == "update":
            return self.update_s
        price = self._price(work, work.length, work.layers - work.short_layers)
        if work.short_layers:
            price += self._price(work, work.short_length, 1 + work.short_layers)
            price -= self._price(work, work.short_length, 1)
        return price * work.sequences / self.sequences

    def _price(self, work: Work, length: int, layers: int) -> float:
        """Seconds of a reference microbatch of ``work``'s kind."""
        columns = self.forward if work.kind == "forward" else self.forward_backward
        if length not in columns:
            raise TableError(f"{self.origin}: no price for length {length}; lengths: {_listed(columns)}")
        if layers > self.layers:
            raise TableError(f"{self.origin}: no price for {layers} layers; it ends at {self.layers}")
        return columns[length][layers]

    def differences(self, architecture: str, layers: int, lengths: Collection[int], precision: str) -> list[str]:
        """In what the table differs from a run, in words; empty if it was made for such a run."""
        found = []
        if architecture != self.provenance.architecture:
            found.append(f"it is for architecture {self.provenance.architecture!r}, not {architecture!r}")
        if layers != self.layers:
            found.append(f"it has {self.layers} layers, not {layers}")
        if not self.forward.keys() >= set(lengths):
            found.append(f"it has length {_listed(self.forward)}, not {_listed(set(lengths) - self.forward.keys())}")
        if precision not in self.provenance.precisions:
            found.append(f"it is for {' and '.join(self.provenance.precisions)}, not {precision}")
        return found

    def save(self, path: Path) -> None:
        """Write the table as JSON; a reader sees the whole of it or nothing."""
        document = {
            "format": FORMAT,
            "sequences": self.sequences,
            "forward": _by_layers(self.forward),
            "forward_backward": _by_layers(self.forward_backward),
            "update_s": self.update_s,
            "provenance": asdict(self.provenance),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    @staticmethod
    def load(path: Path) -> "CostTable":
        """Read and check a table.

        Raises:
            TableError: the file is missing or not JSON, or the table cannot be right.
        """
        origin = str(path)
        try:
            document = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
        except OSError as error:
            raise TableError(f"{origin}: cannot be read: {error.strerror}") from error
        except ValueError as error:  # bad JSON, bad UTF-8, a key twice
            raise TableError(f"{origin}: not a cost table: {error}") from error
        return _parse(document, origin)


def line_through(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(value at 0, slope) of the Theil-Sen line through two or more (place, value): outliers do not bend it."""
    slope = median((second[1] - first[1]) / (second[0] - first[0]) for first, second in combinations(points, 2))
    return median(value - slope * place for place, value in points), slope


def off_the_line(column: Column) -> tuple[int, float] | None:
    """The number of layers (from 1) whose seconds are furthest off the line, and the line there; None if none is."""
    if len(column) < 3:
        return None
    intercept, slope = line_through(list(enumerate(column))[1:])

    def excess(layers: int) -> float:
        line = intercept + slope * layers
        return abs(column[layers] - line) / max(LINE_TOLERANCE * line, LAYER_TOLERANCE * abs(slope))

    worst = max(range(1, len(column)), key=excess)
    return (worst, intercept + slope * worst) if excess(worst) > 1 else None


def _check_column(column: Column, where: str) -> None:
    if len(column) < 2:
        raise TableError(f"{where}: must have prices for 0 layers and at least 1 layer")
    for layers, seconds in enumerate(column):
        if not 0 < seconds < math.inf:
            raise TableError(f"{where}, {layers} layers: {seconds} s; must be positive and finite")
    # Before the order of neighbours: that names the neighbour of a misprint, this names the misprint.
    off = off_the_line(column)
    if off is not None:
        layers, line = off
        raise TableError(
            f"{where}, {layers} layers: {column[layers]} s, where the line through the other depths has {line:.4g} s"
        )
    for layers, (less, more) in enumerate(pairwise(column), start=1):
        if more <= less:
            raise TableError(f"{where}, {layers} layers: {more} s is not more than {less} s with one layer less")


def _listed(lengths: Collection[int]) -> str:
    return ", ".join(str(length) for length in sorted(lengths)) or "none"


def _by_layers(columns: Mapping[int, Column]) -> dict[str, dict[str, float]]:
    return {
        str(length): {str(layers): seconds for layers, seconds in enumerate(column)}
        for length, column in sorted(columns.items())
    }


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return found


def _parse(document: object, origin: str) -> CostTable:
    """JSON values -> table, refusing by name whatever has the wrong form."""
    table = _object(document, {"format", "sequences", "forward", "forward_backward", "update_s", "provenance"}, origin)
    if table["format"] != FORMAT:
        raise TableError(f"{origin}: format {table['format']!r}; this version reads format {FORMAT}")
    names = {"device", "architecture", "precisions", "software", "date", "source", "notes"}
    origins = _object(table["provenance"], names, f"{origin}: provenance")
    for name in sorted(names):
        value = origins[name]
        if name in ("precisions", "notes"):
            fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        elif name == "software":
            fits = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
        else:
            fits = isinstance(value, str)
        if not fits:
            raise TableError(f"{origin}: provenance.{name} is {value!r}; wrong type")
    if not isinstance(table["sequences"], int) or isinstance(table["sequences"], bool):
        raise TableError(f"{origin}: sequences is {table['sequences']!r}; must be a whole number")
    return CostTable(
        sequences=table["sequences"],
        forward=_columns(table["forward"], f"{origin}: forward"),
        forward_backward=_columns(table["forward_backward"], f"{origin}: forward_backward"),
        update_s=_number(table["update_s"], f"{origin}: update_s"),
        provenance=Provenance(
            **{**origins, "precisions": tuple(origins["precisions"]), "notes": tuple(origins["notes"])}
        ),
        origin=origin,
    )


def _object(value: object, names: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TableError(f"{where}: must be a JSON object, not {type(value).__name__}")
    for problem, found in (("no", names - value.keys()), ("unknown", value.keys() - names)):
        if found:
            raise TableError(f"{where}: {problem} {', '.join(repr(name) for name in sorted(found))}")
    return value


def _columns(value: object, where: str) -> dict[int, Column]:
    if not isinstance(value, dict):
        raise TableError(f"{where}: must be a JSON object of lengths, not {type(value).__name__}")
    columns = {}
    for length, entries in value.items():
        here = f"{where}, length {length}"
        if not (length.isascii() and length.isdigit() and length[0] != "0"):
            raise TableError(f"{here}: a length must be a positive whole number")
        if not isinstance(entries, dict):
            raise TableError(f"{here}: must be a JSON object of layers, not {type(entries).__name__}")
        wanted = {str(layers) for layers in range(len(entries))}
        if entries.keys() != wanted:
            missing = sorted(wanted - entries.keys(), key=int)
            raise TableError(f"{here}: must have every number of layers from 0 up; the first missing is {missing[0]}")
        columns[int(length)] = tuple(
            _number(entries[str(layers)], f"{here}, {layers} layers") for layers in range(len(entries))
        )
    return columns


def _number(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TableError(f"{where}: {value!r} is not a number")
    return float(value)
