"""What a profile says: in a line, as a page, as a picture."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cramming.durable import write_atomically

_COLOURS = (
    "#1f5fa8", "#d9661f", "#3c8d5a", "#c9a227", "#7a5ba8", "#a9c8e8", "#b0413e", "#5f9ea0", "#e3a57f", "#8c8c8c",
    "#c8c8c8",
)  # fmt: skip
_LABELLED = 0.06  # of a step is wide enough for a number inside


def verdict(found: Mapping[str, Any]) -> str:
    """One line: share of the limit reached, and the largest waste."""
    share, waste = found["share_of_limit"], found["largest_waste"]
    said = "the limit is not known" if share is None else f"{_percent(share)} of the limit of its matrix products"
    return said if waste is None else f"{said}; largest waste: {waste['class']} {_percent(waste['share'])}"


def markdown(found: Mapping[str, Any]) -> str:
    """The whole page."""
    low, high = found["step_s_quartiles"]
    limit = "are not known" if found["limit_s"] is None else f"alone {found['limit_s']:.4g} s"
    lines = [
        f"# {found['verdict']}",
        "",
        f"A step takes {found['step_s']:.4g} s (quartiles {low:.4g} to {high:.4g} s), its matrix products {limit}.",
        f"Steps timed: {found['timed_steps']}, traced: {found['traced_steps']}, the last is step {found['last_step']}, "
        f"with {found['passes']} passes, of {found['microbatch_size']} sequences at most, in {found['precision']}.",
        "",
        *_table(("phase", "share of a step"), ((name, _percent(share)) for name, share in found["phases"].items())),
        *_table(("operators", "share of a step"), ((kind, _percent(s)) for kind, s in found["classes"].items())),
    ]
    if found["operators"]:
        rows = (
            (_code(o["name"]), o["class"], f"{1e3 * o['self_s']:.4g}", f"{o['calls']:,}", _percent(o["share"], 1))
            for o in found["operators"]
        )
        lines += _table(("operator", "class", "own time in the trace, ms", "calls", "share of a step"), rows)
    lines += [f"* {note}" for note in found["notes"]]
    lines += [""] * bool(found["notes"])
    lines += ["![where the time goes](profile.png)", ""]
    if found["traced_steps"]:
        lines += ["`trace.json.gz` opens in https://ui.perfetto.dev or chrome://tracing.", ""]
    return "\n".join(lines)


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Two stacked bars, of phases and of operators, and where the limit lies.

    Raises:
        UserError: the disk is full.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    for axis, name, shares in ((above, "phases", found["phases"]), (below, "operators", found["classes"])):
        left = 0.0
        for (label, share), colour in zip(shares.items(), _COLOURS * (1 + len(shares) // len(_COLOURS)), strict=False):
            axis.barh([0], [share], left=left, color=colour, label=label)
            if share >= _LABELLED:
                axis.text(left + share / 2, 0, _percent(share), ha="center", va="center", color="white", fontsize=9)
            left += share
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        if found["share_of_limit"] is not None:
            axis.axvline(found["share_of_limit"], color="black", linewidth=1.2, linestyle="--")
    below.set_xlim(0, max(1.0, 1.02 * (found["share_of_limit"] or 0.0)))
    below.set_xlabel("share of a step; dashed: its matrix products alone")
    figure.suptitle(found["verdict"], x=0.01, ha="left", fontsize=11, parse_math=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _code(name: str) -> str:
    """A kernel's name may be hundreds of characters of templates."""
    short = name if len(name) <= 80 else f"{name[:77]}..."
    return "`{}`".format(short.replace("|", "\\|").replace("`", "'"))
