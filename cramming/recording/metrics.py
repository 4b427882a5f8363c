"""``metrics.jsonl``: one strict JSON object a line, appended as the run goes and cut back when it resumes."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cramming import faults
from cramming.durable import room_for, write_all, write_atomically
from cramming.recording.strict_json import dumps

logger = logging.getLogger(__name__)

FIELDS = ("step", "progress", "loss", "lr", "spent_s", "elapsed_s", "tokens_per_s")
"""The keys every line has, in this order; null where a value is not known.

``spent_s`` is budget (reference seconds, or steps when the clock counts steps), ``elapsed_s`` wall time over all the
sessions of the run. Lines of a validated step also have ``validation_loss``; methods add keys of their own, of which
``plot`` draws ``layers`` (mean number of active layers) and ``kept_share`` (share of drawn sequences trained on).
"""


class MetricsLog:
    """Appends lines to ``metrics.jsonl``. On resume call ``truncate_after`` before opening it.

    A line torn by a kill is removed on opening, so that the next one does not continue it.

    Raises:
        UserError: the disk is full; the lines before are intact.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _remove_torn_line(path)
        with room_for(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line and hand it to the system, so that it survives the death of this process."""
        faults.point("metrics-append")
        full = {field: row.get(field) for field in FIELDS} | dict(row)
        size = os.fstat(self._descriptor).st_size
        with room_for(self.path):
            try:
                write_all(self._descriptor, dumps(full).encode() + b"\n")
            except OSError:
                os.ftruncate(self._descriptor, size)  # half a line would be worse than none
                raise

    def sync(self) -> None:
        """Make the lines survive a power cut too; call it when a checkpoint is written."""
        with room_for(self.path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; the log cannot be used after that."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Unwritten:
    """The log of ranks that write nothing."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def read(path: Path) -> list[dict[str, Any]]:
    """Every line of a metrics file, in order; an absent file has none.

    A line without its end (the run was killed, or is writing it just now) is left out; any other line that is not a
    JSON object is skipped with a warning that names it.
    """
    return [row for _, row in _lines(path)]


def truncate_after(path: Path, step: int | None) -> None:
    """Keep only the lines up to ``step``, the step of the checkpoint a run resumes from; ``None`` keeps none.

    Lines kept are kept byte for byte. The file is replaced atomically, and not at all if nothing changes.

    Raises:
        UserError: the disk is full; the file is as it was.
    """
    if not path.exists():
        return
    kept = b"".join(
        line for line, row in _lines(path) if step is not None and row.get("step") is not None and row["step"] <= step
    )
    if kept != path.read_bytes():
        write_atomically(path, kept)


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        row = _parsed(line)
        if row is None:
            logger.warning("%s line %d is not a JSON object and is skipped", path, number)
        else:
            found.append((line, row))
    return found


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        # NaN and Infinity are not JSON; a foreign file may have them, and they mean "no value" here.
        row = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _remove_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
