"""The cost of an optimizer's step, against AdamW's and against the gradients of a batch, in threes.

    python benchmarks/optimizers.py
    python benchmarks/optimizers.py optimizers=[lion,muon,library/adan] pairs=12 out=optimizers.json
    python benchmarks/optimizers.py size=base batch_size=1536

A cell is an optimizer. In its process three things alternate: ``steps`` steps of AdamW, as many of the optimizer, and
the passes of one microbatch, forward and backward, as runs make them. A batch is so many microbatches, so its gradients
take as many times as long; a batch that would take minutes is not computed. Gradients are given and the rate is next to
nothing, so that every step is the same work. What an optimizer's method computes beside its step (curvature, a second
pass) is not in it: the clock charges that apart. "Does not fit" is a result: see README.md for the protocol.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import os

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.architectures import SIZES, Case
from benchmarks.grid import BROKE, FEWEST_PAIRS, Bounds, Builders, Measured, available_mb, busy, compared, measured
from benchmarks.reporting import asked, circumstances, keep, spread
from cramming import optim, registry, resolve
from cramming.cli import run_command
from cramming.engine import DTYPES, Engine
from cramming.errors import UserError
from cramming.model import Model
from cramming.suggest import nearest
from rst.clock import Clock
from rst.costs import StepsCost

ADAMW, OTHER, GRADIENTS = "adamw", "step", "gradients"
LIBRARY = "library/"
BATCHES = {"tiny": 8, "small": 64, "base": 1536, "large": 4096}  # of the recipes of these sizes
_RATE = 1e-9  # weights stay where they are
_MEMORY_SHARE = 0.8  # of what is available, for one cell


def known() -> list[str]:
    """Every optimizer but the library's."""
    registry.load_plugins()
    return [kind for kind in registry.kinds("train/optim") if kind != "library"]


@dataclass
class Options:
    """What the command line may change."""

    optimizers: list[str] = field(default_factory=known)  # and library/<name>
    arch: str = "bert"
    size: str = "small"  # tiny, small (4x256), base (12x768) or large (24x1024)
    batch_size: int = 0  # sequences; 0: the recipes' of this size
    seq_length: int = 128
    microbatch_size: int = 16  # sequences of the passes that are timed
    steps: int = 10  # in a block, so that what comes every tenth step is in each
    pairs: int = 9  # blocks of each of the three; fewer, but three or more, where they take longer than cell_s
    cell_s: float = 8.0  # seconds for the pairs of an optimizer
    block_s: float = 120.0  # an optimizer whose steps take longer does not fit
    memory_gb: float = 0.0  # that one cell may take; 0: four fifths of what is available
    isolated: bool = True  # on a processor: a process for each cell
    precision: str = "auto"  # of passes; weights and steps are in float32
    device: str = "auto"
    threads: int = 0  # 0: a thread for each core
    out: str = ""  # a JSON file for the result

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UserError(f"size={self.size} is unknown{nearest(self.size, SIZES)}")
        for name in self.optimizers:
            if not name.startswith(LIBRARY) and name not in known():
                raise UserError(f"optimizers={name} is unknown{nearest(name, known())}")
        if self.pairs < FEWEST_PAIRS:
            raise UserError(f"pairs={self.pairs} is too few for quartiles: give {FEWEST_PAIRS} or more")
        self.batch_size = self.batch_size or BATCHES[self.size]
        self.microbatch_size = min(self.microbatch_size, self.batch_size)

    def where(self) -> torch.device:
        """The device."""
        return resolve.device() if self.device == "auto" else torch.device(self.device)

    def passes_in(self) -> str:
        """The precision of passes."""
        if self.precision == "auto":
            return "float32" if resolve.lacking("bfloat16", self.where()) else "bfloat16"
        if self.precision not in DTYPES:
            raise UserError(f"precision={self.precision} is unknown{nearest(self.precision, DTYPES)}")
        return self.precision

    def case(self) -> Case:
        """The microbatch."""
        return Case(self.arch, self.seq_length, self.microbatch_size, SIZES[self.size], mask_rate=0.15)

    def bounds(self) -> Bounds:
        """How much a cell may take."""
        memory_mb = self.memory_gb * 1024 if self.memory_gb else _MEMORY_SHARE * available_mb()
        return Bounds(self.where(), self.pairs, self.cell_s, self.block_s, memory_mb, self.isolated)


def model_of(options: Options) -> Model:
    """The model, with weights of one seed."""
    torch.manual_seed(0)
    model: Any = options.case().arch().build(SIZES[options.size].vocab_size, options.seq_length)
    return model.to(options.where())  # type: ignore[no-any-return]


