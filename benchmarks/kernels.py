"""The operations of ``cramming/kernels`` by each backend, as shares of what the device allows.

    python benchmarks/kernels.py
    python benchmarks/kernels.py ops=[gated_long_conv] backends=[torch] lengths=[128,8192] pairs=12
    python benchmarks/kernels.py dtype=bfloat16 device=cuda out=kernels.json

A row is an operation at a length, forward or forward and backward, by a backend; all sides of it, and what it replaces
(``published``: the published PyTorch path of the sequence mixer; ``batched products`` of the state mixer), alternate in
one process. Every length has as many tokens. Where a backend has its ``filters kept`` it is given their transforms, as
the model does while its weights stay what they are; otherwise they are worked out in every call.

``share of floor``: the seconds a call could not be faster than, over its own. The floor is the larger of the bytes of
every input and output once, at the rate at which this device copies, and of the operations, at the rate at which it
multiplies matrices; the column beside it says which. ``times`` is the replaced one's seconds over the backend's, median
and quartiles of the pairs. ``MB above`` is the most that a call holds above its operands, results included. ``growth``
is a token's seconds over those at the shortest length, beside what log2 of the transform's points grew by.

On a GPU seconds are by its own events around calls that were queued before, and there are as many sets of operands as
its cache cannot hold.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console

from benchmarks.grid import FEWEST_PAIRS, Bounds, Measured, available_mb, busy, compared, measured, median_s
from benchmarks.kernels_sides import BASELINES, CONVOLUTION, GLU, KEPT, PASSES, Timed, Work
from benchmarks.presentation import CONTENDED, Page, broke
from benchmarks.reporting import asked, circumstances, keep
from cramming import resolve
from cramming.cli import run_command
from cramming.errors import UserError
from cramming.kernels import backends
from cramming.peak import peak_flops_per_s
from cramming.suggest import nearest

LENGTHS = {"cpu": [128, 512, 2048, 8192], "cuda": [128, 256, 512, 1024, 2048, 4096, 8192, 16384]}
TOKENS = {"cpu": 8192, "cuda": 131072}
CALLS = {"cpu": 1, "cuda": 10}  # in a block
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
AGREE_WITHIN = {"float32": 1e-4, "float64": 1e-8, "bfloat16": 2e-2, "float16": 1e-2}  # of what both sides computed
_COPIED_MB = {"cpu": 128, "cuda": 2048}
_CACHE_TIMES = 4  # operands of all sets together over the cache
_MEMORY_SHARE = 0.8


@dataclass
class Options:
    """What the command line may change."""

    ops: list[str] = field(default_factory=lambda: list(BASELINES))
    passes: list[str] = field(default_factory=lambda: list(PASSES))
    backends: list[str] = field(default_factory=list)  # none named: all that can run here but the definition
    lengths: list[int] = field(default_factory=list)  # none named: 128 to 8,192 on a processor, to 16,384 on a GPU
    tokens: int = 0  # of all sequences of a call; 0: 8,192 on a processor, 131,072 on a GPU
    channels: int = 768
    dtype: str = "auto"  # float32 on a processor, bfloat16 on a GPU
    device: str = "auto"
    threads: int = 0  # 0: a thread for each core
    pairs: int = 9
    cell_s: float = 20.0  # seconds for the pairs of a row; three at least
    isolated: bool = True  # on a processor: a process for each row
    out: str = ""  # a JSON file; a page in Markdown lies beside it

    def __post_init__(self) -> None:
        chosen = (("ops", BASELINES), ("passes", PASSES), ("backends", backends.NAMES))
        for key, known in chosen:
            for word in getattr(self, key):
                if word not in known:
                    raise UserError(f"{key}={word} is unknown{nearest(word, known)}")
        if self.pairs < FEWEST_PAIRS:
            raise UserError(f"pairs={self.pairs} is too few for quartiles: give {FEWEST_PAIRS} or more")
        if self.dtype != "auto" and self.dtype not in AGREE_WITHIN:
            raise UserError(f"dtype={self.dtype} is unknown{nearest(self.dtype, AGREE_WITHIN)}")
        if self.channels < 1 or (GLU in self.ops and self.channels % 4):
            raise UserError(f"channels={self.channels} must be a multiple of 4")
        if any(length < 1 for length in self.lengths):
            raise UserError(f"lengths={self.lengths} must be 1 or more")

    def where(self) -> torch.device:
        """The device."""
        return resolve.device() if self.device == "auto" else torch.device(self.device)

    def works(self) -> list[Work]:
        """All rows. The state mixer knows no positions: it has one length, that of all tokens."""
        kind = self.where().type
        tokens, lengths = self.tokens or TOKENS[kind], self.lengths or LENGTHS[kind]
        same = (self.channels, getattr(torch, self.dtype_name()), self.where())
        return [
            Work(op, passes, length, max(1, tokens // length), *same)
            for op in self.ops
            for length in (lengths if op == CONVOLUTION else [tokens])
            for passes in self.passes
        ]

    def dtype_name(self) -> str:
        """Of signals."""
        return DTYPES[self.where().type] if self.dtype == "auto" else self.dtype


def able(work: Work, wanted: Sequence[str]) -> dict[str, str | None]:
    """Backends for a row: why one that was named cannot do it, or None."""
    outline = work.outline()
    found: dict[str, str | None] = {}
    for name in wanted or [name for name in backends.NAMES if name != backends.REFERENCE]:
        why = None
        if name != backends.REFERENCE:
            module, why = backends.of(work.op, name)
            if module is not None:
                lacks = getattr(module, backends.LACKS[work.op])
                why = lacks(outline)
        if why is None or wanted:
            found[name] = why
    return found


def measure(options: Options) -> dict[str, Any]:
    """All rows, then floors and memory; what was measured, as plain values."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.where()
    bounds = Bounds(
        device, options.pairs, options.cell_s, 120.0, _MEMORY_SHARE * available_mb(), isolated=options.isolated
    )
    works, rows = options.works(), list[dict[str, Any]]()
    for number, work in enumerate(works, start=1):
        began = time.perf_counter()
        rows += _rows(work, options, bounds)
        said = f"{work.op} {work.passes} {work.sequences} x {work.length}"
        print(f"{said}: {time.perf_counter() - began:.0f} s [{number} of {len(works)}]", flush=True)
    # After the rows: their processes are forked from one that has never computed with several threads.
    copied = copy_bytes_per_s(device)
    wide = "float64" if options.dtype_name() == "float64" else "float32"
    rates = {name: peak_flops_per_s(device, name) for name in {options.dtype_name(), wide}}
    for work in works:
        for row in rows:
            if (row["op"], row["passes"], row["length"]) == (work.op, work.passes, work.length):
                rate = rates[options.dtype_name() if work.op == GLU else wide][0]
                _floor(row, work, copied, rate)
                if row["seconds"]:
                    row["above_mb"] = Timed(work, row["side"], 1, 1).peak_mb()
    _growth(rows)
    return {
        "rows": rows,
        "copy_bytes_per_s": copied,
        "flops_per_s": rates,
        "dtype": options.dtype_name(),
        "options": {key: value for key, value in asdict(options).items() if key != "out"},
        **circumstances(device),
    }


