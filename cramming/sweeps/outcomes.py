"""What becomes of the jobs of a sweep: attempted where a launcher put them, and told in a table."""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from cramming import checkpoint, folder
from cramming.cli import load_schemas
from cramming.config import PretrainConfig, typed
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.resolve import jobs_at_once
from cramming.sweeps.beside import taking_part
from cramming.sweeps.cluster import Ended
from cramming.sweeps.jobs import Job
from cramming.text import Unit, amount, number

State = Literal["trained", "finished before", "at work elsewhere", "failed", "stopped"]
_COLUMNS = ("run", "steps", "validation loss", "spent", "how it ended")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a job ended; ``said`` is what there is to say of it, the reason if it failed."""

    state: State
    said: str = ""


def attempt(job: Callable[[PretrainConfig], None], total: int, composed: DictConfig) -> Outcome:
    """Run one job of a sweep, in whatever process the launcher chose. Nothing of it ends the other jobs.

    Args:
        job: what to do with a configuration.
        total: jobs in the sweep.
        composed: the job's tree.
    """
    from hydra.core.hydra_config import HydraConfig

    name, place = str(composed.name), f"{HydraConfig.get().job.num + 1} of {total}"
    try:
        load_schemas()  # this process may be a new one
        config = typed(composed)
        summary = finished(config)
        if summary is not None:
            said = f"finished before, validation loss {number(summary['validation_loss'], '.4f')}"
            print(f"{place}, {name}: {said}", flush=True)
            return Outcome("finished before")
        with ExitStack() as stack:
            if not stack.enter_context(taking_part()):
                return Outcome("stopped")
            print(f"{place}, {name}: begins", flush=True)
            if jobs_at_once() > 1:  # lines of several runs through each other help nobody; each has its run.log
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            job(config)
        if jobs_at_once() > 1:
            print(f"{place}, {name}: ends", flush=True)
        return Outcome("trained")
    except KeyboardInterrupt:
        if jobs_at_once() == 1:
            raise
        return Outcome("stopped")  # the process that started this one says so
    except folder.BusyError as error:  # the same sweep, started twice, shares its jobs
        print(f"{place}, {name}: {error}", file=sys.stderr, flush=True)
        return Outcome("at work elsewhere")
    except Exception as error:
        _log.error("job %s: %s", name, error, exc_info=not isinstance(error, UserError))
        return Outcome("failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")


def outcome_of(ended: Ended) -> Outcome:
    """What became of a job that ran on a cluster, as the command line that it was."""
    if ended.code == 0:
        return Outcome("trained")
    if ended.stopped:
        return Outcome("stopped")
    if ended.said.startswith(folder.BUSY):
        return Outcome("at work elsewhere")
    return Outcome("failed", ended.said)


def finished(config: PretrainConfig) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do, told from its folder alone; None: it is to be trained.

    Raises:
        UserError: a run of that name was trained with other options.
    """
    run_dir = Path(config.base_dir) / str(config.name)
    summary = summary_of(run_dir)
    if summary is None or not config.resume:
        return None
    folder.check_same(config, run_dir)
    saved = checkpoint.checkpoints(run_dir / "checkpoints")
    if not saved or saved[-1].step != summary["steps"]:
        return None  # it has gone on since
    end_s = min(config.budget_s, config.stop_at_s or config.budget_s)
    over = summary["spent_s"] >= end_s or str(summary.get("end_reason")).startswith("early stop")
    return summary if over else None


def summary_of(run_dir: Path) -> dict[str, Any] | None:
    """A run's ``summary.json``; None if there is none that can be read."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        return summary if {"steps", "spent_s", "validation_loss"} <= summary.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def rows(jobs: Sequence[tuple[Job, Outcome]]) -> list[tuple[str, ...]]:
    """A line of the table for each job."""
    found: list[tuple[str, ...]] = []
    for job, outcome in jobs:
        summary = summary_of(job.run_dir) if outcome.state in ("trained", "finished before") else None
        if summary is None:
            said = f"{outcome.state}: {outcome.said}" if outcome.said else outcome.state
            found.append((job.name, "-", "-", "-", said))
            continue
        unit: Unit = summary.get("unit", "s")
        steps, loss = number(summary["steps"], ",d"), number(summary["validation_loss"], ".4f")
        found.append((job.name, steps, loss, amount(summary["spent_s"], unit), str(summary.get("end_reason", "-"))))
    return found


def show(title: str, lines: Sequence[tuple[str, ...]], file: Path, columns: Sequence[str] = _COLUMNS) -> None:
    """Print a table and keep it as Markdown, replacing an earlier one."""
    table = Table(title=title, title_justify="left", title_style="", box=box.ASCII)
    right = [0 < place < len(columns) - 1 for place in range(len(columns))]
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if right[place] else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    print_table(table)
    marks = ["---:" if right[place] else "---" for place in range(len(columns))]
    cells = [columns, marks, *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, f"# {title}\n\n{text}\n".encode())
    print(f"the table: {file}")


def print_table(table: Table) -> None:
    """On a terminal as wide as that is, elsewhere as wide as it takes for names to stay whole."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 240
    console.print(table)
