"""What is to be done of a suite's jobs, and what stays of it on the disk, whoever does them.

A job that is done is found again. Models that others begin with stay until those are done, and in the end those that
``save_models`` names. What fails takes what begins with it along, and nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from cramming import faults
from cramming.evaluation import kept
from cramming.evaluation.board import Board, name_of
from cramming.evaluation.job import Job, JobResult
from cramming.evaluation.live import Display
from cramming.evaluation.preparing import Material
from cramming.evaluation.tasks.task import Task
from cramming.evaluation.worker import headline_of, rank


@dataclass(frozen=True)
class Outcome:
    """How a job stands in the end: with a result, or with a reason."""

    job: Job
    result: JobResult | None
    reason: str = ""


@dataclass(kw_only=True)
class Executor(ABC):
    """Does jobs; use it as a context manager.

    Attributes:
        suite_dir: where results go.
        tasks: by name.
        material: encoded rows.
        save_models: which final models stay: all, best (of each task's seeds), none.
        display: shows the board.
        on_end: told of every job that is done, also by an earlier call.
        outcomes: of all jobs that were asked for so far.
    """

    suite_dir: Path
    tasks: Mapping[str, Task]
    material: Material
    save_models: str
    display: Display
    on_end: Callable[[Outcome], None]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _parents: set[str] = field(default_factory=set)
    _children: dict[str, str | None] = field(default_factory=dict)  # of every job the parent

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End what is under way; what is on the disk is whole at every moment."""

    @abstractmethod
    def _do(self, queue: list[Job]) -> None:
        """Do all of the queue, and settle each."""

    @property
    def board(self) -> Board:
        """How all jobs stand."""
        return self.display.board

    def run(self, jobs: Sequence[Job], parents: Collection[str] = ()) -> list[Outcome]:
        """Do what is not done yet.

        Args:
            jobs: parents before their children.
            parents: keys of jobs whose models later calls need.

        Returns:
            How each ended, in the same order.
        """
        self._parents |= {*parents, *(job.parent for job in jobs if job.parent is not None)}
        self._children |= {job.key: job.parent for job in jobs}
        self.board.add(jobs, self.material)
        again = waiting = self._to_do(jobs)
        while waiting:
            self._do([job for job in jobs if job.key in waiting])
            waiting = self._without_model(jobs) - again
            again = again | waiting
            for key in waiting:
                del self.outcomes[key]
        return [self.outcomes[job.key] for job in jobs]

    def finish(self) -> None:
        """Remove the models that nobody needs any more."""
        self._parents = {
            parent
            for key, parent in self._children.items()
            if parent is not None and (key not in self.outcomes or self.outcomes[key].result is None)
        }
        for task in {outcome.job.task for outcome in self.outcomes.values()}:
            self._prune(task)

    def _to_do(self, jobs: Sequence[Job]) -> set[str]:
        """Keys of the jobs that are not done, or whose model is needed and gone."""
        waiting: set[str] = set()
        known = {key for key, outcome in self.outcomes.items() if outcome.result is not None}
        for job in [job for job in jobs if job.key not in known]:
            failure = self.material.failures.get(job.task)
            result = None if failure else kept.result_of(self.suite_dir, job, self.material.sha256(job))
            if failure is not None:
                self._settle(Outcome(job, None, failure))
            elif result is not None:
                self.outcomes[job.key] = Outcome(job, result)
            else:
                waiting.add(job.key)
        for job in reversed(jobs):
            parent = job.parent
            if job.key in waiting and parent is not None and self._has_result(parent) and not self._has_model(parent):
                waiting.add(parent)
        waiting |= self._without_model(jobs, besides=waiting)
        for job in jobs:
            if job.key in self.outcomes and self.outcomes[job.key].result is not None:
                if job.key in waiting:
                    del self.outcomes[job.key]
                elif job.key not in known:
                    self._settle(self.outcomes[job.key], earlier=True)
        return waiting

    def _without_model(self, jobs: Iterable[Job], besides: Collection[str] = ()) -> set[str]:
        """Keys of the jobs that are done and whose model is to stay, but is not there: they are done again."""
        missing: set[str] = set()
        for task in {job.task for job in jobs if job.purpose == "final"}:
            own = [job for job in jobs if job.task == task and job.purpose == "final"]
            if any(job.key in besides for job in own):
                continue  # which is the best is known when all are done
            missing |= {key for key in self._to_stay(task) if self._has_result(key) and not self._has_model(key)}
        return missing & {job.key for job in jobs}

    def _to_stay(self, task: str) -> set[str]:
        """Keys of the task's jobs whose models stay by ``save_models``."""
        done = [o for o in self.outcomes.values() if o.job.task == task and o.job.purpose == "final" and o.result]
        if self.save_models == "none" or not done:
            return set()
        if self.save_models == "all":
            return {outcome.job.key for outcome in done}
        return {max(done, key=lambda outcome: (self._rank(outcome), -outcome.job.seed)).job.key}

    def _rank(self, outcome: Outcome) -> float:
        assert outcome.result is not None
        return rank(headline_of(self.tasks[outcome.job.task], outcome.result))

    def _prune(self, task: str) -> None:
        stay = self._to_stay(task) | self._parents
        for outcome in self.outcomes.values():
            if outcome.job.task == task and outcome.result is not None:
                kept.tidy(self.suite_dir, outcome.job.key, with_model=outcome.job.key in stay)

    def _has_result(self, key: str) -> bool:
        return key in self.outcomes and self.outcomes[key].result is not None

    def _has_model(self, key: str) -> bool:
        return kept.model_of(self.suite_dir, key).is_dir()

    def _fail_orphans(self, queue: list[Job]) -> None:
        """Jobs whose parent failed have nothing to begin with."""
        for job in list(queue):
            parent = None if job.parent is None else self.outcomes.get(job.parent)
            if parent is not None and parent.result is None:
                queue.remove(job)
                self._settle(Outcome(job, None, f"begins with the model of {name_of(parent.job)}, which failed"))

    def _settle(self, outcome: Outcome, earlier: bool = False) -> None:
        """A job is over."""
        key = outcome.job.key
        self.outcomes[key] = outcome
        if earlier and outcome.result is not None:
            self.board.earlier(key, outcome.result)
        else:
            self.board.ends(key, outcome.result, outcome.reason)
            faults.point("job-settled")
        self._prune(outcome.job.task)
        self.on_end(outcome)
        self.display.ended(key)
