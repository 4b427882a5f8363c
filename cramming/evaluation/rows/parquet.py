"""Parquet files of tasks, under the column names of the Hugging Face datasets; whole ones only.

A folder that ``python -m cramming.evaluation.download`` filled has a manifest with each file's checksum, and what does
not agree with it is not read.
"""

import json
from pathlib import Path
from typing import Any

from cramming.data.fingerprint import file_sha256
from cramming.errors import UserError
from cramming.evaluation.rows.classes import class_of
from cramming.evaluation.tasks.task import Task

MANIFEST = "manifest.json"
COMMAND = "python -m cramming.evaluation.download"


def files_of(folder: Path, split: str) -> list[Path]:
    """The files of a split, in their order: ``train.parquet``, or ``train-00000-of-00002.parquet`` and on."""
    return sorted([*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")])


def read(task: Task, folder: Path, files: list[Path]) -> list[dict[str, Any]]:
    """The rows of files, one after the other.

    Args:
        task: whose rows they are.
        folder: of the files; a manifest in it is heeded.
        files: of one split.

    Raises:
        UserError: a file is not whole, is another than the one that was downloaded, or holds no such columns.
    """
    import pyarrow
    import pyarrow.parquet

    known = manifest(folder)
    if known is not None:
        for file in files:
            check(task, file, known)
    rows: list[dict[str, Any]] = []
    for file in files:
        try:
            read_rows = pyarrow.parquet.read_table(file).to_pylist()
        except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{file} is not a usable parquet file ({reason}); download it again") from error
        for row in read_rows:
            row["label"] = class_of(task, row.get("label"), f"{file}: row {len(rows)}")
            rows.append(row)
    return rows


def manifest(folder: Path) -> dict[str, Any] | None:
    """What was downloaded into a folder; None: nothing was.

    Raises:
        UserError: the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return known if isinstance(known["splits"], dict) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged; delete {folder} and run: {COMMAND} tasks={folder.name}") from error


def check(task: Task, file: Path, known: dict[str, Any]) -> None:
    """Hold a downloaded file against its manifest.

    Raises:
        UserError: it is not in there, or is not what was downloaded.
    """
    told = known["splits"].get(file.stem)
    again = f"delete it and run: {COMMAND} tasks={task.name}"
    if told is None:
        raise UserError(f"{file} is not in {file.parent / MANIFEST}; {again}")
    size = file.stat().st_size
    if size != told["bytes"]:
        raise UserError(f"{file} has {size:,} bytes, {told['bytes']:,} were downloaded: it is not whole; {again}")
    if file_sha256(file) != told["sha256"]:
        raise UserError(f"{file} has another checksum than when it was downloaded: it is damaged; {again}")
