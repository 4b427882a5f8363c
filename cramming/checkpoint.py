"""Checkpoints: tensors (safetensors) plus JSON, written whole or not at all.

A state is a tree of dicts, lists, tuples, tensors, numbers, strings, booleans and None; any other leaf is refused by
name. A checkpoint is one folder ``step=00000123`` with ``model.safetensors`` (the weights, under the model's own
names), ``state.safetensors`` (every other tensor), ``state.json`` (the rest of the tree) and ``manifest.json``
(checksums, and what to show about it). One that several ranks wrote has, in place of the two files of tensors, one of
each rank and ``index.json``, which says where the rows of every tensor lie (``cramming/saving/sharded.py``). It is
written under a temporary name, synced and renamed, so that a name that looks like a checkpoint is one; checksums tell a
damaged one. Nothing is ever unpickled.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cramming import faults
from cramming.durable import replace, sync, sync_folder
from cramming.errors import UserError
from cramming.saving import files, snapshot
from cramming.saving.files import INDEX, OTHERS, TREE, WEIGHTS
from cramming.saving.files import sha256 as _sha256
from cramming.saving.layout import reading_plan
from cramming.saving.snapshot import Snapshot
from cramming.saving.tree import flatten, unflatten

__all__ = ["Checkpoint", "checkpoints", "flatten", "newest", "save", "sealed", "select", "unflatten"]

FORMAT, SHARDED = 1, 2
_FOLDER = re.compile(r"(?:\.replaced-)?step=(\d{8,})")
_FILE = re.compile(r"(model|state|rank-\d{5}-of-\d{5})\.safetensors|(state|index)\.json")
_log = logging.getLogger(__name__)


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with the checksum of its own values, so that a damaged one is known too."""
    values = {key: value for key, value in manifest.items() if key != "seal"}
    text = json.dumps(values, sort_keys=True)
    return {**values, "seal": hashlib.sha256(text.encode()).hexdigest()}


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk, not yet read."""

    folder: Path

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.folder.name.rpartition("=")[2])

    @property
    def in_parts(self) -> bool:
        """Whether several ranks wrote it, each its own file."""
        return (self.folder / INDEX).is_file()

    def manifest(self) -> dict[str, Any]:
        """What it says about itself.

        Raises:
            UserError: damaged.
        """
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text())
            assert isinstance(manifest, dict)
            if manifest["format"] not in (FORMAT, SHARDED):
                has = f"checkpoint {self.folder} has format {manifest['format']}"
                raise UserError(f"{has}; this version reads {FORMAT} and {SHARDED}")
            if manifest != sealed(manifest):
                raise ValueError("it does not match its checksum")
            if strange := [name for name in manifest["sha256"] if not _FILE.fullmatch(name)]:
                raise ValueError(f"{strange[0]!r} is no file of a checkpoint")
            return manifest
        except (OSError, ValueError, KeyError, AssertionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"checkpoint {self.folder} is damaged: manifest.json cannot be read ({error})") from error

    def check(self, rank: int = 0, world: int = 1) -> None:
        """Compare files with their checksums: all of them, or this rank's part, so that ranks together read each once.

        Raises:
            UserError: damaged, with the file named.
        """
        for name, expected in list(self.manifest()["sha256"].items())[rank::world]:
            file = self.folder / name
            if not file.is_file():
                raise UserError(f"checkpoint {self.folder} is damaged: {name} is missing")
            if _sha256(file) != expected:
                raise UserError(f"checkpoint {self.folder} is damaged: {name} does not match its checksum")

    def read(self) -> dict[str, Any]:
        """The state, whole, after checking every file's checksum; whoever wrote it.

        Raises:
            UserError: damaged, with the file named.
        """
        self.check()
        try:
            if self.in_parts:
                parts = files.Parts(self.folder)
                tensors = parts.read(reading_plan(parts.index, 1, 0))
                weights, others = files.weights_and_others(tensors)
            else:
                weights, others = load_file(self.folder / WEIGHTS), load_file(self.folder / OTHERS)
            state = unflatten(json.loads((self.folder / TREE).read_text()), others)
            state["model"] = weights
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"checkpoint {self.folder} is damaged: {error}") from error
        assert isinstance(state, dict)
        return state

    def weights_sha256(self) -> str:
        """A checksum of the files that hold the weights."""
        sums = self.manifest()["sha256"]
        if WEIGHTS in sums:
            return str(sums[WEIGHTS])
        return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Every checkpoint in a run's ``checkpoints`` folder, oldest first."""
    # One that was being replaced by a later state of the same step counts where a kill kept that from its place.
    entries = [*folder.glob(".replaced-step=*"), *folder.glob("step=*")]
    found = {c.step: c for c in (Checkpoint(entry) for entry in entries if _FOLDER.fullmatch(entry.name))}
    return [found[step] for step in sorted(found)]


def newest(folder: Path) -> tuple[Checkpoint, dict[str, Any]] | None:
    """The newest checkpoint that is whole, with its state; damaged ones are named in the log and passed over.

    Raises:
        UserError: there are checkpoints but all are damaged.
    """
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        try:
            return checkpoint, checkpoint.read()
        except UserError as error:
            _log.warning("%s; using the one before it", error)
    if found:
        raise UserError(f"every checkpoint in {folder} is damaged; resume=false starts the run over")
    return None


