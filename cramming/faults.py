"""Named points at which a test can kill the process.

Production code says where it stands with ``faults.point("store-rename")``. Nothing happens unless the environment
variable ``CRAMMING_KILL_AT=<name>:<nth>`` named that point when the process started: then the nth passage ends the
process with SIGKILL, which no handler, ``finally`` or buffer survives. The resume tests inject every one of them.
"""

import itertools
import os
import signal

VARIABLE = "CRAMMING_KILL_AT"

_wanted, _, _nth = os.environ.get(VARIABLE, "").partition(":")
_passages = itertools.count(1)  # its next() is atomic: threads pass points too


def point(name: str) -> None:
    """Pass the point ``name``; the process ends here if the environment asked for it."""
    if name == _wanted and next(_passages) == int(_nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)
