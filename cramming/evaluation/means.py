"""What a suite's jobs run on: device, precision, how many at a time. Every ``auto`` of ``impl`` is resolved once.

The values lie in ``resolved.json`` beside the results, so that the same command computes the same again.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cramming import resolve
from cramming.config import ImplConfig
from cramming.durable import write_atomically
from cramming.evaluation.config import EvalImpl, Setting
from cramming.exchange.weights import Weights
from cramming.recording.strict_json import dumps
from cramming.text import quantity

FILE = "resolved.json"
_PROCESS_BYTES = 600e6  # Python and the libraries
_STATES = 6  # float32 numbers for each weight: those it begins with, weight, gradient, two of Adam, and a copy
# Of a layer's activations, for each token and hidden unit: 68 in float32 without the attention probabilities
# (https://arxiv.org/abs/2205.05198, section 4.1), rounded up.
_BYTES_OF_ACTIVATIONS = 80


@dataclass(frozen=True)
class Means:
    """How jobs compute.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: of passes, where a task's setting does not say.
        jobs: at a time, at most.
        threads: of each.
        microbatch_size: examples of a pass; None: the whole batch.
        planned: jobs there were to do when ``jobs`` and ``threads`` were chosen.
    """

    device: str
    precision: str
    jobs: int
    threads: int
    microbatch_size: int | None
    planned: int

    def place(self, worker: int) -> str:
        """The device of a worker, by its number; jobs share GPUs where there are more jobs than those."""
        return "cpu" if self.device == "cpu" else f"cuda:{worker % torch.cuda.device_count()}"


def check(impl: EvalImpl) -> None:
    """Refuse at once what the device cannot do.

    Raises:
        UserError: a precision it lacks.
    """
    _precision(impl.precision)


def _precision(asked: str) -> str:
    """``auto``, and what is refused, are those of pretraining."""
    return resolve.resolve(ImplConfig(precision=asked, threads=1, compile=False), None).precision


def resolved(impl: EvalImpl, stored: Means | None, planned: int, need: float, notes: list[str]) -> Means:
    """What ``impl`` asks for; each ``auto`` as it was stored, else as fits this machine and so many jobs.

    Args:
        impl: as asked for.
        stored: of an earlier call; its jobs and threads hold as long as there are as many jobs to plan for.
        planned: jobs of the call, those that are done included.
        need: bytes of memory a job takes, roughly.
        notes: gets a line if earlier results were computed in another way.

    Raises:
        UserError: a precision the device lacks.
    """
    device = resolve.device().type
    precision = impl.precision
    if precision == "auto" and stored is not None and stored.device == device:
        precision = stored.precision
    precision = _precision(precision)
    known = stored if stored is not None and stored.device == device and stored.planned == planned else None
    jobs, threads, cores = impl.jobs, impl.threads, resolve.available_cores()
    if jobs == "auto":
        if device == "cuda":
            jobs = torch.cuda.device_count()
        elif known is not None and threads in ("auto", known.threads):
            jobs = known.jobs
        else:
            memory = available_bytes()
            fit = cores if memory is None else max(1, math.floor(memory / need))
            jobs = max(1, min(cores if threads == "auto" else cores // threads, fit, planned))
    if threads == "auto":
        threads = known.threads if known is not None and known.jobs == jobs else max(1, cores // jobs)
    asked = Means(
        device, precision, jobs, threads, None if impl.microbatch_size == "auto" else impl.microbatch_size, planned
    )
    if stored is not None:
        changed = [
            f"{key} {getattr(stored, key)} -> {getattr(asked, key)}"
            for key in ("device", "precision", "threads", "microbatch_size")
            if getattr(stored, key) != getattr(asked, key)
        ]
        if changed:
            notes.append(f"computed with another {', '.join(changed)} than before: the last bits may differ")
    return asked


def need_of(weights: Weights, settings: Iterable[Setting], microbatch_size: int | None) -> float:
    """About how many bytes the largest job takes on a processor, before anybody has measured one."""
    model = weights.outline()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    hidden = int(getattr(weights.arch, "hidden", 768))
    tokens = max(
        (min(microbatch_size or s.batch_size, s.batch_size) * s.max_length for s in settings), default=16 * 128
    )
    return (
        _PROCESS_BYTES + 4 * _STATES * parameters + _BYTES_OF_ACTIVATIONS * tokens * hidden * len(model.active_layers)
    )


def available_bytes() -> float | None:
    """Memory that is free for jobs, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return None
    try:  # of a container, where there is a limit
        limit = float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = float(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return min(free, max(0.0, limit - used))


def read(folder: Path) -> Means | None:
    """What an earlier call stored; None: nothing that can be read."""
    try:
        return Means(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write(folder: Path, means: Means) -> None:
    """Store it.

    Raises:
        UserError: the disk is full.
    """
    write_atomically(folder / FILE, (dumps(asdict(means), indent=2) + "\n").encode())


def said(means: Means) -> str:
    """One line about it."""
    at_once = min(means.jobs, means.planned)
    each = f"{at_once} at a time" if at_once > 1 else "one at a time"
    where = f"{means.threads} thread{'s' * (means.threads != 1)} each" if means.device == "cpu" else "on GPUs"
    return f"{each}, {where}, {means.precision}"


def shortage(need: float) -> str | None:
    """Why there is no room for one more job of ``need`` bytes; None: there is, or nobody knows."""
    free = available_bytes()
    if free is None or free > need:
        return None
    return f"{quantity(free, 'B')} of memory are free, a job takes {quantity(need, 'B')}"
