"""A stage for jobs in processes: the processes are real, their work is not; they write a score that a test chose."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cramming.evaluation import kept
from cramming.evaluation.board import Board
from cramming.evaluation.config import Setting
from cramming.evaluation.executor import Outcome
from cramming.evaluation.job import Evaluation, Job, JobResult, Seeds
from cramming.evaluation.live import PlainLines
from cramming.evaluation.means import Means
from cramming.evaluation.preparing import Material
from cramming.evaluation.runner import Runner
from cramming.evaluation.tasks.registry import TASKS
from cramming.evaluation.worker import Ended, Order, Progress

EXAMPLES = {"cola": 100, "sst2": 400, "rte": 50, "mnli": 1000}


def job(task: str, seed: int = 0, parent: Job | None = None, **options: Any) -> Job:
    """A job whose work is as much as the task has examples."""
    seeds = Seeds(seed, seed, seed)
    return Job(task, Setting(epochs=1), seed, seeds, "w", parent=parent.key if parent else None, **options)


def result_of(job: Job, score: float | None) -> JobResult:
    """What a job with that final score leaves."""
    metric = TASKS[job.task].metrics[0]
    return JobResult(
        key=job.key, task=job.task, seed=job.seed, purpose=job.purpose, setting=asdict(job.setting),
        evaluations=(Evaluation(1, 1.0, 0.5, {metric: score}),), best=0, steps=1, examples=16, stopped_early=False,
        train_loss=0.5, seconds={}, rows={}, data_sha256={"train": f"rows of {job.task}"}, cut={},
        also={name: {} for name in job.also},
    )  # fmt: skip


class Rows(Material):
    """Rows that have a size and a name, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.suffix = ""
        for task, examples in EXAMPLES.items():
            self.splits[task] = {"train": Sized(examples)}  # type: ignore[dict-item]

    def folders(self, job: Job) -> dict[str, Path]:
        return {}

    def sha256(self, job: Job) -> dict[str, str]:
        return {"train": f"rows of {job.task}{self.suffix}"}


class Sized:
    """A split of so many examples of ten tokens."""

    def __init__(self, examples: int) -> None:
        self.examples, self.tokens = examples, range(10 * examples)

    def __len__(self) -> int:
        return self.examples


@dataclass
class Stage:
    """A folder, and what the processes in it are to do.

    Attributes:
        folder: of the results, with a log of what was done.
        scores: by task and seed.
        acts: what happens instead: die, raise, bug.
    """

    folder: Path
    scores: Mapping[tuple[str, int], float | None] = field(default_factory=dict)
    acts: dict[tuple[str, int], str] = field(default_factory=dict)
    rows: Rows = field(default_factory=Rows)
    ended: list[Outcome] = field(default_factory=list)

    def serve(self, connection: Connection, shared: object, device: str) -> None:
        """A worker."""
        while True:
            order: Order | None = connection.recv()
            if order is None:
                return
            job, place = order.job, (order.job.task, order.job.seed)
            parent = job.parent is None or kept.model_of(self.folder, job.parent).is_dir()
            with (self.folder / "log.txt").open("a") as log:
                log.write(f"{job.task} {job.seed} {device} {os.getpid()} {'ready' if parent else 'early'}\n")
            act = self.acts.get(place)
            if act == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if act == "raise":
                connection.send(Ended(job.key, None, "no labels"))
                continue
            if act == "bug":
                connection.send(Ended(job.key, None, "ValueError: oh", "Traceback: oh"))
                return
            connection.send(Progress(job.key, 1, 2, 0.25, 1e6))
            result = result_of(job, self.scores.get(place, 0.5))
            if order.keep:
                kept.model_of(self.folder, job.key).mkdir(parents=True, exist_ok=True)
            kept.write(self.folder, job, result, {})
            connection.send(Ended(job.key, result))

    @contextmanager
    def runner(self, save_models: str = "best", jobs: int = 2, device: str = "cpu") -> Iterator[Runner]:
        """A runner on this stage."""
        display = PlainLines(Board(TASKS))
        means = Means(device, "float32", jobs, 1, None, 1)
        shared: Any = SimpleNamespace(suite_dir=self.folder)
        rows: Any = self.rows
        with Runner(
            suite_dir=self.folder, tasks=TASKS, material=rows, save_models=save_models, display=display,
            on_end=self.ended.append, shared=shared, means=means, need=1.0,
        ) as found:  # fmt: skip
            yield found

    def run(self, jobs: Sequence[Job], save_models: str = "best", at_once: int = 2) -> list[Outcome]:
        """Do jobs from beginning to end."""
        with self.runner(save_models, at_once) as found:
            outcomes = found.run(jobs)
            found.finish()
        return outcomes

    def done(self) -> list[tuple[str, int]]:
        """Jobs in the order in which they were begun, over all calls."""
        file = self.folder / "log.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        assert not any(line.endswith("early") for line in lines), "a job began before its parent's model was there"
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    def models(self) -> set[tuple[str, int]]:
        """Jobs whose models are there."""
        keys = {file.parent.name for file in self.folder.glob("jobs/*/model")}
        return {(key.split("-")[0], int(key.split("=")[1].split("-")[0])) for key in keys}
