"""A process that fine-tunes: it takes a job, says how far it is, puts the result on the disk, and asks for the next."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cramming import faults
from cramming.errors import UserError
from cramming.evaluation import encoding, finetune, kept, saved, scoring
from cramming.evaluation.encoded import Encoded
from cramming.evaluation.finetuned import Start
from cramming.evaluation.job import Job, JobResult
from cramming.evaluation.tasks.task import Task
from cramming.exchange.weights import Weights
from cramming.resolve import compute_exactly

LOG = "workers.log"  # what libraries say in workers: on the screen it would run through the table
_REPORT_EVERY_S = 0.5
_HELD_OUT_SEED = 0  # of the training rows that choose between trials: the same for all


@dataclass(frozen=True)
class Shared:
    """What all jobs of a call have in common.

    Attributes:
        suite_dir: where results go.
        weights: the pretrained model's, its tensors left out.
        tensors: the file they are in.
        untrained: only the architecture is taken from it.
        precision, threads, microbatch_size: how jobs compute.
        rows: which rows there are, as ``kept.write`` keeps it.
    """

    suite_dir: Path
    weights: Weights
    tensors: Path
    untrained: bool
    precision: str
    threads: int
    microbatch_size: int | None
    rows: Mapping[str, Any]


@dataclass(frozen=True)
class Order:
    """One job for a worker.

    Attributes:
        job, task: what to do.
        folders: of the encoded splits.
        keep: whether the final model is put beside the result.
    """

    job: Job
    task: Task
    folders: Mapping[str, Path]
    keep: bool


@dataclass(frozen=True)
class Progress:
    """How far a job is; ``score`` is its newest headline, ``memory`` the most bytes its process took."""

    key: str
    step: int
    steps: int
    score: float | None
    memory: float


@dataclass(frozen=True)
class Ended:
    """How a job ended: with a result that is on the disk, or with a reason."""

    key: str
    result: JobResult | None
    reason: str = ""
    trace: str = ""  # of an error of ours; the process is not used again


def without_tensors(weights: Weights, file: Path) -> Weights:
    """Put a model's tensors in a file for all workers to read; returns the rest."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in weights.state.items()}, file)
    return replace(weights, state={})


def serve(connection: Connection, shared: Shared, device: str) -> None:
    """Do jobs until there are no more; the process's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the command decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_the_command()
    _say_into(shared.suite_dir / LOG)
    torch.set_num_threads(shared.threads)
    compute_exactly(torch.device(device))
    weights = replace(shared.weights, state=load_file(shared.tensors))
    while True:
        try:
            order: Order | None = connection.recv()
        except EOFError:
            return
        if order is None:
            return
        ended = _attempt(order, shared, weights, device, connection)
        connection.send(ended)
        if ended.trace:
            return


def _attempt(order: Order, shared: Shared, weights: Weights, device: str, connection: Connection) -> Ended:
    key = order.job.key
    try:
        return Ended(key, _done(order, shared, weights, device, connection))
    except UserError as error:
        return Ended(key, None, str(error))
    except (BrokenPipeError, ConnectionResetError):  # nobody is there any more
        os._exit(1)
    except Exception as error:
        first = str(error).strip().split("\n", maxsplit=1)[0]
        return Ended(key, None, f"{type(error).__name__}: {first}"[:300], traceback.format_exc())


def _done(order: Order, shared: Shared, weights: Weights, device: str, connection: Connection) -> JobResult:
    """Do a job and put what comes out on the disk."""
    job, task = order.job, order.task
    faults.point("job-begun")
    data = {split: encoding.open_encoded(folder) for split, folder in order.folders.items()}
    whole = {split: encoded.sha256 for split, encoded in data.items()}
    if job.train_share < 1:
        train, held = encoding.split(data["train"], 1 - job.train_share, _HELD_OUT_SEED, task.groups)
        data = {"train": train, task.evaluated[0]: held}
    parent = None if job.parent is None else saved.load(kept.model_of(shared.suite_dir, job.parent)).model.state_dict()
    place = kept.model_of(shared.suite_dir, job.key)
    told = _Told(order, connection, data)
    result = finetune.run(
        job,
        task,
        Start(weights, shared.untrained, parent),
        data,
        device=device,
        precision=shared.precision,
        threads=shared.threads,
        microbatch_size=shared.microbatch_size,
        report=told.report,
        keep=place if order.keep else None,
        score=told.score,
    )
    faults.point("job-trained")
    result = replace(result, data_sha256=whole)
    kept.write(shared.suite_dir, job, result, shared.rows)
    return result


class _Told:
    """What the command is told while a job runs."""

    def __init__(self, order: Order, connection: Connection, data: Mapping[str, Encoded]) -> None:
        self._task, self._key, self._connection = order.task, order.job.key, connection
        self._scored = data.get(order.task.evaluated[0])
        self._score: float | None = None
        self._said_s = 0.0

    def report(self, step: int, steps: int, examples: int) -> None:
        """As ``finetune.run`` calls it."""
        now = time.monotonic()
        if now - self._said_s >= _REPORT_EVERY_S or step == steps:
            self._said_s = now
            self._connection.send(Progress(self._key, step, steps, self._score, peak_bytes()))

    def score(self, task: Task, logits: np.ndarray, encoded: Encoded) -> Mapping[str, float | None]:
        """Scores, of which the newest headline is remembered."""
        scores = scoring.score(task, logits, encoded)
        if encoded is self._scored:
            self._score = scores.get(task.metrics[0])
        return scores


def headline_of(task: Task, result: JobResult) -> float | None:
    """The final score a task is known by; None: undefined."""
    return result.final.scores.get(task.outcome(task.metrics[0], task.evaluated[0]))


def rank(score: float | None) -> float:
    """A score to compare; an undefined one is the worst."""
    return float("-inf") if score is None else score


def peak_bytes() -> float:
    """The most memory that this process took; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _say_into(file: Path) -> None:
    """Send this process's output, that of libraries too, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    where = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(where, 1)
    os.dup2(where, 2)
    os.close(where)


def _end_with_the_command() -> None:
    """End this process when the one that started it is gone, however it ended."""
    parent = parent_process()
    assert parent is not None, "a worker is started by a command"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
