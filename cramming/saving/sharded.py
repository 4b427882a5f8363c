"""Checkpoints that every rank writes its part of, and that any number of ranks reads.

Our own format: torch's pickles what it says about its files. A folder that all ranks see has ``rank-00003-of-00008``
``.safetensors`` of each, ``index.json`` (where the rows of every tensor lie, see ``layout``), ``state.json`` and, last,
the manifest. The main rank makes the folder and gives it its name when all are done, so that a kill of any rank leaves
the checkpoint before it.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from cramming import checkpoint, faults
from cramming.checkpoint import SHARDED, Checkpoint
from cramming.durable import sync
from cramming.errors import UserError
from cramming.saving import files
from cramming.saving.exchange import Exchange
from cramming.saving.files import INDEX, TREE, Parts, rank_file, sha256
from cramming.saving.layout import plan, reading_plan, to_json
from cramming.saving.snapshot import Snapshot
from cramming.saving.tree import unflatten

# Over which ranks the rows of a tensor of a state are spread, by its name and shape; None: every rank has all of it.
Placing = Callable[[str, tuple[int, ...]], DeviceMesh | None]
_log = logging.getLogger(__name__)


def write(
    folder: Path,
    step: int,
    saved: Snapshot,
    about: Mapping[str, Any],
    *,
    keep: int,
    kept_at_h: list[float],
    exchange: Exchange,
) -> Path:
    """``checkpoint.write`` by all ranks, each of which calls it with its own part.

    Raises:
        UserError: a disk is full or not writable, on all ranks; nothing that was saved before is lost.
    """
    temporary, world = folder / f".writing-step={step:08d}", exchange.world

    def prepare() -> None:
        if exchange.main:
            checkpoint.begin(folder, step)

    def write_part() -> dict[str, Any]:
        if not temporary.is_dir():
            raise OSError(f"{temporary} is not there: base_dir must be a folder that all machines share")
        file = temporary / rank_file(exchange.rank, world)
        save_file(dict(saved.tensors), file)
        faults.point("checkpoint-rank")
        sync(file, "checkpoint-rank")
        return {"sha256": sha256(file), "tensors": len(saved.outlines)}

    def finish() -> None:
        if not exchange.main:
            return
        (temporary / INDEX).write_text(json.dumps(to_json(plan(saved.outlines, world), world)))
        (temporary / TREE).write_text(json.dumps(saved.tree, allow_nan=False))
        faults.point("checkpoint-state")
        sums = {rank_file(rank, world): part["sha256"] for rank, part in enumerate(parts)}
        sums |= {name: sha256(temporary / name) for name in (INDEX, TREE)}
        manifest = {"format": SHARDED, **about, "sha256": sums}
        checkpoint.complete(folder, step, manifest, keep=keep, kept_at_h=kept_at_h)

    try:
        exchange.done(prepare)
        parts = exchange.done(write_part)
        assert len({part["tensors"] for part in parts}) == 1, "ranks hold different states"
        exchange.done(finish)
    except (OSError, SafetensorError) as error:
        if not exchange.main:
            raise UserError(f"the main rank cannot write a checkpoint: {error}") from error
        raise checkpoint.failed(folder, step, error) from error
    return folder / f"step={step:08d}"


def newest(folder: Path, exchange: Exchange, placing: Placing) -> tuple[Checkpoint, dict[str, Any]] | None:
    """``checkpoint.newest`` on all ranks: the same one for each, of which each reads what it needs.

    Args:
        folder: the run's ``checkpoints`` folder, which all ranks see.
        exchange: the ranks.
        placing: what they share of the state.

    Raises:
        UserError: there are checkpoints but all are damaged, or a rank does not see them.
    """
    steps = exchange.each([found.step for found in checkpoint.checkpoints(folder)])
    if blind := [rank for rank, seen in enumerate(steps) if seen != steps[0]]:
        raise UserError(
            f"rank {blind[0]} does not see the checkpoints that rank 0 sees in {folder}: "
            "base_dir must be a folder that all machines share"
        )
    for found in reversed(checkpoint.checkpoints(folder)):
        try:
            exchange.done(lambda found=found: found.check(exchange.rank, exchange.world))  # type: ignore[misc]
        except (OSError, UserError) as error:
            if exchange.main:
                _log.warning("%s; using the one before it", error)
        else:
            return found, read(found, exchange.rank, exchange.world, placing)
    if steps[0]:
        raise UserError(f"every checkpoint in {folder} is damaged; resume=false starts the run over")
    return None


def read(saved: Checkpoint, rank: int, world: int, placing: Placing) -> dict[str, Any]:
    """The state for one rank, of a checkpoint of any form whose checksums are right: it reads the rows it needs.

    Raises:
        UserError: damaged.
    """
    try:
        parts = Parts(saved.folder)
        meshes = {name: placing(name, entry.outline.shape) for name, entry in parts.index.items()}
        shared = {name: mesh for name, mesh in meshes.items() if mesh is not None}
        tensors: dict[str, Any] = dict(parts.read(reading_plan(parts.index, world, rank, shared)))
        for name, mesh in shared.items():
            shape = torch.Size(parts.index[name].outline.shape)
            stride = [1]
            for size in reversed(shape[1:]):
                stride.insert(0, stride[0] * size)
            tensors[name] = DTensor.from_local(
                tensors[name].to(mesh.device_type), mesh, [Shard(0)], run_check=False, shape=shape, stride=tuple(stride)
            )  # type: ignore[no-untyped-call]
        weights, others = files.weights_and_others(tensors)
        state = unflatten(json.loads((saved.folder / TREE).read_text()), others)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {saved.folder} is damaged: {error}") from error
    assert isinstance(state, dict)
    return state | {"model": weights}


def gather(saved: Checkpoint) -> None:
    """Rewrite a sharded checkpoint as an ordinary one, in its place; a kill leaves the one or the other.

    No more of a tensor than one rank wrote is in memory at a time.

    Raises:
        UserError: damaged, or the disk is full.
    """
    manifest = saved.manifest()
    saved.check()
    folder = saved.folder.parent
    try:
        parts = Parts(saved.folder)
        temporary = checkpoint.begin(folder, saved.step)
        wanted = reading_plan(parts.index, 1, 0)
        outlines = {name: entry.outline for name, entry in parts.index.items()}
        places: dict[str, tuple[Path, int]] = {}
        weights, others = files.weights_and_others(outlines)
        for target, prefix, part in (files.WEIGHTS, files.MODEL, weights), (files.OTHERS, "", others):
            head, starts = files.header(part)
            (temporary / target).write_bytes(head)
            places |= {prefix + name: (temporary / target, start) for name, start in starts.items()}
        parts.copy(wanted, places)
        (temporary / TREE).write_bytes((saved.folder / TREE).read_bytes())
        names = (files.WEIGHTS, files.OTHERS, TREE)
        about = {**manifest, "format": checkpoint.FORMAT, "sha256": {name: sha256(temporary / name) for name in names}}
        everyone = len(checkpoint.checkpoints(folder))
        checkpoint.complete(folder, saved.step, about, keep=everyone, kept_at_h=manifest["kept_at_h"])
    except (OSError, SafetensorError) as error:
        raise checkpoint.failed(folder, saved.step, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {saved.folder} is damaged: {error}") from error
