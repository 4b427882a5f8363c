"""``summary.json``, and the table that ends a run."""

import io
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from cramming.durable import write_atomically
from cramming.recording.strict_json import dumps
from cramming.text import Unit, amount, duration, number

REQUIRED = (
    "steps",
    "budget_s",
    "spent_s",
    "wall_s",
    "ledger",
    "validation_loss",
    "fast_paths",
    "git_revision",
    "environment",
)
"""What every summary says; null where a run did not get that far.

``ledger`` maps accounts to budget (free ones too), ``fast_paths`` says which implementation was chosen for what.
"""

_ORDER = (
    "name",
    "end_reason",
    "steps",
    "unit",
    "budget_s",
    "spent_s",
    "ranks",
    "device_hours",
    "wall_s",
    "train_wall_s",
    "ledger",
    "tokens",
    "tokens_per_s",
    "mfu",
    "profile",
    "loss",
    "validation_loss",
    "validation_accuracy",
    *REQUIRED[-3:],
)


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write strict JSON atomically: result first, machine last, what is not known here in between by name.

    Raises:
        UserError: the disk is full; an earlier summary stays.
    """
    missing = [key for key in REQUIRED if key not in summary]
    assert not missing, f"the summary lacks {missing}"
    places = {key: place for place, key in enumerate(_ORDER)}
    tail = len(_ORDER) - 3
    ordered = sorted(summary, key=lambda key: (places.get(key, tail - 0.5), key))
    write_atomically(path, (dumps({key: summary[key] for key in ordered}, indent=2) + "\n").encode())


def summary_table(summary: Mapping[str, Any], ascii_only: bool | None = None) -> str:
    """A small table of how a run went, without colours, ready to print; below it what its profile says, if it has one.

    The line that matters most for trusting the clock sets the seconds the cost table predicted, over all accounts and
    thus also those that are free, against the wall seconds the same work took.

    Args:
        summary: what ``write_summary`` takes. Optional keys are shown where present: ``name``, ``end_reason``, ``unit``
            (``steps`` when the clock counts steps), ``loss``, ``validation_accuracy``, ``tokens``, ``tokens_per_s``,
            ``mfu``, ``profile`` (its ``verdict``), ``free`` (accounts), ``ranks`` and ``device_hours`` (of all ranks
            together; where there are several), ``data_stalls`` (what a corpus that is streamed made steps wait),
            ``work`` (by account: prices of others are in no prediction), and ``train_wall_s``: wall seconds of the
            charged work alone, without validation and saving, which is compared instead of ``wall_s``.
        ascii_only: draw without line characters; by default when standard output could not print them.
    """
    if ascii_only is None:
        ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    table = Table(
        title=str(summary.get("name") or ""),
        title_justify="left",
        title_style="",
        show_header=False,
        box=box.ASCII if ascii_only else box.ROUNDED,
    )
    table.add_column()
    table.add_column(justify="right")
    for label, value in _lines(summary):
        table.add_row(label, value)
    screen = Console(file=io.StringIO(), width=80, no_color=True, highlight=False, markup=False)
    screen.print(table)
    assert isinstance(screen.file, io.StringIO)
    lines = [line.rstrip() for line in screen.file.getvalue().splitlines()]
    if summary.get("profile"):  # too long for the table
        lines.append(f"profile: {summary['profile']['verdict']}")
    return "\n".join(lines)


def _lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    unit: Unit = summary.get("unit", "s")
    lines = []
    if summary.get("end_reason"):
        lines.append(("ended", str(summary["end_reason"])))
    lines.append(("steps", number(summary["steps"], ",d")))
    if summary.get("tokens") is not None:
        lines.append(("tokens", number(summary["tokens"], ",.0f")))
    if summary.get("loss") is not None:
        lines.append(("training loss", number(summary["loss"], ".4f")))
    validation_loss = summary["validation_loss"]
    lines.append(("validation loss", number(validation_loss, ".4f")))
    if validation_loss is not None and validation_loss < math.log(sys.float_info.max):
        lines.append(("validation perplexity", number(math.exp(validation_loss), ",.2f")))
    if summary.get("validation_accuracy") is not None:
        lines.append(("validation accuracy", f"{summary['validation_accuracy']:.1%}"))
    if summary.get("tokens_per_s") is not None:
        lines.append(("tokens/s", number(summary["tokens_per_s"], ",.0f")))
    if summary.get("mfu") is not None:
        lines.append(("MFU", f"{summary['mfu']:.1%}"))
    lines.append(("budget spent", f"{amount(summary['spent_s'], unit)} of {amount(summary['budget_s'], unit)}"))
    if summary.get("ranks", 1) > 1:
        hours = summary.get("device_hours")
        lines.append(("devices", f"{summary['ranks']}" + (f", {hours:,.4g} device-hours" if hours is not None else "")))
    ledger = {account: value for account, value in (summary["ledger"] or {}).items() if value}
    if len(ledger) > 1:
        free = summary.get("free") or ()
        lines += [
            (f"  {account}{' (free)' if account in free else ''}", amount(value, unit))
            for account, value in sorted(ledger.items())
        ]
    done = summary.get("work") or ledger  # a price that was known already is no work of this run
    if unit == "s" and ledger:
        lines.append(_prediction(sum(value for account, value in ledger.items() if account in done), summary))
    if stalls := summary.get("data_stalls"):
        waited = f"{duration(stalls['stalled_s'])} in {stalls['stalled_steps']:,} steps"
        lines.append(("waited for data", waited if stalls["stalled_steps"] else "never"))
    lines.append(("wall time", duration(summary["wall_s"])))
    return lines


def _prediction(predicted_s: float, summary: Mapping[str, Any]) -> tuple[str, str]:
    took_s = summary.get("train_wall_s") or summary["wall_s"]
    label = "RST predicted / wall of training" if summary.get("train_wall_s") else "RST predicted / wall in all"
    ratio = f" = {predicted_s / took_s:.3f}" if took_s else ""
    return label, f"{number(predicted_s, ',.1f')}s / {number(took_s, ',.1f')}s{ratio}"
