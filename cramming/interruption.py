"""Ctrl-C and SIGTERM: what is under way is finished and saved, then the process ends."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop; everything is saved. ``args[0]`` is the exit code."""


class Signals:
    """What arrived since the beginning: the number of the latest signal, or None."""

    number: int | None = None


@contextmanager
def noted() -> Iterator[Signals]:
    """Ctrl-C and SIGTERM are noted while the block runs; a second Ctrl-C ends it at once."""
    signals = Signals()

    def asked(number: int, frame: FrameType | None) -> None:
        if signals.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        signals.number = number
        _log.info("%s: finishing the step, then saving", signal.Signals(number).name)

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
