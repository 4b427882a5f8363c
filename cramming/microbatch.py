"""``impl.microbatch_size=auto``: the fastest number of sequences in a pass that fits, on which no result depends.

Where to begin is known: with 2k to 4k tokens on a processor, whose caches hold them, and with as many as fit on a GPU.
Others are timed against that in turns, and one is taken only if it is clearly faster, so that a machine with other work
to do leaves the choice as it was. What was found is remembered for each machine, model and setting, in a file of its
own under ``<base_dir>/_impl``; a run keeps it in ``resolved.json``. A run of less than two minutes is not worth
the time: it takes what is remembered, or begins where everybody begins.

The passes that are timed are those of a model of their own, which is gone afterwards.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from cramming.calibration import this_machine
from cramming.config import PretrainConfig, check_microbatch
from cramming.durable import write_file
from cramming.errors import UserError
from cramming.out_of_memory import is_out_of_memory
from cramming.recording.strict_json import dumps
from cramming.resolve import Resolved

if TYPE_CHECKING:
    from cramming.build import Parts
    from cramming.engine import Engine

_log = logging.getLogger(__name__)
FOLDER = "_impl"  # beside the runs
_USUAL = {"cpu": 32, "cuda": 512}  # sequences; see above
_MEMORY_SHARE = 0.9  # of a GPU's memory; the rest is for validation and fragmentation
_FACTORS = (1 / 2, 2, 1 / 4, 4, 1 / 8)  # what is tried beside the usual size, nearest first
_LARGEST_TOKENS = 8192  # of a pass on a processor, whose memory says that it is full by ending the process
_SHORT_RUN_S = 120.0
_AT_MOST_S = 8.0  # to time passes for
_SHARE_OF_RUN = 0.01  # or so much of a run's time, if that is less
_ROUNDS, _LEAST_ROUNDS = 9, 3
_MARGIN = 0.03  # by which another size must be faster
_AGREEING = 0.75  # of the rounds must say that it is
# Of how a run computes: what is found here; and passes are timed without CUDA graphs.
_NO_SETTINGS = ("microbatch_size", "cuda_graphs")


@dataclass(frozen=True)
class Trial:
    """What timing found.

    Attributes:
        size: the number of sequences to take.
        sequence_s: median seconds of a sequence, by the size of the pass; empty if too little could be timed.
    """

    size: int
    sequence_s: Mapping[int, float] = field(default_factory=dict)


def find(parts: "Parts", resolved: Resolved, group: int, now: Callable[[], float] = time.perf_counter) -> int:
    """The number of sequences in a pass: remembered, or found and remembered.

    Args:
        parts: of the run.
        resolved: how it computes otherwise, its kernels' backends among it.
        group: sequences that share one random draw; what is found divides them, and the batch.
        now: seconds on a steady clock.

    Raises:
        UserError: not even one sequence fits.
    """
    config, passes = parts.config, _Passes(parts, resolved)
    whole = math.gcd(config.train.batch_size, group)
    settings = _settings(parts, resolved, whole)
    file = _file(Path(config.base_dir), settings)
    known = remembered(file, whole)
    if known is not None and (parts.device.type == "cpu" or passes.fit(known)):
        _log.info("microbatches of %d sequences, as timed before (%s)", known, file)
        return known
    with passes.forgotten():
        usual = usual_size(whole, passes.fit, parts.device)
        check_microbatch(config.train.batch_size, usual)
        others = neighbours(usual, whole, parts.seq_length, parts.device)
        if not others or not (within_s := _worth_s(config, lambda: _timed(passes.probe(usual), now) / usual)):
            return usual
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # whoever comes second would disturb the first
            known = remembered(file, whole)
            if known is None:
                sizes = ", ".join(map(str, sorted(others)))
                _log.info("timing passes of %d sequences against %s (at most %.0f s)", usual, sizes, within_s)
                trial = fastest(usual, others, passes.probe, within_s=within_s, now=now)
                known = trial.size
                if trial.sequence_s:
                    _remember(file, trial, usual, settings)
                _log.info("microbatches of %d sequences%s", known, _gain(trial, usual))
    return known


def usual_size(whole: int, fits: Callable[[int], bool], where: torch.device) -> int:
    """The largest sensible number of sequences in a pass that fits the memory.

    Args:
        whole: what it must divide.
        fits: tries a pass over so many sequences.
        where: the device.

    Raises:
        UserError: not even one sequence fits.
    """
    for size in _divisors(whole, min(whole, _USUAL[where.type])):
        if fits(size):
            return size
    raise UserError("out of memory: one sequence alone does not fit; use a smaller arch or a shorter data.seq_length")


def neighbours(usual: int, whole: int, length: int, where: torch.device) -> list[int]:
    """What to try beside the usual size, nearest first: divisors of ``whole`` of at most its multiples and fractions.

    Args:
        usual: on a GPU, the largest that fits.
        whole: what they must divide.
        length: of a sequence, tokens.
        where: the device.
    """
    largest = usual if where.type == "cuda" else max(usual, _LARGEST_TOKENS // length)
    found: list[int] = []
    for factor in _FACTORS:
        size = next(_divisors(whole, min(whole, largest, int(usual * factor))), usual)
        if size not in (usual, *found):
            found.append(size)
    return found


def fastest(
    usual: int,
    others: Sequence[int],
    probe: Callable[[int], Callable[[], None]],
    *,
    within_s: float,
    now: Callable[[], float] = time.perf_counter,
) -> Trial:
    """Time passes of several sizes in turns; another than the usual one must be clearly faster to be taken.

    Args:
        usual: the size that is taken when in doubt.
        others: to try, those that matter most first; those for which there is no time are left out.
        probe: makes a pass over so many sequences.
        within_s: about the most that all of it may take.
        now: seconds on a steady clock.
    """
    end_s = now() + within_s
    passes = {usual: probe(usual)}
    passes[usual]()  # compiles, fills caches
    sequence_s = _timed(passes[usual], now) / usual
    for size in others:
        if now() + sequence_s * ((1 + _LEAST_ROUNDS) * size + _LEAST_ROUNDS * sum(passes)) > end_s:
            continue
        try:
            tried = probe(size)
            tried()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        else:
            passes[size] = tried
    rounds: list[dict[int, float]] = []
    while len(passes) > 1 and len(rounds) < _ROUNDS and now() < end_s:
        rounds.append({size: _timed(one, now) / size for size, one in passes.items()})
    if len(rounds) < _LEAST_ROUNDS:
        return Trial(usual)
    ratios = {size: [timed[size] / timed[usual] for timed in rounds] for size in passes}
    clear = {
        size: median(of_size)
        for size, of_size in ratios.items()
        if median(of_size) <= 1 - _MARGIN and sum(ratio < 1 for ratio in of_size) >= _AGREEING * len(rounds)
    }
    best = min(clear, key=lambda size: clear[size], default=usual)
    return Trial(best, {size: median(timed[size] for timed in rounds) for size in sorted(passes)})


def remembered(file: Path, whole: int) -> int | None:
    """What was found before; None if nothing was, or if the file is damaged."""
    try:
        size = json.loads(file.read_text())["microbatch_size"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        size = None
    if type(size) is int and size >= 1 and whole % size == 0:
        return size
    _log.warning("%s is damaged: timing passes anew", file)
    return None


def memory_is_left() -> bool:
    """Whether the GPU's memory was not filled to the brim since the peak was last reset."""
    if not torch.cuda.is_available():
        return True
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return torch.cuda.max_memory_reserved() <= _MEMORY_SHARE * total


