"""What a launcher runs on another machine: one command line, nothing else.

Launchers pickle what they are given, so it is a handful of strings; a run finds its configuration in the command line
and its state in its folder. Nothing here needs torch: the process around a command stays small.
"""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

JOBS_AT_ONCE = "CRAMMING_JOBS_AT_ONCE"  # that of ``cramming/resolve.py``, which needs torch
_LOOK_EVERY_S = 0.1
_OF_A_SCHEDULER = {signal.SIGUSR1, signal.SIGUSR2}  # may reach every process of a job, and end Python


@dataclass(frozen=True)
class CommandLine:
    """A command and where it runs; calling it runs it.

    Attributes:
        name: of the job.
        words: the program and its arguments.
        place: the folder it runs in.
        folder: gets ``<name>.log``, and in the end ``<name>.json``: exit code and, if it failed, what was said last.
        cores: it was given. Where the machine shows it more, as many jobs are assumed to share them.
    """

    name: str
    words: tuple[str, ...]
    place: str
    folder: str
    cores: int

    @property
    def log(self) -> Path:
        """What the command says."""
        return Path(self.folder) / f"{self.name}.log"

    @property
    def ended(self) -> Path:
        """How it ended; absent until then."""
        return Path(self.folder) / f"{self.name}.json"

    def __call__(self) -> int:
        """Run it to its end, in the main thread of a process; returns the exit code.

        SIGTERM and Ctrl-C are passed on to the command, which saves first.
        """
        before = signal.signal(signal.SIGTERM, self._tell)
        try:
            with open(self.log, "ab") as said:
                begin = said.tell()
                process = self._start(said)
                while (code := process.poll()) is None:
                    try:
                        time.sleep(_LOOK_EVERY_S)
                    except KeyboardInterrupt:  # how Ray asks
                        process.terminate()
        finally:
            _children.pop(self.name, None)
            signal.signal(signal.SIGTERM, before)
        written = self.ended.with_suffix(".part")
        written.write_text(json.dumps({"code": code, "said": _last_line(self.log, begin) if code else ""}))
        written.replace(self.ended)
        return code

    def checkpoint(self) -> Any:
        """What submitit calls when a job is to make room: the command saves and ends; the same is to run again."""
        from submitit.helpers import DelayedSubmission

        if process := _children.get(self.name):
            process.terminate()
            # Not ``process.wait()``: this is a signal's handler, and what it interrupted may hold that one's lock.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(replace(self))

    def _start(self, said: Any) -> "subprocess.Popen[bytes]":
        environment = {key: value for key, value in os.environ.items() if key != JOBS_AT_ONCE}
        seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if (sharing := seen // self.cores) > 1:
            environment[JOBS_AT_ONCE] = str(sharing)
        # The command inherits that these are blocked, so that they are for this process alone.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_A_SCHEDULER)
        try:
            process = subprocess.Popen(
                self.words, cwd=self.place, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            _children[self.name] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return process

    def _tell(self, number: int, frame: FrameType | None) -> None:
        if process := _children.get(self.name):
            process.terminate()


_children: dict[str, "subprocess.Popen[bytes]"] = {}  # kept out of what is pickled


def _last_line(log: Path, begin: int) -> str:
    """The error a command ended with, else the last thing it said."""
    with open(log, "rb") as file:
        file.seek(max(begin, os.path.getsize(log) - 20_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]
