"""Every family at every length against transformers: the command line, the rows and the file they share."""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from rich.console import Console

from benchmarks.architectures import FAMILIES, LENGTHS, PUBLISHED_BATCHES, SIZES, Case, Size
from benchmarks.grid import (
    FEWEST_PAIRS,
    Bounds,
    Builders,
    Context,
    Measured,
    Remaining,
    Side,
    available_mb,
    busy,
    compared,
    measured,
    median_s,
)
from benchmarks.presentation import OURS, Page, broke, line, page
from benchmarks.reporting import circumstances, keep
from cramming import allocator, resolve
from cramming.engine import DTYPES
from cramming.errors import UserError
from cramming.peak import peak_flops_per_s
from cramming.suggest import nearest
from cramming.text import duration

_MEMORY_SHARE = 0.8  # of what is available, for one cell


@dataclass
class Options:
    """What the command line may change in either benchmark."""

    archs: list[str] = field(default_factory=lambda: list(FAMILIES))
    lengths: list[int] = field(default_factory=lambda: [128, 2048])  # tokens in a sequence
    pairs: int = 7  # blocks of every side; fewer, but three or more, where they take longer than cell_s
    calls: int = 0  # in a block; 0: as fits the mode
    cell_s: float = 8.0  # seconds for the pairs of a family at a length
    block_s: float = 30.0  # a side whose block takes longer does not fit
    memory_gb: float = 0.0  # that one cell may take; 0: four fifths of what is available
    isolated: bool = True  # on a processor: a process for each cell
    size: str = "small"  # tiny, small (4x256), base (12x768) or large (24x1024)
    layers: int = 0  # 0: as ``size`` has it; so the next four
    hidden: int = 0
    heads: int = 0
    vocab_size: int = 0
    tokens: int = 8192  # in a block's batch at every length
    batches: str = "tokens"  # or m2, flash, hf: the sequences at each length that the M2 study took for those
    mask_rate: float = 0.15
    baselines: list[str] = field(default_factory=list)  # of theirs; none named: all there are
    beside: str = ""  # another family of ours, as one more side of every row
    their_attention: str = ""  # eager, sdpa, ...; nothing: as the library chooses
    precision: str = "auto"
    compile: bool = False  # our blocks
    their_compile: bool = False  # their whole model
    allocator: str = "auto"  # memory that any side has freed stays with the process; system: it is given back
    device: str = "auto"
    threads: int = 0  # 0: a thread for each core
    mfu: bool = False  # measure the peak of this device first, where it is not published, and say how near ours comes
    out: str = ""  # a JSON file for the result

    def __post_init__(self) -> None:
        beside = ("", *FAMILIES)
        for key, known in (
            ("archs", FAMILIES),
            ("beside", beside),
            ("size", SIZES),
            ("allocator", allocator.CHOICES),
            ("batches", ("tokens", *PUBLISHED_BATCHES)),
        ):
            value = getattr(self, key)
            for word in value if isinstance(value, list) else [value]:
                if word not in known:
                    raise UserError(f"{key}={word} is unknown{nearest(word, known)}")
        if self.pairs < FEWEST_PAIRS:
            raise UserError(f"pairs={self.pairs} is too few for quartiles: give {FEWEST_PAIRS} or more")
        for length in self.lengths:
            if length < 1 or length > max(self.tokens, *LENGTHS):
                raise UserError(f"lengths={length} must lie between 1 and tokens={self.tokens}")

    def sizes(self) -> Size:
        """The sizes asked for."""
        base = SIZES[self.size]
        return Size(
            self.layers or base.layers,
            self.hidden or base.hidden,
            self.heads or base.heads,
            self.vocab_size or base.vocab_size,
            base.files,
        )

    def with_beside(self, case: Case, ours: Callable[[Case], Side], theirs: Builders) -> Builders:
        """All sides of a case: ours, perhaps another family of ours, theirs."""
        found: dict[str, Callable[[], Side]] = {OURS: partial(ours, case)}
        if self.beside not in ("", case.family):
            found[f"our {self.beside}"] = partial(ours, replace(case, family=self.beside))
        chosen = self.baselines or list(theirs)
        for side in chosen:
            if side not in theirs:
                raise UserError(f"baselines={side} is unknown here: there are {', '.join(theirs)}")
            found[side] = theirs[side]
        return found

    def sequences(self, length: int) -> int:
        """In a block's batch; 0: the study that ``batches`` names had none of this length in memory."""
        if self.batches in PUBLISHED_BATCHES:
            return PUBLISHED_BATCHES[self.batches].get(length, 0)
        return max(1, self.tokens // length)

    def where(self) -> torch.device:
        """The device."""
        return resolve.device() if self.device == "auto" else torch.device(self.device)

    def passes_in(self) -> str:
        """The precision of passes.

        Raises:
            UserError: the device lacks what was asked for.
        """
        if self.precision == "auto":
            return "float32" if resolve.lacking("bfloat16", self.where()) else "bfloat16"
        lacking = resolve.lacking(self.precision, self.where())
        if lacking or self.precision not in DTYPES:
            raise UserError(f"precision={self.precision}: {lacking or 'there is no such precision'}; use auto")
        return self.precision

    def bounds(self) -> Bounds:
        """How much a cell may take."""
        memory_mb = self.memory_gb * 1024 if self.memory_gb else _MEMORY_SHARE * available_mb()
        bounds = (self.where(), self.pairs, self.cell_s, self.block_s, memory_mb, self.isolated)
        return Bounds(*bounds, allocator=self.allocator)


@dataclass(frozen=True)
class Mode:
    """What is timed."""

    name: str
    sides: Callable[[Case], Builders]  # of a case, ``ours`` among them
    calls: int = 1  # in a block
    dropout: float = 0.0  # in all models
    within: Context = nullcontext  # the context all blocks of a cell run in
    page: Callable[[dict[str, Any]], Page] = page  # how the result is shown


def run(options: Options, mode: Mode) -> dict[str, Any]:
    """Measure every cell and print each as it ends, then all as a table; the result is kept where ``out`` says.

    Raises:
        UserError: after everything, that some side broke.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    cells = [(family, length) for family in options.archs for length in options.lengths]
    remaining, rows = Remaining([length for _, length in cells]), list[dict[str, Any]]()
    for number, (family, length) in enumerate(cells, start=1):
        began = time.perf_counter()
        case = Case(family, length, options.sequences(length), options.sizes(), options.mask_rate, mode.dropout)
        rows.append(_row(options, mode, case))
        left_s = remaining.done(length, time.perf_counter() - began)
        left = f", about {duration(left_s)} left" if number < len(cells) else ""
        print(f"{mode.name} {line(rows[-1])} [{number} of {len(cells)}{left}]", flush=True)
    where, peak = options.where(), None
    if options.mfu:  # after the cells: their processes are forked from one that has never computed
        peak = peak_flops_per_s(where, options.passes_in())
        for row in rows:
            if row["our_flops_per_s"]:
                row["our_mfu"] = row["our_flops_per_s"] / peak[0]
    result = {
        "mode": mode.name,
        "rows": rows,
        "options": asdict(options),
        "calls": mode.calls,
        "precision": options.passes_in(),
        "peak_flops_per_s": peak,
        **circumstances(where),
    }
    shown = mode.page(result)
    Console(width=None if os.isatty(1) else 160).print(shown.rich())
    keep(result, options.out, shown.markdown())
    broken = [f"{row['arch']} at {row['length']}" for row in rows if any(map(broke, row["unfit"].values()))]
    if broken:
        raise UserError(f"broken, see the tracebacks above: {', '.join(broken)}")
    return result


def _row(options: Options, mode: Mode, case: Case) -> dict[str, Any]:
    """A cell, as plain values."""
    row = {"arch": case.family, "length": case.length, "sequences": case.sequences, "against": "", "same_model": False}
    found, refused = Measured(), ""
    try:
        if not case.sequences:
            raise UserError(f"batches={options.batches} has no such length: it did not fit in that study")
        case.arch()
        counterpart = case.counterpart()
        row |= {"against": counterpart.named, "same_model": counterpart.family is not None}
        found = measured(mode.sides(case), options.bounds(), mode.within)
    except UserError as error:
        refused = str(error)
    block_s = {side: median_s(found, side) for side in found.seconds}
    flops, tokens = found.flops.get(OURS), mode.calls * case.sequences * case.length
    return {
        **row,
        "ratios": {side: {**clocks, "busy": busy(clocks, found)} for side, clocks in compared(found, OURS).items()},
        "tokens_per_s": {side: tokens / seconds for side, seconds in block_s.items()},
        "block_s": block_s,
        "first_block_s": found.first_s,
        "peak_mb": found.peak_mb,
        "our_flops_per_s": flops / block_s[OURS] if flops else None,
        "losses": found.losses,
        "other_cores": found.other_cores,
        "refused": refused,
        "unfit": found.unfit,
    }
