"""Several ranks as processes of this machine, started once, that train one case after the other and tell what they saw.

Rank r of R writes ``<folder>/<r>.json``: for each job what the run was step by step. All of that but what is said to be
of each rank must be the same on any number of ranks.
"""

import faulthandler
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cramming import checkpoint
from cramming.batch import Batch
from cramming.parallel import ranks
from cramming.parallel.ranks import Ranks, here
from cramming.train import Run, train
from tests.parallel.cases import GRID

Outcome = dict[str, Any]
_CONTEXT = multiprocessing.get_context("forkserver")
MIDDLE = 13  # rounds after which a run is saved
_TOGETHER_S = 1800  # until ranks that hang are killed; nothing is measured
_OPERATION = timedelta(seconds=300)


@dataclass(frozen=True)
class Job:
    """A case from its beginning, or from where another run of it was saved.

    Attributes:
        case: name in ``GRID``.
        key: what the outcome is called.
        save: folder for a checkpoint in the middle.
        resume: folder of the checkpoint to go on from.
        stop_at: spend so much first; the checkpoint is then of that moment, also amid choosing sequences.
        wide: in float64.
    """

    case: str
    key: str
    save: Path | None = None
    resume: Path | None = None
    stop_at: float | None = None
    wide: bool = False


def together(world: int, jobs: Sequence[Job], folder: Path) -> list[dict[str, Outcome]]:
    """What each of ``world`` ranks saw, by the jobs' keys; one rank works in this process.

    Raises:
        AssertionError: a rank failed, or they hang; none of them is left over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if world == 1:
        return [{job.key: outcome(job, folder) for job in jobs}]
    meeting = folder / f"meeting-{os.urandom(4).hex()}"
    processes = [_CONTEXT.Process(target=_rank, args=(rank, world, jobs, folder, meeting)) for rank in range(world)]
    try:
        for process in processes:
            process.start()
        end = time.monotonic() + _TOGETHER_S
        while any(p.is_alive() for p in processes) and not any(p.exitcode for p in processes):
            assert time.monotonic() < end, f"{world} ranks hang"
            multiprocessing.connection.wait([p.sentinel for p in processes if p.is_alive()], timeout=5)
        for process in processes:
            process.join(10)  # the others of one that failed fail too, and say where
        codes = [process.exitcode for process in processes]
        assert codes == [0] * world, f"ranks ended with {codes}"
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def _rank(rank: int, world: int, jobs: Sequence[Job], folder: Path, meeting: Path) -> None:
    torch.set_num_threads(1)
    faulthandler.enable()
    with met(rank, world, meeting):
        found = {job.key: outcome(job, folder) for job in jobs}
    (folder / f"{rank}.json").write_text(json.dumps(found))


@contextmanager
def met(rank: int, world: int, meeting: Path) -> Iterator[None]:
    """This process as one of several ranks, which meet at a file."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=_OPERATION)
    ranks._HERE[0] = Ranks(rank, world, rank, world)
    try:
        yield
    finally:
        ranks._HERE[0] = ranks.ALONE
        dist.destroy_process_group()


