"""A grid's result as people read it: a table on the screen, or in Markdown.

Speeds as multiples of ours would hide which side moved, so both are there. A ratio that was measured while the machine
did something else is not shown: it says ``contended``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.grid import BROKE, REFUSED

OURS = "ours"
LOSSES_AGREE_WITHIN = 0.05  # nats, after a few steps from the same weights; both round to bfloat16
CONTENDED = "contended"
_LEFT = 2  # columns of words


@dataclass(frozen=True)
class Page:
    """A table and what is to be said below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]

    def rich(self) -> Table:
        """For a terminal."""
        shown = Table(title=self.title)
        for place, name in enumerate(self.columns):
            shown.add_column(name, justify="left" if place < _LEFT else "right")
        for row in self.rows:
            shown.add_row(*row)
        shown.caption = "\n".join(self.notes) or None
        shown.caption_justify = "left"
        return shown

    def markdown(self) -> str:
        """For a file."""
        marks = ["---" if place < _LEFT else "---:" for place in range(len(self.columns))]
        lines = [f"## {self.title}", "", *map(_line, (self.columns, marks, *self.rows))]
        if self.notes:
            lines += ["", *(f"* {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def page(result: dict[str, Any]) -> Page:
    """All rows of a grid's result."""
    rows = result["rows"]
    every = (side for row in rows for side in (*row["tokens_per_s"], *row["unfit"]))
    sides = [side for side in dict.fromkeys(every) if side != OURS]
    columns = ["arch", "against", "tokens", "sequences", "our tokens/s", "our MB"]
    columns += ["our MFU"] if result["peak_flops_per_s"] else []
    columns += [name for side in sides for name in (side, "MB")]
    shown = []
    for row in rows:
        cells = [row["arch"], row["against"], str(row["length"]), str(row["sequences"])]
        cells += [_speed(row, OURS), _whole(row["peak_mb"].get(OURS))]
        if result["peak_flops_per_s"]:
            cells.append(f"{row['our_mfu']:.0%}" if "our_mfu" in row else "")
        for side in sides:
            cells += [_ratio(row, side), _whole(row["peak_mb"].get(side))]
        shown.append(cells)
    notes = ["the machine was busy: measure what is contended again"] if any(map(_is_busy, rows)) else []
    for row in rows:
        notes += [f"{row['arch']} at {row['length']}: {note}" for note in _notes(row)]
    return Page(f"{result['mode']}: seconds of theirs over ours, median (quartiles)", columns, shown, notes)


def listed(result: dict[str, Any]) -> Page:
    """The same with a line for each side, for results of many sides."""
    shown = []
    for row in result["rows"]:
        for side in (*row["tokens_per_s"], *row["unfit"]):
            ratio = "" if side == OURS and side in row["tokens_per_s"] else _ratio(row, side)
            cells = [row["arch"], side, str(row["length"]), str(row["sequences"]), _speed(row, side), ratio]
            shown.append([*cells, _whole(row["peak_mb"].get(side))])
    columns = ["arch", "side", "tokens", "sequences", "tokens/s", "seconds over ours", "MB"]
    return Page(f"{result['mode']}: median of the pairs (quartiles)", columns, shown, page(result).notes)


def line(row: dict[str, Any]) -> str:
    """A row in a line."""
    parts = [row["refused"]] if row["refused"] else []
    parts += [f"ours {_speed(row, OURS)} tokens/s"] if OURS in row["tokens_per_s"] else []
    parts += [f"{side} {_ratio(row, side)}" for side in row["tokens_per_s"] if side != OURS]
    parts += [
        f"{side} {why if _verdict(why) in why else f'does not fit ({why})'}" for side, why in row["unfit"].items()
    ]
    return f"{row['arch']} {row['sequences']} x {row['length']}: {', '.join(parts)}"


def broke(why: str) -> bool:
    """Whether a side is missing because of a mistake in a program."""
    return why.startswith(BROKE)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _speed(row: dict[str, Any], side: str) -> str:
    if side in row["unfit"]:
        return _verdict(row["unfit"][side])
    return f"{row['tokens_per_s'][side]:,.0f}" if side in row["tokens_per_s"] else ""


def _ratio(row: dict[str, Any], side: str) -> str:
    if side not in row["ratios"]:
        speed = _speed(row, side)
        return f"{speed} tokens/s" if side in row["tokens_per_s"] else speed
    ratio = row["ratios"][side]
    low, high = ratio["wall"]["quartiles"]
    return CONTENDED if ratio["busy"] else f"{ratio['wall']['median']:.2f} ({low:.2f}-{high:.2f})"


def _whole(value: float | None) -> str:
    return f"{value:,.0f}" if value else ""


def _losses_differ(row: dict[str, Any]) -> bool:
    """Whether the same model with float32 weights, after the same steps, ended further apart than rounding leads."""
    ours, theirs = (row["losses"].get(side) for side in (OURS, "autocast"))
    return row["same_model"] and None not in (ours, theirs) and abs(ours - theirs) > LOSSES_AGREE_WITHIN


def _is_busy(row: dict[str, Any]) -> bool:
    return any(ratio["busy"] for ratio in row["ratios"].values())


def _notes(row: dict[str, Any]) -> list[str]:
    """What is to be said about a row, sides with the same reason together."""
    sides: dict[str, list[str]] = {}
    for side, why in row["unfit"].items():
        sides.setdefault(why, []).append(side)
    notes = [f"{', '.join(names)}: {why}" for why, names in sides.items()]
    notes += [row["refused"]] if row["refused"] else []
    return notes + (["the losses after the last step differ"] if _losses_differ(row) else [])


def _verdict(why: str) -> str:
    return next((word for word in (BROKE, REFUSED) if why.startswith(word)), "does not fit")
