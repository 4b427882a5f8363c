"""A run on the screen: one live panel on a terminal, plain lines anywhere else."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from rich import get_console
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cramming.recording.logfile import FILE_ONLY
from cramming.recording.smoothing import Smoothed
from cramming.text import Unit, amount, duration, number

logger = logging.getLogger(__name__)

REFRESH_EVERY_S = 0.2


@dataclass(frozen=True)
class Header:
    """What is known of a run before it starts.

    ``budget`` is in ``unit``; ``stop_at``, if given, is where this command ends within it. ``mfu_label`` says what the
    rows' ``mfu`` is a share of when that is not the device's published peak: ``share of measured peak``.
    """

    name: str
    arch: str
    method: str
    device: str
    budget: float
    unit: Unit = "s"
    stop_at: float | None = None
    mfu_label: str = "MFU"


class Display(Protocol):
    """Shows a run. Use it as a context manager around the loop; all calls are cheap."""

    def tick(self, step: int, progress: float) -> None:
        """After each step: move the bar, if there is one."""

    def update(self, row: Mapping[str, Any], remaining_s: float | None = None) -> None:
        """At each logging interval: show a row of ``metrics.jsonl``.

        Keys used: ``step progress spent_s loss validation_loss lr tokens_per_s``, and ``mfu`` (a share) where known. A
        validation loss stays on show until the next one.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Unseen:
    """Shows nothing: what ranks other than the main one have."""

    def tick(self, step: int, progress: float) -> None:
        """Nothing."""

    def update(self, row: Mapping[str, Any], remaining_s: float | None = None) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def build_display(header: Header, console: Console | None = None) -> Display:
    """The live panel if the console is a terminal that can move its cursor, otherwise plain lines."""
    console = console or get_console()
    if console.is_terminal and not console.is_dumb_terminal:
        return LivePanel(header, console)
    return PlainLines(header)


