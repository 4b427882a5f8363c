"""A rank that fails ends all of them, soon and with one line; so does one that dies without a word.

A thread of each rank looks into the ranks' store about once a second. The first rank that fails writes there who it is
and why, and says so; the others end quietly with the same exit code, wherever they are: a thread can end a process that
waits in a collective for ever, as NCCL does for a rank that is gone.

Who died is seen in two ways, each rank looking after one neighbour (of a row of ranks that died together, the one
before the first sees it):

* On the same machine, whether the neighbour's process is still there. That is certain, so it is believed at once.
* On any machine, whether the neighbour still gives its signs of life. A rank may be silent and well: native code that
  does not let other threads run (a checkpoint read over a slow network, say), a machine that was frozen and woken. So
  silence is believed only after two minutes (``CRAMMING_SILENT_S``), and it is counted in looks, not by the clock: who
  was frozen itself accuses nobody. Where a collective fails as well, a fifth of it is enough.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from torch.distributed import Store

from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.parallel.environment import SILENT_S, Launched, launched, seconds
from cramming.parallel.meeting import ENDED, Meeting, started
from cramming.recording.logfile import FILE_ONLY

LAST_WORDS = "CRAMMING_LAST_WORDS"  # a file for what would be said; ``launch.py`` reads it
_log = logging.getLogger(__name__)
_LOOK_S = 1.0
_GATHERING_S = 0.2  # before all are there: others wait to see a sign of life
_SILENT_S = 120.0
_SUSPECTED = 1 / 5  # share of it where a collective has failed
_VERDICT_S = 5.0  # after SIGTERM, for the same
_HEARD_S = 3.0  # the first to fail waits so long for the others to hear of it


class Watch(threading.Thread):
    """Looks after the ranks of an attempt until ``stop``."""

    def __init__(self, meeting: Meeting) -> None:
        super().__init__(name="watch", daemon=True)
        self._meeting = meeting
        self._store = meeting.apart()
        self._ranks = meeting.ranks
        self._look_s = _GATHERING_S
        self._stopped = threading.Event()
        self._leaving = self._suspects = False
        self._beats = 0
        self._silent_looks = seconds(SILENT_S, _SILENT_S) / _LOOK_S
        self._near: Neighbour | None = None
        self._far: Neighbour | None = None

    def run(self) -> None:
        """The thread."""
        try:
            while not self._stopped.wait(self._look_s):
                self._look()
        except RuntimeError as error:  # torch's, of a store that is gone
            if not (self._leaving or self._stopped.is_set()):
                where = f"the ranks' meeting place {self._meeting.address} is gone"
                first = str(error).splitlines()[0]
                self._go(f"error: {where}: its machine, or torchrun there, has ended ({first})", 1, said=self._alone())

    def met(self) -> None:
        """All ranks are there: begin to look after one on this machine and one anywhere."""
        ranks, meeting = self._ranks, self._meeting
        first = ranks.rank - ranks.local_rank
        self._near = Neighbour(meeting, first + (ranks.local_rank + 1) % ranks.local_world)
        self._far = Neighbour(meeting, (ranks.rank + 1) % ranks.world)
        self._look_s = _LOOK_S

    def leave(self) -> None:
        """From here on the others may end."""
        self._leaving = True

    def stop(self) -> None:
        """All is done: end of the thread."""
        self._stopped.set()
        self.join(10)
        try:
            self._store.set(f"left/{self._ranks.rank}", "")
            if self._ranks.main:  # others may still look into the store that ends with this process
                end = time.monotonic() + _HEARD_S
                keys = [f"left/{rank}" for rank in range(self._ranks.world)]
                while not self._store.check(keys) and time.monotonic() < end:
                    time.sleep(0.02)
        except RuntimeError:
            return  # torchrun has ended it already

    def ask(self) -> None:
        """A collective has failed, perhaps because somebody died: time to find out, and sooner."""
        self._suspects = True
        time.sleep(_SUSPECTED * self._silent_looks * _LOOK_S + 5)

    def end(self, line: str, code: int) -> NoReturn:
        """End all ranks: whoever comes first says why."""
        self._stopped.set()  # this rank need not hear of it
        mine = json.dumps({"rank": self._ranks.rank, "line": line, "code": code})
        try:
            first = self._store.compare_set(ENDED, "", mine)
        except RuntimeError:
            self._go(line, code, said=self._alone())
        if first != mine.encode():
            self._hear(first)
        _farewell(line, said=True)
        end = time.monotonic() + _HEARD_S
        try:
            while self._store.add("heard", 0) < self._ranks.world - 1 and time.monotonic() < end:
                time.sleep(0.05)
        except RuntimeError:
            pass
        os._exit(code)

    def _look(self) -> None:
        self._beats += 1
        self._store.set(f"beat/{self._ranks.rank}", str(self._beats))
        if self._store.check([ENDED]) and not self._stopped.is_set():
            self._hear(self._store.get(ENDED))
        if self._near is None or self._far is None:
            return
        limit = self._silent_looks * (_SUSPECTED if self._suspects else 1)
        if self._near.is_gone(self._store):
            self._accuse(self._near, "has died: killed, or out of memory")
        elif self._far.silent_looks(self._store) > limit:
            self._accuse(self._far, f"has given no sign of life for {limit * _LOOK_S:g} s: its machine or its network")

    def _accuse(self, neighbour: "Neighbour", what: str) -> None:
        again = "the same command goes on from the last checkpoint"
        self.end(f"error: {neighbour.name} {what}; all ranks end, {again}", 1)

    def _alone(self) -> bool:
        """Whether this rank speaks where ranks can no longer agree on one: once for each machine."""
        return self._ranks.local_rank == 0

    def _hear(self, verdict: bytes) -> NoReturn:
        """End as another rank has said."""
        words: dict[str, Any] = json.loads(verdict)
        with suppress(RuntimeError):  # the store may have gone
            self._store.add("heard", 1)  # from here on it may go
        self._go(words["line"], words["code"], said=False)

    def _go(self, line: str, code: int, *, said: bool) -> NoReturn:
        _farewell(line, said)
        os._exit(code)


class Neighbour:
    """Another rank, as it is seen from here."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.rank = rank
        self.name = meeting.named(rank)
        member, own = meeting.member(rank), meeting.member(meeting.ranks.rank)
        self._process = member["process"] if member["space"] and member["space"] == own["space"] else None
        self._started = member["started"]
        self._beat = b""
        self._looks = 0

    def is_gone(self, store: Store) -> bool:
        """Whether its process, on this machine, has ended without taking leave."""
        if self._process is None or started(self._process) == self._started:
            return False
        return not store.check([f"left/{self.rank}"])

    def silent_looks(self, store: Store) -> int:
        """How often in a row it was found to have given no new sign of life."""
        key = f"beat/{self.rank}"
        beat = store.get(key) if store.check([key]) else b""
        silent = beat == self._beat and not store.check([f"left/{self.rank}"])
        self._beat = beat
        self._looks = self._looks + 1 if silent else 0
        return self._looks


