"""Where the ranks of a run meet: a store at MASTER_ADDR:MASTER_PORT, which torchrun keeps, or else rank 0.

In it each rank says who it is, and waits for what may take hours (preparing data) without a limit of its own: ranks
that died are found by ``watch.py``, which looks into the same store.

torchrun may keep one store over several attempts. Each has a part of the store for itself, named by its main rank. The
others take the newest in which the main rank gives signs of life and in which their own place is still free.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore

from cramming.parallel.environment import MEET_S, Launched, NotMetError, meeting_place, seconds

_ATTEMPT = "cramming/attempt"
_MEET_S = 300.0  # machines of one job may come minutes apart
ENDED = "ended"  # key: who ended this attempt, why, and with which exit code


class Meeting:
    """This process among the ranks of one attempt at a run.

    Args:
        ranks: who it is.
        wait_s: how long to wait for the others; None: as the environment says, else five minutes.

    Raises:
        NotMetError: nobody answers at that address, or the main rank does not come.
    """

    def __init__(self, ranks: Launched, wait_s: float | None = None) -> None:
        self.ranks = ranks
        self._wait_s = seconds(MEET_S, _MEET_S) if wait_s is None else wait_s
        self._turn = 0
        host, port = meeting_place(ranks)
        self.address = f"{host}:{port}"
        deadline = time.monotonic() + self._wait_s
        self._tcp = self._connect(host, port, deadline)
        self._member = json.dumps({"host": socket.gethostname(), "process": os.getpid(), **_space()})
        self.store = self._begin() if ranks.main else self._join(deadline)

    def apart(self) -> Store:
        """The same part of the store, over a connection of its own, for another thread."""
        return PrefixStore(self._attempt, self._tcp.clone())  # type: ignore[attr-defined]

    def gather(self) -> None:
        """Wait until all ranks are there.

        Raises:
            NotMetError: which are not.
        """
        # The main rank, which knows who is missing, gives up first.
        deadline = time.monotonic() + self._wait_s + (0 if self.ranks.main else 60)
        if not self._all_set("rank", deadline):
            self._give_up()

    def alike(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """Say something and hear what the main rank says under that name, however long it takes."""
        self.store.set(f"{name}/{self.ranks.rank}", json.dumps(value))
        key = f"{name}/0"
        _until(lambda: self.store.check([key]))
        return dict(json.loads(self.store.get(key)))

    def together(self, name: str) -> None:
        """Wait until every rank has said something under that name, however long it takes."""
        self._all_set(name, None)

    def pass_turn(self) -> None:
        """The main rank has done what it does first."""
        self._turn += 1
        self.store.set(f"turn/{self._turn}", "")

    def await_turn(self) -> None:
        """Wait until the main rank has, however long it takes."""
        self._turn += 1
        key = f"turn/{self._turn}"
        _until(lambda: self.store.check([key]))

    def named(self, rank: int) -> str:
        """How a rank is called in messages."""
        return _named(rank, self.member(rank))

    def member(self, rank: int) -> dict[str, Any]:
        """What a rank said of itself."""
        return dict(json.loads(self.store.get(f"rank/{rank}")))

    def _connect(self, host: str, port: int, deadline: float) -> TCPStore:
        hosts = self.ranks.main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not hosts:
            self._knock(host, port, deadline)  # torch would write a page about it
        limit = timedelta(seconds=max(1.0, deadline - time.monotonic()))
        try:
            return TCPStore(host, port, None, hosts, limit, wait_for_workers=False)
        except (RuntimeError, ValueError) as error:
            what = "cannot be used as the meeting place of ranks" if hosts else "does not answer as torchrun's store"
            raise NotMetError(f"{host}:{port} {what}: {str(error).splitlines()[0]}") from error

    def _knock(self, host: str, port: int, deadline: float) -> None:
        """Wait until someone listens there; a name may become known late, as in a cluster that is starting."""
        while True:
            try:
                socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())).close()
                return
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise NotMetError(
                        f"rank {self.ranks.rank} cannot reach the ranks' meeting place {host}:{port} "
                        f"within {self._wait_s:g} s ({_reason(error)}): check --master-addr and --master-port, that "
                        f"this machine may connect there, and that node 0 was started; {MEET_S}= waits longer"
                    ) from error
                time.sleep(0.2)

    def _begin(self) -> Store:
        self._attempt = uuid.uuid4().hex
        store = PrefixStore(self._attempt, self._tcp)
        store.set("rank/0", self._member)
        self._tcp.set(_ATTEMPT, self._attempt)
        return store

    def _join(self, deadline: float) -> Store:
        beat = b""
        while time.monotonic() < deadline:
            if self._tcp.check([_ATTEMPT]):
                self._attempt = self._tcp.get(_ATTEMPT).decode()
                store = PrefixStore(self._attempt, self._tcp)
                before, beat = beat, store.get("beat/0") if store.check(["beat/0"]) else b""
                alive = bool(before) and before != beat
                if (alive or store.check([ENDED])) and self._takes(store):
                    return store
            time.sleep(0.1)
        raise NotMetError(
            f"rank {self.ranks.rank} waited {self._wait_s:g} s at {self.address}, and rank 0 did not come: "
            f"was node 0 started? {MEET_S}= waits longer"
        )

    def _takes(self, store: Store) -> bool:
        return store.compare_set(f"rank/{self.ranks.rank}", "", self._member) == self._member.encode()

    def _all_set(self, name: str, deadline: float | None) -> bool:
        """The main rank looks whether all have set a key, and tells the others."""
        done = f"{name}/all"
        if not self.ranks.main:
            return _until(lambda: self.store.check([done]), deadline)
        keys = [f"{name}/{rank}" for rank in range(self.ranks.world)]
        if not _until(lambda: self.store.check(keys), deadline):
            return False
        self.store.set(done, "")
        return True

    def _give_up(self) -> None:
        missing = [rank for rank in range(self.ranks.world) if not self.store.check([f"rank/{rank}"])]
        said = ", ".join(map(str, missing[:8])) + (", ..." if missing[8:] else "")
        raise NotMetError(
            f"{self.ranks.world - len(missing)} of {self.ranks.world} ranks came to {self.address} within "
            f"{self._wait_s:g} s; missing: {said}. Were all nodes started, with the same --nnodes and "
            f"--nproc-per-node? {MEET_S}= waits longer"
        )


def _named(rank: int, member: dict[str, Any]) -> str:
    return f"rank {rank} (process {member['process']} on {member['host']})"


def _until(condition: Callable[[], bool], deadline: float | None = None) -> bool:
    """Look again and again, more seldom as time passes; a signal's handler runs in between."""
    pause_s = 0.02
    while not condition():
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(1.0, pause_s * 1.3)
    return True


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _space() -> dict[str, Any]:
    """What tells whether the process of another rank can be looked at from here: same machine, same numbering."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"space": f"{machine} {os.readlink('/proc/self/ns/pid')}", "started": started(os.getpid())}
    except OSError:
        return {"space": None, "started": None}


def started(process: int) -> str | None:
    """When a process was started, in ticks, which tells it from a later one with its number; None: it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