def _rows(work: Work, options: Options, bounds: Bounds) -> list[dict[str, Any]]:
    """A row for each side."""
    baseline, sides = BASELINES[work.op], dict[str, Timed]()
    calls, sets = CALLS[work.device.type], sets_of(work)

    def build(name: str) -> Timed:
        sides[name] = Timed(work, name, calls, sets)
        return sides[name]

    lacking = able(work, options.backends)
    ours = [name for name, why in lacking.items() if why is None]
    if work.op == CONVOLUTION:
        ours += [f"{name}{KEPT}" for name in ours if name != backends.REFERENCE]
    names = [baseline, *ours]
    found = measured({name: partial(build, name) for name in names}, bounds)
    if work.device.type == "cuda":
        for name, clocks in found.seconds.items():
            clocks["wall"] = sides[name].device_s(len(clocks["wall"]))
    sides.clear()
    rows = []
    for name in [*names, *(name for name, why in lacking.items() if why is not None)]:
        ratio, is_busy, seconds = None, False, None
        if name in found.seconds:
            seconds = median_s(found, name) / calls
            ratios = compared(found, name)
            if name != baseline and baseline in ratios:
                ratio, is_busy = ratios[baseline]["wall"], busy(ratios[baseline], found)
        row = {"op": work.op, "passes": work.passes, "length": work.length, "sequences": work.sequences}
        rows.append({
            **row,
            "side": name,
            "baseline": baseline,
            "seconds": seconds,
            "times": ratio,
            "busy": is_busy,
            "differs": _differs(found, name, baseline, options.dtype_name()),
            "unfit": lacking.get(name) or found.unfit.get(name),
            "other_cores": found.other_cores,
        })  # fmt: skip
    return rows


