"""``rst=...``: what prices the work of a run.

Budgets are hours of reference system time, except under ``rst=steps``, where they count optimizer steps. A table that
prices a run is copied into it as ``rst.json`` before the first step, and from then on that copy is the run's table:
continuing it does not depend on what becomes of the file it came from.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from cramming.calibration import ProbeMaker, Target, calibrate
from cramming.errors import UserError
from cramming.parallel.ranks import here
from cramming.registry import register
from rst.clock import CostModel
from rst.costs import FlopsCost, StepsCost, WallClockCost
from rst.table import CostTable, TableError
from rst.work import Work

RTX3090 = Path(__file__).parents[1] / "rst" / "tables" / "rtx3090.json"
OWN_TABLE = "rst.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What a cost model may need to know of its run.

    Attributes:
        target: architecture, layers, length, precision and optimizer.
        base_dir: shared tables are kept under its ``_rst``.
        run_dir: the run's own folder.
        probes: makes the callables to measure.
        flops: floating-point operations of a piece of work.
        synchronize: waits for the device.
        progress: told how far measuring is, in [0, 1].
        calibrate_command: what a person types to measure a table for this run.
        own_table: what the run's copy of a table is called in its folder.
        subject: what the prices are for, in a message.
    """

    target: Target
    base_dir: Path
    run_dir: Path
    probes: ProbeMaker
    flops: Callable[[Work], float]
    synchronize: Callable[[], None] | None = None
    progress: Callable[[float], None] | None = None
    calibrate_command: str = "python -m cramming.calibrate"
    own_table: str = OWN_TABLE
    subject: str = "this run"


@dataclass
class RstConfig(ABC):
    """A choice of cost model."""

    unit_s: ClassVar[int] = 3600  # what a bare number of the budget counts, in the clock's unit

    kind: str

    @abstractmethod
    def build(self, setting: Setting) -> CostModel:
        """The cost model of a run."""

    def build_other(self, setting: Setting, main: CostModel) -> CostModel:
        """The cost model of another model that the run asks, such as a teacher.

        Args:
            setting: of that model, with a table of its own in the run's folder.
            main: the cost model of the run's own model.
        """
        return self.build(setting)


@dataclass
class TableConfig(RstConfig):
    """A choice of cost table."""

    kind: str
    accept_mismatch: bool = False  # price this run with a table made for another kind of run

    @abstractmethod
    def find(self, setting: Setting) -> CostTable:
        """The table for a run that has none of its own yet."""

    def build(self, setting: Setting) -> CostModel:
        """The run's own table; for a new run, the one ``find`` finds, once it is known to fit.

        Raises:
            UserError: the table is damaged, or does not match the run.
        """
        own = setting.run_dir / setting.own_table
        if own.exists():
            try:
                return CostTable.load(own)
            except TableError as error:
                raise UserError(
                    f"{error}; the run was priced with it: put it back, or start over with resume=false"
                ) from error
        table = self._checked(self.find(setting), setting)
        table.save(own)
        return table

    def _checked(self, table: CostTable, setting: Setting) -> CostTable:
        target = setting.target
        differences = table.differences(target.architecture, target.layers, target.lengths, target.precision)
        if not differences:
            return table
        found = f"{table.origin} does not match {setting.subject}: {'; '.join(differences)}"
        way_out = self._way_out(setting)
        if differences == table.differences(table.provenance.architecture, table.layers, (), target.precision):
            way_out = f"use impl.precision={table.provenance.precisions[-1]}, or rst=calibrate"
        if not self.accept_mismatch:
            raise UserError(f"{found}; {way_out}, or set rst.accept_mismatch=true")
        try:
            for length in target.lengths:
                table.seconds(Work("forward_backward", 1, length, target.layers))
        except TableError as error:
            raise UserError(f"rst.accept_mismatch=true does not help: {error}; {way_out}") from error
        log.warning("%s; accepted because rst.accept_mismatch=true", found)
        notes = (*table.provenance.notes, f"accepted for a run that it does not match: {'; '.join(differences)}")
        return replace(table, provenance=replace(table.provenance, notes=notes))

    def _way_out(self, setting: Setting) -> str:
        return f"use rst=calibrate, or make a table that matches with `{setting.calibrate_command}`"


