"""What is known of all jobs of a suite at any moment, for whoever shows it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cramming.evaluation.finetune import steps_of
from cramming.evaluation.job import Job, JobResult
from cramming.evaluation.preparing import Material
from cramming.evaluation.tasks.task import Task
from cramming.evaluation.worker import Progress, headline_of

State = Literal["waiting", "running", "done", "earlier", "failed"]


@dataclass
class Standing:
    """Of one job.

    Attributes:
        job: which.
        cost: how much work it is, in tokens trained on.
        state: ``earlier`` is done by an earlier call.
        share: of it that is done.
        score: its newest headline; None: there is none, or it is undefined.
        began_s: when it began, by the board's clock.
        took_s: how long it ran.
        said: why it failed, or the names and values of what came out.
    """

    job: Job
    cost: float
    state: State = "waiting"
    share: float = 0.0
    score: float | None = None
    began_s: float = 0.0
    took_s: float = 0.0
    said: str = ""


class Board:
    """The jobs of a call and how they stand.

    Args:
        tasks: by name.
        now: seconds; for tests.
    """

    def __init__(self, tasks: Mapping[str, Task], now: Callable[[], float] = time.monotonic) -> None:
        self.tasks, self.now = tasks, now
        self.jobs: dict[str, Standing] = {}
        self._began_s: float | None = None

    def add(self, jobs: Sequence[Job], material: Material) -> None:
        """Jobs that are to be done."""
        for job in jobs:
            self.jobs.setdefault(job.key, Standing(job, cost_of(job, material)))

    def earlier(self, key: str, result: JobResult) -> None:
        """A job that an earlier call did."""
        self._result(key, result, "earlier")

    def begins(self, key: str) -> None:
        """A worker has it."""
        standing = self.jobs[key]
        standing.state, standing.share, standing.began_s = "running", 0.0, self.now()
        self._began_s = standing.began_s if self._began_s is None else self._began_s

    def moves(self, progress: Progress) -> None:
        """A worker says how far it is."""
        standing = self.jobs[progress.key]
        standing.share = progress.step / max(1, progress.steps)
        standing.score = progress.score

    def ends(self, key: str, result: JobResult | None, reason: str = "") -> None:
        """It is done, or failed."""
        standing = self.jobs[key]
        standing.took_s = self.now() - standing.began_s if standing.state == "running" else 0.0
        if result is None:
            standing.state, standing.said = "failed", reason
        else:
            self._result(key, result, "done")

    def _result(self, key: str, result: JobResult, state: State) -> None:
        standing = self.jobs[key]
        standing.state, standing.share = state, 1.0
        task = self.tasks[standing.job.task]
        standing.score = headline_of(task, result)
        value = "undefined" if standing.score is None else f"{standing.score:.4f}"
        standing.said = f"{task.outcome(task.metrics[0], task.evaluated[0])} {value}"

    def count(self, *states: State) -> int:
        """Jobs in these states."""
        return sum(standing.state in states for standing in self.jobs.values())

    @property
    def ended(self) -> int:
        """Jobs that nobody waits for any more."""
        return self.count("done", "earlier", "failed")

    @property
    def left_s(self) -> float | None:
        """Seconds until the last job is done, at the pace of this call so far; None: nobody knows yet."""
        here = [standing for standing in self.jobs.values() if standing.state in ("done", "running")]
        done = sum(standing.cost * standing.share for standing in here)
        left = sum(s.cost * (1 - s.share) for s in self.jobs.values() if s.state in ("waiting", "running"))
        if self._began_s is None or done <= 0:
            return None
        return left / done * (self.now() - self._began_s)


def name_of(job: Job) -> str:
    """What a job is called on the screen."""
    if job.purpose == "final":
        return f"{job.task}, seed {job.seed}"
    setting = job.setting
    return f"{job.task}, trial lr={setting.lr:g} batch_size={setting.batch_size} epochs={setting.epochs:g}"


def cost_of(job: Job, material: Material) -> float:
    """Tokens a job trains on; 0 where its rows cannot be used."""
    train = material.splits.get(job.task, {}).get("train")
    if train is None or not len(train):
        return 0.0
    examples = max(1, int(len(train) * job.train_share))
    return steps_of(job.setting, examples)[1] * job.setting.batch_size * len(train.tokens) / len(train)
