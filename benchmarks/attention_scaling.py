"""Training steps from 128 to 8192 tokens a sequence at as many tokens a batch: tokens/s, peak memory, and a plot.

    python benchmarks/attention_scaling.py
    python benchmarks/attention_scaling.py size=base lengths=[512,2048,8192] pairs=7 cell_s=60
    python benchmarks/attention_scaling.py forms=[sdpa,varlen,flex]                    # on a GPU
    python benchmarks/attention_scaling.py out=scaling.json  # else results/<date>-<machine>/attention_scaling.json

At every length there is a cell for each question, whose sides alternate block by block in a process of their own:

    families    how each family grows with the length, on full rows
    window      ModernBERT as it is, two layers in three seeing a window, against itself with windows lifted
    padding     sequences of an eighth of the length up to all of it, unpadded, against the same batch with padding
                computed; only tokens count
    full, padded    named ``forms=`` of attention against one another, on full rows and on such a batch

A block is an optimizer step of the engine, as runs take it. A cell that was measured while the machine did something
else says so and has no number; in the plot it is hollow. "Does not fit" is a result. README.md has the protocol.
"""

import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.architectures import FAMILIES, MASK, Case
from benchmarks.grid import BUSY_CORES, Builders, Measured, Remaining, Side, busy, compared, measured, median_s
from benchmarks.presentation import CONTENDED, LOSSES_AGREE_WITHIN, Page, broke
from benchmarks.reporting import asked, circumstances, folder, keep
from benchmarks.step import Ours, StepOptions
from cramming.architectures.encoder import Encoder
from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.unpadding import Layout
from cramming.batch import Batch
from cramming.cli import run_command
from cramming.config import ATTENTION
from cramming.errors import UserError
from cramming.model import Model
from cramming.precision import DTYPES
from cramming.suggest import nearest
from cramming.text import duration

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
TOKENS = {"cpu": 8192, "cuda": 65536}
SHORTEST = 8  # the shortest sequence of a padded batch is the length over this
_SEED = 1
_QUICK = {"size": "tiny", "tokens": 128, "lengths": [32, 128], "pairs": 3, "cell_s": 0.5}


@dataclass
class Options:
    """What the command line may change."""

    archs: list[str] = field(default_factory=lambda: ["bert", "mosaic", "modern", "m2"])
    lengths: list[int] = field(default_factory=lambda: list(LENGTHS))
    forms: list[str] = field(default_factory=list)  # of attention, compared with one another
    of: str = "bert"  # the family whose padding and whose forms are compared
    size: str = "small"  # tiny, small (4x256) or base (12x768)
    tokens: int = 0  # in a batch at every length; 0: 8,192 on a processor, 65,536 on a GPU
    pairs: int = 7  # steps of every side; fewer, but three or more, where they take longer than cell_s
    cell_s: float = 20.0  # seconds for the steps of a cell
    block_s: float = 120.0  # a side whose step takes longer does not fit
    memory_gb: float = 0.0  # that one cell may take; 0: four fifths of what is available
    isolated: bool = True  # on a processor: a process for each cell
    precision: str = "auto"
    compile: bool = False
    device: str = "auto"
    threads: int = 0  # 0: a thread for each core
    quick: bool = False  # tiny models and two lengths, to see that it runs
    out: str = ""  # a JSON file; a page in Markdown and a plot lie beside it

    def __post_init__(self) -> None:
        chosen: dict[str, tuple[list[str], Collection[str]]] = {
            "archs": (self.archs, FAMILIES),
            "forms": (self.forms, ATTENTION),
            "of": ([self.of], FAMILIES),
        }
        for key, (words, known) in chosen.items():
            for word in words:
                if word not in known:
                    raise UserError(f"{key}={word} is unknown{nearest(word, known)}")
        if not self.archs:
            raise UserError("archs=[] leaves nothing to measure")
        if self.quick:
            for key, value in _QUICK.items():
                setattr(self, key, value)

    def step(self) -> StepOptions:
        """What the steps of ``step.py`` are asked for."""
        device = StepOptions(device=self.device).where()
        same = (
            "pairs",
            "cell_s",
            "block_s",
            "memory_gb",
            "isolated",
            "size",
            "precision",
            "compile",
            "device",
            "threads",
        )
        return StepOptions(
            archs=[self.of],
            lengths=self.lengths,
            tokens=self.tokens or TOKENS[device.type],
            **{key: getattr(self, key) for key in same},
        )


