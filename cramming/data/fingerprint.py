"""Fingerprints: what a result depends on, as one short name.

Files are known by their content. A file's hash is remembered under its path, size and modification time, so that a
second start on the same corpus does not read it all again.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from cramming import progress as progress_
from cramming.data.lock import locked
from cramming.durable import write_atomically
from cramming.errors import UserError

LENGTH = 20  # hexadecimal digits
_READ_BYTES = 1 << 20


def fingerprint(*facts: object) -> str:
    """A short name for JSON values: equal for equal facts, on any machine, for ever."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def file_sha256(path: Path, progress: progress_.ProgressSink | None = None) -> str:
    """The SHA-256 of a file's bytes.

    Raises:
        UserError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
                if progress is not None:
                    progress.advance(len(data))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from error
    return digest.hexdigest()


def content_hashes(files: Sequence[Path], data_dir: Path, progress: progress_.ProgressSink) -> list[str]:
    """The SHA-256 of each file, from memory where path, size and modification time are unchanged."""
    memory = data_dir / "hashes.json"
    known = _remembered(memory)
    keys = []
    for path in files:
        status = os.stat(path)
        keys.append(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}")
    unknown = [(key, path) for key, path in zip(keys, files, strict=True) if key not in known]
    if unknown:
        progress.stage("reading the corpus once for its fingerprint", sum(p.stat().st_size for _, p in unknown), "B")
        new = {key: file_sha256(path, progress) for key, path in unknown}
        progress.done()
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(memory):  # what other processes learned meanwhile stays
            known = _remembered(memory) | new
            write_atomically(memory, json.dumps(known, indent=0).encode())
    return [known[key] for key in keys]


def _remembered(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text())
    except (FileNotFoundError, ValueError):
        known = None
    return known if isinstance(known, dict) else {}  # only a memory: what it forgot is computed again
