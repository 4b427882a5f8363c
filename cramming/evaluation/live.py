"""The jobs of a suite on the screen: a table that moves on a terminal, lines anywhere else."""

import sys
from types import TracebackType
from typing import Protocol, Self

from rich import box, get_console
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cramming.evaluation.board import Board, Standing, name_of
from cramming.text import duration

REFRESH_EVERY_S = 0.2
LINE_EVERY_S = 15.0
_STYLES = {"waiting": "dim", "running": "cyan", "done": "green", "earlier": "green dim", "failed": "red"}
_AROUND = 7  # lines of the table that are no jobs


class Display(Protocol):
    """Shows a board; all calls are cheap."""

    board: Board

    def update(self) -> None:
        """Something moved, or time passed."""

    def ended(self, key: str) -> None:
        """A job is over."""

    def note_once(self, text: str) -> None:
        """A line worth keeping on the screen; the same is not said twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


def display_for(title: str, board: Board, console: Console | None = None) -> Display:
    """A table that moves if the console is a terminal that can move its cursor, otherwise lines."""
    console = console or get_console()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveTable(title, board, console)
    return PlainLines(board)


class PlainLines:
    """A line for each job that ends, and now and then one about those that run."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._said_s = board.now()
        self._noted: set[str] = set()

    def update(self) -> None:
        """See ``Display``."""
        if self.board.now() - self._said_s >= LINE_EVERY_S:
            running = [s for s in self.board.jobs.values() if s.state == "running"]
            each = "; ".join(f"{name_of(s.job)}: {s.share:.0%}" for s in running)
            self._say(f"{each or 'waiting'}; {_how_far(self.board)}")

    def ended(self, key: str) -> None:
        """See ``Display``."""
        standing = self.board.jobs[key]
        said = f"{name_of(standing.job)}: {ending(standing)}"
        self._say(said if standing.state == "earlier" else f"{said}; {_how_far(self.board)}")

    def note_once(self, text: str) -> None:
        """See ``Display``."""
        if text not in self._noted:
            self._noted.add(text)
            self._say(text)

    def _say(self, text: str) -> None:
        self._said_s = self.board.now()
        print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing to take down."""


class LiveTable:
    """A table that stays at the bottom of the terminal.

    It draws when it is called, and not from a thread of its own: nothing runs beside the jobs' processes.
    """

    def __init__(self, title: str, board: Board, console: Console) -> None:
        self.board = board
        self._title, self._console = title, console
        self._drawn_s = float("-inf")
        self._noted: dict[str, None] = {}
        self._live = Live(console=console, auto_refresh=False, get_renderable=self.render, transient=False)

    def update(self) -> None:
        """See ``Display``."""
        if self.board.now() - self._drawn_s >= REFRESH_EVERY_S:
            self._draw()

    def ended(self, key: str) -> None:
        """See ``Display``."""
        self.update()

    def note_once(self, text: str) -> None:
        """See ``Display``."""
        self._noted[text] = None

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._draw()
        self._live.stop()

    def _draw(self) -> None:
        self._drawn_s = self.board.now()
        self._live.refresh()

    def render(self) -> Group:
        """The table as it stands."""
        table = Table(box=box.SIMPLE_HEAD, expand=True, title=self._title, title_justify="left", title_style="bold")
        table.add_column("job", no_wrap=True)
        table.add_column("", ratio=1)
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        shown, left_out = self._shown()
        for standing in shown:
            style = _STYLES[standing.state]
            bar = ProgressBar(total=1.0, completed=standing.share, complete_style="cyan", finished_style="green")
            middle = bar if standing.state == "running" else Text(self._middle(standing), style=style)
            score = "" if standing.score is None or standing.state == "failed" else f"{standing.score:.4f}"
            table.add_row(Text(name_of(standing.job), style=style), middle, score, self._time(standing))
        below = [Text(f"and {left_out} more", style="dim")] if left_out else []
        return Group(table, *below, *map(Text, self._noted), Text(_how_far(self.board), style="bold"))

    def _shown(self) -> tuple[list[Standing], int]:
        """The jobs that fit the screen, in their order; those that are over or far from beginning go first."""
        room = max(4, self._console.height - _AROUND - len(self._noted))
        everyone = list(self.board.jobs.values())
        first = {"running": 0, "failed": 1, "waiting": 2, "done": 3, "earlier": 4}
        chosen = sorted(range(len(everyone)), key=lambda i: (first[everyone[i].state], i))[:room]
        return [everyone[i] for i in sorted(chosen)], len(everyone) - len(chosen)

    def _middle(self, standing: Standing) -> str:
        if standing.state != "waiting":
            return ending(standing)
        parent = self.board.jobs.get(standing.job.parent or "")
        return "waits" if parent is None or parent.share == 1 else f"waits for {name_of(parent.job)}"

    def _time(self, standing: Standing) -> str:
        if standing.state == "running":
            return duration(self.board.now() - standing.began_s)
        return duration(standing.took_s) if standing.took_s else ""


def ending(standing: Standing) -> str:
    """How a job ended, in words."""
    if standing.state == "failed":
        return f"failed: {standing.said}"
    if standing.state == "earlier":
        return f"{standing.said}, done before"
    return f"{standing.said} after {duration(standing.took_s)}"


def _how_far(board: Board) -> str:
    failed = board.count("failed")
    said = f"{board.ended} of {len(board.jobs)} jobs over" + (f", {failed} failed" if failed else "")
    return said if board.ended == len(board.jobs) else f"{said}, ETA {duration(board.left_s)}"
