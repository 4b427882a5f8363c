"""Jobs in parallel over a machine's devices, each in a process that outlives none of the others' mistakes.

Every result is on the disk the moment its job ends. A job that fails, or whose process is killed, is named with its
reason, and the others go on. What begins with another task's model begins as soon as that is there.
"""

import multiprocessing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

from cramming import faults
from cramming.evaluation import kept
from cramming.evaluation.board import Board, name_of
from cramming.evaluation.job import Job, JobResult
from cramming.evaluation.live import Display
from cramming.evaluation.means import Means, shortage
from cramming.evaluation.preparing import Material
from cramming.evaluation.tasks.task import Task
from cramming.evaluation.worker import LOG, Ended, Order, Progress, Shared, headline_of, rank, serve

START = "spawn"  # a fork would take over threads and, on a GPU, a context that does not survive it
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a job stands in the end: with a result, or with a reason."""

    job: Job
    result: JobResult | None
    reason: str = ""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    order: Order | None = None
    peak: float = 0.0


@dataclass
class Runner:
    """Runs jobs; use it as a context manager, which ends its processes.

    Attributes:
        shared: what all jobs have in common.
        tasks: by name.
        material: encoded rows.
        means: devices, jobs at a time.
        save_models: which final models stay: all, best (of each task's seeds), none.
        need: bytes a job takes, as far as is known before one ran.
        display: shows the board.
        on_end: told of every job that is done, also by an earlier call.
        outcomes: of all jobs that were asked for so far.
    """

    shared: Shared
    tasks: Mapping[str, Task]
    material: Material
    means: Means
    save_models: str
    need: float
    display: Display
    on_end: Callable[[Outcome], None]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    _workers: list[_Worker] = field(default_factory=list)
    _parents: set[str] = field(default_factory=set)
    _children: dict[str, str | None] = field(default_factory=dict)  # of every job the parent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in list(self._workers):
            worker.process.kill()  # what is on the disk is whole at every moment
            self._remove(worker)

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

    def _do(self, queue: list[Job]) -> None:
        """All of the queue."""
        while queue or any(worker.order for worker in self._workers):
            self._fail_orphans(queue)
            self._hand_out(queue)
            assert not queue or any(worker.order for worker in self._workers), "a job waits for one that nobody does"
            self._listen()

    def _to_do(self, jobs: Sequence[Job]) -> set[str]:
        """Keys of the jobs that are not done, or whose model is needed and gone."""
        waiting: set[str] = set()
        known = {key for key, outcome in self.outcomes.items() if outcome.result is not None}
        for job in [job for job in jobs if job.key not in known]:
            failure = self.material.failures.get(job.task)
            result = None if failure else kept.result_of(self.shared.suite_dir, job, self.material.sha256(job))
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
                kept.tidy(self.shared.suite_dir, outcome.job.key, with_model=outcome.job.key in stay)

    def _has_result(self, key: str) -> bool:
        return key in self.outcomes and self.outcomes[key].result is not None

    def _has_model(self, key: str) -> bool:
        return kept.model_of(self.shared.suite_dir, key).is_dir()

    def _fail_orphans(self, queue: list[Job]) -> None:
        """Jobs whose parent failed have nothing to begin with."""
        for job in list(queue):
            parent = None if job.parent is None else self.outcomes.get(job.parent)
            if parent is not None and parent.result is None:
                queue.remove(job)
                self._settle(Outcome(job, None, f"begins with the model of {name_of(parent.job)}, which failed"))

    def _hand_out(self, queue: list[Job]) -> None:
        """Give every free worker a job, the longest first; start workers as far as there is room."""
        ready = [job for job in queue if job.parent is None or self._has_result(job.parent)]
        ready.sort(key=lambda job: (-self._path(job), job.key))
        for job in ready:
            worker = self._free_worker() or self._new_worker()
            if worker is None:
                return
            queue.remove(job)
            worker.order = Order(job, self.tasks[job.task], self.material.folders(job), self._keeps(job))
            self.board.begins(job.key)
            self.display.update()
            worker.connection.send(worker.order)

    def _path(self, job: Job) -> float:
        """The work of a job and of what waits for it."""
        after = [self._path(s.job) for s in self.board.jobs.values() if s.job.parent == job.key]
        return self.board.jobs[job.key].cost + max(after, default=0.0)

    def _keeps(self, job: Job) -> bool:
        """Whether a job's model is put on the disk; ``_prune`` removes it if a better one comes."""
        return job.key in self._parents or (self.save_models != "none" and job.purpose == "final")

    def _free_worker(self) -> _Worker | None:
        for worker in [worker for worker in self._workers if worker.order is None]:
            if worker.process.is_alive():
                return worker
            self._remove(worker)
        return None

    def _new_worker(self) -> _Worker | None:
        """One more process; None: there are as many as there may be, or memory does not suffice for more."""
        if len(self._workers) >= self.means.jobs:
            return None
        if self._workers and self.means.device == "cpu":
            measured = max(worker.peak for worker in self._workers)
            unknown = sum(not worker.peak for worker in self._workers)  # they have not taken theirs yet
            short = shortage((measured or self.need) * (1 + unknown))
            if short is not None:
                self.display.note_once(f"fewer jobs at a time: {short}")
                return None
        context = multiprocessing.get_context(START)
        ours, theirs = context.Pipe()
        busy = {worker.process.name for worker in self._workers}
        place = next(number for number in range(self.means.jobs) if f"job-{number}" not in busy)
        process = context.Process(  # type: ignore[attr-defined]
            target=serve, args=(theirs, self.shared, self.means.place(place)), name=f"job-{place}", daemon=True
        )
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]

    def _listen(self) -> None:
        """Wait for a word of a worker, or for the end of one."""
        busy = {worker.connection: worker for worker in self._workers if worker.order is not None}
        for connection in wait(list(busy), timeout=_LOOK_EVERY_S):
            worker = busy[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self._died(worker)
                continue
            if isinstance(message, Progress):
                worker.peak = message.memory
                self.board.moves(message)
            else:
                assert isinstance(message, Ended)
                self._ended(worker, message)
        self.display.update()

    def _ended(self, worker: _Worker, message: Ended) -> None:
        order, worker.order = worker.order, None
        assert order is not None
        reason = message.reason
        if message.trace:
            reason += f" (see {kept.write_error(self.shared.suite_dir, message.key, message.trace)})"
            self._remove(worker)
        self._settle(Outcome(order.job, message.result, reason))

    def _died(self, worker: _Worker) -> None:
        order, worker.order = worker.order, None
        assert order is not None
        self._remove(worker)
        code = worker.process.exitcode or 0
        how = f"was killed by signal {-code}, out of memory perhaps" if code < 0 else f"ended with code {code}"
        log = self.shared.suite_dir / LOG
        where = f" (see {log})" if log.is_file() and log.stat().st_size else ""
        self._settle(Outcome(order.job, None, f"its process {how}{where}"))

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join()

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
