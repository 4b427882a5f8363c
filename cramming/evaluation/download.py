"""``python -m cramming.evaluation.download``: every task's rows from the hub, for this machine or one without network.

They come into ``<data_dir>/tasks/<collection>/<task>/<split>.parquet`` beside a manifest of their checksums, and
``eval.py`` reads them there.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cramming.cli import parse, run_command
from cramming.errors import UserError
from cramming.evaluation.rows import hub, parquet
from cramming.evaluation.tasks import registry
from cramming.evaluation.tasks.task import Task
from cramming.progress import ProgressSink, progress_for
from cramming.text import quantity

_USAGE = """\
Fetch the rows of tasks from the Hugging Face hub, with checksums; called again it goes on where it was.

  python -m cramming.evaluation.download                          all of them
  python -m cramming.evaluation.download tasks=[cola,rte]         some
  python -m cramming.evaluation.download collection=superglue     one collection: glue, superglue, choice
  python -m cramming.evaluation.download data_dir=/tmp/x          then copy /tmp/x/tasks to <data_dir>/tasks of a
                                                                  machine without network

Options: tasks, collection, data_dir=<base_dir>/_data, base_dir=outputs"""


@dataclass
class Options:
    """What can be set."""

    tasks: Any = None
    collection: str | None = None
    data_dir: str | None = None
    base_dir: str = "outputs"


def command(argv: list[str]) -> None:
    """Fetch what is asked for.

    Raises:
        UserError: an unknown option or task, no connection, or no room.
    """
    options, words = parse(argv, Options, _USAGE)
    if words:
        raise UserError(f"{words[0]!r} is not an option: give tasks=[cola,rte], or collection=glue")
    data_dir = Path(options.data_dir or f"{options.base_dir}/_data").expanduser()
    download(_wanted(options), data_dir, progress_for())


def _wanted(options: Options) -> list[Task]:
    tasks = registry.of_collection(options.collection) if options.collection else list(registry.TASKS.values())
    if options.tasks is None:
        return tasks
    names = options.tasks.split(",") if isinstance(options.tasks, str) else options.tasks
    chosen = [registry.find(str(name).strip()) for name in names]
    elsewhere = [task.name for task in chosen if task not in tasks]
    if elsewhere:
        raise UserError(f"collection={options.collection} has no task {elsewhere[0]!r}; leave collection= out")
    return chosen


def download(tasks: list[Task], data_dir: Path, progress: ProgressSink) -> None:
    """Fetch tasks that are not here yet; all others are checked against their manifest.

    Raises:
        UserError: no connection, no room, or a file that is damaged.
    """
    missing: list[tuple[Task, hub.Remote, Path]] = []
    for task in tasks:
        folder = hub.folder_of(task, data_dir)
        if hub.is_whole(task, folder):
            known = parquet.manifest(folder) or {"splits": {}}
            for split in known["splits"]:
                parquet.check(task, folder / f"{split}.parquet", known)
            progress.note(f"{task.collection}/{task.name} is here, its checksums are right")
        else:
            missing.append((task, hub.look_up(task, folder), folder))
    if not missing:
        return
    left = sum(remote.size - hub.begun(task, remote, folder) for task, remote, folder in missing)
    data_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(data_dir).free
    if 2 * left > free:  # the files on their way, and in place
        raise UserError(
            f"{quantity(left, 'B')} are to come and need twice that for a while, {data_dir} has {quantity(free, 'B')} "
            "free; set data_dir to a larger disk, or fetch fewer tasks"
        )
    progress.stage("downloading", left, "B")
    for task, remote, folder in missing:
        hub.fetch(task, remote, folder, progress)
        progress.note(f"{task.collection}/{task.name} from {remote.dataset} at commit {remote.commit[:12]}")
    progress.done()


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
