"""What long work tells the person waiting for it: the stage it is in, how far it is, when it will be done."""

import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from cramming.parallel.environment import launched
from cramming.text import duration, quantity

PLAIN_LINE_EVERY_S = 5.0


class ProgressSink(Protocol):
    """Receiver of progress. One stage at a time; ``stage`` ends the stage before it."""

    def stage(self, name: str, total: float | None, unit: str) -> None:
        """Begin a stage of ``total`` units (``None`` or infinity: unknown).

        ``unit`` is a plural noun, or ``B`` for bytes.
        """

    def advance(self, n: float) -> None:
        """``n`` more units are done."""

    def note(self, text: str) -> None:
        """One line worth keeping on the screen."""

    def done(self) -> None:
        """The last stage ended."""


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str, total: float | None, unit: str) -> None:
        """See ``ProgressSink``."""

    def advance(self, n: float) -> None:
        """See ``ProgressSink``."""

    def note(self, text: str) -> None:
        """See ``ProgressSink``."""

    def done(self) -> None:
        """See ``ProgressSink``."""


class PlainProgress:
    """One plain line at most every few seconds: for logs, pipes and batch systems."""

    def __init__(self, stream: TextIO, every_s: float = PLAIN_LINE_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._name: str | None = None
        self._total: float | None = None
        self._unit = ""
        self._count = 0.0
        self._begun = self._said = 0.0

    def stage(self, name: str, total: float | None, unit: str) -> None:
        """See ``ProgressSink``."""
        self.done()
        self._name, self._total, self._unit, self._count = name, _known(total), unit, 0.0
        self._begun = self._said = time.monotonic()

    def advance(self, n: float) -> None:
        """See ``ProgressSink``."""
        self._count += n
        now = time.monotonic()
        if now - self._said >= self._every_s:
            self._said = now
            self._say(now)

    def note(self, text: str) -> None:
        """See ``ProgressSink``."""
        print(text, file=self._stream, flush=True)

    def done(self) -> None:
        """See ``ProgressSink``."""
        if self._name is not None:
            took_s = time.monotonic() - self._begun
            self.note(f"{self._name}: done, {quantity(self._count, self._unit)} in {duration(took_s)}")
            self._name = None

    def _say(self, now: float) -> None:
        elapsed_s = now - self._begun
        rate = self._count / elapsed_s
        text = f"{self._name}: {quantity(self._count, self._unit)}"
        if self._total and rate > 0:
            left_s = max(0.0, self._total - self._count) / rate
            share = min(1.0, self._count / self._total)
            text = f"{self._name}: {share:.0%} of {quantity(self._total, self._unit)}, ETA {duration(left_s)}"
        self.note(f"{text}, {quantity(rate, self._unit)}/s")


def _known(total: float | None) -> float | None:
    return total if total is not None and math.isfinite(total) else None


class RichProgress:
    """A live bar on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._bar: object | None = None
        self._unit = ""

    def stage(self, name: str, total: float | None, unit: str) -> None:
        """See ``ProgressSink``."""
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self.done()
        self._unit = unit
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        self._bar = bar = Progress(*columns, console=self._console)
        self._task = bar.add_task(name, total=_known(total), count="")
        bar.start()

    def advance(self, n: float) -> None:
        """See ``ProgressSink``."""
        from rich.progress import Progress

        assert isinstance(self._bar, Progress), "advance before stage"
        count = quantity(self._bar.tasks[0].completed + n, self._unit)
        self._bar.update(self._task, advance=n, count=count)

    def note(self, text: str) -> None:
        """See ``ProgressSink``."""
        self._console.print(text, markup=False, highlight=False)

    def done(self) -> None:
        """See ``ProgressSink``."""
        from rich.progress import Progress

        if isinstance(self._bar, Progress):
            self._bar.stop()
        self._bar = None


def progress_for(stream: TextIO = sys.stderr) -> ProgressSink:
    """A live bar where ``stream`` is a terminal, plain lines elsewhere; nothing on ranks that do not speak."""
    if not launched().main:
        return PlainProgress(io.StringIO(), math.inf)
    return RichProgress(stream) if stream.isatty() else PlainProgress(stream)


@contextmanager
def share_of(stage: str) -> Iterator[Callable[[float], None]]:
    """Progress of work that reports the share done, in [0, 1]; nothing is shown before the first report."""
    sink, shown = progress_for(), 0.0

    def report(share: float) -> None:
        nonlocal shown
        if shown == 0.0:
            sink.stage(stage, 100.0, "%")
        sink.advance(100 * share - shown)
        shown = max(100 * share, 1e-9)

    yield report
    if shown:
        sink.done()
