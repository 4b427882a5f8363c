"""Ctrl-C and SIGTERM: what is under way is finished and saved, then the process ends."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_S = 2.0  # a terminal's Ctrl-C reaches ranks twice: from the terminal, and through torchrun
_log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop; everything is saved. ``args[0]`` is the exit code."""


class Signals:
    """What arrived since the beginning: the number of the latest signal, or None."""

    number: int | None = None
    came_s: float = 0.0


@contextmanager
def noted() -> Iterator[Signals]:
    """Ctrl-C and SIGTERM are noted while the block runs; a second Ctrl-C ends it at once."""
    signals = Signals()

    def asked(number: int, frame: FrameType | None) -> None:
        before_s, signals.came_s = signals.came_s, time.monotonic()
        if signals.number is not None and number == signal.SIGINT:
            if signals.came_s - before_s < _AGAIN_S:
                return
            raise KeyboardInterrupt
        signals.number = number
        _log.info("%s: finishing the step, then saving", signal.Signals(number).name)

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_stops() -> Iterator[None]:
    """SIGTERM ends the block at once, as Ctrl-C does; for commands whose work is whole on the disk at every moment."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
