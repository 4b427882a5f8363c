"""``curves.png``: what happened, against the budget it took."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cramming.durable import write_atomically
from cramming.recording.smoothing import centred_mean
from cramming.text import Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]

EXTRAS = {"layers": "layers", "kept_share": "share kept", "batch_size": "batch size", "mask_rate": "mask rate"}
"""Columns drawn on small axes of their own when they change during the run -> label."""

_BLUE, _LIGHT_BLUE, _ORANGE, _GREY = "#1f5fa8", "#a9c8e8", "#d9661f", "#666666"
_SMOOTHED_SHARE = 0.01  # the smoothed loss averages this share of the points on each side, twice over


def plot_curves(rows: Rows, path: Path, title: str, unit: Unit = "s") -> None:
    """Draw the lines of ``metrics.jsonl`` as a PNG: losses, learning rate, and what the method changed.

    Rows may lack values and there may be none at all. Matplotlib is imported here, without a window system.

    Args:
        rows: what ``metrics.read`` returns; ``spent_s`` is the horizontal axis.
        path: the PNG, replaced atomically.
        title: the run's name.
        unit: what ``spent_s`` counts.

    Raises:
        UserError: the disk is full.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale, label = _axis([x for x, _ in _points(rows, "spent_s")], unit)
    small = {"lr": "learning rate"} if _points(rows, "lr") else {}
    small |= {key: text for key, text in EXTRAS.items() if len({y for _, y in _points(rows, key)}) > 1}
    figure = Figure(figsize=(9, 4.6 + 1.1 * len(small)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1 + len(small), 1, sharex=True, squeeze=False, height_ratios=[4.0] + [1.0] * len(small))[
        :, 0
    ]
    axes[0].set_title(title, loc="left", fontsize=13, fontweight="bold", parse_math=False)
    _draw_losses(axes[0], rows, scale)
    for axis, (key, text) in zip(axes[1:], small.items(), strict=True):
        _draw_small(axis, _points(rows, key), text, scale)
    axes[-1].set_xlabel(label)
    end = max((x for x, _ in _points(rows, "spent_s")), default=0.0) * scale
    axes[-1].set_xlim(-0.008 * end, 1.008 * end or 1.0)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
    figure.align_ylabels()
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())


def _axis(spent: Sequence[float], unit: Unit) -> tuple[float, str]:
    """The factor and the label that make the numbers below the plot short."""
    if unit == "steps":
        return 1.0, "budget spent (steps)"
    longest_s = max(spent, default=0.0)
    for seconds, name in ((3600, "hours"), (60, "minutes")):
        if longest_s >= 2 * seconds:
            return 1 / seconds, f"budget spent ({name})"
    return 1.0, "budget spent (seconds)"


def _points(rows: Rows, key: str) -> list[tuple[float, float]]:
    """(spent, value) of every row that has both."""
    return [(row["spent_s"], row[key]) for row in rows if _finite(row.get("spent_s")) and _finite(row.get(key))]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _draw_losses(axis: "Axes", rows: Rows, scale: float) -> None:
    training, validation = _points(rows, "loss"), _points(rows, "validation_loss")
    seen = [y for _, y in validation]
    if training:
        x = [spent * scale for spent, _ in training]
        y = [loss for _, loss in training]
        half_width = round(_SMOOTHED_SHARE * len(y))
        smooth = centred_mean(centred_mean(y, half_width), half_width)  # twice: one box would show its edges
        seen += smooth
        if half_width:
            axis.plot(x, y, color=_LIGHT_BLUE, linewidth=1, label="training, as logged")
        label = "training, smoothed" if half_width else "training"
        axis.plot(x, smooth, color=_BLUE, linewidth=2, label=label, marker="o" if len(x) == 1 else None)
    if validation:
        x = [spent * scale for spent, _ in validation]
        y = [loss for _, loss in validation]
        axis.plot(x, y, color=_ORANGE, linewidth=1.5, marker="o", markersize=4.5, label=f"validation, last {y[-1]:.3f}")
    if not seen:
        axis.text(0.5, 0.5, "no losses were logged", transform=axis.transAxes, ha="center", color=_GREY)
        axis.set_xticks([])
        axis.set_yticks([])
        return
    # Limits from what is smooth: one spike in the raw loss must not flatten everything else.
    low, high = min(seen), max(seen)
    margin = 0.06 * (high - low) or 0.5
    axis.set_ylim(low - margin, high + margin)
    axis.set_ylabel("loss (nats per predicted token)")
    axis.legend(frameon=False, loc="upper right")


def _draw_small(axis: "Axes", points: Sequence[tuple[float, float]], label: str, scale: float) -> None:
    x = [spent * scale for spent, _ in points]
    axis.plot(x, [y for _, y in points], color=_GREY, linewidth=1.5, marker="." if len(x) < 20 else None)
    axis.set_ylabel(label, fontsize=9)
    axis.tick_params(axis="y", labelsize=8)
    axis.set_ylim(0, 1.08 * max(y for _, y in points) or 1.0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4), useMathText=True)
    axis.yaxis.get_offset_text().set_fontsize(8)
