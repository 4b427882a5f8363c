"""Rows of csv, tsv, jsonl and parquet files, with the line each begins in, so that what is wrong can be pointed at.

A file may be compressed (.gz, .xz, .zst). Unlike the sources of pretraining text, which stream, a table is held whole:
tasks are small, and their labels have to be known before the first row is used.
"""

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from cramming.data.sources.files import chunks, stem_suffix
from cramming.data.sources.formats import RECORD_CHARACTERS, records
from cramming.errors import UserError
from cramming.suggest import nearest

FORMATS = "csv, tsv, jsonl, json or parquet (.gz, .xz, .zst)"
_DELIMITERS = (",", ";", "\t")  # of csv; a comma unless the columns asked for are found with another
_SHOWN = 40  # characters of a name in a message


class Row(NamedTuple):
    """A row's columns. ``number`` is the line it begins in, or its own from 1 where a file has no lines."""

    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """A split.

    Attributes:
        name: of the file or dataset, for messages.
        unit: what ``Row.number`` counts, ``line`` or ``row``.
        columns: all there are, in their order; rows hold those that were asked for.
        rows: in the file's order.
        names: class names of columns whose numbers mean classes, as parquet files of the hub have them.
        remarks: what was decided in reading.
    """

    name: str
    unit: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def at(self, row: Row) -> str:
        """Where a row is, as messages begin."""
        return f"{self.name}: {self.unit} {row.number}"

    def has(self, column: str) -> bool:
        """Whether there is such a column."""
        return column in self.columns

    def need(self, column: str, option: str) -> None:
        """Refuse a column that is not there.

        Args:
            column: its name.
            option: that names it, for the message.

        Raises:
            UserError: it is not, with the nearest, and all.
        """
        if column in self.columns:
            return
        shown = ", ".join(name if len(name) <= _SHOWN else name[:_SHOWN] + "..." for name in self.columns[:30])
        raise UserError(
            f"{self.name} has no column {column!r}{similar(column, self.columns)}; "
            f"its columns are: {shown or 'none'}; choose one with {option}=<name>"
        )


def similar(word: str, known: Iterable[str]) -> str:
    """A clause naming the closest known word; empty if none is close."""
    clause = nearest(word, known)
    return clause if "did you mean" in clause else ""


def read(path: Path, option: str, wanted: Sequence[str]) -> Table:
    """The rows of a file; its suffix tells the format.

    Args:
        path: as it was typed.
        option: that it was typed for, for messages.
        wanted: columns to keep, where they exist.

    Raises:
        UserError: there is no such file, or it is not what its name says.
    """
    path = path.expanduser()
    if path.is_dir():
        raise UserError(f"{option}={path} is a folder; name a file: {FORMATS}")
    if not path.is_file():
        siblings = [file.name for file in path.parent.iterdir() if file.is_file()] if path.parent.is_dir() else []
        close = similar(path.name, siblings)
        raise UserError(f"{option}={path} does not exist{close} (looked in {path.parent.resolve()})")
    status = os.stat(path)
    return _read(path, option, tuple(wanted), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)  # splits of one task are asked for again and again
def _read(path: Path, option: str, wanted: tuple[str, ...], changed_ns: int, size: int) -> Table:
    del changed_ns, size  # part of what the answer is kept under
    suffix = stem_suffix(path)
    if suffix in (".jsonl", ".ndjson", ".json"):
        return _json(path, wanted)
    if suffix == ".csv":
        return _csv(path, wanted)
    if suffix == ".tsv":
        return _tsv(path, wanted)
    if suffix == ".parquet":
        return _parquet(path, wanted)
    raise UserError(f"{option}={path} has no ending that tells its format; name it .csv, .tsv, .jsonl or .parquet")


def _csv(path: Path, wanted: tuple[str, ...]) -> Table:
    """Separated by commas; or by semicolons or tabs, as some programs save it, where that finds the columns."""
    first = next(records(path, keep_ends=True), ("", 0))[0]
    headers = {delimiter: next(csv.reader([first], delimiter=delimiter), []) for delimiter in _DELIMITERS}
    found = {delimiter: len(set(wanted) & set(header)) for delimiter, header in headers.items()}
    delimiter = max(_DELIMITERS, key=lambda each: found[each])
    return _separated(path, wanted, delimiter, csv.QUOTE_MINIMAL)


