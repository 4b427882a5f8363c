"""Figures of a report, each as SVG for the page and as PNG beside it.

Arms keep their colour and line through a whole report. The colours are those of Okabe and Ito, which people with any
colour vision tell apart, without the two that vanish on white; past eight arms, the line changes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cramming.report.curves import Curve, MeanCurve
from cramming.report.document import Figure
from cramming.report.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

BASELINE_COLOUR = "#222222"
GREY, _DOTTED = "#666666", (0, (1, 1.5))
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#7B3294")
_LINES = ("-", "--", ":", "-.")
_ACCOUNT_COLOURS = {"train": "#5B7FA6", "optimizer": "#B8C4D2", "selection": "#E69F00", "hessian": "#009E73",
                    "irreducible": "#CC79A7", "teacher": "#8C510A", "sharpness": "#D55E00"}  # fmt: skip
_WIDTH = 6.6  # inches
_WIDE = 3.0  # points: the baseline, drawn first, shows on both sides of a line that covers it
_FEW = 24  # points that are marked one by one
_STEEP = 0.05  # of the budget: the steep beginning of a loss does not decide the scale
_LONGEST, _BESIDE = 36, 32  # letters of an arm's name in a legend, beside an axis
_COORDINATES = re.compile(r'\b(d|points)="[^"]*"')


@dataclass(frozen=True)
class Style:
    """How an arm is drawn."""

    colour: str
    line: str = "-"
    width: float = 1.7


@dataclass(frozen=True)
class Line:
    """One arm in a figure of curves: its mean, and single runs that are in no mean."""

    label: str
    style: Style
    mean: MeanCurve | None
    singles: Sequence[Curve] = ()


@dataclass(frozen=True)
class Points:
    """One model in a figure of scores: its estimate in every task, None where it has none."""

    label: str
    style: Style
    estimates: Sequence[Estimate | None]
    hollow: bool = False
    marker: str = "o"


def styles(labels: Sequence[str], baselines: Sequence[str]) -> dict[str, Style]:
    """A style for every arm; baselines come first, in near black."""
    found = {label: Style(BASELINE_COLOUR, _LINES[i % 4], _WIDE) for i, label in enumerate(dict.fromkeys(baselines))}
    others = [label for label in dict.fromkeys(labels) if label not in found]
    for i, label in enumerate(others):
        found[label] = Style(_COLOURS[i % len(_COLOURS)], _LINES[i // len(_COLOURS) % len(_LINES)])
    return found


def curves(
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_scale: float = 1.0,
    outcome: bool = False,
) -> Figure | None:
    """Means over seeds; None where there is nothing to draw.

    Args:
        name: of the file.
        title: above the axes.
        lines: arms; those without points are left out.
        x_label: below, with the unit.
        y_label: beside, with the unit.
        x_scale: multiplies places.
        outcome: what runs are judged by: intervals are drawn as bands, and the vertical axis is scaled to what comes
            after the steep beginning. Other quantities have no band, and their axis begins at zero.
    """
    drawn = [line for line in lines if line.mean is not None or any(map(len, line.singles))]
    if not drawn:
        return None
    unfinished = ["unfinished runs, in their arm's colour"] if any(line.singles for line in drawn) else []
    with _Canvas(name, title, 2.9, [*(line.label for line in drawn), *unfinished]) as canvas:
        axes = canvas.axes
        for line in drawn:
            if (mean := line.mean) is not None:
                x, few = mean.x * x_scale, len(mean.x) <= _FEW
                axes.plot(x, mean.mean, color=line.style.colour, linestyle=line.style.line, linewidth=line.style.width,
                          marker="o" if few else None, markersize=3, label=short(line.label))  # fmt: skip
                if outcome and mean.n > 1:
                    axes.fill_between(x, mean.low, mean.high, color=line.style.colour, alpha=0.16, linewidth=0)
            for single in line.singles:
                axes.plot(single.x * x_scale, single.y, color=line.style.colour, linestyle=_DOTTED, linewidth=1)
        if unfinished:
            axes.plot([], [], color=GREY, linestyle=_DOTTED, linewidth=1, label=unfinished[0])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_ylim(*_limits(drawn, outcome))
        axes.set_xlim(left=0)
        canvas.legend()
    ends = [f"{line.label} {line.mean.mean[-1]:.4g}" for line in drawn if line.mean is not None]
    alt = f"{title}: {y_label} against {x_label}." + (f" At the end: {'; '.join(ends)}." if ends else "")
    return canvas.figure_block(alt)


def intervals(
    name: str,
    title: str,
    rows: Sequence[tuple[str, Style, Estimate]],
    *,
    label: str,
    reference: float,
    reference_label: str,
    percent: bool = False,
) -> Figure | None:
    """One row for each arm: a mean and its interval beside a line that stands for the baseline.

    Args:
        name: of the file.
        title: above the axes.
        rows: (arm, style, estimate); the number of seeds stands at the right.
        label: below.
        reference: where the baseline lies.
        reference_label: what is said of that line.
        percent: the numbers are shares.
    """
    if not rows:
        return None
    with _Canvas(name, title, 0.75 + 0.3 * len(rows), []) as canvas:
        axes, factor = canvas.axes, 100.0 if percent else 1.0
        axes.axvline(reference * factor, color=BASELINE_COLOUR, linewidth=1.2)
        for place, (_, style, estimate) in enumerate(rows):
            half = None if estimate.half is None else estimate.half * factor
            axes.errorbar(estimate.mean * factor, place, xerr=half, color=style.colour, marker="o", markersize=5,
                          capsize=3, linewidth=1.8)  # fmt: skip
        axes.set_yticks(range(len(rows)), [short(row[0], _BESIDE) for row in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(f"{label} ({reference_label})")
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=6)
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(rows)), [f"n={estimate.n}" for _, _, estimate in rows])
        right.tick_params(length=0)
        right.spines["right"].set_visible(False)
    sign = "%" if percent else ""
    said = "; ".join(f"{arm} {e.mean * factor:.4g}{sign}" + (f" [{e.low * factor:.4g}, {e.high * factor:.4g}]"
                     if e.half is not None else "") for arm, _, e in rows)  # fmt: skip
    return canvas.figure_block(f"{title}: {label} ({reference_label}). {said}.")


def points(
    name: str, title: str, tasks: Sequence[str], rows: Sequence[Points], marks: Sequence[float | None]
) -> Figure | None:
    """Scores by task: a line of the figure for each task, a point with its interval for each model.

    Args:
        name: of the file.
        title: above the axes.
        tasks: in order, from above.
        rows: the models.
        marks: what the best constant answer scores in each task.
    """
    rows = [row for row in rows if any(estimate is not None for estimate in row.estimates)]
    if not rows or not tasks:
        return None
    constant = "same answer for every row"
    with _Canvas(name, title, 0.6 + len(tasks) * (0.16 + 0.11 * len(rows)), [*(r.label for r in rows), constant]) as c:
        spread = 0.7 / len(rows)
        for place, row in enumerate(rows):
            there = [(i, estimate) for i, estimate in enumerate(row.estimates) if estimate is not None]
            c.axes.errorbar(
                [e.mean for _, e in there], [i - 0.35 + spread * (place + 0.5) for i, _ in there],
                xerr=[e.half or 0.0 for _, e in there], color=row.style.colour, marker=row.marker, markersize=5,
                markerfacecolor="white" if row.hollow else row.style.colour, capsize=2.5, linestyle="none",
                linewidth=1.5, label=short(row.label),
            )  # fmt: skip
        known = [(i, mark) for i, mark in enumerate(marks) if mark is not None]
        if known:
            c.axes.vlines([mark for _, mark in known], [i - 0.42 for i, _ in known], [i + 0.42 for i, _ in known],
                          color=BASELINE_COLOUR, linestyle=_DOTTED, linewidth=1.4, label=constant)  # fmt: skip
        c.axes.set_yticks(range(len(tasks)), [short(task, _BESIDE) for task in tasks], parse_math=False)
        c.axes.set_ylim(len(tasks) - 0.45, -0.55)
        c.axes.margins(x=0.06)
        c.axes.set_xlabel("percent")
        c.legend()
    said = "; ".join(f"{row.label}: " + ", ".join(f"{task} {estimate.mean:.1f}" for task, estimate in
                     zip(tasks, row.estimates, strict=True) if estimate is not None) for row in rows)  # fmt: skip
    return c.figure_block(f"{title}, in percent. {said}.")


def accounts(name: str, title: str, rows: Sequence[tuple[str, Mapping[str, float], frozenset[str]]]) -> Figure | None:
    """Stacked bars of what the budget was spent on; free accounts are hatched and come last.

    Args:
        name: of the file.
        title: above the axes.
        rows: (arm, account -> share of the budget, its free accounts).
    """
    if not rows:
        return None
    named = sorted(
        {account for _, shares, _ in rows for account in shares}, key=lambda account: (account != "train", account)
    )
    colours = account_colours(named)
    with _Canvas(name, title, 0.75 + 0.32 * len(rows), named) as canvas:
        axes = canvas.axes
        for place, (_, shares, free) in enumerate(rows):
            left = 0.0
            for account in sorted(shares, key=lambda account: (account in free, account != "train")):
                hatch = "////" if account in free else None
                axes.barh(place, 100 * shares[account], left=left, height=0.62, color=colours[account], hatch=hatch,
                          edgecolor="white", linewidth=0.8, alpha=0.55 if hatch else 1.0)  # fmt: skip
                left += 100 * shares[account]
        for account in named:
            unpaid = all(account in free for _, shares, free in rows if account in shares)
            axes.bar(0, 0, color=colours[account], hatch="////" if unpaid else None, edgecolor="white",
                     label=f"{account} (free)" if unpaid else account)  # fmt: skip
        axes.set_yticks(range(len(rows)), [short(arm, _BESIDE) for arm, _, _ in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("% of the budget")
        axes.grid(axis="y", visible=False)
        canvas.legend()
    said = "; ".join(f"{arm}: " + ", ".join(f"{a} {s:.1%}{' free' if a in free else ''}" for a, s in shares.items())
                     for arm, shares, free in rows)  # fmt: skip
    return canvas.figure_block(f"{title}. {said}.")


def account_colours(named: Sequence[str]) -> dict[str, str]:
    """A colour for every account, the same in every report where the account is a usual one."""
    spare = [colour for colour in _COLOURS if colour not in _ACCOUNT_COLOURS.values()]
    others = [account for account in named if account not in _ACCOUNT_COLOURS]
    return {account: _ACCOUNT_COLOURS.get(account) or spare[others.index(account) % len(spare)] for account in named}


def short(label: str, longest: int = _LONGEST) -> str:
    """A name with its middle left out if it is too long for a figure; what differs is mostly at its ends."""
    if len(label) <= longest:
        return label
    half = (longest - 3) // 2
    return f"{label[:half]}...{label[-half:]}"


def _limits(lines: Sequence[Line], outcome: bool) -> tuple[float, float]:
    seen: list[float] = []
    last = max(float(c.x[-1]) for line in lines for c in (line.mean, *line.singles) if c is not None and len(c.x))
    for line in lines:
        for x, y in [(line.mean.x, line.mean.mean)] if line.mean is not None else []:
            seen += [float(v) for v in (y[x >= _STEEP * last] if outcome else y)]
        for single in line.singles:
            seen += [float(v) for v in (single.y[single.x >= _STEEP * last] if outcome else single.y)]
    if not seen:
        return 0.0, 1.0
    low, high = min(seen), max(seen)
    if not outcome:
        return min(0.0, low), 1.08 * high or 1.0
    margin = 0.07 * (high - low) or 0.1
    return low - margin, high + margin


class _Canvas:
    """One pair of axes in the report's look, with room for a legend below; drawn when the block ends."""

    def __init__(self, name: str, title: str, height: float, legend: Sequence[str]) -> None:
        self.name, self.title = name, title
        longest = max((min(len(label), _LONGEST) for label in legend), default=0)
        self._columns = 4 if longest <= 14 else 3 if longest <= 21 else 2
        self._height = height + 0.75 + 0.19 * -(-len(legend) // self._columns)

    def __enter__(self) -> "_Canvas":
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as MatplotlibFigure

        look: dict[Any, Any] = {
            "svg.fonttype": "none",
            "svg.hashsalt": self.name,
            "font.size": 9.5,
            "hatch.linewidth": 0.6,
        }
        self._context = rc_context(look)
        self._context.__enter__()
        self._canvas: Canvas = MatplotlibFigure(figsize=(_WIDTH, self._height), dpi=130, layout="constrained")
        FigureCanvasAgg(self._canvas)
        self.axes: Axes = self._canvas.subplots()
        self._canvas.suptitle(self.title, x=0.012, ha="left", fontsize=11, fontweight="bold", parse_math=False)
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.grid(color="#e4e4e4", linewidth=0.8)
        self.axes.set_axisbelow(True)
        return self

    def legend(self) -> None:
        """A legend below the axes."""
        shown = self._canvas.legend(loc="outside lower left", ncols=self._columns, frameon=False, fontsize=8.5)
        for text in shown.get_texts():
            text.set_parse_math(False)

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            png, svg = io.BytesIO(), io.StringIO()
            self._canvas.savefig(png, format="png")
            self._canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
            self._png, self._svg = png.getvalue(), svg.getvalue()
        self._context.__exit__(None, None, None)

    def figure_block(self, alt: str) -> Figure:
        """What was drawn."""
        return Figure(self.name, alt, _inline(self._svg), self._png)


def _inline(svg: str) -> str:
    """An SVG that can stand in a page beside others: no header, no size of its own, no ids but those referred to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    rounded = _COORDINATES.sub(lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    return rounded.replace(" \n", " ").strip()
