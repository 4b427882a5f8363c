"""Whole runs in memory of which the laws of ranks are tested: every method, optimizers, layouts, sizes that do not fit.

A process that others meet knows cases by name, so that nothing of them has to travel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from memory import PassCost
from settings import ACTIVE
from whole_runs import METHODS, OPTIMIZERS, SEQUENCES, active, optimizer_for, run_with

from cramming.costs import WallClockConfig
from cramming.method import Method
from cramming.train import Run
from efficient_training.layer_dropping import LayerDropping
from efficient_training.length_warmup import LengthWarmup
from efficient_training.selective_backprop import SelectiveBackprop
from rst.clock import CostModel
from rst.costs import StepsCost

STEPS = 30


def growing(progress: float) -> int:
    """3 sequences at first, 8 in the end: most of them no multiple of 2 or 4."""
    return 3 + int(5.5 * progress)


def wall_clock() -> CostModel:
    """The time that passes, as ``rst=wallclock`` has it."""
    return WallClockConfig().build(SimpleNamespace(synchronize=None))  # type: ignore[arg-type]


PRICES: dict[str, Callable[[], CostModel]] = {"": StepsCost, "list": PassCost, "wall": wall_clock}
BUDGETS = {"": STEPS, "list": STEPS * 3 * SEQUENCES * 3 / 2, "wall": 0.5}


# Settings at which a method acts on 30 steps of batches that ranks share out.
LONGER: dict[str, Callable[[], Method]] = {
    "layer_dropping": lambda: LayerDropping(theta=0.2, gamma=20, sequences_per_draw=4),
    "unfolding": lambda: LengthWarmup(start=8, multiple=8, until=0.5, mode="unfold"),
    "selective_backprop": lambda: SelectiveBackprop(candidates_per_pass=6),
}


@dataclass(frozen=True)
class Case:
    """A run of ``STEPS`` steps.

    Attributes:
        methods: at the settings at which they act.
        optimizer: empty: the one in whose runs the methods can be.
        layout: of the store; ``separate`` is packed, with documents kept apart.
        grows: batches have from 3 to 8 sequences, not always 8.
        microbatch_size: sequences in a pass.
        priced: the clock charges every pass, not steps: by a price list, or (``wall``) by the time it takes.
    """

    methods: tuple[str, ...] = ()
    optimizer: str = ""
    layout: str = "packed"
    grows: bool = False
    microbatch_size: int = 4
    priced: str = ""

    def run(self) -> Run:
        """At its beginning."""
        methods: dict[str, Method] = {}
        for name in self.methods:
            kind = "length_warmup" if name == "unfolding" else name
            methods[kind] = LONGER[name]() if name in LONGER else active([name])[name]
        return run_with(
            methods,
            optimizer=self.optimizer or optimizer_for(*methods),
            layout="packed" if self.layout == "separate" else self.layout,
            separate_documents=self.layout == "separate",
            budget=BUDGETS[self.priced],
            costs=PRICES[self.priced](),
            microbatch_size=self.microbatch_size,
            batch_size=growing if self.grows else lambda progress: SEQUENCES,
        )


# Tested in every run of the suite. Sophia comes with its method, ``hessian``.
CASES: dict[str, Case] = {
    **{name: Case((name,)) for name in METHODS},
    **{name: Case((name,), microbatch_size=2) for name in ("sharpness", "hutchinson", "token_dropping")},
    "hessian": Case(("hessian",), microbatch_size=1),
    "baseline": Case(microbatch_size=2),
    "lion": Case(optimizer="lion"),
    "muon": Case(optimizer="muon"),
    "documents": Case(layout="document"),
    "separate": Case(layout="separate"),
    "growing": Case(grows=True, microbatch_size=1),
    "chain": Case(("layer_stacking", "selective_backprop"), microbatch_size=2),
    "growing_chain": Case(("layer_dropping", "token_dropping", "selective_backprop"), layout="document", grows=True),
    "unfolding": Case(("unfolding", "hessian"), microbatch_size=2),
    "waiting": Case(("progressive_batching", "rho_loss"), grows=True),
    "priced": Case(("selective_backprop", "layer_dropping"), priced="list"),
    "priced_documents": Case(("rho_loss", "token_dropping"), layout="document", priced="list", grows=True),
    "stopped": Case(("rho_loss",), priced="list"),
    "wall": Case(priced="wall"),
}
GRID: dict[str, Case] = {
    **CASES,
    **{kind: Case(optimizer=kind) for kind in OPTIMIZERS},
    **{
        f"{name} {layout}": Case((name,), layout=layout, grows=True, microbatch_size=1)
        for name in ACTIVE
        for layout in ("packed", "document", "separate")
    },
}
