"""Training steps with freed memory kept by the process, and given back to the system (``impl.allocator``).

    python benchmarks/allocation.py
    python benchmarks/allocation.py size=base tokens=2048 steps=3

The setting is a process's, so that each side of a pair is a process of its own: some steps to warm up, then the median
of the next. They take turns at going first.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.architectures import SIZES, Case
from benchmarks.reporting import asked, circumstances, keep, spread
from benchmarks.step import Ours, StepOptions
from cramming import allocator
from cramming.cli import run_command
from cramming.errors import UserError

_SIDES = (allocator.KEEP, allocator.SYSTEM)
_WARM_UP = 3  # steps


@dataclass
class Options:
    """What the command line may change."""

    arch: str = "bert"
    size: str = "small"
    tokens: int = 8192  # of a step
    steps: int = 12  # measured in a process
    pairs: int = 7  # of processes
    threads: int = 0  # 0: as many as torch takes
    worker: str = ""  # measure this side here, and print what came out
    out: str = ""  # a JSON file for the result

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UserError(f"size={self.size} is unknown; there are {', '.join(SIZES)}")
        if self.pairs < 2:
            raise UserError(f"pairs={self.pairs}: quartiles take two or more")


def measured_here(options: Options) -> dict[str, Any]:
    """A side, in this process."""
    if options.threads:
        torch.set_num_threads(options.threads)
    said = allocator.use(options.worker)
    if said != options.worker:
        raise UserError("this C library cannot be told to keep freed memory: there is nothing to compare")
    step = StepOptions(size=options.size, tokens=options.tokens)
    ours = Ours(Case(options.arch, 128, max(1, options.tokens // 128), SIZES[options.size], 0.15), step)
    for _ in range(_WARM_UP):
        ours.block()
    faults, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
    for _ in range(options.steps):
        began = time.perf_counter()
        ours.block()
        seconds.append(time.perf_counter() - began)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "step_s": statistics.median(seconds),
        "faults_per_step": (used.ru_minflt - faults) / options.steps,
        "peak_mb": used.ru_maxrss / 1024,
    }


def measure(options: Options) -> dict[str, Any]:
    """Pairs of processes; what was measured, as plain values."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in _SIDES}
    words = [f"{key}={value}" for key, value in asdict(options).items() if key not in ("worker", "out", "pairs")]
    for pair in range(options.pairs):
        for side in _SIDES if pair % 2 else reversed(_SIDES):
            command = [sys.executable, __file__, *words, f"worker={side}"]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                raise UserError(f"a process ended with {ended.returncode}: {ended.stderr.strip()[-300:]}")
            found[side].append(json.loads(ended.stdout.splitlines()[-1]))
        print(f"pair {pair + 1} of {options.pairs}", flush=True)
    times = {side: [entry["step_s"] for entry in entries] for side, entries in found.items()}
    return {
        "given_back_over_kept": spread(
            [slow / fast for slow, fast in zip(times[allocator.SYSTEM], times[allocator.KEEP], strict=True)]
        ),
        **{
            f"{what}_median": {side: statistics.median(e[what] for e in entries) for side, entries in found.items()}
            for what in ("step_s", "faults_per_step", "peak_mb")
        },
        "options": {key: value for key, value in asdict(options).items() if key not in ("worker", "out")},
        **circumstances(),
    }


def main() -> None:
    """Parse, measure, print."""
    options = asked(Options, __doc__)
    if options.worker:
        print(json.dumps(measured_here(options)))
        return
    result = measure(options)
    ratio, faults, peak = (result[key] for key in ("given_back_over_kept", "faults_per_step_median", "peak_mb_median"))
    low, high = ratio["quartiles"]
    print(
        f"a step with freed memory given back takes {ratio['median']:.3f} ({low:.3f} to {high:.3f}) times as long; "
        f"page faults a step {faults['keep']:.0f} and {faults['system']:.0f}; "
        f"peak {peak['keep']:.0f} and {peak['system']:.0f} MB"
    )
    keep(result, options.out)


if __name__ == "__main__":
    run_command(main)
