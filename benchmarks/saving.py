"""What saving costs a run: steps with a checkpoint written at once, and beside the steps, against steps without one.

    python benchmarks/saving.py
    python benchmarks/saving.py size=base steps=20 pairs=5 folder=/fast out=saving.json

A block is so many optimizer steps on the same batch, with one checkpoint saved after the first of them: none, at once
(``impl.save_async=false``), or beside the steps (``true``), and its time lasts until that is on the disk. Blocks of the
three alternate. ``stall`` is what a step waits for the call that saves, in median steps of its own block without one.
"""

import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.architectures import SIZES, Case
from benchmarks.reporting import asked, circumstances, keep, spread
from benchmarks.step import Ours, StepOptions
from cramming import checkpoint
from cramming.cli import run_command
from cramming.saving import snapshot
from cramming.saving.background import Background

WAYS = ("none", "at_once", "beside")


@dataclass
class SavingOptions:
    """What the command line may change."""

    size: str = "small"  # tiny, small (4x256), base (12x768) or large (24x1024)
    length: int = 128
    sequences: int = 64  # in a step
    steps: int = 8  # in a block
    pairs: int = 7  # blocks of each kind, after one to warm up
    device: str = "auto"
    threads: int = 0
    folder: str = "/tmp/benchmark-saving"  # where checkpoints are written; removed at the end
    out: str = ""  # a JSON file for the result


class Block:
    """Steps of the engine, and a way to save its state."""

    def __init__(self, options: SavingOptions) -> None:
        case = Case("bert", options.length, options.sequences, SIZES[options.size], mask_rate=0.15)
        self.ours = Ours(case, StepOptions(device=options.device, threads=options.threads))
        self.folder, self.steps = Path(options.folder), options.steps
        self.background = Background()
        self.number = 0

    def run(self, way: str) -> tuple[float, float]:
        """Seconds of a block, and of them those of the call that saves in median other steps."""
        began = time.perf_counter()
        waited, steps = 0.0, []
        for step in range(self.steps):
            start = time.perf_counter()
            self.ours.block()
            self.ours.engine.synchronize()
            steps.append(time.perf_counter() - start)
            if step == 0 and way != "none":
                start = time.perf_counter()
                self.save(way)
                waited = time.perf_counter() - start
        self.background.wait()
        return time.perf_counter() - began, waited / statistics.median(steps)

    def save(self, way: str) -> None:
        """As a run does."""
        self.number += 1
        number, engine = self.number, self.ours.engine
        saved = snapshot.whole({"model": engine.model.state_dict(), "engine": engine.state_dict()})

        def write() -> None:
            checkpoint.write(self.folder, number, saved, {}, keep=2, kept_at_h=[])

        if way == "beside":
            self.background.start(write)
        else:
            write()

    def megabytes(self) -> float:
        """Of the last checkpoint, 10^6 bytes."""
        return sum(f.stat().st_size for f in checkpoint.checkpoints(self.folder)[-1].folder.iterdir()) / 1e6


def measure(options: SavingOptions) -> dict[str, Any]:
    """Ratios of whole blocks to those without a checkpoint, and stalls."""
    block = Block(options)
    walls: dict[str, list[float]] = {way: [] for way in WAYS}
    stalls: dict[str, list[float]] = {way: [] for way in WAYS}
    try:
        for pair in range(options.pairs + 1):
            for way in WAYS if pair % 2 else reversed(WAYS):
                wall, stall = block.run(way)
                if pair:
                    walls[way].append(wall)
                    stalls[way].append(stall)
        size = block.megabytes()
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    result: dict[str, Any] = {"megabytes": size, "steps": options.steps, **circumstances(block.ours.engine.device)}
    for way in WAYS[1:]:
        ratios = [with_it / without for with_it, without in zip(walls[way], walls["none"], strict=True)]
        result[way] = {"stall_in_steps": spread(stalls[way]), "block_over_none": spread(ratios)}
    at_once, beside = (stalls[way] for way in WAYS[1:])
    result["stall_beside_over_at_once"] = spread([b / a for a, b in zip(at_once, beside, strict=True)])
    return result


def main() -> None:
    """Parse, measure, print."""
    options = asked(SavingOptions, __doc__)
    result = measure(options)
    print(f"checkpoint of {result['megabytes']:.0f} MB, {result['steps']} steps in a block")
    for way in WAYS[1:]:
        stall, ratio = (result[way][key] for key in ("stall_in_steps", "block_over_none"))
        print(f"{way}: a save holds training up for {stall['median']:.2f} steps; the block takes {ratio['median']:.2f}")
    print(f"stall, beside over at once: {result['stall_beside_over_at_once']['median']:.3f}")
    keep(result, options.out)


if __name__ == "__main__":
    run_command(main)
