"""What each thing that makes a training step fast is worth: the step without it, beside the step with all of them.

    python benchmarks/tricks.py
    python benchmarks/tricks.py archs=[bert,modern] size=base tokens=4096 pairs=5 cell_s=120
    python benchmarks/tricks.py archs=[modern] lengths=[2048] baselines=[local_attention]

Ratios are seconds without over seconds with: 1.20 means that a step takes a fifth longer without it. The sides are the
names of ``impl.plain``, each computed the plain way, and ``all plain``; and what other options of ``impl`` decide. What
padding costs is measured by ``unpadding.py``; what the C library does with freed memory, which is a matter of a whole
process, by ``allocation.py``.
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
from benchmarks.presentation import listed
from benchmarks.reporting import asked
from benchmarks.step import Ours, StepOptions
from cramming.cli import run_command
from cramming.model import Model
from cramming.optim import unfuse
from cramming.precision import DTYPES


@dataclass
class TricksOptions(StepOptions):
    """What the command line may change."""

    archs: list[str] = field(default_factory=lambda: ["bert"])
    lengths: list[int] = field(default_factory=lambda: [128])
    pairs: int = 9
    cell_s: float = 60.0


@dataclass(frozen=True)
class PlainCase(Case):
    """A row whose model computes in some ways plainly."""

    plain: tuple[str, ...] = ()

    def our_model(self) -> Model:
        """As in other rows."""
        model = super().our_model()
        model.compute_plainly(self.plain)
        return model


class Plainly(Ours):
    """The step with some of ``cramming.plain.WAYS`` plain."""

    def __init__(self, case: Case, options: StepOptions, plain: tuple[str, ...]) -> None:
        super().__init__(PlainCase(**vars(case), plain=plain), options)
        if "fused_optimizer" in plain:
            unfuse(self.engine.optimizer)


class Attending(Ours):
    """Attention in another form."""

    def __init__(self, case: Case, options: StepOptions, form: str) -> None:
        super().__init__(case, options)
        self.engine._compute.attention = form


def ways(options: TricksOptions, case: Case) -> list[str]:
    """What there is to do plainly in these steps, whose rows have no padding."""
    cast = {"cast_once"} if options.passes_in() != "float32" else set()
    return sorted((_outline(case).all_ways | cast | {"fused_optimizer"}) - {"unpadding"})


def _outline(case: Case) -> Model:
    with torch.device("meta"):
        return case.arch().build(case.size.vocab_size, case.length)  # type: ignore[no-any-return]


def sides(options: TricksOptions, case: Case) -> Builders:
    """The step as it is, without each, and without any."""
    names = ways(options, case)
    without: dict[str, Callable[[], Side]] = {name: partial(Plainly, case, options, (name,)) for name in names}
    without |= {
        "all plain": partial(Plainly, case, options, tuple(names)),
        "whole batch a pass": partial(Ours, case, replace(options, microbatch_tokens=case.sequences * case.length)),
        "compiled": partial(Ours, case, replace(options, compile=True)),
    }
    if _outline(case).attention_lacks("sdpa", options.where(), DTYPES[options.passes_in()]) is None:
        without["fused attention"] = partial(Attending, case, options, "sdpa")
    return options.with_beside(case, partial(Ours, options=options), without)


def main() -> None:
    """Parse, measure, print."""
    options = asked(TricksOptions, __doc__)
    run(options, Mode("tricks", partial(sides, options), page=listed))


if __name__ == "__main__":
    run_command(main)
