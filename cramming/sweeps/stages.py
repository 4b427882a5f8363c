"""A sweep as stages, one after another: the grid of a command line, or the grids and commands of a study.

An experiment may describe a whole study (``config/experiment/study_full.yaml``):

    study:
      irreducible: python -m efficient_training.irreducible budget=12
      baseline: seed=0,1,2 budget=6,12,24
      stacking: method=layer_stacking seed=0,1,2 budget=6,12,24

Each entry is the end of a command line. A grid is a sweep of ``pretrain_bert.py``; ``python -m <module>`` is another
command of the project that takes the same options, for what later grids need. What a person types goes to every entry
and has the last say; ``~study.stacking`` leaves one out.
"""

import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cramming.config import PretrainConfig, check_name
from cramming.errors import UserError
from cramming.sweeps.beside import told_to_stop
from cramming.sweeps.jobs import Job, expand
from cramming.sweeps.launch import Launch
from cramming.sweeps.outcomes import summary_of
from cramming.text import amount


@dataclass(frozen=True)
class Stage:
    """What is done before the next stage begins.

    Attributes:
        label: the entry's name; empty for the one grid of a command line.
        said: what it adds to the command line, for people.
        jobs: runs, in any order and at once.
        command: a module to run instead, with its words.
        config: what the command's words compose.
    """

    label: str
    said: str
    jobs: list[Job] = field(default_factory=list)
    command: tuple[str, ...] = ()
    config: PretrainConfig | None = None

    @property
    def end_s(self) -> float:
        """What all of it takes, in the clock's unit."""
        return sum(job.end_s for job in self.jobs) + (self.config.budget_s if self.config else 0.0)

    def run(self, launch: Launch) -> str | None:
        """Run the command; returns what went wrong. It resumes by itself, or says that it is finished."""
        if launch.cluster is not None:
            assert self.config is not None
            ended = launch.command(str(self.config.name), self.command[0], self.command[1:])
            return None if ended.code == 0 else ended.said
        with subprocess.Popen([sys.executable, "-m", *self.command]) as process, told_to_stop(process.pid):
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the terminal has told it too: it saves
                process.wait()
                raise
        return None if code == 0 else f"`python -m {shlex.join(self.command)}` ended with exit code {code}"

    @property
    def spent_s(self) -> float:
        """What the command has spent before."""
        if self.config is None:
            return 0.0
        summary = summary_of(Path(self.config.base_dir) / str(self.config.name))
        return float(summary["spent_s"]) if summary else 0.0


def stages_of(name: str, study: Mapping[str, Any], launch: Launch) -> list[Stage]:
    """The stages that a command line stands for.

    Args:
        name: the sweep's.
        study: entries of the chosen experiment; none: one grid.
        launch: the command line.

    Raises:
        UserError: an entry that cannot be read, or words that cannot be used.
    """
    if not study:
        return [Stage("", "", [launch.composed(*one) for one in expand(name, launch.words, launch.loader)])]
    stages = []
    for label, line in study.items():
        check_name(str(label))
        try:
            entry = shlex.split(str(line or ""))
        except ValueError as error:
            raise UserError(f"study.{label}: {line!r} is no command line: {error}") from error
        if entry[:2] == ["python", "-m"]:
            stages.append(_command(f"{name}-{label}", str(label), entry[2:], launch))
            continue
        jobs = [launch.composed(*one) for one in expand(name, [*entry, *launch.words], launch.loader, str(label))]
        stages.append(Stage(str(label), " ".join(entry), jobs))
    return stages


def _command(name: str, label: str, entry: Sequence[str], launch: Launch) -> Stage:
    module, *own = entry or [""]
    try:
        known = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError):
        known = None
    if known is None:
        raise UserError(f"study.{label}: there is no module {module!r}")
    # A sweep of the command line is over runs, not over what they share.
    given = [word for word in (*own, *launch.fixed) if not word.startswith(("name=", "~"))]
    given.append(f"name={name}")
    job = launch.composed(name, given)
    if job.config is None:
        raise UserError(f"study.{label}: {job.refused}")
    return Stage(label, " ".join(entry), command=(module, *given, *launch.found_in), config=job.config)


def table(stages: Sequence[Stage], left_s: Mapping[str, float]) -> list[tuple[str, ...]]:
    """A line for each stage: label, runs, what they take, what is left of it, what it adds to the command line."""
    lines: list[tuple[str, ...]] = []
    for stage in stages:
        configs = [stage.config, *(job.config for job in stage.jobs)]
        unit = next((config.rst.unit_s for config in configs if config is not None), 3600)
        whole, left = (cost(seconds, unit) for seconds in (stage.end_s, left_s[stage.label]))
        lines.append((stage.label or "all", str(len(stage.jobs) or 1), whole, left, stage.said))
    return lines


def cost(seconds: float, unit_s: int) -> str:
    """Device-hours, or steps under ``rst=steps``."""
    if unit_s == 1:
        return amount(seconds, "steps")
    hours = seconds / 3600
    return f"{hours:,.{0 if hours >= 100 else 2}f} device-hours" if hours >= 0.1 else f"{hours * 60:.2f} device-minutes"