class _State:
    """The latest value of everything that is shown."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.step = 0
        self.progress = 0.0
        self.values: dict[str, Any] = {}
        self.validated_at: int | None = None
        self.loss: float | None = None
        self.remaining_s: float | None = None
        self._smoothed = Smoothed()

    def update(self, row: Mapping[str, Any], remaining_s: float | None) -> None:
        self.values |= {key: value for key, value in row.items() if value is not None}
        self.step, self.progress = self.values.get("step", 0), self.values.get("progress", 0.0)
        self.remaining_s = remaining_s
        if row.get("loss") is not None and row["loss"] == row["loss"]:  # a NaN would stay in the mean for ever
            self.loss = self._smoothed.add(row["loss"])
        if row.get("validation_loss") is not None:
            self.validated_at = self.step

    def get(self, key: str) -> Any:
        return self.values.get(key)

    @property
    def title(self) -> str:
        head = self.header
        return f"{head.name}: arch {head.arch}, method {head.method}, budget {self.budget}, on {head.device}"

    @property
    def budget(self) -> str:
        head = self.header
        whole = amount(head.budget, head.unit)
        return whole if head.stop_at is None else f"{whole} (this run stops at {amount(head.stop_at, head.unit)})"

    def line(self) -> str:
        """One aligned ASCII line that explains itself without a heading, so that it can be searched for."""
        parts = [
            f"{self.progress:6.1%}",
            f"step {self.step:>7,}",
            f"loss {number(self.loss, '.4f'):>7}",
            f"val {number(self.get('validation_loss'), '.4f'):>7}",
            f"lr {number(self.get('lr'), '.2e'):>8}",
            f"{number(self.get('tokens_per_s'), ',.0f'):>9} tokens/s",
        ]
        if self.get("mfu") is not None:
            parts.append(f"{self.header.mfu_label} {self.get('mfu'):5.1%}")
        parts += [
            f"spent {amount(self.get('spent_s'), self.header.unit):>7}",
            f"left {duration(self.remaining_s):>7}",
        ]
        return "  ".join(parts)


class PlainLines:
    """One log line per row, through Python's logging and thus in ``run.log`` as well."""

    def __init__(self, header: Header) -> None:
        self._state = _State(header)

    def tick(self, step: int, progress: float) -> None:
        """Nothing: lines are for rows."""

    def update(self, row: Mapping[str, Any], remaining_s: float | None = None) -> None:
        self._state.update(row, remaining_s)
        logger.info("%s", self._state.line())

    def __enter__(self) -> Self:
        logger.info("%s", self._state.title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to take down."""


class LivePanel:
    """One panel that stays at the bottom of the terminal; its rows go to ``run.log`` as lines.

    It draws when it is called, at most every ``REFRESH_EVERY_S``, and not from a thread of its own: nothing runs beside
    the training, and worker processes can be forked at any time.
    """

    def __init__(
        self,
        header: Header,
        console: Console,
        now: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._state = _State(header)
        self._now, self._today = now, today
        self._drawn_at = float("-inf")
        self._console = console
        self._live = Live(console=console, auto_refresh=False, get_renderable=self.render)

    def tick(self, step: int, progress: float) -> None:
        self._state.step, self._state.progress = step, progress
        if self._now() - self._drawn_at >= REFRESH_EVERY_S:
            self._draw()

    def update(self, row: Mapping[str, Any], remaining_s: float | None = None) -> None:
        self._state.update(row, remaining_s)
        logger.info("%s", self._state.line(), extra=FILE_ONLY)
        self._draw()

    def __enter__(self) -> Self:
        logger.info("%s", self._state.title, extra=FILE_ONLY)
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()
        self._live.stop()

    def _draw(self) -> None:
        self._drawn_at = self._now()
        self._live.refresh()

    def render(self) -> Panel:
        """The panel as it stands."""
        state, head = self._state, self._state.header
        cells = [
            ("step", f"{state.step:,}"),
            ("loss", number(state.loss, ".4f")),
            ("validation loss", self._validation()),
            ("learning rate", number(state.get("lr"), ".2e")),
            ("tokens/s", number(state.get("tokens_per_s"), ",.0f")),
        ]
        if state.get("mfu") is not None:
            cells.append((head.mfu_label, f"{state.get('mfu'):.1%}"))
        return Panel(
            Group(self._bar(), _grid(cells, columns=min(3, max(1, self._console.width // 33)))),
            title=Text(head.name, style="bold"),
            title_align="left",
            subtitle=Text(f"{head.arch} | {head.method} | {head.device}", style="dim"),
            subtitle_align="right",
            border_style="cyan",
        )

    def _bar(self) -> Group:
        state, head = self._state, self._state.header
        bar = Table.grid(expand=True, padding=(0, 1, 0, 0))
        bar.add_column(ratio=1)
        bar.add_column(justify="right")
        bar.add_row(
            ProgressBar(total=1.0, completed=state.progress, complete_style="cyan", finished_style="green"),
            Text(f"{state.progress:.1%}", style="bold"),
        )
        times = Table.grid(expand=True)
        times.add_column()
        times.add_column(justify="right")
        spent = Text(f"{amount(state.get('spent_s') or 0.0, head.unit)} of {state.budget}")
        ends = Text("ends -")
        if state.remaining_s is not None:
            ends = Text(f"{duration(state.remaining_s)} left, ends {self._clock_time(state.remaining_s)}")
        times.add_row(spent, ends)
        return Group(bar, times, Text())

    def _validation(self) -> str:
        state = self._state
        shown = number(state.get("validation_loss"), ".4f")
        return shown if state.validated_at is None else f"{shown} @ {state.validated_at:,}"

    def _clock_time(self, remaining_s: float) -> str:
        today = self._today()
        end = today + timedelta(seconds=remaining_s)
        return end.strftime("%H:%M" if end.date() == today.date() else "%a %d %b %H:%M")


def _grid(cells: list[tuple[str, str]], columns: int) -> Table:
    """Label and value pairs, ``columns`` of them beside each other."""
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in range(columns):
        grid.add_column(style="dim")
        grid.add_column(style="bold", ratio=1)
    for first in range(0, len(cells), columns):
        grid.add_row(*(text for pair in cells[first : first + columns] for text in pair))
    return grid
