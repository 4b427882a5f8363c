"""``python pretrain_bert.py -m ...``: many runs from one command line, each of them an ordinary run.

All of them are composed before any begins, and what they will cost is said. The same command again goes on where it
was: finished runs are passed over, others resume. A run that fails does not end the others. In the end there is a
table, kept under ``<base_dir>/_sweeps``.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich import box
from rich.table import Table

from cramming.cli import load_schemas
from cramming.config import PretrainConfig, check_name
from cramming.costs import CalibrateConfig, WallClockConfig
from cramming.errors import UserError
from cramming.sweeps import outcomes, stages
from cramming.sweeps.jobs import Job
from cramming.sweeps.launch import Launch, launching
from cramming.sweeps.outcomes import Outcome
from cramming.sweeps.stages import Stage


def sweep(
    words: Sequence[str], job: Callable[[PretrainConfig], None], *, config_dir: str | None = None, dry: bool = False
) -> None:
    """Run every job of a command line.

    Args:
        words: in Hydra's grammar, without flags.
        job: trains one run.
        config_dir: another folder with configuration files.
        dry: only say what would be done, and what it costs.

    Raises:
        UserError: words that cannot be used, before any job; or, in the end, which jobs failed.
    """
    load_schemas()
    with launching(words, config_dir) as launch:
        name = check_name(str(launch.common.name or "default"))
        study: dict[str, Any] = {str(label): line for label, line in launch.common.study.items()}
        plan = stages.stages_of(name, study, launch)
        jobs = [one for stage in plan for one in stage.jobs]
        done = announce(name, plan)
        if dry:
            print("nothing was started: leave --dry out to run it")
            return
        left = len(jobs) - len(done)
        with launch.beside(left):
            ended = [pair for stage in plan for pair in _run_stage(launch, stage, job, done, left)]
        file = tables_file(launch, name)
        with FileLock(file.with_name(f".{name}.lock")):  # the same sweep may end in two processes at once
            outcomes.show(f"sweep {name}", outcomes.rows(ended), file)
    failed = [(one, outcome) for one, outcome in ended if outcome.state == "failed"]
    if failed:
        first = failed[0][1].said
        raise UserError(f"{len(failed)} of {len(ended)} jobs failed, the first with: {first}" if ended[1:] else first)


def announce(name: str, plan: Sequence[Stage]) -> set[str]:
    """Say what a sweep will do and cost; returns the jobs that are finished already.

    Raises:
        UserError: no job of it can be used.
    """
    jobs = [job for stage in plan for job in stage.jobs]
    refused = [job for job in jobs if job.config is None]
    if jobs and len(refused) == len(jobs):
        first = str(refused[0].refused)
        raise UserError(first if len(jobs) == 1 else f"none of the {len(jobs)} jobs can be used, the first: {first}")
    for one in refused:
        print(f"{one.name} cannot be used: {one.refused}")
    done = {job.name for job in jobs if job.config is not None and _over(job)}
    left_s = {
        stage.label: sum(job.end_s for job in stage.jobs if job.name not in done)
        + max(0.0, (stage.config.budget_s if stage.config else 0.0) - stage.spent_s)
        for stage in plan
    }
    unit_s = next((job.config.rst.unit_s for job in jobs if job.config is not None), 3600)
    if len(plan) > 1:
        shown = Table(box=box.ASCII)
        for column in ("part", "runs", "costs", "left", "adds"):
            shown.add_column(column, overflow="fold")
        for line in stages.table(plan, left_s):
            shown.add_row(*line)
        outcomes.print_table(shown)
    whole, left = sum(stage.end_s for stage in plan), sum(left_s.values())
    runs = len(jobs) + sum(bool(stage.command) for stage in plan)
    prices = sorted({job.config.rst.kind for job in jobs if job.config is not None})
    said = f"sweep {name}: {runs} run{'s' * (runs != 1)}, {stages.cost(whole, unit_s)} by rst={','.join(prices)}"
    said += f", {len(done)} of them finished" if done else ""
    said += f", {stages.cost(left, unit_s)} left" if left < whole else ""
    print(f"{said}; validation comes on top, and accounts that are free", flush=True)
    return done


def _over(job: Job) -> bool:
    assert job.config is not None
    try:
        return outcomes.finished(job.config) is not None
    except UserError:  # said when its turn comes
        return False


def _run_stage(
    launch: Launch, stage: Stage, job: Callable[[PretrainConfig], None], done: set[str], total: int
) -> list[tuple[Job, Outcome]]:
    """Everything of a stage; what failed is said, and does not end the sweep."""
    if stage.command:
        print(f"{stage.label}: python -m {shlex.join(stage.command)}", flush=True)
        said = stage.run(launch)
        assert stage.config is not None
        named = Job(str(stage.config.name), stage.command, stage.config)
        return [(named, Outcome("trained") if said is None else Outcome("failed", said))]
    return run_jobs(launch, stage.jobs, job, done, total)


def run_jobs(
    launch: Launch, jobs: Sequence[Job], job: Callable[[PretrainConfig], None], done: set[str], total: int
) -> list[tuple[Job, Outcome]]:
    """Run the jobs that are neither refused nor done; every job with how it ended.

    Raises:
        UserError: jobs at once under a clock that cannot tell them apart.
    """
    found = {one.name: Outcome("failed", str(one.refused)) for one in jobs if one.config is None}
    found |= {name: Outcome("finished before") for name in done}
    left = [one for one in jobs if one.name not in found]
    for one in jobs:
        if one.name in done:
            print(f"{one.name}: finished before, passed over", flush=True)
    configs = [one.config for one in left if one.config is not None]
    if launch.at_once > 1 and any(isinstance(config.rst, WallClockConfig) for config in configs):
        raise UserError(
            "rst=wallclock pays for the time that passes, and jobs at once slow each other: "
            "leave hydra/launcher= out, or use another rst"
        )
    refresh = any(isinstance(config.rst, CalibrateConfig) and config.rst.refresh for config in configs)
    # Jobs beside each other would spoil it; once for all of them.
    if left and (launch.at_once > 1 or launch.cluster is not None or refresh):
        launch.measure(left)
        left = [replace(one, words=(*one.words, *(["rst.refresh=false"] if refresh else []))) for one in left]
    if left:
        found |= {one.name: outcome for one, outcome in zip(left, launch.run(left, job, total), strict=True)}
    return [(one, found[one.name]) for one in jobs]


def tables_file(launch: Launch, name: str) -> Path:
    """Where a sweep's table is kept."""
    folder = Path(str(launch.common.hydra.sweep.dir))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.md"
