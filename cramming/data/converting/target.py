"""Where shards are written: a folder, or any storage fsspec knows; and what was written so far, so that a killed
conversion goes on behind its last shard.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cramming import faults
from cramming.data.fingerprint import fingerprint
from cramming.data.streaming.fetching import Patience
from cramming.durable import room_for, write_file
from cramming.errors import UserError
from cramming.remote import explained, filesystem, join, local_path, shown


class Target:
    """The folder of one split.

    Args:
        address: of the folder; made when the first file is put there.
        patience: asks a storage again after what passes.
    """

    def __init__(self, address: str, patience: Patience | None = None) -> None:
        self.address = address
        self._patience = patience or Patience()

    def __str__(self) -> str:
        return shown(self.address)

    def sizes(self) -> dict[str, int]:
        """The files that are there, with their bytes; hidden ones are none of ours to judge.

        Raises:
            UserError: the place cannot be looked into.
        """
        folder = local_path(self.address)
        if folder is not None:
            try:
                files = [path for path in folder.iterdir() if not path.name.startswith(".")]
                return {path.name: path.stat().st_size for path in files}
            except FileNotFoundError:
                return {}
            except OSError as error:
                raise UserError(f"out={folder} cannot be read: {error.strerror}; choose another folder") from error
        with explained(self.address):
            fs, path = filesystem(self.address)
            try:
                listed = self._patience.ask(lambda: fs.ls(path, detail=True))
            except FileNotFoundError:
                return {}
            found = {str(one["name"]).rstrip("/").rpartition("/")[2]: int(one["size"] or 0) for one in listed}
            found.pop(path.rstrip("/").rpartition("/")[2], None)  # some storages list the folder itself
            return found

    def put(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            UserError: the place cannot be written, or is full.
        """
        folder = local_path(self.address)
        if folder is None:
            with explained(self.address):
                fs, path = filesystem(join(self.address, name))
                self._patience.ask(lambda: fs.pipe_file(path, data))
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_file(folder / name, [data], "index" if name.endswith(".json") else "shard")
        except OSError as error:
            raise UserError(f"out={folder} cannot be written: {error.strerror}; choose another folder") from error


@dataclass
class Written:
    """What of a split is written."""

    identity: str  # of the samples and of how they are written
    entries: list[Mapping[str, Any]] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)  # behind each shard: {"next": where the next one begins} or {"end"}
    done: bool = False


class Journal:
    """What was written so far of all splits, as lines of JSON: a line that was not finished counts for nothing.

    Args:
        data_dir: keeps it until all is written.
        out: where the splits are written.
    """

    def __init__(self, data_dir: Path, out: str) -> None:
        here = local_path(out)
        self.path = data_dir / f"convert-{fingerprint('convert', out if here is None else str(here.resolve()))}.jsonl"
        self._splits: dict[str, Written] = {}
        good = b""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            content = b""
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            self._take(json.loads(line))
            good += line
        if good != content:
            write_file(self.path, [good], "journal")

    def split(self, name: str) -> Written | None:
        """What was written of a split; None: nothing was begun."""
        return self._splits.get(name)

    def note(self, split: str, **facts: Any) -> None:
        """Keep what happened: ``identity`` begins a split, ``entry`` and ``state`` are a shard, ``done`` ends it.

        ``keep`` forgets all but the first so many shards.

        Raises:
            UserError: the disk is full.
        """
        line = {"split": split, **facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with room_for(self.path), open(self.path, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line)
        faults.point("journal-written")

    def close(self) -> None:
        """All is written: nothing has to go on."""
        self.path.unlink(missing_ok=True)

    def _take(self, line: Mapping[str, Any]) -> None:
        if "identity" in line:
            self._splits[line["split"]] = Written(line["identity"])
            return
        written = self._splits[line["split"]]
        if "keep" in line:
            del written.entries[line["keep"] :], written.states[line["keep"] :]
            written.done = False
        if "entry" in line:
            written.entries.append(line["entry"])
            written.states.append(line["state"])
        written.done = written.done or "done" in line
