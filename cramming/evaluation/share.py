"""``python -m cramming.evaluation.share FOLDER``: a share of a suite's jobs, as a job of a cluster.

``todo.json`` in the folder has the words of the call and the jobs; results go where the call's own would. What is done
is found again, so a share that is requeued does the rest.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cramming.cli import run_command
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.evaluation import plan
from cramming.evaluation.board import Board
from cramming.evaluation.composing import asked
from cramming.evaluation.config import Setting
from cramming.evaluation.here import running_here
from cramming.evaluation.job import Job, Seeds
from cramming.evaluation.live import display_for
from cramming.evaluation.preparing import prepare
from cramming.evaluation.spread import FAILED, TODO, ancestors
from cramming.evaluation.subject import longest, subject_of
from cramming.folder import BUSY
from cramming.interruption import sigterm_stops
from cramming.progress import progress_for
from cramming.recording.strict_json import dumps


def command(argv: Sequence[str]) -> None:
    """Do a share.

    Raises:
        UserError: the checkpoint is another one by now, or its rows cannot be used.
    """
    own = Path(argv[0])
    todo = json.loads((own / TODO).read_text(encoding="utf-8"))
    jobs = {key: job_of(values) for key, values in todo["jobs"].items()}
    if any(key != job.key for key, job in jobs.items()):
        raise UserError("this machine has another version of the project than the one that dealt out the jobs")
    with sigterm_stops(), ExitStack() as stack:
        busy = _busy(todo["mine"], own.parent, stack)
        failed = {key: f"{BUSY} it" for key, job in jobs.items() if busy & {key, *ancestors(job, jobs)}}
        mine = [job for key, job in jobs.items() if key not in failed]
        if mine:
            failed |= _done(mine, todo, own)
    write_atomically(own / FAILED, dumps(failed, indent=1).encode())


def job_of(values: Mapping[str, Any]) -> Job:
    """The job that ``asdict`` described."""
    own = {"setting": Setting(**values["setting"]), "seeds": Seeds(**values["seeds"]), "also": tuple(values["also"])}
    return Job(**{**values, **own})


def _busy(keys: Sequence[str], folder: Path, stack: ExitStack) -> set[str]:
    """Hold jobs; returns those that another share is doing, of an earlier call that was cut off."""
    busy = set(keys)
    for key in keys:
        with suppress(Timeout):
            stack.enter_context(FileLock(folder / f".{key}.lock", timeout=0))
            busy.discard(key)
    return busy


def _done(jobs: Sequence[Job], todo: Mapping[str, Any], own: Path) -> dict[str, str]:
    """Do jobs, parents before their children; reasons of those that failed."""
    call = asked(todo["words"], todo["config_dir"])
    subject = subject_of(call.config)
    if any(job.weights_sha256 != subject.sha256 for job in jobs):
        raise UserError(f"{subject.title} has other weights than when the jobs were dealt out: give the command again")
    wanted = {name for job in jobs for name in (job.task, *job.also)}
    tasks = {name: task for name, task in plan.tasks_needed(call.config, []).items() if name in wanted}
    settings = plan.settings_of(call.config.eval, tasks.values(), partial(longest, subject.weights), call.typed, [])
    assert subject.weights.tokenizer is not None
    made = prepare(call.config, tasks, settings, subject.weights.tokenizer, progress_for())
    display = display_for(own.name, Board(tasks))
    planned = [job.setting for job in jobs]
    with (
        display,
        running_here(
            call.config, subject, suite_dir=own.parents[1], tasks=tasks, made=made, planned=planned,
            trials=0, display=display, on_end=lambda outcome: None, own=own,
        ) as runner,
    ):  # fmt: skip
        outcomes = runner.run(jobs, todo["parents"])
    return {outcome.job.key: outcome.reason for outcome in outcomes if outcome.result is None}


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
