"""Where log messages go: the console, above the live panel if there is one, and ``run.log`` with times."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import get_console
from rich.console import Console
from rich.text import Text

from cramming.durable import is_full, room_for
from cramming.errors import UserError

OURS = ("cramming", "efficient_training", "rst", "__main__")
"""Loggers heard from INFO up; all others, which belong to libraries, from WARNING up."""

FILE_ONLY = {"console": False}
"""Pass it as ``extra=`` to a log call whose message is already on the screen in another form."""

logger = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Messages for a person: no time, no module, one line of a library's warning.

    Through rich, so that they appear above a live panel on the same console instead of tearing it.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "console", True):
            return
        message = record.getMessage()
        if not record.name.startswith(OURS):
            message = message.strip().split("\n", maxsplit=1)[0]
        style = ""
        if record.levelno >= logging.WARNING:
            style = "red" if record.levelno >= logging.ERROR else "yellow"
            message = f"{record.levelname.lower()}: {message}"
        # Not wrapped: a pipe has no width, and rich would assume 80 columns for it.
        self.console.print(Text(message, style=style), soft_wrap=True)


class RunLogHandler(logging.FileHandler):
    """Appends to ``run.log``. A full disk stops the log, not the run, and is said once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and is_full(error):
            logging.getLogger().removeHandler(self)
            logger.warning("no space left for %s; messages go to the screen only", self.baseFilename)
        else:
            super().handleError(record)


@contextmanager
def logging_to(run_log: Path | None, console: Console | None = None) -> Iterator[None]:
    """Send Python's log messages to the console and to ``run.log`` while the block runs.

    Everything is undone at the end, so each job of a multirun gets its own file and no message appears twice; a block
    inside another adds its file and leaves the console to the outer one. Python warnings go to the file only: they
    speak to programmers. An error that leaves the block is written to the file with its traceback; showing it to the
    person is left to the caller.

    Args:
        run_log: the file to append to; ``None`` for commands that have no run folder.
        console: where people read; default rich's own, on standard output. Give the panel the same one.

    Raises:
        UserError: the disk is full.
    """
    root, python_warnings = logging.getLogger(), logging.getLogger("py.warnings")
    handlers: list[logging.Handler] = []
    outermost = not any(isinstance(handler, ConsoleHandler) for handler in root.handlers)
    if outermost:
        handlers.append(ConsoleHandler(console or get_console()))
    if run_log is not None:
        with room_for(run_log):
            file = RunLogHandler(run_log, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        handlers.append(file)
    before = {name: logging.getLogger(name).level for name in OURS}
    quiet = _FileOnly()
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    if outermost:
        python_warnings.addFilter(quiet)
        logging.captureWarnings(True)
    try:
        yield
    except UserError as error:
        logger.error("%s", error, extra=FILE_ONLY)
        raise
    except Exception:
        logger.exception("the run ended with an error", extra=FILE_ONLY)
        raise
    finally:
        if outermost:
            logging.captureWarnings(False)
            python_warnings.removeFilter(quiet)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


class _FileOnly(logging.Filter):
    """Marks every record of a logger as not for the console."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.console = False
        return True
