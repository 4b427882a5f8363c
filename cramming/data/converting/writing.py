"""Writing the splits of a plan: shard by shard, the index last, and after a kill from the last whole shard on."""

from collections.abc import Sequence
from pathlib import Path

from cramming.data.converting.options import SPLITS
from cramming.data.converting.plan import Plan, PlannedSplit
from cramming.data.converting.target import Journal, Target, Written
from cramming.data.lock import locked
from cramming.errors import UserError
from cramming.progress import ProgressSink
from cramming.remote import join, shown
from cramming.text import quantity


def refuse_occupied(splits: Sequence[str], out: str, data_dir: Path) -> None:
    """Refuse to write where something else is than what was written of these splits so far: before any work.

    Raises:
        UserError: ``out`` has one of them already, or cannot be looked into.
    """
    journal = Journal(data_dir, out)
    for name in splits:
        target = Target(join(out, name))
        if journal.split(name) is None and target.sizes():
            raise UserError(f"{target} has files already; delete it, or choose another out")


def write_plan(plan: Plan, out: str, data_dir: Path, progress: ProgressSink) -> list[str]:
    """Write all splits below ``out``; a line to print about each.

    Raises:
        UserError: ``out`` has one of them already, cannot be written, or a split is empty.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    path = Journal(data_dir, out).path
    with locked(path, progress):
        refuse_occupied([split.name for split in plan.splits], out, data_dir)
        journal = Journal(data_dir, out)  # as whoever held the lock left it
        targets = {split.name: Target(join(out, split.name)) for split in plan.splits}
        _check_others(plan, out)
        for split in plan.splits:
            _check_begun(split, targets[split.name], journal)
        said = [_write(split, targets[split.name], journal, progress) for split in plan.splits]
        journal.close()
    return said


def _check_others(plan: Plan, out: str) -> None:
    """Training and validation splits made of the same documents are made together, or they would overlap."""
    kinds = {SPLITS[split.name][0] for split in plan.splits}
    if len(kinds) == 2 or not plan.draws:
        return
    for name, (validation, _) in SPLITS.items():
        if validation not in kinds and Target(join(out, name)).sizes():
            asked = ", ".join([*(split.name for split in plan.splits), name])
            raise UserError(
                f"out={shown(out)} has the split {name}, made of the same documents; convert both with one command, "
                f"splits=[{asked}], to another out, so that none is in both"
            )


def _check_begun(split: PlannedSplit, target: Target, journal: Journal) -> None:
    """What was begun is the same, and what was written of it is still there; what is not will be written again."""
    there, written = target.sizes(), journal.split(split.name)
    if written is None or (not there and written.identity != split.identity):
        return
    if written.identity != split.identity:
        raise UserError(
            f"{target} was begun with other text or other options; give those again to go on, delete it to start "
            "over, or choose another out"
        )
    for number, entry in enumerate(written.entries):
        file = entry["zip_data"] or entry["raw_data"]
        if there.get(file["basename"]) != file["bytes"]:
            journal.note(split.name, keep=number)  # made again from here on
            return


def _write(split: PlannedSplit, target: Target, journal: Journal, progress: ProgressSink) -> str:
    written = journal.split(split.name)
    if written is None or written.identity != split.identity:
        journal.note(split.name, identity=split.identity)
        written = journal.split(split.name)
    assert written is not None, "just begun"
    if not written.done:
        _write_shards(split, target, journal, written, progress)
        for name, data in split.beside.items():
            target.put(name, data)
        target.put(*split.writer(0).index(written.entries))
        journal.note(split.name, done=True)
    samples = sum(entry["samples"] for entry in written.entries)
    size = sum((entry["zip_data"] or entry["raw_data"])["bytes"] for entry in written.entries)
    return f"{target}: {samples:,} samples in {len(written.entries):,} shards, {quantity(size, 'B')}"


def _write_shards(
    split: PlannedSplit, target: Target, journal: Journal, written: Written, progress: ProgressSink
) -> None:
    samples, limit = split.samples, split.limit
    state = written.states[-1] if written.states else {"next": None}
    if "next" not in state:
        return  # killed between its last shard and its index
    writer = split.writer(len(written.entries))
    count = sum(entry["samples"] for entry in written.entries)
    counted = limit is not None and limit < samples.total
    total, unit = (limit, "samples") if counted else (samples.total, samples.unit)
    progress.stage(f"converting {split.name}", total, unit)
    progress.advance(count if counted else 0.0)
    position = 0.0
    for step in samples.steps(state["next"]) if limit is None or count < limit else ():
        if (full := writer.add(step.sample)) is not None:
            target.put(full.name, full.data)
            journal.note(split.name, entry=full.entry, state={"next": step.state()})
        count += 1
        progress.advance(1.0 if counted else step.position - position)
        position = step.position
        if count == limit:
            break
    if (last := writer.finish()) is not None:
        target.put(last.name, last.data)
        journal.note(split.name, entry=last.entry, state={"end": True})
    progress.done()
    if count == 0:
        raise UserError(
            f"{samples.name} gives no sample for {split.name}: use more text, shorter samples or another val_share"
        )
