"""What the C library does with memory that was freed: give it back to the system, or keep it for the next step.

glibc gives large blocks back, and every step then asks for the same pages anew, each of which the kernel clears first:
tens of thousands of page faults a step. Kept, they are simply there. In a few pairs of processes, training steps of two
sizes of BERT held 1.5 % more for it at most; what holds few blocks of one large size may hold several times as much.
"""

import ctypes
import sys
from contextlib import suppress

AUTO, KEEP, SYSTEM = "auto", "keep", "system"
CHOICES = (AUTO, KEEP, SYSTEM)
# Parameters of glibc's mallopt (man 3 mallopt): blocks from this size on are mapped by themselves, and unmapped when
# they are freed; so much at the end of the heap may be free before it is given back.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_NEVER = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1}
# What glibc raises its thresholds to by itself while a program that nobody told anything frees large blocks.
_USUAL = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}


class _State:
    kept = False


def use(choice: str) -> str:
    """Keep freed memory (``keep``; ``auto`` where the C library can be told to), or not (``system``).

    For the whole process, from now on.

    Returns:
        What holds now, ``keep`` or ``system``: ``keep`` falls back where there is no such setting.
    """
    if choice != SYSTEM and not _State.kept:
        _State.kept = _told(_NEVER)
    elif choice == SYSTEM and _State.kept:
        _State.kept = not _told(_USUAL)
    return in_use()


def in_use() -> str:
    """``keep`` or ``system``."""
    return KEEP if _State.kept else SYSTEM


def _told(settings: dict[int, int]) -> bool:
    """Whether the C library is glibc and took the settings."""
    if sys.platform != "linux":
        return False
    with suppress(OSError, AttributeError):  # another C library, or one without this function
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (musl has a mallopt that does nothing)
        return all(library.mallopt(name, value) for name, value in settings.items())
    return False
