"""``python -m cramming.scaling.simulate``: a run of a thousand ranks, without them."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cramming.cli import parse, run_command
from cramming.errors import UserError
from cramming.suggest import nearest
from cramming.text import quantity

if TYPE_CHECKING:
    from cramming.scaling.simulation import Setting

USAGE = """\
Drive the sampler, the clock and the checkpoint plans that train for very many ranks, and check what has to hold.

  python -m cramming.scaling.simulate
  python -m cramming.scaling.simulate ranks=4096 worlds=[1024,2048] batch=786432 sequences=1e10

Options, with their defaults:
  ranks=1024 worlds=[512,768] (that take the run up in turns) sequences=1e9 epochs=1.02 batch=98304 batch_initial=49152
  ramp=0.5 (of the budget, for the batch to grow) group=12288 (sequences that share a random draw) microbatch=64
  order=[shuffled,shards] shards=10000 marks=1 (steps to stop at, beside the first, the last and the ends of epochs)
  arch=bert_base (of the checkpoint) seed=0
What is checked: docs/scaling.md"""
_TABLE = Path(__file__).parents[2] / "rst" / "tables" / "rtx3090.json"


@dataclass
class Options:
    """What the command line may change; ``USAGE`` says what each is."""

    ranks: int = 1024
    worlds: list[int] = field(default_factory=lambda: [512, 768])
    sequences: float = 1e9
    epochs: float = 1.02
    batch: int = 98_304
    batch_initial: int = 49_152
    ramp: float = 0.5
    group: int = 12_288
    microbatch: int = 64
    order: list[str] = field(default_factory=lambda: ["shuffled", "shards"])
    shards: int = 10_000
    marks: int = 1
    arch: str = "bert_base"
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("ranks", "epochs", "batch", "batch_initial", "group", "microbatch", "shards"):
            if getattr(self, key) <= 0:
                raise UserError(f"{key}={getattr(self, key)} must be above 0")
        if min(self.worlds, default=1) < 1 or self.marks < 0:
            raise UserError(f"worlds={self.worlds} and marks={self.marks}: a number of ranks is at least 1, of marks 0")
        if self.sequences < max(self.batch, self.batch_initial, self.shards):
            raise UserError(f"sequences={self.sequences:g} is less than a batch, or than a sequence in each shard")


def command(argv: Sequence[str]) -> None:
    """Simulate what the options say, and print what was checked.

    Raises:
        UserError: an option that is none, or ranks that cannot share a batch.
        LawBroken: what has to hold does not.
    """
    options, words = parse(argv, Options, USAGE)
    if words:
        raise UserError(f"{words[0]!r} is not key=value")
    from cramming.lengths import BatchSize
    from cramming.scaling.simulation import ORDERS, Setting
    from rst.table import CostTable

    for order in set(options.order) - set(ORDERS):
        raise UserError(f"order={order} is unknown{nearest(order, ORDERS)}")
    for order in options.order:
        growing = BatchSize(options.batch_initial, options.batch, options.ramp)
        setting = Setting(
            CostTable.load(_TABLE), int(options.sequences), growing,
            epochs=options.epochs, ranks=options.ranks, microbatch=options.microbatch, group=options.group,
            order=order, shards=options.shards, seed=options.seed,
        )  # fmt: skip
        for world in options.worlds:
            setting.check(world)
        _steps(setting, options)
    for sharded in (True, False):
        _checkpoints(options, sharded)


def _steps(setting: "Setting", options: Options) -> None:
    from cramming.scaling.simulation import check_steps, holds, journey, peak_bytes

    began = time.perf_counter()
    run = journey(setting, options.marks)
    memory = max(peak_bytes(setting, mark) for mark in run.marks)
    print(
        f"{setting.order}: a rank of {setting.ranks:,} went through {run.steps:,} steps of {run.drawn:,} sequences, "
        f"with {quantity(memory, 'B')} of memory ({time.perf_counter() - began:.0f} s)"
    )
    began = time.perf_counter()
    worlds = [setting.ranks, *options.worlds, setting.ranks]
    for mark in run.marks:
        paid = check_steps(setting, mark, worlds)
        holds(max(paid) - min(paid) <= 1e-6 * max(paid), f"steps take {paid} device-seconds on {worlds} ranks")
    steps = ", ".join(f"{mark.step:,}" for mark in run.marks)
    print(
        f"  taken up at steps {steps} by {', '.join(f'{world:,}' for world in worlds)} ranks in turns: slices disjoint "
        f"and together the batch of one rank, equal work, equal clocks ({time.perf_counter() - began:.0f} s)"
    )


def _checkpoints(options: Options, sharded: bool) -> None:
    from cramming.scaling.plans import check_reading, check_writing, outlines

    began = time.perf_counter()
    tensors = outlines(options.arch, 128, sharded=sharded)
    wrote = check_writing(tensors, options.ranks)
    opened = {world: check_reading(tensors, options.ranks, world) for world in options.worlds}
    print(
        f"checkpoint of {options.arch}, {'shared by all ranks' if sharded else 'whole on every rank'}: "
        f"{quantity(wrote.bytes, 'B')} in {options.ranks:,} files, the largest {quantity(wrote.most, 'B')} "
        f"(an equal part is {quantity(wrote.bytes / options.ranks, 'B')}), {wrote.pieces:,} lines of index; "
        + "; ".join(f"each of {world:,} ranks reads of {most:,} files at most" for world, most in opened.items())
        + f" ({time.perf_counter() - began:.0f} s)"
    )


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
