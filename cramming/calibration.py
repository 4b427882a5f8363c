"""This machine's cost tables: measured once for each kind of run, then shared by all runs of that kind.

A table lives at ``<base_dir>/_rst/<key>-<optimizer>.json``; the key is a hash of everything that prices of passes
depend on. Whoever comes first measures, behind a lock; everybody else reads, so that runs of one machine are priced
alike. Runs that differ in their optimizer alone share the prices of passes: the second optimizer's update is measured
against a pass and set in proportion. So are the passes over shorter sequences of a run that begins with them: a run
with a curriculum of lengths pays for full ones what a run without it pays.
"""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from cramming.errors import UserError
from rst.calibration import PROTOCOL, CalibrationError, Timing, build_table, measure
from rst.table import Column, CostTable, Provenance, TableError
from rst.work import Work

DISTRIBUTION = "budget-bert"
ROUNDS = 25  # enough timings of each probe for prices within a few percent
ATTEMPTS = 3  # at measuring on a machine that is too busy; each is given twice the time of the one before
log = logging.getLogger(__name__)
P = TypeVar("P", bound=Hashable)

# Makes the callables to time at some lengths, by the work each does; called only when something is measured.
ProbeMaker = Callable[[Collection[int]], Mapping[Work, Callable[[], None]]]


@dataclass(frozen=True)
class Target:
    """What a table is for: an architecture (its fingerprint text), its layers, a length in tokens, and so on.

    ``shorter`` are the lengths a run begins with, if it has a curriculum of lengths.
    """

    architecture: str
    layers: int
    length: int
    precision: str
    optimizer: str
    shorter: tuple[int, ...] = ()

    @property
    def in_short(self) -> str:
        """For people: the fingerprint says more than they want to read while they wait."""
        return f"{self.architecture.split()[0]}, {self.layers} layers, {self.length} tokens, {self.precision}"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Every length that must have prices."""
        return (self.length, *self.shorter)


@dataclass(frozen=True)
class Machine:
    """What a table's numbers depend on besides its target."""

    cpu: str
    cores: int
    threads: int
    gpu: str | None
    software: Mapping[str, str]

    @property
    def device(self) -> str:
        """The device in words."""
        return self.gpu or f"{self.cpu}, {self.threads} threads on {self.cores} cores"


def this_machine() -> Machine:
    """The machine this process runs on, with torch's present number of threads."""
    import torch

    try:
        own = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        own = "not installed"
    return Machine(
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        software={"torch": torch.__version__, DISTRIBUTION: own, "calibration": str(PROTOCOL)},
    )


def table_path(base_dir: Path, target: Target, machine: Machine) -> Path:
    """Where the table of ``target`` on ``machine`` is kept."""
    passes = [target.architecture, target.layers, target.length, target.precision]
    identity = hashlib.sha256(json.dumps([passes, asdict(machine)], sort_keys=True).encode()).hexdigest()[:16]
    return base_dir / "_rst" / f"{identity}-{target.optimizer}.json"


