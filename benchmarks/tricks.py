"""What each thing that makes a training step fast is worth: the step without it, beside the step with all of them.

    python benchmarks/tricks.py
    python benchmarks/tricks.py archs=[bert,modern] size=base tokens=4096 pairs=5 cell_s=120

Ratios are seconds without over seconds with: 1.20 means that a step takes a fifth longer without it. What the C library
does with freed memory is a matter of a whole process: ``allocation.py``.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.architectures import Case
from benchmarks.comparison import Mode, run
from benchmarks.grid import Builders, Side
from benchmarks.reporting import asked
from benchmarks.step import Ours, StepOptions
from cramming.batch import Batch
from cramming.cli import run_command
from cramming.method import Method


@dataclass
class TricksOptions(StepOptions):
    """What the command line may change."""

    archs: list[str] = field(default_factory=lambda: ["bert"])
    lengths: list[int] = field(default_factory=lambda: [128])
    pairs: int = 9
    cell_s: float = 60.0


class CastOften(Ours):
    """Float32 weights are cast in every microbatch, as autocast does, and not once for each step."""

    def block(self) -> None:
        """One optimizer step."""
        for part in self.batch.split(self.engine.microbatch_size):
            self.engine._copy.written()
            self.engine.backward(part, Method().objective)
        self.engine.step(1.0)


class AllPositions(Ours):
    """Every position goes through the last layer and the vocabulary, though only the predicted ones count."""

    def __init__(self, case: Case, options: StepOptions) -> None:
        super().__init__(case, options)
        self.batch = everywhere(self.batch)


class Attending(Ours):
    """Attention in another form."""

    def __init__(self, case: Case, options: StepOptions, form: str) -> None:
        super().__init__(case, options)
        self.engine._compute.attention = form


def everywhere(batch: Batch) -> Batch:
    """The same batch with every position a slot, of which those that were none weigh nothing."""
    positions = torch.arange(batch.length, device=batch.inputs.device).expand_as(batch.inputs).contiguous()
    zeros = torch.zeros(batch.inputs.shape, dtype=batch.weights.dtype, device=batch.inputs.device)
    return replace(
        batch,
        positions=positions,
        labels=batch.inputs.scatter(1, batch.positions, batch.labels),
        weights=zeros.scatter(1, batch.positions, batch.weights),
    )


def sides(options: TricksOptions, case: Case) -> Builders:
    """The step as it is, and without each."""
    without: dict[str, Callable[[], Side]] = {
        "cast every microbatch": partial(CastOften, case, options),
        "all positions": partial(AllPositions, case, options),
        "whole batch a pass": partial(Ours, case, replace(options, microbatch_tokens=case.sequences * case.length)),
        "fused attention": partial(Attending, case, options, "sdpa"),
        "compiled": partial(Ours, case, replace(options, compile=True)),
    }
    return options.with_beside(case, partial(Ours, options=options), without)


def main() -> None:
    """Parse, measure, print."""
    options = asked(TricksOptions, __doc__)
    run(options, Mode("tricks", partial(sides, options)))


if __name__ == "__main__":
    run_command(main)
