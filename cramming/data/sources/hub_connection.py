"""The connection to the Hugging Face hub: whether there is one, how long it is waited for, what is said meanwhile."""

import logging
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from cramming.progress import ProgressSink

_CONNECT_S = 5.0
# Of ``datasets``, around the hub library's own five attempts within 23 s: a cut is given up after about two minutes.
_READ_ATTEMPTS = 4
_READ_WAIT_S = 5
_LIBRARIES = ("datasets", "huggingface_hub")


def unreachable() -> str:
    """Why the hub cannot be reached, found out within seconds; empty if it may answer."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if {"http", "https", "all"} & set(getproxies()):  # then its name means nothing here
        return ""
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_CONNECT_S).close()
    except OSError as error:
        return f"{address.hostname}: {error.strerror or error}"
    return ""


def connection_errors() -> tuple[type[Exception], ...]:
    """What a lost connection raises; the library knows its HTTP client's."""
    from datasets.utils.file_utils import CONNECTION_ERRORS_TO_RETRY
    from huggingface_hub.errors import HfHubHTTPError

    return (ConnectionError, TimeoutError, HfHubHTTPError, *CONNECTION_ERRORS_TO_RETRY)


def listen(progress: ProgressSink) -> None:
    """Bound how long the libraries wait for a connection that was cut, and have them say it in a line."""
    import datasets

    datasets.config.STREAMING_READ_MAX_RETRIES = _READ_ATTEMPTS
    datasets.config.STREAMING_OPEN_MAX_RETRIES = _READ_ATTEMPTS
    datasets.config.STREAMING_READ_RETRY_INTERVAL = _READ_WAIT_S
    datasets.config.STREAMING_OPEN_RETRY_INTERVAL = _READ_WAIT_S
    datasets.config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = _READ_WAIT_S
    datasets.disable_progress_bars()
    for library in _LIBRARIES:
        logging.getLogger(library).handlers[:] = [_Notes(progress)]


def line(error: Exception) -> str:
    """The first line of what an error, or its cause, says."""
    cause = error.__cause__ or error
    text = str(cause).strip() or type(cause).__name__
    return text.splitlines()[0][:200]


class _Notes(logging.Handler):
    """Warnings of the libraries, as notes of one line. Their errors are raised as well, and said then."""

    def __init__(self, progress: ProgressSink) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress
        self._reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        text = " ".join(record.getMessage().split())
        reason, cut, _ = text.partition(" thrown while requesting ")
        if cut:  # how long it waits comes next
            self._reason = f" ({reason.strip(chr(39))})"
        elif text.startswith("Retrying in"):
            self._progress.note(f"connection to the hub{self._reason}: {text}")
        elif record.levelno < logging.ERROR:
            self._progress.note(text)