def calibrate(
    target: Target,
    probes: ProbeMaker,
    *,
    base_dir: Path,
    machine: Machine | None = None,
    refresh: bool = False,
    within_s: float = 20.0,
    synchronize: Callable[[], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> CostTable:
    """The shared table for ``target``, measured if there is none; its ``origin`` is the file.

    Args:
        target: what the table is for.
        probes: makes the work to measure, as ``rst.calibration.build_table`` wants it.
        base_dir: the table is kept under its ``_rst``.
        machine: the machine to measure on; None: this one.
        refresh: measure anew even where there is a table.
        within_s: about how long to measure.
        synchronize: waits for the device.
        progress: told the share done, in [0, 1].

    Raises:
        UserError: the table on disk is damaged, or the machine is too busy to be measured.
    """
    machine = this_machine() if machine is None else machine
    path = table_path(base_dir, target, machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = path.name.split("-", maxsplit=1)[0]
    lock = FileLock(path.with_name(f"{identity}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that measures the cost table %s", path)
        lock.acquire()
    try:
        siblings = sorted(path.parent.glob(f"{identity}-*.json"))
        if refresh or not siblings:
            log.info("measuring what this machine takes for %s (about %.0f s)", target.in_short, within_s)
            made = probes([target.length])
            table = measured(made, _builder(target, machine), within_s, synchronize, progress)
            for outdated in siblings:
                outdated.unlink()
            table.save(path)
        elif not path.exists():
            log.info("measuring what an update of %s takes", target.optimizer)
            base = CostTable.load(siblings[0])
            _with_update(
                base,
                probes([target.length]),
                target.optimizer,
                within_s=within_s / 4,
                synchronize=synchronize,
                progress=progress,
            ).save(path)
        table = CostTable.load(path)
        missing = sorted(set(target.shorter) - table.forward.keys())
        if missing:
            log.info("measuring what sequences of %s tokens take", ", ".join(map(str, missing)))
            made = probes([target.length, *missing])
            more = measured(made, _builder(target, machine), within_s, synchronize, progress)
            for sibling in sorted(path.parent.glob(f"{identity}-*.json")):
                with_lengths(CostTable.load(sibling), more, target.length, missing).save(sibling)
        return CostTable.load(path)
    except CalibrationError as error:
        raise UserError(f"rst=calibrate: {error}") from error
    except TableError as error:
        raise UserError(f"{error}; measure anew with rst=calibrate rst.refresh=true") from error
    finally:
        lock.release()


def measured(
    probes: Mapping[P, Callable[[], None]],
    build: Callable[[Mapping[P, Timing]], CostTable],
    within_s: float,
    synchronize: Callable[[], None] | None,
    progress: Callable[[float], None] | None,
) -> CostTable:
    """What ``build`` makes of timings, measured for longer and longer while the machine is too busy for a sensible one.

    Raises:
        CalibrationError, TableError: still none after ``ATTEMPTS``.
    """
    for attempt in range(ATTEMPTS):
        longer_s = within_s * 2**attempt
        timings = measure(
            probes, rounds=ROUNDS * 2**attempt, within_s=longer_s, synchronize=synchronize, progress=progress
        )
        try:
            return build(timings)
        except (CalibrationError, TableError) as error:
            if attempt == ATTEMPTS - 1:
                raise
            log.warning("%s; measuring again, for longer", error)
    raise AssertionError("every attempt returns or raises")


def with_lengths(table: CostTable, more: CostTable, length: int, missing: Collection[int]) -> CostTable:
    """The table with the columns of more lengths, in proportion to the deepest training pass at a length it has.

    Args:
        table: prices that stay as they are.
        more: a table of the same model with the columns of ``length`` and of ``missing``, of one measurement.
        length: what both have.
        missing: what the table has not.
    """
    deepest = Work("forward_backward", 1, length, table.layers)
    factor = table.seconds(deepest) / more.seconds(deepest) * table.sequences / more.sequences

    def joined(columns: Mapping[int, Column], others: Mapping[int, Column]) -> dict[int, Column]:
        return {**columns, **{n: tuple(factor * seconds for seconds in others[n]) for n in missing}}

    words = ", ".join(map(str, sorted(missing)))
    notes = (*table.provenance.notes, f"length {words}: measured against a pass of {length} tokens")
    return replace(
        table,
        forward=joined(table.forward, more.forward),
        forward_backward=joined(table.forward_backward, more.forward_backward),
        provenance=replace(table.provenance, notes=notes),
    )


def _with_update(
    table: CostTable,
    probes: Mapping[Work, Callable[[], None]],
    optimizer: str,
    *,
    within_s: float,
    synchronize: Callable[[], None] | None,
    progress: Callable[[float], None] | None,
) -> CostTable:
    """The table with another optimizer's update, measured in turns with a pass whose price is known."""
    deepest = max((work for work in probes if work.kind == "forward_backward"), key=lambda work: work.layers)
    update = next(work for work in probes if work.kind == "update")
    pair = {work: probes[work] for work in (deepest, update)}
    timings = measure(pair, rounds=ROUNDS, within_s=within_s, synchronize=synchronize, progress=progress)
    update_s = table.seconds(deepest) * timings[update].seconds / timings[deepest].seconds
    notes = (*table.provenance.notes, f"update of {optimizer}: measured against a pass of {deepest.layers} layers")
    return replace(table, update_s=update_s, provenance=replace(table.provenance, notes=notes))


def _builder(target: Target, machine: Machine) -> Callable[[Mapping[Work, Timing]], CostTable]:
    provenance = Provenance(
        device=machine.device,
        architecture=target.architecture,
        precisions=(target.precision,),
        software=machine.software,
        date=datetime.now(UTC).date().isoformat(),
        source="measured by cramming.calibrate",
    )
    return lambda timings: build_table(timings, provenance)


def _cpu_name() -> str:
    """The processor's own name; cloud machines often give a vague one, so family and model go with it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in reversed(lines))
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    known = (facts.get("model name"), *(f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts))
    return ", ".join(part for part in known if part) or platform.machine()
