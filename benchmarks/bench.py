"""The table of training steps: each model's share of its limit, and its speed beside transformers'.

    make bench
    python benchmarks/bench.py models=[bert_small] pairs=12
    python benchmarks/bench.py out=step.json        # instead of results/<date>-<machine>/bench.json

128 tokens a sequence, 15 % predicted, as ``step.py`` measures it; that file has the options for everything else. A cell
whose ratios spread says that the machine was contended instead of a number: close what else runs and start again.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from functools import partial

from benchmarks.comparison import Mode, run
from benchmarks.presentation import CONTENDED, Page
from benchmarks.reporting import asked, folder, keep, spread
from benchmarks.step import StepOptions, sides
from cramming.cli import run_command
from cramming.errors import UserError
from cramming.suggest import nearest

# What is measured for each: the same model is in transformers, or only the limit and a scoring pass are beside it.
_OWN = ["limit", "scoring", "forward_limit"]
_LIBRARY = [*_OWN, "autocast", "low"]
MODELS: dict[str, dict[str, Any]] = {
    "bert_small": {"archs": ["bert"], "size": "small", "tokens": 8192, "baselines": _LIBRARY},
    "bert_base": {"archs": ["bert"], "size": "base", "tokens": 4096, "baselines": _LIBRARY},
    "modern_base": {"archs": ["modern"], "size": "base", "tokens": 4096, "baselines": _LIBRARY},
    "mosaic_base": {"archs": ["mosaic"], "size": "base", "tokens": 4096, "baselines": _OWN},
    "crammed_base": {"archs": ["crammed"], "size": "base", "tokens": 4096, "baselines": _OWN},
    "m2_base": {"archs": ["m2"], "size": "base", "tokens": 4096, "baselines": _OWN},
}
_GOALS = {  # least share of the limit, and least speed beside their two ways, on a processor
    "bert_small": (0.50, 6.0, 3.5),
    "bert_base": (0.65, 3.5, 2.0),
}


@dataclass
class Options:
    """What the command line may change."""

    models: list[str] = field(default_factory=lambda: list(MODELS))
    pairs: int = 9  # of each model; fewer, but three or more, where they take longer than cell_s
    cell_s: float = 100.0  # seconds for a model's pairs
    threads: int = 0  # 0: a thread for each core
    device: str = "auto"
    allocator: str = "auto"  # memory that any side has freed stays with the process; system: it is given back
    quick: bool = False  # tiny models, to see that it runs
    out: str = ""  # a JSON file; a page in Markdown lies beside it

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("models=[] leaves nothing to measure")
        for name in self.models:
            if name not in MODELS:
                raise UserError(f"models={name} is unknown{nearest(name, MODELS)}")

    def step(self, model: str) -> StepOptions:
        """What ``step.py`` is asked for."""
        chosen = dict(MODELS[model])
        if self.quick:
            chosen |= {"size": "tiny", "tokens": 256}
        return StepOptions(
            lengths=[128],
            pairs=self.pairs,
            cell_s=self.cell_s,
            block_s=120.0,
            threads=self.threads,
            allocator=self.allocator,
            device=self.device,
            **chosen,
        )


def page(rows: dict[str, dict[str, Any]]) -> Page:
    """The table of all models, whose rows are those of ``step.py``."""
    columns = ["model", "goals", "share of limit", "against autocast", "whose share is", "against 16-bit weights"]
    columns += ["whose share is", "scoring pass / step", "its products / step", "tokens/s"]
    shown = []
    for model, row in rows.items():
        goals = _GOALS.get(model)
        said = f"{goals[0]:.2f}, {goals[1]:g}x, {goals[2]:g}x" if goals else ""
        cells = [_ratio(row, "limit")]
        for side in ("autocast", "low"):
            cells += [_ratio(row, side), _share(row, side)]
        cells += [_ratio(row, side) for side in ("scoring", "forward_limit")]
        shown.append([model, said, *cells, f"{row['tokens_per_s']['ours']:,.0f}" if row["tokens_per_s"] else ""])
    notes = [
        "median of the pairs, quartiles in brackets; a share is seconds of our step's products alone over a step's",
        "against theirs, no step can be faster than one over their share",
    ]
    if any(CONTENDED in cell for cells in shown for cell in cells):
        notes.append("contended: the ratio spread too far, or something else was running; measure again")
    return Page("Training steps, 128 tokens", columns, shown, notes)


def _ratio(row: dict[str, Any], side: str) -> str:
    found = row["ratios"].get(side)
    if found is None:
        return row["unfit"].get(side, "")  # type: ignore[no-any-return]
    return _cell(found["wall"], found["busy"])


def _share(row: dict[str, Any], side: str) -> str:
    """Of the limit, what a side of theirs reaches."""
    limit, theirs = row["ratios"].get("limit"), row["ratios"].get(side)
    if limit is None or theirs is None:
        return ""
    pairs = zip(limit["wall"]["pairs"], theirs["wall"]["pairs"], strict=True)
    return _cell(spread([one / other for one, other in pairs]), limit["busy"] or theirs["busy"])


def _cell(ratio: dict[str, Any], contended: bool) -> str:
    low, high = ratio["quartiles"]
    return CONTENDED if contended else f"{ratio['median']:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    """Measure every model, print the table, keep it."""
    options = asked(Options, __doc__)
    results, rows = [], dict[str, dict[str, Any]]()
    for number, model in enumerate(options.models, start=1):
        print(f"{model} ({number} of {len(options.models)})", flush=True)
        step = options.step(model)
        results.append(run(step, Mode("step", partial(sides, step))))
        rows[model] = results[-1]["rows"][0]
    shown = page(rows)
    out = options.out or folder(step.where()) / "bench.json"
    keep({"models": dict(zip(options.models, results, strict=True))}, out, shown.markdown())
    print(f"\n{shown.markdown()}\nkept in {out}")


if __name__ == "__main__":
    run_command(main)
