"""Named points at which a test can kill the process.

Production code says where it stands with ``faults.point("store-rename")``. Nothing happens unless the environment
variable ``CRAMMING_KILL_AT=<name>:<nth>`` named that point when the process started: then the nth passage ends the
process with SIGKILL, which no handler, ``finally`` or buffer survives. The resume tests inject every one of them.
"""

import os
import signal
import threading

VARIABLE = "CRAMMING_KILL_AT"

_wanted, _, _nth = os.environ.get(VARIABLE, "").partition(":")
_passages_left = int(_nth or 1)
_lock = threading.Lock()


def point(name: str) -> None:
    """Pass the point ``name``; the process ends here if the environment asked for it."""
    if name == _wanted:
        _pass()


def _pass() -> None:
    global _passages_left
    with _lock:
        _passages_left -= 1
        if _passages_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
