"""Every ``auto`` of ``impl``, resolved once for a run, stored with it and reused when it is resumed.

The stored values live in the run's ``resolved.json``, so that a run continued on the same machine does exactly the same
arithmetic, whatever ``auto`` would choose there today.
"""

import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cramming import allocator, plain
from cramming.config import ImplConfig
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.kernels import choice
from cramming.parallel.environment import launched
from cramming.recording.strict_json import dumps

_log = logging.getLogger(__name__)
_FILE = "resolved.json"
# Jobs of a sweep that share this machine: the environment tells the processes that a launcher makes for them.
JOBS_AT_ONCE = "CRAMMING_JOBS_AT_ONCE"


@dataclass(frozen=True)
class Resolved:
    """How this run computes."""

    device: str
    precision: str
    threads: int
    compile: bool
    microbatch_size: int | None  # None: not yet found
    attention: str = "auto"  # decided anew for every batch, by its length and padding
    cuda_graphs: bool = False  # asked for; whether there are any is decided with the model (``cramming/compiling.py``)
    plain: list[str] = field(default_factory=list)  # see ``cramming/plain.py``
    kernels: str = "auto"  # asked for ...
    ranks: int = 1  # that train together
    parallel: str = "none"  # how; auto: not yet, the model's size says it
    kernel_backends: dict[str, str] | None = None  # ... and found, by operation; None: not yet, the model says which


def device() -> torch.device:
    """The GPU if there is one, else the processor; ``CUDA_VISIBLE_DEVICES=`` hides a GPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve(impl: ImplConfig, stored: Resolved | None) -> Resolved:
    """What ``impl`` asks for; each ``auto`` as it was stored, else as fits this machine.

    What becomes of freed memory is settled for the process.

    Raises:
        UserError: a precision the device lacks.
    """
    where = device()
    allocator.use(impl.allocator)
    world = launched().world
    known = stored or Resolved(where.type, _precision(where), _threads(), where.type == "cuda", None)
    if known.ranks != world:  # each has another share of the batch, and of the machine
        known = replace(known, threads=_threads(), microbatch_size=None)
    kernels = known.kernels if impl.kernels == "auto" else impl.kernels
    same_kernels = kernels == known.kernels and where.type == known.device
    asked = Resolved(
        device=where.type,
        precision=known.precision if impl.precision == "auto" else impl.precision,
        threads=known.threads if impl.threads == "auto" else impl.threads,
        compile=known.compile if impl.compile == "auto" else impl.compile,
        microbatch_size=known.microbatch_size if impl.microbatch_size == "auto" else impl.microbatch_size,
        attention=impl.attention,
        cuda_graphs=impl.cuda_graphs,
        plain=plain.chosen(impl.plain),
        ranks=world,
        parallel=_parallel(impl.parallel, world, known.parallel),
        kernels=kernels,
        kernel_backends=known.kernel_backends if same_kernels else None,
    )
    missing = lacking(asked.precision, where)
    if missing:
        raise UserError(f"impl.precision={asked.precision}: {missing}; use impl.precision={_precision(where)} or auto")
    if stored is not None:
        now = asdict(asked)  # ``choice.use`` says what becomes of the backends
        changed = [f"{k} {v} -> {now[k]}" for k, v in asdict(stored).items() if v != now[k] and k != "kernel_backends"]
        if changed:
            _log.warning("this run now computes with another %s: bitwise equality no longer holds", ", ".join(changed))
    return asked


def read(run_dir: Path) -> Resolved | None:
    """What a run stored, or None for a new one.

    Raises:
        UserError: the file is damaged.
    """
    file = run_dir / _FILE
    try:
        return Resolved(**json.loads(file.read_text())) if file.is_file() else None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error}): delete it to choose anew, or start over with resume=false"
        ) from error


def write(run_dir: Path, resolved: Resolved) -> None:
    """Store it."""
    write_atomically(run_dir / _FILE, (dumps(asdict(resolved), indent=2) + "\n").encode())


def described(resolved: Resolved, model: nn.Module | None = None) -> dict[str, Any]:
    """For a summary: what was found, for a model, and no more what was asked for."""
    said = {k: v for k, v in asdict(resolved).items() if k not in ("kernels", "kernel_backends")}
    return said | choice.described(resolved.kernel_backends, model)


def compute_exactly(where: torch.device) -> None:
    """Make the device repeat itself to the last bit where it can; what cannot is named by torch in a warning."""
    if where.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Else every new tensor is filled first, against reading what was never written: a pass over memory each.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def whole_machine() -> Iterator[None]:
    """How prices are measured, whatever ``impl`` says: on all cores, freed memory kept."""
    threads, freed = torch.get_num_threads(), allocator.in_use()
    torch.set_num_threads(available_cores())
    allocator.use(allocator.KEEP)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        allocator.use(freed)


def available_cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_at_once() -> int:
    """How many jobs of a sweep share this machine; 1 outside of sweeps."""
    said = os.environ.get(JOBS_AT_ONCE, "")
    return int(said) if said.isdecimal() and int(said) else 1


def _threads() -> int:
    return max(1, available_cores() // (jobs_at_once() * launched().local_world))


def _parallel(asked: str, world: int, known: str) -> str:
    if world == 1:
        return "none"
    if asked == "none":
        raise UserError(f"impl.parallel=none, but {world} ranks were started; leave it out, or start one")
    return known if asked == "auto" and known != "none" else asked


def _precision(where: torch.device) -> str:
    if not lacking("bfloat16", where):
        return "bfloat16"
    return "float16" if where.type == "cuda" else "float32"


def lacking(precision: str, where: torch.device) -> str | None:
    """Why a device cannot compute in a precision; None if it can."""
    if precision == "bfloat16" and where.type == "cuda" and torch.cuda.get_device_capability()[0] < 8:
        return f"{torch.cuda.get_device_name()} does not compute in bfloat16"
    if precision == "bfloat16" and where.type == "cpu" and not _cpu_has_bfloat16():
        return "this processor does not compute in bfloat16"
    if precision == "float16" and where.type == "cpu":
        return "a processor does not train in float16"
    return None


def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices itself (AVX-512 BF16, AMX, Arm's BF16)."""
    if platform.system() == "Darwin":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    words = set(flags.split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