@contextmanager
def patient() -> Iterator[None]:
    """SIGTERM ends this process a little later: torchrun sends it to all when a rank has died, which is to be said."""

    def asked(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(_VERDICT_S, os._exit, [128 + number])
        timer.daemon = True
        timer.start()

    before = signal.signal(signal.SIGTERM, asked)
    yield
    signal.signal(signal.SIGTERM, before)  # not behind an error, which ``end`` is going to say


_WATCHES: list[Watch] = []


def begin(meeting: Meeting) -> Watch:
    """Watch over this process for the rest of the attempt."""
    watch = Watch(meeting)
    watch.start()
    _WATCHES[:] = [watch]
    return watch


def end(line: str, code: int, *, asks: bool = False, met: bool = True) -> NoReturn:
    """End all ranks with an exit code; the first that fails says its line, the others nothing.

    Args:
        line: what is wrong, for standard error.
        code: of all ranks.
        asks: a collective failed, for which another rank may have the reason: it is given time to be found.
        met: whether there is a place at which the others can be told; else one rank of each machine speaks.
    """
    watch = _WATCHES[0] if _WATCHES else _summoned(launched()) if met else None
    if watch is None:
        speaks = launched().local_rank == 0
        _farewell(line, speaks)
        time.sleep(0 if speaks else _HEARD_S)  # torchrun ends the others with the first
        os._exit(code)
    if asks:
        watch.ask()
    watch.end(line, code)


def _summoned(ranks: Launched) -> Watch | None:
    """The watch of a process that failed before it met the others; None: they cannot be met."""
    try:
        meeting = Meeting(ranks, wait_s=20)
    except UserError:
        return None
    watch = Watch(meeting)
    watch._store.set(f"beat/{ranks.rank}", "failing")
    return watch


def _farewell(line: str, said: bool) -> None:
    """Say it, and write out what was printed, but wait for no pipe that nobody reads."""

    def speak() -> None:
        if logging.getLogger().handlers:  # of a run that is still under way: its run.log
            _log.error("%s", line.removeprefix("error: "), extra=FILE_ONLY)
        if said:
            if file := os.environ.get(LAST_WORDS):
                write_atomically(Path(file), line.encode())
            else:
                print(line, file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    thread.join(5)