def select(folder: Path, which: str) -> Checkpoint:
    """The checkpoint a person names: ``last``, ``step=4000`` or ``12h`` (as kept by ``impl.keep_at_h``).

    Raises:
        UserError: no such checkpoint; those that exist are listed.
    """
    found = checkpoints(folder)
    if not found:
        raise UserError(f"there is no checkpoint in {folder}: the run has not saved one yet")
    if which == "last":
        return found[-1]
    if match := re.fullmatch(r"step=(\d+)", which):
        matching = [c for c in found if c.step == int(match[1])]
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?)h", which):
        matching = [c for c in found if float(match[1]) in c.manifest().get("kept_at_h", [])]
    else:
        raise UserError(f"checkpoint @{which} is not understood: give @last, @step=4000 or @12h")
    if not matching:
        listed = ", ".join(f"step={c.step}" for c in found)
        raise UserError(f"there is no checkpoint @{which} in {folder}; there are: {listed}")
    return matching[-1]


def save(
    folder: Path, step: int, state: Mapping[str, Any], about: Mapping[str, Any], *, keep: int, kept_at_h: list[float]
) -> Path:
    """Write a checkpoint, then delete the oldest beyond ``keep`` (those kept for an hour mark stay).

    Args:
        folder: the run's ``checkpoints`` folder.
        step: optimizer steps taken.
        state: what to save; ``state["model"]`` must map names to tensors.
        about: JSON values to show beside it, such as the budget spent and the tokenizer's hash.
        keep: how many of the newest to keep.
        kept_at_h: hour marks this one is kept for; empty for an ordinary one. A step saved again keeps its marks.

    Raises:
        UserError: the disk is full or not writable; nothing that was saved before is lost.
    """
    return write(folder, step, snapshot.whole(state), about, keep=keep, kept_at_h=kept_at_h)


def write(
    folder: Path, step: int, saved: Snapshot, about: Mapping[str, Any], *, keep: int, kept_at_h: list[float]
) -> Path:
    """``save`` of a state that was copied before.

    Raises:
        UserError: the disk is full or not writable; nothing that was saved before is lost.
    """
    weights, others = files.weights_and_others(saved.tensors)
    try:
        temporary = begin(folder, step)
        save_file(weights, temporary / WEIGHTS)
        faults.point("checkpoint-weights")
        save_file(others, temporary / OTHERS)
        (temporary / TREE).write_text(json.dumps(saved.tree, allow_nan=False))
        faults.point("checkpoint-state")
        sums = {name: _sha256(temporary / name) for name in (WEIGHTS, OTHERS, TREE)}
        return complete(folder, step, {"format": FORMAT, **about, "sha256": sums}, keep=keep, kept_at_h=kept_at_h)
    except (OSError, SafetensorError) as error:
        raise failed(folder, step, error) from error


def begin(folder: Path, step: int) -> Path:
    """An empty folder to write a checkpoint's files to."""
    _clear(folder)
    temporary = folder / f".writing-step={step:08d}"
    temporary.mkdir(parents=True)
    return temporary


def complete(folder: Path, step: int, about: Mapping[str, Any], *, keep: int, kept_at_h: list[float]) -> Path:
    """Write the manifest of what lies where ``begin`` said, give it its name, and delete what is outdated.

    Raises:
        OSError: the disk is full or not writable.
    """
    final, temporary = folder / f"step={step:08d}", folder / f".writing-step={step:08d}"
    marks = sorted({*kept_at_h, *_kept_at_h(Checkpoint(final))})
    manifest = {"format": about["format"], "step": step, "kept_at_h": marks, **about}
    (temporary / "manifest.json").write_text(json.dumps(sealed(manifest), indent=2))
    for file in temporary.iterdir():
        sync(file, "checkpoint")
    sync_folder(temporary)
    if final.exists():  # the same step saved again, for instance at the end; never a moment without either
        final.rename(folder / f".replaced-{final.name}")
        faults.point("checkpoint-replace")
    replace(temporary, final, "checkpoint")
    faults.point("checkpoint-renamed")
    for outdated in _outdated(folder, keep):
        # Renamed first, so that a kill in the middle of deleting leaves no damaged checkpoint behind.
        outdated.folder.rename(folder / f".old-{outdated.folder.name}")
    _clear(folder)
    faults.point("checkpoint-pruned")
    return final


def failed(folder: Path, step: int, error: Exception) -> UserError:
    """Give up a write, so that its part does not fill the disk further; what to say about it."""
    shutil.rmtree(folder / f".writing-step={step:08d}", ignore_errors=True)
    saved = checkpoints(folder)
    held = f"the last one saved is step={saved[-1].step:08d}" if saved else "none is saved yet"
    return UserError(
        f"cannot write a checkpoint to {folder}: {error}; {held}. Free some space, then run the same command again"
    )


def _clear(folder: Path) -> None:
    """Remove what a killed write left; a replaced checkpoint whose successor is missing goes back to its place."""
    for leftover in folder.glob(".*-step=*"):
        final = folder / leftover.name.removeprefix(".replaced-")
        if leftover.name.startswith(".replaced-") and not final.exists():
            leftover.rename(final)
        else:
            shutil.rmtree(leftover)


def _outdated(folder: Path, keep: int) -> Iterator[Checkpoint]:
    for checkpoint in checkpoints(folder)[:-keep]:
        try:
            kept = checkpoint.manifest().get("kept_at_h")
        except UserError:
            continue  # damaged ones stay for a person to look at
        if not kept:
            yield checkpoint


def _kept_at_h(checkpoint: Checkpoint) -> list[float]:
    """The hour marks of a checkpoint; none where there is none that can be read."""
    try:
        return list(checkpoint.manifest()["kept_at_h"])
    except UserError:
        return []
