"""Documents out of txt, jsonl, csv and parquet files, read as streams in constant memory."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

from cramming.data.sources.files import chunks, stem_suffix
from cramming.data.sources.source import PIECE_CHARACTERS, Assembler, Piece, cut_point, documents_to_pieces
from cramming.errors import UserError

# One record of a jsonl or csv file has to be held whole to be parsed.
RECORD_CHARACTERS = 1 << 24
_PARQUET_ROWS = 64


def read(path: Path, document: str, text_column: str) -> Iterator[Piece]:
    """The documents of one file; the suffix tells the format, and what no format claims is read as plain text.

    Raises:
        UserError: the file is not what its name says, or has no such column.
    """
    suffix = stem_suffix(path)
    if suffix in (".jsonl", ".ndjson", ".json"):
        return documents_to_pieces(_jsonl(path, text_column))
    if suffix in (".csv", ".tsv"):
        return documents_to_pieces(_csv(path, text_column, "\t" if suffix == ".tsv" else ","))
    if suffix == ".parquet":
        return documents_to_pieces(_parquet(path, text_column))
    return _plain(path, document)


def _plain(path: Path, document: str) -> Iterator[Piece]:
    """``line``: one document a line; ``block``: paragraphs between blank lines; ``file``: the whole file."""
    assembler = Assembler()
    position = 0.0
    line_begins = True
    for fragment, ends, position in _lines(path):
        blank = line_begins and ends and (not fragment or fragment.isspace())
        if document == "block" and blank:
            yield from assembler.end(position)
        else:
            yield from assembler.add(fragment + "\n" if ends else fragment, position)
            if document == "line" and ends:
                yield from assembler.end(position)
        line_begins = ends
    yield from assembler.end(position)


def _lines(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Lines in fragments of bounded length: text, whether the line ends with it, position.

    A fragment's end depends on the text before it alone, never on how the file happened to be read.
    """
    rest = ""
    position = 0
    for text, position in chunks(path):
        lines = (rest + text).split("\n")
        rest = lines.pop()
        for line in lines:
            while len(line) > PIECE_CHARACTERS:
                at = cut_point(line)
                yield line[:at], False, position
                line = line[at:]  # noqa: PLW2901
            yield line, True, position
        while len(rest) > PIECE_CHARACTERS:
            at = cut_point(rest)
            yield rest[:at], False, position
            rest = rest[at:]
    if rest:
        yield rest, True, position


def records(path: Path, keep_ends: bool) -> Iterator[tuple[str, int]]:
    """Whole lines with their position; with ``keep_ends`` each keeps its line end, as the csv module wants it."""
    rest = ""
    position = 0
    number = 0
    for text, position in chunks(path, keep_ends):
        lines = (rest + text).split("\n")
        rest = lines.pop()
        for line in lines:
            number += 1
            yield line + "\n" if keep_ends else line, position
        if len(rest) > RECORD_CHARACTERS:
            raise UserError(
                f"{path}: line {number + 1} is longer than {RECORD_CHARACTERS >> 20} M characters; split it"
            )
    if rest:
        yield rest, position


def _jsonl(path: Path, column: str) -> Iterator[tuple[str, float]]:
    for number, (line, position) in enumerate(records(path, keep_ends=False), 1):
        if not line or line.isspace():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error}); jsonl has one object a line") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}: line {number} is not a JSON object; jsonl has one object with the text a line")
        if column not in record:
            raise _missing(path, column, list(record))
        text = record[column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(
                f"{path}: line {number}: {column!r} is {type(text).__name__}, not text; choose data.text_column"
            )
        if "\\u" in line:  # JSON can spell half a surrogate pair, which is no character
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        yield text, position


def _csv(path: Path, column: str, delimiter: str) -> Iterator[tuple[str, float]]:
    position = 0

    def lines() -> Iterator[str]:
        nonlocal position
        for line, position in records(path, keep_ends=True):  # noqa: B007
            yield line

    csv.field_size_limit(RECORD_CHARACTERS)
    reader = csv.reader(lines(), delimiter=delimiter)
    try:
        header = next(reader, None)
        if header is None:
            return
        if column not in header:
            raise _missing(path, column, header)
        index = header.index(column)
        for row in reader:
            if len(row) > index:
                yield row[index], position
            elif row:
                raise UserError(
                    f"{path}: line {reader.line_num} has {len(row)} of {len(header)} columns; repair the row"
                )
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} is not CSV ({error}); repair the row") from error


def _parquet(path: Path, column: str) -> Iterator[tuple[str, float]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise _missing(path, column, names)
            kind = file.schema_arrow.field(column).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(f"{path}: column {column!r} is {kind}, not text; choose data.text_column")
            size = path.stat().st_size
            total = max(1, file.metadata.num_rows)
            seen = 0
            for rows in file.iter_batches(_PARQUET_ROWS, columns=[column], use_threads=False):
                seen += rows.num_rows
                for text in rows.column(0).to_pylist():
                    if text is not None:
                        yield text, size * seen / total
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a usable parquet file ({reason}); write it again") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check its permissions") from error


def _missing(path: Path, column: str, existing: list[str]) -> UserError:
    names = ", ".join(existing) if existing else "none"
    return UserError(
        f"{path} has no column {column!r}; its columns are: {names}; choose one with data.text_column=<name>"
    )
