"""A grid of cells, each a family at a length, whose sides are timed in turn; what does not fit is part of the result.

The sides of a cell (ours, and each of theirs) live in one process and alternate block by block; README.md has the
protocol. On a processor every cell has a process of its own with a bound on its memory, and one on the time a side may
go without a sign of life, so that what does not fit ends that process and nothing else; the other sides of the cell are
then measured without it. On a GPU memory that runs out is an ordinary exception and all cells share the process.
"""

import ctypes
import gc
import multiprocessing
import os
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.reporting import spread
from cramming import allocator
from cramming.errors import UserError
from cramming.out_of_memory import is_out_of_memory

BUSY_ABOVE = 1.3  # upper over lower quartile of a ratio, or wall over processor time's: not to be trusted
# How a reason begins where it is not about memory or time: a mistake of a program, or something that cannot be had.
BROKE, REFUSED = "failed", "refused"
BUSY_CORES = 0.15  # that other processes keep busy; with threads that wait for one another little is enough
FEWEST_PAIRS = 3  # which quartiles need
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_MEGABYTE = 2**20


class Side(Protocol):
    """One of the things compared, ready to run."""

    @property
    def flops(self) -> float | None:
        """Floating-point operations of a block; None: not counted."""

    @property
    def loss(self) -> float | None:
        """Of the last block, nats; None: it computes none."""

    def block(self) -> None:
        """One piece of work; on a GPU it may still run when this returns."""


Context = Callable[[], AbstractContextManager[Any]]
Builders = Mapping[str, Callable[[], Side]]


@dataclass(frozen=True)
class Bounds:
    """How much a cell may take."""

    device: torch.device
    pairs: int  # of blocks, one of every side
    cell_s: float  # seconds for them; at least three pairs are run
    block_s: float  # a block that takes longer does not fit
    memory_mb: float  # of a cell's process; a GPU has its own bound
    isolated: bool = True  # a process for each cell; never on a GPU
    allocator: str = allocator.AUTO  # what becomes of memory that a side has freed


class DoesNotFitError(Exception):
    """A side takes too much memory or time, or broke."""

    def __init__(self, side: str, why: str) -> None:
        super().__init__(side, why)
        self.side, self.why = side, why


@dataclass
class Measured:
    """What came out of a cell. Sides that did not fit are in ``unfit`` with the reason and nowhere else."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # side -> clock -> seconds of each block
    first_s: dict[str, float] = field(default_factory=dict)  # of the first block, with what is done once
    peak_mb: dict[str, float] = field(default_factory=dict)  # weights, optimizer and one block
    flops: dict[str, float | None] = field(default_factory=dict)
    losses: dict[str, float | None] = field(default_factory=dict)  # after the last block
    other_cores: float = 0.0  # kept busy by other processes meanwhile, on average
    unfit: dict[str, str] = field(default_factory=dict)


def measured(builders: Builders, bounds: Bounds, within: Context = nullcontext) -> Measured:
    """A cell: all sides that fit, in turn, in a context. Those that do not are left out, one after another."""
    left, unfit, found = dict(builders), dict[str, str](), Measured()
    freed = allocator.in_use()
    allocator.use(bounds.allocator)  # a process that is forked has it, too
    gc.freeze()  # collecting is for what the cell leaves behind; looking at all that is imported takes long
    while left:
        try:
            found = _attempt(left, bounds, within)
            break
        except DoesNotFitError as error:
            unfit[error.side] = error.why
            del left[error.side]
        _release(bounds.device)
    _release(bounds.device)
    gc.unfreeze()
    allocator.use(freed)
    found.unfit = unfit
    return found


def compared(found: Measured, ours: str = "ours") -> dict[str, dict[str, Any]]:
    """Seconds of every other side over ours, pair by pair: side -> clock -> median, quartiles and all of them."""
    if ours not in found.seconds:
        return {}
    ratios: dict[str, dict[str, Any]] = {}
    for side, clocks in found.seconds.items():
        if side != ours:
            ratios[side] = {
                clock: spread([t / o for t, o in zip(values, found.seconds[ours][clock], strict=True)])
                for clock, values in clocks.items()
            }
    return ratios


def busy(ratio: Mapping[str, Any], found: Measured) -> bool:
    """Whether the machine did something else meanwhile: it says so, a ratio spreads, or differs between two clocks."""
    low, high = ratio["wall"]["quartiles"]
    if high > BUSY_ABOVE * low:
        return True
    if "cpu" not in ratio:  # of a GPU's work it says little what the processor's cores do
        return False
    if found.other_cores > BUSY_CORES:
        return True
    apart = ratio["wall"]["median"] / ratio["cpu"]["median"]
    return max(apart, 1 / apart) > BUSY_ABOVE


def median_s(found: Measured, side: str) -> float:
    """Seconds of a side's block by the clock on the wall."""
    return statistics.median(found.seconds[side]["wall"])


