"""The real commands with several ranks, as a person types them, in processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.session import runs

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
STEPS = 120


def words(folder: Path, name: str, *more: str) -> list[str]:
    """A run long enough to be killed in its midst."""
    return ["pretrain_bert.py", *runs.command(folder, f"name={name}", f"budget={STEPS}", *more)]


@contextmanager
def started(*command: str, log: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A command and all it starts, which do not outlive the block; its words go to ``log``."""
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "ab") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **quiet, **environment}, stdout=said, stderr=said,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        left = ranks_under(process.pid)
        if process.poll() is None:
            process.kill()
            process.wait()
        for rank in left.values():  # torchrun gives each a session of its own
            try:
                os.kill(rank, signal.SIGKILL)
            except ProcessLookupError:
                continue


def finish(*command: str, log: Path, **environment: str) -> int:
    """Run a command to its end; returns its exit code."""
    with started(*command, log=log, **environment) as process:
        return process.wait(600)  # against hanging


def ranks_under(process: int) -> dict[int, int]:
    """The ranks that a process has started: their processes by number."""
    found = {}
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return {}
    for child in children:
        try:
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for entry in environment:
            if entry.startswith(b"RANK="):
                found[int(entry.partition(b"=")[2])] = int(child)
    return found


def steps(folder: Path, name: str) -> int:
    """How many steps a run has written down."""
    try:
        return (folder / "outputs" / name / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def wait_for_steps(process: "subprocess.Popen[bytes]", folder: Path, name: str, number: int = 5) -> None:
    """Until a run that a process trains has taken so many steps."""

    def far_enough() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        return steps(folder, name) >= number

    runs.wait_for(far_enough)