def _tsv(path: Path, wanted: tuple[str, ...]) -> Table:
    """Separated by tabs. Some programs quote in such files and some do not, which the whole file has to tell.

    Where every line is a row of its own, and is not if quotes quote, they do not.
    """
    try:
        plain = _separated(path, wanted, "\t", csv.QUOTE_NONE)
    except _RowError:
        return _separated(path, wanted, "\t", csv.QUOTE_MINIMAL)
    try:
        quoted = _separated(path, wanted, "\t", csv.QUOTE_MINIMAL)
        if len(quoted.rows) == len(plain.rows):
            return quoted
        why = "quoted, lines would run together"
    except _RowError as error:
        why = error.why
    return replace(plain, remarks=(f"{path}: quotes are read as characters of the text ({why})",))


class _RowError(UserError):
    """A row that is not well-formed."""

    def __init__(self, where: str, why: str, way_out: str) -> None:
        super().__init__(f"{where} {why}; {way_out}")
        self.why = f"line {where.rsplit(' ', 1)[-1]} {why}"


def _separated(path: Path, wanted: tuple[str, ...], delimiter: str, quoting: int) -> Table:
    csv.field_size_limit(RECORD_CHARACTERS)
    lines = (line for line, _ in records(path, keep_ends=True))
    # strict: a quote that is never closed would swallow the rest of the file unseen
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    rows: list[Row] = []
    header: list[str] = []
    begins = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        twice = sorted({name for name in wanted if header.count(name) > 1})
        if twice:
            raise UserError(f"{path}: column {twice[0]!r} is there twice; rename one")
        kept = [(name, header.index(name)) for name in wanted if name in header]
        begins = reader.line_num + 1
        for values in reader:
            if values and len(values) != len(header):
                raise _RowError(
                    f"{path}: line {begins}",
                    f"has {len(values)} columns where the header has {len(header)}",
                    "repair the row (a text with a comma or newline needs quotes)",
                )
            if values:
                rows.append(Row(begins, {name: values[at] for name, at in kept}))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise _RowError(
            f"{path}: line {begins}", f"is not CSV ({error})", "repair the row (a quote within quotes is doubled)"
        ) from error
    return Table(str(path), "line", tuple(header), tuple(rows))


def _json(path: Path, wanted: tuple[str, ...]) -> Table:
    """One object a line; or, in a .json file, one list of them."""
    lines = ((number, line) for number, (line, _) in enumerate(records(path, keep_ends=False), 1) if line.strip())
    first = next(lines, None)
    if first is not None and stem_suffix(path) == ".json" and first[1].lstrip().startswith("["):
        return _json_list(path, wanted)
    rows: list[Row] = []
    columns: dict[str, None] = {}
    for number, line in chain([] if first is None else [first], lines):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}); jsonl has one object a line") from error
        rows.append(_object(f"{path}: line {number}", number, record, wanted, columns))
    return Table(str(path), "line", tuple(columns), tuple(rows))


def _json_list(path: Path, wanted: tuple[str, ...]) -> Table:
    try:
        whole = json.loads("".join(chunk.text for chunk in chunks(path)))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); give a list of objects, or one object a line") from error
    columns: dict[str, None] = {}
    rows = tuple(
        _object(f"{path}: row {number}", number, record, wanted, columns) for number, record in enumerate(whole, 1)
    )
    return Table(str(path), "row", tuple(columns), rows)


def _object(where: str, number: int, record: Any, wanted: tuple[str, ...], columns: dict[str, None]) -> Row:
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a JSON object; each row is one, with the columns as keys")
    columns.update(dict.fromkeys(record))
    return Row(number, {name: _whole(record[name]) for name in wanted if name in record})


def _whole(value: Any) -> Any:
    """A text without halves of surrogate pairs, which JSON can spell and which are no characters."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if not value.isascii() else value
    return [_whole(each) for each in value] if isinstance(value, list) else value


def _parquet(path: Path, wanted: tuple[str, ...]) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            kept = [name for name in wanted if name in schema.names]
            values = file.read(columns=kept).to_pylist() if kept else []
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a usable parquet file ({reason}); write it again") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    rows = tuple(Row(number, row) for number, row in enumerate(values, 1))
    return Table(str(path), "row", tuple(schema.names), rows, _class_names(schema.metadata or {}))


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Names of classes that ``datasets`` writes beside columns of class numbers, or of lists of them."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    names: dict[str, tuple[str, ...]] = {}
    for column, feature in features.items():
        inner = feature.get("feature", feature) if isinstance(feature, dict) else {}
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" and inner.get("names"):
            names[column] = tuple(map(str, inner["names"]))
    return names
