"""Jobs beside each other on one machine: which GPU each takes, and how all of them are stopped without losing work.

A launcher's worker processes outlive their jobs and know nothing of the person at the terminal. So the sweep's own
process alone listens: asked to stop, it tells each job that is running, waits for all to save, and lets none begin.
"""

import itertools
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from filelock import FileLock, Timeout

from cramming.resolve import JOBS_AT_ONCE, jobs_at_once

_FOLDER = "CRAMMING_SWEEP_FOLDER"  # where the processes of one sweep find each other
_STOP = "stop"
_devices: list[FileLock] = []  # held as long as this process lives


@contextmanager
def sharing(at_once: int) -> Iterator[None]:
    """Around all the jobs of a sweep: tell their processes how many share this machine, and stop them when asked.

    Raises:
        KeyboardInterrupt: in the end, with the exit code, if a signal stopped the jobs; at once on a second Ctrl-C.
    """
    if at_once == 1:
        yield
        return
    asked: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not asked:
            print("stopping: the jobs that are running save first; Ctrl-C again ends them at once", flush=True)
            (folder / _STOP).touch()
            for running in folder.glob("job-*"):
                _tell(int(running.name.partition("-")[2]))
        asked.append(number)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {JOBS_AT_ONCE: str(at_once), _FOLDER: name}
        os.environ.update(environment)
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for key in environment:
                os.environ.pop(key, None)
    if asked:
        print("the same command again goes on from there", flush=True)
        raise KeyboardInterrupt(128 + asked[0])


@contextmanager
def taking_part() -> Iterator[bool]:
    """Around a job in one of a launcher's processes; says whether it may begin. Does nothing where jobs run alone."""
    folder = os.environ.get(_FOLDER)
    if folder is None or jobs_at_once() == 1:
        yield True
        return
    if os.getpgrp() != os.getpid():
        os.setpgrp()  # a terminal's Ctrl-C is for the sweep's process, which then tells this one
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    here = Path(folder) / f"job-{os.getpid()}"
    here.touch()
    try:
        if not _devices and torch.cuda.device_count() > 1:
            _devices.append(take_device(Path(folder), torch.cuda.device_count()))
        yield not (here.with_name(_STOP)).exists()
    finally:
        here.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def told_to_stop(process: int) -> Iterator[None]:
    """Around the wait for a process of this sweep that is no job: it is told to stop with the jobs."""
    folder = os.environ.get(_FOLDER)
    if folder is None:
        yield
        return
    mark = Path(folder) / f"job-{process}"
    mark.touch()
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def take_device(folder: Path, devices: int) -> FileLock:
    """Make the GPU with the fewest jobs this process's own; it is free again when the lock is."""
    for place in itertools.count():
        lock = FileLock(folder / f"gpu-{place}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        torch.cuda.set_device(place % devices)
        return lock
    raise AssertionError("places are endless")


def _tell(process: int) -> None:
    try:
        os.kill(process, signal.SIGTERM)
    except ProcessLookupError:
        return