class Remaining:
    """An estimate of what is left of a grid, from the cells of the same length that are done."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._left, self._taken_s = list(lengths), dict[int, list[float]]()

    def done(self, length: int, elapsed_s: float) -> float:
        """Seconds left, after a cell of this length."""
        self._left.remove(length)
        self._taken_s.setdefault(length, []).append(elapsed_s)
        every = [taken for known in self._taken_s.values() for taken in known]
        return sum(statistics.mean(self._taken_s.get(length, every)) for length in self._left)


def available_mb() -> float:
    """Memory that nothing uses; without a bound where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) / 1024
    return float("inf")


def alternate(builders: Builders, bounds: Bounds, tell: Callable[[str], None] = lambda side: None) -> Measured:
    """Build the sides and run their blocks in turn, in this process.

    Args:
        builders: makes each side.
        bounds: how much may be taken.
        tell: told the name of a side before each thing it does.

    Raises:
        DoesNotFitError: the first side that does not.
    """
    found, sides = Measured(), dict[str, Side]()
    device = bounds.device
    taken_s = 0.0
    _load_libraries(device)
    for name, build in builders.items():
        tell(name)
        with _blamed(name):
            before = memory_mb(device)
            side = sides[name] = build()
            forget_peak(device)
            found.first_s[name] = _seconds(side, device)["wall"]
            tell(name)
            found.peak_mb[name] = peak_mb(device) - before
            again = _seconds(side, device)["wall"]  # what later blocks take
        if again > bounds.block_s:
            raise DoesNotFitError(name, f"a block takes {again:.0f} s, more than block_s={bounds.block_s:g}")
        taken_s += again
        found.flops[name] = side.flops
        found.seconds[name] = {clock: [] for clock in _clocks(device)}
    pairs = max(FEWEST_PAIRS, min(bounds.pairs, int(bounds.cell_s / taken_s)))
    order = list(sides)
    elsewhere, began = _elsewhere_s(), time.perf_counter()
    for pair in range(pairs):
        for name in order[pair % len(order) :] + order[: pair % len(order)]:  # none always comes first
            tell(name)
            with _blamed(name):
                for clock, value in _seconds(sides[name], device).items():
                    found.seconds[name][clock].append(value)
    found.other_cores = max(0.0, _elsewhere_s() - elsewhere) / (time.perf_counter() - began)
    found.losses = {name: side.loss for name, side in sides.items()}
    return found


