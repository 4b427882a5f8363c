"""Jobs on other machines: handed to a launcher, waited for, told to save when the person at the terminal stops.

Hydra's launchers hand over Python objects and lose what the others computed when one job dies. These hand over command
lines (``command_line.py``), and every job ends with an outcome of its own.
"""

import json
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cramming.errors import UserError
from cramming.sweeps.command_line import CommandLine

_LOOK_EVERY_S = 0.5
_FILES_LATE_S = 15.0  # a shared folder may show a file that much later than the machine that wrote it


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        code: the command's exit code; None: nobody knows, its process is gone, or it never began.
        said: the error it ended with, or what became of it.
    """

    code: int | None
    said: str = ""

    @property
    def stopped(self) -> bool:
        """Whether it was told to end, and saved before."""
        return self.code in (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Work(ABC):
    """A job that was handed over."""

    @abstractmethod
    def over(self) -> bool:
        """Whether nothing more will come of it."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to save and end, or not to begin."""

    @abstractmethod
    def state(self) -> str:
        """What the launcher says of it, in a few words."""

    def late(self) -> bool:
        """Whether it came to an end by itself, so that what it left must be there, or is about to appear."""
        return False


class Cluster(ABC):
    """A launcher with its fields; use it as a context manager around what it runs.

    Attributes:
        shares: into how many jobs ``eval.py`` deals its fine-tunings.
    """

    shares: int

    @property
    @abstractmethod
    def cores(self) -> int:
        """Of a job."""

    @property
    def room(self) -> int | None:
        """Jobs that may be handed over at once; None: any number, the launcher has a queue."""
        return None

    @property
    def beside(self) -> int:
        """Jobs that may share one machine's cores; 1: each has its own."""
        return 1

    def __enter__(self) -> "Cluster":
        return self

    @abstractmethod
    def __exit__(self, *error: object) -> None:
        """Every job is over."""

    @abstractmethod
    def check(self) -> None:
        """Refuse what cannot work from here.

        Raises:
            UserError: a package or a program is missing, or a field is impossible.
        """

    @abstractmethod
    def start(self, lines: Sequence[CommandLine], title: str) -> list[Work]:
        """Hand over jobs.

        Raises:
            UserError: they are not taken.
        """


def cluster_of(launcher: DictConfig) -> Cluster | None:
    """The cluster that ``hydra/launcher=`` names; None: jobs run on this machine.

    Raises:
        UserError: a field that does not exist or cannot be read.
    """
    from cramming.sweeps.on_ray import OnRay
    from cramming.sweeps.slurm import Slurm

    target = str(launcher.get("_target_", ""))
    kinds: dict[str, type[Cluster]] = {f"{kind.__module__}.{kind.__name__}": kind for kind in (OnRay, Slurm)}
    if target not in kinds:
        return None
    fields = {key: value for key, value in OmegaConf.to_container(launcher).items() if key != "_target_"}  # type: ignore[union-attr]
    try:
        cluster: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kinds[target]), fields))
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.launcher.{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(cluster, Cluster)
    return cluster


def run(
    cluster: Cluster,
    lines: Sequence[CommandLine],
    title: str,
    over: Callable[[CommandLine, Ended], None] = lambda line, ended: None,
    look: Callable[[], None] = lambda: None,
) -> list[Ended]:
    """Run command lines on a cluster and wait for all of them.

    Args:
        cluster: entered, as a context manager.
        lines: with names that differ.
        title: of all of them together, for people.
        over: called for each that ended.
        look: called again and again meanwhile.

    Raises:
        UserError: the cluster does not take them.
        KeyboardInterrupt: a signal stopped them, with its exit code: what ran has saved. At once on a second Ctrl-C.
    """
    for line in lines:
        Path(line.folder).mkdir(parents=True, exist_ok=True)
        line.ended.unlink(missing_ok=True)
    waiting, running, ended = list(lines), dict[CommandLine, Work](), dict[CommandLine, Ended]()
    with _stops() as asked:
        told = False
        while waiting or running:
            if asked and not told:
                told = True
                ended |= {line: Ended(128 + asked[0]) for line in waiting}
                waiting.clear()
                for work in running.values():
                    work.stop()
            room = len(waiting) if cluster.room is None else max(0, cluster.room - len(running))
            begin, waiting = waiting[:room], waiting[room:]
            if begin:
                running |= zip(begin, cluster.start(begin, title), strict=True)
            for line in [line for line, work in running.items() if work.over()]:
                ended[line] = _ended(line, running.pop(line), len(ended) + 1, len(lines))
                over(line, ended[line])
            look()
            if running:
                time.sleep(_LOOK_EVERY_S)
    if asked:
        print("the same command again goes on from there", flush=True)
        raise KeyboardInterrupt(128 + asked[0])
    return [ended[line] for line in lines]


@contextmanager
def _stops() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are noted; a second Ctrl-C ends the wait at once, and leaves the jobs to themselves."""
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            print("stopping: the jobs that are running save first; Ctrl-C again waits no longer", flush=True)
        asked.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(line: CommandLine, work: Work, place: int, total: int) -> Ended:
    """What a job that is over left, said in a line."""
    end = time.monotonic() + _FILES_LATE_S
    while not line.ended.exists() and work.late() and time.monotonic() < end:
        os.listdir(line.folder)  # makes a network's file system look again
        time.sleep(_LOOK_EVERY_S)
    try:
        found = Ended(**json.loads(line.ended.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        found = Ended(None, f"its process is gone ({work.state()}), killed perhaps or out of memory; see {line.log}")
    if found.code is not None and found.code < 0:
        said = f"it was killed by signal {-found.code}, out of memory perhaps; see {line.log}"
        found = Ended(found.code, said)
    how = "ends" if found.code == 0 else "stopped" if found.stopped else f"failed: {found.said}"
    print(f"{place} of {total}, {line.name}: {how}", flush=True)
    return found