@dataclass(frozen=True)
class Variant(Case):
    """A family at a length, changed in what a cell is about."""

    lifted: bool = False  # windows see the whole sequence
    padded: bool = False  # sequences of several lengths
    computed: bool = False  # padding is computed like everything else, and attended to by nothing
    form: str = "auto"  # of attention
    device: str = "cpu"  # where, and in which precision it will be
    dtype: torch.dtype = torch.float32

    def our_model(self) -> Model:
        """Fresh weights, always the same.

        Raises:
            UserError: a form of attention that is not to be had here.
        """
        torch.manual_seed(_SEED)
        model: Any = self.arch().build(self.size.vocab_size, self.length)
        if self.lifted:
            for module in model.modules():
                if isinstance(module, SelfAttention):
                    module.window = None
        if self.computed:
            kind = type(model)
            model.__class__ = type(f"Padded{kind.__name__}", (_Padded, kind), {})
        missing = model.attention_lacks(self.form, torch.device(self.device), self.dtype)
        if missing is not None:
            raise UserError(f"attention={self.form}: {missing}")
        if self.form != "auto":
            model.attention = self.form
        return model.train()  # type: ignore[no-any-return]

    def batch(self) -> Batch:
        """Random tokens, of several lengths if that is asked for; the share predicted is that of full rows."""
        full = super().batch()
        if not self.padded:
            return full
        random = torch.Generator().manual_seed(_SEED)
        shortest = max(1, self.length // SHORTEST)
        # Evenly spread, so that the share of padding is the same at every length.
        places = (torch.arange(self.sequences) + 0.5) / self.sequences
        lengths = (shortest + places * (self.length - shortest)).round().long()
        tokens = full.inputs.scatter(1, full.positions, full.labels)
        inside = torch.arange(self.length) < lengths[:, None]
        slots = full.positions.shape[1]
        ranks = torch.rand(tokens.shape, generator=random).masked_fill_(~inside, 2.0)
        positions = ranks.argsort(1)[:, :slots]
        used = (lengths * self.mask_rate).round().clamp(min=1)[:, None]
        weights = (torch.arange(slots) < used).float()
        positions = positions.where(weights > 0, 0)
        labels = tokens.gather(1, positions)
        masked = torch.zeros_like(inside).scatter_(1, positions, weights > 0)
        inputs = tokens.masked_fill(masked, MASK).where(inside, 0)
        return replace(
            full, inputs=inputs, positions=positions, labels=labels, weights=weights, lengths=lengths,
            normalizer=weights.sum(),
        )  # fmt: skip


class _Padded(Encoder):
    """Without unpadding: every cell is computed."""

    def layout(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> Layout:
        known = super().layout(inputs, mask, lengths, starts)
        return Layout(known.sequences, known.length, mask=known.mask)


def cells(options: Options, length: int) -> dict[str, dict[str, Variant]]:
    """The questions at a length, each with its sides; the first one is what the others are compared with."""
    step = options.step()
    plain = Variant(
        options.of, length, step.sequences(length), step.sizes(), step.mask_rate,
        device=step.where().type, dtype=DTYPES[step.passes_in()],
    )  # fmt: skip
    windowed, padded = replace(plain, family="modern"), replace(plain, padded=True)
    found = {
        "families": {arch: replace(plain, family=arch) for arch in options.archs},
        "window": {"window": windowed, "windows lifted": replace(windowed, lifted=True)},
        "padding": {"unpadded": padded, "padding computed": replace(padded, computed=True)},
    }
    if options.forms:
        found["full"] = {form: replace(plain, form=form) for form in options.forms}
        found["padded"] = {form: replace(padded, form=form) for form in options.forms}
    return found


def row(question: str, sides: Mapping[str, Variant], step: StepOptions) -> dict[str, Any]:
    """Measure a cell; its result as plain values."""
    builders: Builders = {name: partial(_side, variant, step) for name, variant in sides.items()}
    found = measured(builders, step.bounds())
    variant = next(iter(sides.values()))
    lengths = variant.batch().lengths
    tokens = variant.sequences * variant.length if lengths is None else int(lengths.sum())
    ratios = compared(found, next((name for name in sides if name in found.seconds), ""))
    return {
        "question": question,
        "length": variant.length,
        "sequences": variant.sequences,
        "tokens": tokens,
        "tokens_per_s": {side: tokens / median_s(found, side) for side in found.seconds},
        "peak_mb": found.peak_mb,
        "first_block_s": found.first_s,
        "ratios": ratios,
        "contended": _contended(found, ratios),
        "losses": found.losses,
        "other_cores": found.other_cores,
        "unfit": found.unfit,
    }


def _side(variant: Variant, step: StepOptions) -> Side:
    return Ours(variant, step)


def _contended(found: Measured, ratios: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The sides without a number: their ratio to the first one spreads, or that one's to all others."""
    spread = [side for side, ratio in ratios.items() if busy(ratio, found)]
    whole = found.other_cores > BUSY_CORES or (bool(ratios) and len(spread) == len(ratios))
    return list(found.seconds) if whole else spread


def page(rows: list[dict[str, Any]]) -> Page:
    """All cells as a table."""
    columns = ["question", "side", "tokens", "sequences", "tokens/s", "seconds over the first side's", "peak MB"]
    shown, notes = [], []
    for cell in rows:
        for side in (*cell["tokens_per_s"], *cell["unfit"]):
            speed = ratio = ""
            if side in cell["unfit"]:
                speed = "does not fit"
                notes.append(f"{cell['question']}, {side} at {cell['length']}: {cell['unfit'][side]}")
            elif side in cell["contended"]:
                speed = CONTENDED
            else:
                speed = f"{cell['tokens_per_s'][side]:,.0f}"
                if side in cell["ratios"]:
                    wall = cell["ratios"][side]["wall"]
                    ratio = "{:.2f} ({:.2f}-{:.2f})".format(wall["median"], *wall["quartiles"])
            memory = f"{cell['peak_mb'][side]:,.0f}" if side in cell["peak_mb"] else ""
            shown.append([
                cell["question"], side, str(cell["length"]), str(cell["sequences"]), speed, ratio, memory
            ])  # fmt: skip
        if cell["question"] in ("padding", "full", "padded"):
            losses = [loss for loss in cell["losses"].values() if loss is not None]
            if losses and max(losses) - min(losses) > LOSSES_AGREE_WITHIN:
                notes.append(f"{cell['question']} at {cell['length']}: the losses after the last step differ")
    if any(cell["contended"] for cell in rows):
        notes.append("contended: a ratio spread too far, or something else was running; measure again")
    return Page("Training steps by length, as many tokens a batch", columns, shown, notes)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Tokens/s and peak memory against the length, both axes logarithmic; what is contended is hollow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    lengths = sorted({cell["length"] for cell in rows})
    questions = list(dict.fromkeys(cell["question"] for cell in rows))
    figure = Figure(figsize=(4.2 * len(questions), 7.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(questions), squeeze=False, sharex=True, sharey="row")
    for column, question in enumerate(questions):
        own = [cell for cell in rows if cell["question"] == question]
        sides = dict.fromkeys(side for cell in own for side in cell["tokens_per_s"])
        for place, side in enumerate(sides):
            for axis, key in zip(axes[:, column], ("tokens_per_s", "peak_mb"), strict=True):
                points = [
                    (cell["length"], cell[key][side], side in cell["contended"])
                    for cell in own
                    if side in cell["tokens_per_s"] and cell[key][side] > 0
                ]
                axis.plot([x for x, _, _ in points], [y for _, y, _ in points], color=f"C{place}", label=side)
                for hollow in (True, False):
                    of_kind = [(x, y) for x, y, contended in points if contended == hollow]
                    axis.scatter(
                        [x for x, _ in of_kind], [y for _, y in of_kind], s=22, zorder=3,
                        edgecolors=f"C{place}", facecolors="white" if hollow else f"C{place}",
                    )  # fmt: skip
        axes[0, column].set_title(question, loc="left")
        axes[0, column].legend(frameon=False, fontsize=8)
        axes[1, column].set_xlabel("tokens of a sequence")
    for axis in axes.flat:
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(color="#e4e4e4", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("tokens/s")
    axes[1, 0].set_ylabel("peak memory, MB")
    figure.savefig(path)


def main() -> None:
    """Measure every cell, print the table, keep it with its plot."""
    options = asked(Options, __doc__)
    step = options.step()
    if step.threads:
        torch.set_num_threads(step.threads)
    grid = [(length, question) for length in options.lengths for question in cells(options, length)]
    remaining, rows = Remaining([length for length, _ in grid]), list[dict[str, Any]]()
    for number, (length, question) in enumerate(grid, start=1):
        began = time.perf_counter()
        rows.append(row(question, cells(options, length)[question], step))
        left_s = remaining.done(length, time.perf_counter() - began)
        speeds = ", ".join(f"{side} {speed:,.0f}" for side, speed in rows[-1]["tokens_per_s"].items())
        print(
            f"{question} at {length}: {speeds} tokens/s [{number} of {len(grid)}, {duration(left_s)} left]", flush=True
        )
    shown = page(rows)
    out = Path(options.out or folder(step.where()) / "attention_scaling.json")
    result = {
        "rows": rows,
        "options": asdict(options),
        "precision": step.passes_in(),
        **circumstances(step.where()),
    }
    keep(result, out, shown.markdown())
    plot(rows, out.with_suffix(".png"))
    print(f"\n{shown.markdown()}\nkept in {out}")
    wrong = [f"{cell['question']} at {cell['length']}" for cell in rows if any(map(broke, cell["unfit"].values()))]
    if wrong:
        raise UserError(f"broken, see the tracebacks above: {', '.join(wrong)}")


if __name__ == "__main__":
    run_command(main)
