"""Named points at which a test can kill the process.

Production code says where it stands with ``faults.point("store-rename")``. Nothing happens unless the environment
variable ``CRAMMING_KILL_AT=<name>:<nth>`` named that point when the process started: then the nth passage ends the
process with SIGKILL, which no handler, ``finally`` or buffer survives. The resume tests inject every one of them.
"""

import itertools
import os
import signal

VARIABLE = "CRAMMING_KILL_AT"

_wanted, _nth, _passages = "", 1, itertools.count(1)


def arm(wanted: str) -> None:
    """End this process at a point named ``<name>:<nth>``; tests call it in processes that are already running."""
    global _wanted, _nth, _passages
    _wanted, _, nth = wanted.partition(":")
    _nth, _passages = int(nth or 1), itertools.count(1)  # its next() is atomic: threads pass points too


def point(name: str) -> None:
    """Pass the point ``name``; the process ends here if it was armed."""
    if name == _wanted and next(_passages) == _nth:
        os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(VARIABLE, ""))