@register("rst", "calibrate")
@dataclass
class CalibrateConfig(TableConfig):
    """This machine's own table, measured once for each kind of run."""

    kind: str = "calibrate"
    refresh: bool = False  # measure anew, for runs that have no table of their own yet
    within_s: float = 20.0  # about how long to measure

    def find(self, setting: Setting) -> CostTable:
        """The shared table under ``<base_dir>/_rst``, measured if need be."""
        if not self.within_s > 0:
            raise UserError(f"rst.within_s={self.within_s} must be above zero")
        return calibrate(
            setting.target,
            setting.probes,
            base_dir=setting.base_dir,
            refresh=self.refresh,
            within_s=self.within_s,
            synchronize=setting.synchronize,
            progress=setting.progress,
        )


@register("rst", "rtx3090")
@dataclass
class Rtx3090Config(TableConfig):
    """The earlier study's table: 16-layer crammed BERT on an RTX 3090."""

    kind: str = "rtx3090"

    def find(self, setting: Setting) -> CostTable:
        """The table that comes with ``rst``."""
        return CostTable.load(RTX3090)

    def _way_out(self, setting: Setting) -> str:
        return (
            f"use rst=calibrate, or scale the table to this model with `{setting.calibrate_command} "
            "relative_to=rtx3090` and take the result with rst=table"
        )


@register("rst", "table")
@dataclass
class FileConfig(TableConfig):
    """A table from a file."""

    kind: str = "table"
    path: str = ""
    other_path: str = ""  # for another model the run asks, such as a teacher, if it is of another architecture

    def build_other(self, setting: Setting, main: CostModel) -> CostModel:
        """By the table at ``other_path``, or by the run's."""
        return replace(self, path=self.other_path or self.path).build(setting)

    def find(self, setting: Setting) -> CostTable:
        """The table at ``path``."""
        if not self.path:
            raise UserError("rst=table needs a file: rst.path=my_table.json")
        try:
            return CostTable.load(Path(self.path))
        except TableError as error:
            raise UserError(f"rst.path: {error}; make one with `{setting.calibrate_command}`") from error


class _MainWallClock(WallClockCost):
    """The main rank's time on all ranks, so that they end together."""

    def seconds(self, work: Work) -> float:
        """The main rank's seconds."""
        return float(here().told(super().seconds(work)))


@register("rst", "wallclock")
@dataclass
class WallClockConfig(RstConfig):
    """The time that really passes. A resumed run is not exact under it."""

    kind: str = "wallclock"

    def build(self, setting: Setting) -> CostModel:
        """Elapsed seconds between charges."""
        if here().world > 1:
            return _MainWallClock(synchronize=setting.synchronize)
        return WallClockCost(synchronize=setting.synchronize)

    def build_other(self, setting: Setting, main: CostModel) -> CostModel:
        """The same clock: time passes once."""
        return main


@register("rst", "flops")
@dataclass
class FlopsConfig(RstConfig):
    """Analytic floating-point operations over a stated rate."""

    kind: str = "flops"
    flops_per_s: float = 1e13

    def build(self, setting: Setting) -> CostModel:
        """Operations over the rate.

        Raises:
            UserError: a rate that is not positive and finite.
        """
        try:
            return FlopsCost(setting.flops, self.flops_per_s)
        except ValueError as error:
            raise UserError(f"rst.{error}") from error


@register("rst", "steps")
@dataclass
class StepsConfig(RstConfig):
    """One per optimizer step, nothing else: for tests and debugging. Budgets count steps."""

    unit_s: ClassVar[int] = 1

    kind: str = "steps"

    def build(self, setting: Setting) -> CostModel:
        """Steps."""
        return StepsCost()


def build_costs(
    rst_config: RstConfig,
    *,
    target: Target,
    base_dir: Path,
    run_dir: Path,
    probes: ProbeMaker,
    flops: Callable[[Work], float],
    synchronize: Callable[[], None] | None = None,
    progress: Callable[[float], None] | None = None,
    calibrate_command: str = "python -m cramming.calibrate",
) -> dict[str, CostModel]:
    """The cost model of the trained model, under the name ``main``; see ``Setting`` for the arguments.

    Raises:
        UserError: a table that is missing, damaged or made for another kind of run; a machine too busy to measure.
    """
    setting = Setting(
        target=target,
        base_dir=base_dir,
        run_dir=run_dir,
        probes=probes,
        flops=flops,
        synchronize=synchronize,
        progress=progress,
        calibrate_command=calibrate_command,
    )
    return {"main": rst_config.build(setting)}
