"""A suite's jobs on a cluster: dealt out in shares, each of which is a command of its own (``share.py``).

A share writes results as every call of ``eval.py`` does, into the same folders; what this process is told is which jobs
failed. A share that dies loses none of the jobs it had done.
"""

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from cramming.durable import write_atomically
from cramming.evaluation import kept
from cramming.evaluation.composing import Asked
from cramming.evaluation.executor import Executor, Outcome
from cramming.evaluation.here import START
from cramming.evaluation.job import Job
from cramming.evaluation.worker import Progress, headline_of
from cramming.recording.strict_json import dumps
from cramming.sweeps import cluster
from cramming.sweeps.cluster import Cluster
from cramming.sweeps.command_line import CommandLine

SHARES = "shares"  # folder under a suite's
TODO, FAILED = "todo.json", "failed.json"  # in a share's
_LOOK_EVERY_S = 2.0


@dataclass(kw_only=True)
class Spread(Executor):
    """Deals jobs to a cluster.

    Attributes:
        call: what was asked for; its words are those of every share.
        name: of the run or checkpoint.
        on: the cluster, entered.
    """

    call: Asked
    name: str
    on: Cluster
    _looked_s: float = 0.0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing runs here."""

    def _do(self, queue: list[Job]) -> None:
        known = {key: standing.job for key, standing in self.board.jobs.items()}
        costs = {key: standing.cost for key, standing in self.board.jobs.items()}
        parts = {self._line(part): part for part in dealt(queue, known, costs, self.on.shares)}
        for job in queue:
            self.board.begins(job.key)
        title = f"{self.name}-{self.suite_dir.name}"

        def over(line: CommandLine, ended: cluster.Ended) -> None:
            self._settle_part(line, parts[line], ended)

        cluster.run(self.on, list(parts), title, over=over, look=lambda: self._look(queue))

    def _line(self, part: Sequence[Job]) -> CommandLine:
        """What does a part, with all that it begins with; written down where it finds it."""
        known = {key: standing.job for key, standing in self.board.jobs.items()}
        keys = {key for job in part for key in (job.key, *ancestors(job, known))}
        jobs = [job for key, job in known.items() if key in keys]
        name = f"share-{hashlib.sha256(' '.join(sorted(keys)).encode()).hexdigest()[:8]}"
        own = (self.suite_dir / SHARES / name).absolute()
        own.mkdir(parents=True, exist_ok=True)
        (own / FAILED).unlink(missing_ok=True)
        words = list(self.call.words)
        if self.call.config.checkpoint is None:  # the run trained last may be another one by then
            words = [*(word for word in words if not word.startswith("name=")), f"name={self.name}"]
        todo = {
            "words": words,
            "config_dir": None if self.call.config_dir is None else str(Path(self.call.config_dir).absolute()),
            "jobs": {job.key: asdict(job) for job in jobs},
            "mine": [job.key for job in part],
            "parents": sorted(self._parents),
        }
        write_atomically(own / TODO, dumps(todo, indent=1).encode())
        command = (sys.executable, "-m", "cramming.evaluation.share", str(own))
        return CommandLine(name, command, str(Path.cwd()), str(own.parent), self.on.cores)

    def _settle_part(self, line: CommandLine, part: Sequence[Job], ended: cluster.Ended) -> None:
        """Take what a share left; nobody works in its jobs' folders any more."""
        own = Path(line.folder) / line.name
        (own / START).unlink(missing_ok=True)  # of a share that was killed
        try:
            failed = json.loads((own / FAILED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            failed = {}
        for job in part:
            result = kept.result_of(self.suite_dir, job, self.material.sha256(job))
            reason = failed.get(job.key) or ended.said or f"{line.name} ended without it; see {line.log}"
            self._settle(Outcome(job, result, "" if result is not None else reason))

    def _look(self, queue: Sequence[Job]) -> None:
        """Show which jobs are there already."""
        if time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return
        for job in queue:
            standing = self.board.jobs[job.key]
            if standing.state != "running" or standing.share == 1:
                continue
            result = kept.result_of(self.suite_dir, job, self.material.sha256(job))
            if result is not None:
                self.board.moves(Progress(job.key, 1, 1, headline_of(self.tasks[job.task], result), 0.0))
        self.display.update()
        self._looked_s = time.monotonic()


def ancestors(job: Job, known: Mapping[str, Job]) -> list[str]:
    """Keys of the jobs whose models a job begins with, directly or not, the nearest first."""
    found: list[str] = []
    while job.parent is not None:
        found.append(job.parent)
        job = known[job.parent]
    return found


def dealt(queue: Sequence[Job], known: Mapping[str, Job], costs: Mapping[str, float], shares: int) -> list[list[Job]]:
    """The jobs in at most so many parts of about the same work; what is to be begun with lies in its children's part.

    Args:
        queue: parents before their children.
        known: these jobs and those they begin with, by key.
        costs: by key.
        shares: how many parts.
    """
    to_do = {job.key for job in queue}
    families: dict[str, list[Job]] = {}
    for job in queue:
        root = next((key for key in reversed(ancestors(job, known)) if key in to_do), job.key)
        families.setdefault(root, []).append(job)
    parts: list[list[Job]] = [[] for _ in range(min(shares, len(families)))]
    loads = [0.0] * len(parts)
    for family in sorted(families.values(), key=lambda family: -sum(costs[job.key] for job in family)):
        place = loads.index(min(loads))
        parts[place] += family
        loads[place] += sum(costs[job.key] for job in family) or 1.0
    return parts
