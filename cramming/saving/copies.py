"""A run's folder at any address: records at its top, checkpoints below, each complete once its manifest is there.

    <address>/config.yaml, metrics.jsonl, tokenizer/..., ...
    <address>/checkpoints/step=00000123-1a2b3c4d/...      the state of step 123; the end is the seal of its manifest

A step that is saved again so becomes another folder, and no file of a checkpoint is ever written over. A folder of a
run that was copied there by other means (``step=00000123``) is read, too.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cramming import checkpoint, faults
from cramming.checkpoint import Checkpoint
from cramming.durable import replace, room_for, sync_folder
from cramming.errors import UserError
from cramming.remote import shown
from cramming.saving.storage import Storage

_CHECKPOINT = re.compile(r"checkpoints/(step=(\d{8,})(?:-([0-9a-f]{8}))?)/([\w.-]+)")
_RECORD = re.compile(r"(?:tokenizer/)?[A-Za-z0-9][\w.,=+-]*")
_MANIFEST = "manifest.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Copy:
    """A complete checkpoint at an address."""

    folder: str  # relative to the address
    step: int
    files: tuple[str, ...]


class Copies:
    """What of a run lies at an address.

    Args:
        address: as typed.

    Raises:
        UserError: no such storage, or its package is not installed.
    """

    def __init__(self, address: str) -> None:
        self.storage = Storage(address)

    def checkpoints(self) -> tuple[list[Copy], list[str]]:
        """Those that are complete, by step, and the files of those that are not."""
        found: dict[str, list[str]] = {}
        steps = {}
        for name in self.storage.files("checkpoints"):
            if match := _CHECKPOINT.fullmatch(name):
                found.setdefault(match[1], []).append(match[4])
                steps[match[1]] = int(match[2])
        whole, partial = [], []
        for name, files in found.items():
            if _MANIFEST in files:
                whole.append(Copy(f"checkpoints/{name}", steps[name], tuple(files)))
            else:
                partial += [f"checkpoints/{name}/{file}" for file in files]
        return sorted(whole, key=lambda copy: (copy.step, copy.folder)), partial

    def records(self) -> list[str]:
        """Files that are no checkpoint's."""
        return [name for name in self.storage.files() if _RECORD.fullmatch(name)]

    def put(self, files: Path, folder: str) -> None:
        """Copy a checkpoint; its manifest comes last, so that it is complete or none."""
        for file in sorted(files.iterdir(), key=lambda file: (file.name == _MANIFEST, file.name)):
            if file.name == _MANIFEST:
                faults.point("mirror-manifest")
            self.storage.put(file, f"{folder}/{file.name}")
            faults.point("mirror-file")

    def drop(self, copies: Iterable[Copy]) -> None:
        """Remove checkpoints; the manifest first, so that none is half there."""
        for copy in copies:
            for file in sorted(copy.files, key=lambda file: file != _MANIFEST):
                self.storage.remove(f"{copy.folder}/{file}")
                faults.point("mirror-drop")
            self.storage.remove_folder(copy.folder)

    def clear(self, partial: Iterable[str]) -> None:
        """Remove files of checkpoints that are not complete, and their folders."""
        files = list(partial)
        for file in files:
            self.storage.remove(file)
        for folder in dict.fromkeys(file.rpartition("/")[0] for file in files):
            self.storage.remove_folder(folder)

    def manifest(self, copy: Copy) -> dict[str, object]:
        """What a checkpoint says about itself, unchecked."""
        said = json.loads(self.storage.read(f"{copy.folder}/{_MANIFEST}"))
        return said if isinstance(said, dict) else {}

    def fetch(self, copy: Copy, run_dir: Path) -> Checkpoint:
        """Copy a checkpoint into a run's folder, where it has its name when its checksums are found right.

        Raises:
            UserError: damaged, or this disk is full.
        """
        folder = run_dir / "checkpoints"
        final = folder / f"step={copy.step:08d}"
        with room_for(final):
            temporary = checkpoint.begin(folder, copy.step)
            for file in copy.files:
                self.storage.get(f"{copy.folder}/{file}", temporary / file)
            found = Checkpoint(temporary)
            try:
                found.check()
                if found.manifest()["step"] != copy.step:
                    raise UserError(f"checkpoint {copy.folder} is damaged: it says it is another step")
            except UserError as error:
                shutil.rmtree(temporary)
                said = str(error).replace(str(temporary), f"{shown(self.storage.address)}/{copy.folder}")
                raise UserError(said) from error
            sync_folder(temporary)
            if final.exists():
                final.rename(folder / f".replaced-{final.name}")
            replace(temporary, final, "fetched")
            shutil.rmtree(folder / f".replaced-{final.name}", ignore_errors=True)
        return Checkpoint(final)

    def fetch_newest(self, run_dir: Path, above: int = -1) -> Checkpoint | None:
        """Copy records, and the newest whole checkpoint beyond a step, into a run's folder.

        Raises:
            UserError: all that are beyond it are damaged, or this disk is full.
        """
        wanted = [copy for copy in self.checkpoints()[0] if copy.step > above]
        if not wanted:
            return None
        self.fetch_records(run_dir)
        for copy in reversed(wanted):
            try:
                return self.fetch(copy, run_dir)
            except UserError as error:
                if "is damaged" not in str(error):
                    raise
                _log.warning("%s; using the one before it", error)
        if above < 0:
            raise UserError(
                f"every checkpoint at {shown(self.storage.address)} is damaged; resume=false starts the run over"
            )
        return None

    def fetch_records(self, run_dir: Path) -> None:
        """Copy what is no checkpoint.

        Raises:
            UserError: this disk is full.
        """
        with room_for(run_dir):
            for name in self.records():
                self.storage.get(name, run_dir / name)
                faults.point("fetched-record")
