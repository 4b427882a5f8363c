"""Checkpoints: tensors (safetensors) plus JSON, written whole or not at all.

A state is a tree of dicts, lists, tuples, tensors, numbers, strings, booleans and None; any other leaf is refused by
name. A checkpoint is one folder ``step=00000123`` with ``model.safetensors`` (the weights, under the model's own
names), ``state.safetensors`` (every other tensor), ``state.json`` (the rest of the tree) and ``manifest.json``
(checksums, and what to show about it). It is written under a temporary name, synced and renamed, so that a name that
looks like a checkpoint is one; checksums tell a damaged one. Nothing is ever unpickled.
"""

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cramming import faults
from cramming.durable import replace, sync, sync_folder
from cramming.errors import UserError

FORMAT = 1
_FOLDER = re.compile(r"(?:\.replaced-)?step=(\d{8,})")
_FILES = ("model.safetensors", "state.safetensors", "state.json")
_log = logging.getLogger(__name__)


def flatten(state: Any, path: str = "") -> tuple[Any, dict[str, torch.Tensor]]:
    """A state as a JSON value with references, and the tensors they refer to.

    Raises:
        TypeError: a leaf of another type, named by its path.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, torch.Tensor):
            if node.layout is not torch.strided or node.dtype is torch.complex128:  # safetensors knows neither
                raise refused(path, f"{node.layout} tensor of {node.dtype}")
            name = path
            while name in tensors or name == "__metadata__":  # {"a.b": ...} beside {"a": {"b": ...}}; a reserved word
                name += "'"
            # One copy each: safetensors refuses tensors that share memory, and a view would save its whole base.
            tensors[name] = node.detach().to("cpu", copy=True).contiguous()
            return {"$tensor": name}
        if isinstance(node, float) and not math.isfinite(node):
            return {"$float": float.__repr__(node)}  # numpy's float64 is a float with a repr of its own
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        if isinstance(node, Mapping):
            items = [(key, walk(value, f"{path}.{key}" if path else str(key))) for key, value in node.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key in node):
                return dict(items)
            return {"$items": [[walk(key, f"{path}.$key"), value] for key, value in items]}
        if isinstance(node, (list, tuple)):
            values = [walk(value, f"{path}.{index}") for index, value in enumerate(node)]
            return values if isinstance(node, list) else {"$tuple": values}
        raise refused(path, type(node).__name__)

    def refused(path: str, what: str) -> TypeError:
        return TypeError(f"state {path or '(root)'} has type {what}, which a checkpoint cannot hold")

    return walk(state, path), tensors


def unflatten(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The state that ``flatten`` took apart."""
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$float" in tree:
        return float(tree["$float"])
    if "$tuple" in tree:
        return tuple(unflatten(value, tensors) for value in tree["$tuple"])
    if "$items" in tree:
        return {unflatten(key, tensors): unflatten(value, tensors) for key, value in tree["$items"]}
    return {key: unflatten(value, tensors) for key, value in tree.items()}


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

    def manifest(self) -> dict[str, Any]:
        """What it says about itself.

        Raises:
            UserError: damaged.
        """
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text())
            assert isinstance(manifest, dict)
            if manifest["format"] != FORMAT:
                raise UserError(
                    f"checkpoint {self.folder} has format {manifest['format']}; this version reads {FORMAT}"
                )
            if manifest != sealed(manifest):
                raise ValueError("it does not match its checksum")
            return manifest
        except (OSError, ValueError, KeyError, AssertionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"checkpoint {self.folder} is damaged: manifest.json cannot be read ({error})") from error

    def read(self) -> dict[str, Any]:
        """The state, after checking every file's checksum.

        Raises:
            UserError: damaged, with the file named.
        """
        for name, expected in self.manifest()["sha256"].items():
            file = self.folder / name
            if not file.is_file():
                raise UserError(f"checkpoint {self.folder} is damaged: {name} is missing")
            if _sha256(file) != expected:
                raise UserError(f"checkpoint {self.folder} is damaged: {name} does not match its checksum")
        try:
            tensors = load_file(self.folder / "state.safetensors")
            state = unflatten(json.loads((self.folder / "state.json").read_text()), tensors)
            state["model"] = load_file(self.folder / "model.safetensors")
        except (SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"checkpoint {self.folder} is damaged: {error}") from error
        assert isinstance(state, dict)
        return state


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
    tree, tensors = flatten({k: v for k, v in state.items() if k != "model"})
    _, weights = flatten(state["model"])
    final, temporary = folder / f"step={step:08d}", folder / f".writing-step={step:08d}"
    try:
        _clear(folder)
        temporary.mkdir(parents=True)
        save_file(weights, temporary / "model.safetensors")
        faults.point("checkpoint-weights")
        save_file(tensors, temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(tree, allow_nan=False))
        faults.point("checkpoint-state")
        sums = {name: _sha256(temporary / name) for name in _FILES}
        marks = sorted({*kept_at_h, *_kept_at_h(Checkpoint(final))})
        manifest = {"format": FORMAT, "step": step, "kept_at_h": marks, **about, "sha256": sums}
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
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        saved = checkpoints(folder)
        held = f"the last one saved is step={saved[-1].step:08d}" if saved else "none is saved yet"
        raise UserError(
            f"cannot write a checkpoint to {folder}: {error}; {held}. Free some space, then run the same command again"
        ) from error
    return final


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


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