def sets_of(work: Work) -> int:
    """Sets of operands that the device's cache cannot hold; a processor's is for what is about the call, too."""
    if work.device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(work.device).L2_cache_size
    return 1 + int(_CACHE_TIMES * cache / work.operand_bytes())


def copy_bytes_per_s(device: torch.device, tries: int = 7) -> float:
    """Bytes read and written a second by the fastest of a few copies, larger than any cache."""
    source = torch.ones(_COPIED_MB[device.type] * 2**18, device=device)
    there, fastest = torch.empty_like(source), float("inf")
    for _ in range(tries):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        there.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * source.nbytes / fastest


def page(result: dict[str, Any]) -> Page:
    """The table."""
    columns = [
        "op, passes",
        "backend",
        "tokens",
        "sequences",
        "ms",
        "share of floor",
        "of",
        "times",
        "MB above",
        "growth",
    ]
    shown, notes = [], []
    for row in result["rows"]:
        cells = [f"{row['op']}, {row['passes']}", row["side"], str(row["length"]), str(row["sequences"])]
        if row["seconds"] is None:
            notes.append(f"{row['op']}, {row['side']} at {row['length']}: {row['unfit']}")
            shown.append([*cells, "", "", "", "does not run", "", ""])
            continue
        ratio = ""
        if row["times"]:
            low, high = row["times"]["quartiles"]
            ratio = CONTENDED if row["busy"] else f"{row['times']['median']:.2f} ({low:.2f}-{high:.2f})"
        if row["differs"]:
            notes.append(f"{row['op']}, {row['side']} at {row['length']}: {row['differs']}")
            ratio = "differs"
        growth = f"{row['growth'][0]:.2f} of {row['growth'][1]:.2f}" if row.get("growth") else ""
        cells += [f"{1e3 * row['seconds']:.3g}", f"{row['share']:.0%}", row["bound"], ratio, f"{row['above_mb']:,.1f}"]
        shown.append([*cells, growth])
    rate = ", ".join(
        f"{name} {flops / 1e12:.3g} TFLOP/s ({how})" for name, (flops, how) in result["flops_per_s"].items()
    )
    notes.append(f"{result['copy_bytes_per_s'] / 1e9:.3g} GB/s read and written by a copy; products: {rate}")
    if any(row["busy"] for row in result["rows"]):
        notes.append("contended: a ratio spread too far, or something else was running; measure again")
    return Page(
        f"Kernels, {result['dtype']}: seconds, shares of the floor, and times what they replace", columns, shown, notes
    )


def _differs(found: Measured, name: str, baseline: str, dtype: str) -> str:
    """What is said where two sides did not compute the same."""
    ours, theirs = found.losses.get(name), found.losses.get(baseline)
    if ours is None or theirs is None or abs(ours - theirs) <= AGREE_WITHIN[dtype] * abs(theirs):
        return ""
    return f"computes something else than {baseline}: {ours:.6g} and {theirs:.6g}"


def _floor(row: dict[str, Any], work: Work, copied: float, rate: float) -> None:
    bounds = {"bytes": work.floor_bytes() / copied, "operations": work.floor_operations() / rate}
    row["bound"], row["floor_s"] = max(bounds.items(), key=lambda bound: bound[1])
    row["share"] = row["floor_s"] / row["seconds"] if row["seconds"] else None


def _growth(rows: list[dict[str, Any]]) -> None:
    """A token's seconds against those at the shortest length, and the same of log2 2N."""
    for row in rows:
        own = [
            other for other in rows
            if all(other[key] == row[key] for key in ("op", "passes", "side")) and other["seconds"]
        ]  # fmt: skip
        if row["op"] == CONVOLUTION and row["seconds"] and len(own) > 1:
            first = min(own, key=lambda other: other["length"])
            token_s = [one["seconds"] / (one["sequences"] * one["length"]) for one in (row, first)]
            logs = [torch.tensor(2.0 * one["length"]).log2().item() for one in (row, first)]
            row["growth"] = token_s[0] / token_s[1], logs[0] / logs[1]


def main() -> None:
    """Parse, measure, print."""
    options = asked(Options, __doc__)
    result = measure(options)
    shown = page(result)
    Console(width=None if os.isatty(1) else 180).print(shown.rich())
    keep(result, options.out, shown.markdown())
    wrong = [f"{row['side']} at {row['length']}" for row in result["rows"] if row["unfit"] and broke(row["unfit"])]
    if wrong:
        raise UserError(f"broken, see the tracebacks above: {', '.join(wrong)}")


if __name__ == "__main__":
    run_command(main)