def outcome(job: Job, folder: Path) -> Outcome:
    """Train a case to its end."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if job.wide else before)
    try:
        return _trained(job, folder)
    finally:
        torch.set_default_dtype(before)


def _trained(job: Job, folder: Path) -> Outcome:
    run = GRID[job.case].run()
    if job.resume is not None:
        found = checkpoint.newest(job.resume)
        assert found is not None
        run.load_state_dict(found[1])
    seen = Seen(run, None if job.stop_at else job.save)
    if job.stop_at is not None:
        run.clock.stop_at_s = job.stop_at
        train(run, seen.observe)
        run.clock.stop_at_s = None
        assert job.save is not None
        save(run, job.save)
        seen.saved_after = len(seen.rows)
    train(run, seen.observe)
    if here().main:
        np.save(folder / f"{job.key}.npy", settled(run))
    return {
        "saved_after": seen.saved_after,
        "steps": seen.rows,
        "none": seen.none,
        "untouched": seen.untouched,
        "step": run.step,
        "skipped": run.engine.skipped_steps,
        "stream": run.stream.state_dict(),
        "spent": run.clock.spent_s,
        "ledger": run.clock.ledger,
        "of_each": {"work": run.clock.counts, "digest": digest(run), "reductions": seen.reductions},
    }


def save(run: Run, folder: Path) -> None:
    """What a run is, whole, by the main rank."""
    state = run.state_dict()
    if here().main:
        checkpoint.save(folder, run.step, state, {}, keep=1, kept_at_h=[])
    here().wait()


def settled(run: Run) -> NDArray[np.floating[Any]]:
    """All weights that gradients tell where to go, as one vector.

    The biases of attention's keys are not among them: a softmax does not see them, their gradient is nothing but
    rounding, and Adam makes whole steps of that.
    """
    found = []
    for name, parameter in run.model.named_parameters():
        keys = parameter.detach().chunk(3)[::2] if name.endswith("qkv.bias") else (parameter.detach(),)
        found += [part.flatten() for part in keys]
    return torch.cat(found).numpy()


def digest(run: Run) -> str:
    """Of weights, optimizer and method, to the last bit."""
    state = {key: value for key, value in run.state_dict().items() if key in ("model", "engine", "method")}
    sha = hashlib.sha256()
    for path, value in sorted(_leaves(state), key=lambda leaf: leaf[0]):
        if path.endswith("irreducible/folder"):
            continue
        sha.update(path.encode())
        if isinstance(value, Tensor):
            sha.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            sha.update(repr(value).encode())
    return sha.hexdigest()


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for key, one in enumerate(value):
            yield from _leaves(one, f"{path}/{key}")
    else:
        yield path, value


class Seen:
    """Notes what a run does: a row for each time the loop goes round.

    Attributes:
        rows: loss, gradient norm, columns, and what was passed: sequences in their order, layers group by group.
        none: for each step the parameters without a gradient.
        untouched: whether the optimizer left what it knows of these as it was.
        reductions: for each row how many buckets of gradients were averaged over ranks; a small model is one.
        saved_after: how many rows there were when the run was saved.
    """

    def __init__(self, run: Run, save: Path | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.none: list[list[str]] = []
        self.untouched = True
        self.reductions: list[int] = []
        self.saved_after = 0
        self._run, self._save, self._before = run, save, run.step
        self._ids: list[int] = []
        self._layers: list[list[int]] = []
        self._averaged, self._trained = 0, run.engine.trained
        self._backward, self._thinned, self._step = run.engine.backward, run.method.thinned, run.engine.step
        run.engine.backward = self.backward  # type: ignore[method-assign]
        run.engine.step = self.step  # type: ignore[method-assign]
        run.method.thinned = self.thinned  # type: ignore[method-assign]
        for module in vars(run.engine._copy).values():
            if isinstance(module, DistributedDataParallel):
                module.register_comm_hook(None, self._averaging)

    def backward(self, batch: Batch, objective: Any, account: str = "train") -> Tensor:
        """Every rank's sequences, in the order of the batch; those that fill it up are not among them."""
        loss = self._backward(batch, objective, account)
        self._ids += batch.gathered(batch.ids).tolist()
        return loss

    @contextmanager
    def thinned(self, run: Run, group: Batch) -> Iterator[None]:
        """The layers that a draw left."""
        with self._thinned(run, group):
            self._layers.append(list(run.model.active_layers))
            yield

    def step(self, factor: float) -> int:
        """Which parameters have no gradient, and whether their state stays as it is."""
        state, named = self._run.engine.optimizer.state, list(self._run.model.named_parameters())
        without = [(name, p) for name, p in named if p.grad is None]
        self.none.append([name for name, _ in without])
        before = {name: [(k, str(v)) for k, v in state.get(p, {}).items()] for name, p in without}
        kept = {name: p.detach().clone() for name, p in without}
        taken = self._step(factor)
        self.untouched &= all(
            torch.equal(p, kept[name]) and before[name] == [(k, str(v)) for k, v in state.get(p, {}).items()]
            for name, p in without
        )
        return taken

    def observe(self, run: Run) -> None:
        """The end of a round; in the middle of the run it may be saved."""
        stepped, self._before = run.step > self._before, run.step
        self.rows.append(
            {
                "step": run.step,
                "loss": run.engine.loss if stepped else None,
                "grad_norm": run.engine.grad_norm if stepped else None,
                "columns": run.method.columns(),
                "trained": run.engine.trained - self._trained,
                "ids": self._ids,
                "layers": self._layers,
            }
        )
        self.reductions.append(self._averaged)
        self._ids, self._layers, self._averaged, self._trained = [], [], 0, run.engine.trained
        if self._save is not None and len(self.rows) == MIDDLE:
            save(run, self._save)
            self.saved_after = MIDDLE

    def _averaging(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """What DistributedDataParallel does by itself, counted."""
        self._averaged += 1
        tensor = bucket.buffer().div_(here().world)
        future = dist.all_reduce(tensor, async_op=True).get_future()  # type: ignore[union-attr]
        return future.then(lambda done: done.value()[0])
