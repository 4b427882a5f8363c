"""Jobs in parallel over a machine's devices, each in a process that outlives none of the others' mistakes.

Every result is on the disk the moment its job ends. A job that fails, or whose process is killed, is named with its
reason, and the others go on. What begins with another task's model begins as soon as that is there.
"""

import multiprocessing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType

from cramming.evaluation import kept
from cramming.evaluation.executor import Executor, Outcome
from cramming.evaluation.job import Job
from cramming.evaluation.means import Means, shortage
from cramming.evaluation.worker import LOG, Ended, Order, Progress, Shared, serve

START = "spawn"  # a fork would take over threads and, on a GPU, a context that does not survive it
_LOOK_EVERY_S = 0.5


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    order: Order | None = None
    peak: float = 0.0


@dataclass(kw_only=True)
class Runner(Executor):
    """Runs jobs in processes of this machine, and ends them with itself.

    Attributes:
        shared: what all jobs have in common.
        means: devices, jobs at a time.
        need: bytes a job takes, as far as is known before one ran.
    """

    shared: Shared
    means: Means
    need: float
    _workers: list[_Worker] = field(default_factory=list)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in list(self._workers):
            worker.process.kill()  # what is on the disk is whole at every moment
            self._remove(worker)

    def _do(self, queue: list[Job]) -> None:
        """All of the queue."""
        while queue or any(worker.order for worker in self._workers):
            self._fail_orphans(queue)
            self._hand_out(queue)
            assert not queue or any(worker.order for worker in self._workers), "a job waits for one that nobody does"
            self._listen()

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