class _Passes:
    """Passes of a model that is made when the first is asked for, and pays nothing."""

    def __init__(self, parts: "Parts", resolved: Resolved) -> None:
        self._parts, self._resolved = parts, resolved

    @cached_property
    def _engine(self) -> "Engine":
        return self._parts.spare_engine(self._resolved)

    def probe(self, size: int) -> Callable[[], None]:
        """A pass over so many sequences, and its way back."""
        batch = self._parts.synthetic_batch(size)
        return self._engine.probe("forward_backward", batch, self._engine.model.active_layers)

    def fit(self, size: int) -> bool:
        """Whether there is memory for it."""
        if self._parts.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            self.probe(size)()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        return memory_is_left()

    @contextmanager
    def forgotten(self) -> Iterator[None]:
        """Each size is compiled for itself inside, and the compiler knows of none of them afterwards."""
        if not self._resolved.compile:
            yield
            return
        try:
            with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
                yield
        finally:
            torch._dynamo.reset()


def _divisors(whole: int, largest: int) -> Iterator[int]:
    """Those of ``whole`` up to ``largest``, the largest first."""
    return (size for size in range(largest, 0, -1) if whole % size == 0)


def _timed(work: Callable[[], None], now: Callable[[], float]) -> float:
    began_s = now()
    work()
    return now() - began_s


def _worth_s(config: PretrainConfig, sequence_s: Callable[[], float]) -> float:
    """How long timing may take: a small share of the run; 0 for a short one.

    Args:
        config: of the run.
        sequence_s: times a sequence; asked only where the budget counts steps.
    """
    run_s = config.budget_s * (config.train.batch_size * sequence_s() if config.rst.unit_s == 1 else 1.0)
    return 0.0 if run_s < _SHORT_RUN_S else min(_AT_MOST_S, _SHARE_OF_RUN * run_s)


def _settings(parts: "Parts", resolved: Resolved, whole: int) -> dict[str, Any]:
    """Everything the answer may depend on."""
    return {
        "machine": asdict(this_machine()),
        "architecture": parts.architecture(),
        "length": parts.seq_length,
        "batch_size": parts.config.train.batch_size,
        "sequences": whole,
        "gradient_checkpointing": parts.config.impl.gradient_checkpointing,
        **{key: value for key, value in asdict(resolved).items() if key not in _NO_SETTINGS},
    }


def _file(base_dir: Path, settings: Mapping[str, Any]) -> Path:
    identity = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return base_dir / FOLDER / f"microbatch-{identity}.json"


def _remember(file: Path, trial: Trial, usual: int, settings: Mapping[str, Any]) -> None:
    about = {
        "microbatch_size": trial.size,
        "usual": usual,
        "sequence_s": {str(size): seconds for size, seconds in trial.sequence_s.items()},
        "date": datetime.now(UTC).date().isoformat(),
        **settings,
    }
    write_file(file, [(dumps(about, indent=2) + "\n").encode()], "microbatch")


def _gain(trial: Trial, usual: int) -> str:
    if not trial.sequence_s:
        return ": passes take too long to try others"
    if trial.size == usual:
        return ": no other size is clearly faster"
    return f": {1 - trial.sequence_s[trial.size] / trial.sequence_s[usual]:.0%} less time than {usual}"
