"""What probes answered, as tables on a terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cramming.evaluation.probes.result import Result

_NARROW = 4  # numbers of a part that leave room for an interval beside the score

_COUNTS = ("examples", "tokens", "ties", "passages")


def print_results(results: Sequence[Result], title: str, console: Console) -> None:
    """A table of all, lines with what else was measured, and for each result that has parts a table of them."""
    table = _table(title, ("probe", "metric", "score", "95 %", "chance", "examples"), texts=2)
    for result in results:
        low, high = result.interval or (None, None)
        table.add_row(
            result.label, result.metric, _number(result.score), _interval(low, high), _number(result.chance),
            f"{result.examples:,}",
        )  # fmt: skip
    console.print(table)
    for result in results:
        lines = [
            ", ".join(
                f"{name.replace('_', ' ')} {_number(value, whole=name in _COUNTS)}"
                for name, value in result.also.items()
            )
        ]
        for line in (*filter(None, lines), *result.remarks):
            console.print(f"{result.label}: {line}", markup=False, highlight=False, soft_wrap=True)
    for result in results:
        if result.parts:
            console.print(_parts(result))


def _parts(result: Result) -> Table:
    """By band or phenomenon."""
    keys = [key for key in next(iter(result.parts.values())) if key not in ("low", "high")]
    wide = len(keys) <= _NARROW
    columns = [key.replace("_", " ") for key in keys]
    table = _table(result.label, ("", *columns, *(["95 %"] if wide else [])), texts=1)
    for name, numbers in result.parts.items():
        cells = [_number(numbers[key], whole=key in _COUNTS) for key in keys]
        table.add_row(name, *cells, *([_interval(numbers["low"], numbers["high"])] if wide else []))
    return table


def _table(title: str, columns: Sequence[str], texts: int) -> Table:
    """A table whose first so many columns are texts."""
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )  # the others do not fit 80 columns
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < texts else "right", overflow="fold")
    return table


def _number(value: float | None, whole: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if whole else f"{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