def _attempt(builders: Builders, bounds: Bounds, within: Context) -> Measured:
    if not bounds.isolated or bounds.device.type != "cpu":
        with within():
            return alternate(builders, bounds)
    # Forked, because a fresh interpreter takes seconds to import what this one has; the parent must never have
    # computed with several threads, since those do not live on in a fork.
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_cell, args=(builders, bounds, within, there))
    process.start()
    there.close()
    side = next(iter(builders))
    patience_s = 10 + 3 * bounds.block_s  # of one block and of building a side
    try:
        while here.poll(patience_s):
            what, value = here.recv()
            if what == "side":
                side = value
            elif what == "unfit":
                raise DoesNotFitError(*value)
            else:
                return value  # type: ignore[no-any-return]
    except EOFError:
        process.join()
        raise DoesNotFitError(side, f"its process ended with {process.exitcode}; memory may have run out") from None
    finally:
        process.kill()
        process.join()
    raise DoesNotFitError(side, f"nothing came back for {patience_s:.0f} s")


def _cell(builders: Builders, bounds: Bounds, within: Context, there: Any) -> None:
    """A cell's process."""
    _bound_memory(bounds.memory_mb)
    try:
        with within():
            there.send(("done", alternate(builders, bounds, lambda side: there.send(("side", side)))))
    except DoesNotFitError as error:
        there.send(("unfit", (error.side, error.why)))


@contextmanager
def _blamed(side: str) -> Iterator[None]:
    """What goes wrong inside is the side's."""
    try:
        yield
    except DoesNotFitError:
        raise
    except Exception as error:
        if ran_out(error):
            raise DoesNotFitError(side, "out of memory") from error
        if isinstance(error, UserError):
            raise DoesNotFitError(side, f"{REFUSED}: {error}") from error
        traceback.print_exception(error)
        raise DoesNotFitError(side, f"{BROKE}: {type(error).__name__}: {error}") from error


def ran_out(error: Exception) -> bool:
    """Whether an error means that memory ran out, wherever it was asked for."""
    said = str(error)
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, UserError) and said.startswith("out of memory"))
        or (isinstance(error, RuntimeError) and (is_out_of_memory(error) or "bad_alloc" in said))
        or "could not create a memory" in said
    )


def _elsewhere_s() -> float:
    """Seconds that processor cores have worked, for this machine's hosts too, but for this process; 0: not known."""
    with suppress(OSError):
        user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK") - time.process_time()
    return 0.0


def _load_libraries(device: torch.device) -> None:
    """What a device loads when it is first used is no side's."""
    layer = torch.nn.Linear(64, 64, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        layer(torch.ones(64, 64, device=device)).sum().backward()
    layer.to(torch.bfloat16)(torch.ones(64, 64, device=device, dtype=torch.bfloat16)).sum().backward()


def _seconds(side: Side, device: torch.device) -> dict[str, float]:
    """What a block takes by each clock."""
    clocks = _clocks(device)
    synchronize(device)
    began = {name: clock() for name, clock in clocks.items()}
    side.block()
    synchronize(device)
    return {name: clock() - began[name] for name, clock in clocks.items()}


def _clocks(device: torch.device) -> dict[str, Callable[[], float]]:
    """Those that mean something: a process's own seconds say nothing about a GPU."""
    return _CLOCKS if device.type == "cpu" else {"wall": _CLOCKS["wall"]}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _release(device: torch.device) -> None:
    """Give back what the sides before left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_mb(device: torch.device) -> float:
    """What is held now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / _MEGABYTE
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed
    return _status_mb("RssAnon")  # files are mapped: libraries, as they are first used


def forget_peak(device: torch.device) -> None:
    """The peak is counted from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        memory_mb(device)
        with suppress(OSError):  # where the system cannot, the peak is that of the process so far
            Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """The most that was held since."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MEGABYTE
    return _status_mb("VmHWM") - _status_mb("RssFile") - _status_mb("RssShmem")


def _status_mb(key: str) -> float:
    """An entry of this process's status; 0 where the system keeps none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return float(line.split()[1]) / 1024
    return 0.0


def _bound_memory(memory_mb: float) -> None:
    """Let this process allocate so much more and then fail, instead of being killed later."""
    if memory_mb == float("inf"):
        return
    limit = int((_status_mb("VmData") + memory_mb) * _MEGABYTE)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