class Steps:
    """Steps of an optimizer from given gradients."""

    flops: float | None = None
    loss: float | None = None

    def __init__(self, options: Options, name: str) -> None:
        kind, _, named = name.partition("/")
        model = model_of(options)
        hyperparameters = {"name": named} if named else {}
        self.optimizer = optim.build(kind, optim.parameter_groups(model), lr=_RATE, **hyperparameters)
        self.steps = options.steps
        random = torch.Generator().manual_seed(1)
        for p in model.parameters():
            p.grad = (1e-3 * torch.randn(p.shape, generator=random)).to(p.device)
        take_up: Callable[..., None] | None = getattr(self.optimizer, "update_diagonal", None)
        if take_up is not None:  # without an estimate of curvature it would not move
            take_up({p: p.grad.square() for p in model.parameters() if p.grad is not None})

    def block(self) -> None:
        """So many steps."""
        for _ in range(self.steps):
            self.optimizer.step()


class Gradients:
    """Forward and backward of a microbatch, on the engine that runs have."""

    flops: float | None = None
    loss: float | None = None

    def __init__(self, options: Options) -> None:
        model = model_of(options)
        built = optim.build(ADAMW, optim.parameter_groups(model), lr=_RATE)
        clock = Clock({"main": StepsCost()}, budget_s=1e9)
        engine = Engine(model, built, clock, precision=options.passes_in(), microbatch_size=options.microbatch_size)
        batch = options.case().batch().to(options.where())
        self.block = engine.probe("forward_backward", batch, model.active_layers)


def sides(options: Options, name: str) -> Builders:
    """The three of a cell."""
    return {
        ADAMW: partial(Steps, options, ADAMW),
        OTHER: partial(Steps, options, name),
        GRADIENTS: partial(Gradients, options),
    }


def row_of(options: Options, name: str, found: Measured) -> dict[str, Any]:
    """A cell, as plain values: seconds of one step, over AdamW's, and as a share of the gradients of a batch."""
    row: dict[str, Any] = {"optimizer": name, "unfit": found.unfit.get(OTHER, ""), "other_cores": found.other_cores}
    if missing := [side for side in (ADAMW, OTHER, GRADIENTS) if side not in found.seconds]:
        return {**row, "unfit": row["unfit"] or f"{missing[0]}: {found.unfit[missing[0]]}"}
    microbatches = options.batch_size / options.microbatch_size
    wall = {side: clocks["wall"] for side, clocks in found.seconds.items()}
    shares = [
        step / options.steps / (passes * microbatches)
        for step, passes in zip(wall[OTHER], wall[GRADIENTS], strict=True)
    ]
    ratio = compared(found, ADAMW)[OTHER]
    return {
        **row,
        "step_s": spread([value / options.steps for value in wall[OTHER]]),
        "over_adamw": ratio,
        "of_gradients": spread(shares),
        "gradients_s": spread([value * microbatches for value in wall[GRADIENTS]]),
        "peak_mb": found.peak_mb[OTHER],
        "busy": busy(ratio, found),
    }


def run(options: Options) -> dict[str, Any]:
    """Measure every optimizer and print each as it ends, then all as a table; kept where ``out`` says.

    Raises:
        UserError: after everything, that some optimizer broke.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    for number, name in enumerate(options.optimizers, start=1):
        rows.append(row_of(options, name, measured(sides(options, name), options.bounds())))
        print(f"{' '.join(cells(rows[-1]))} [{number} of {len(options.optimizers)}]", flush=True)
    where = options.where()
    result = {
        "rows": rows,
        "options": asdict(options),
        "precision": options.passes_in(),
        **circumstances(where),
    }
    Console(width=None if os.isatty(1) else 120).print(table(result))
    keep(result, options.out)
    if broken := [row["optimizer"] for row in rows if BROKE in row["unfit"]]:
        raise UserError(f"broken, see the tracebacks above: {', '.join(broken)}")
    return result


def table(result: dict[str, Any]) -> Table:
    """All rows, as people read them."""
    options = result["options"]
    shown = Table(title=f"an optimizer step of {options['arch']}, {options['size']}: median (quartiles)")
    for column in ("optimizer", "ms", "over AdamW's", f"of the gradients of {options['batch_size']}", "MB"):
        shown.add_column(column, justify="left" if column == "optimizer" else "right")
    for row in result["rows"]:
        shown.add_row(*cells(row))
    if any(row.get("busy") for row in result["rows"]):
        shown.caption = "! the machine was busy: measure these again"
    return shown


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    if row["unfit"]:
        return [row["optimizer"], row["unfit"]]
    ratio, share = row["over_adamw"]["wall"], row["of_gradients"]
    low, high = ratio["quartiles"]
    return [
        row["optimizer"],
        f"{1000 * row['step_s']['median']:.3g}",
        f"{ratio['median']:.2f} ({low:.2f}-{high:.2f}){'!' if row['busy'] else ''}",
        f"{share['median']:.2%} ({share['quartiles'][0]:.2%}-{share['quartiles'][1]:.2%})",
        f"{row['peak_mb']:,.0f}",
    ]


def main() -> None:
    """Parse, measure, print."""
    run(asked(Options, __doc__))


if __name__ == "__main__":
    run_command(main)
