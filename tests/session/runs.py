"""Runs in processes of their own that can be killed, without paying for imports each time."""

import multiprocessing
import os
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from cramming.checkpoint import checkpoints

# Every run is a fork of a clean, single-threaded process that has imported the session (tests/conftest.py).
_CONTEXT = multiprocessing.get_context("forkserver")

TINY = [
    "arch=bert_tiny", "arch.layers=2", "arch.hidden=32", "arch.heads=2", "arch.intermediate=64", "data=local",
    "data.seq_length=16", "data.vocab_size=300", "data.heldout_fraction=0.05", "train.batch_size=8", "rst=steps",
    "budget=12", "impl.threads=1", "impl.precision=float32", "impl.microbatch_size=4", "impl.save_every_steps=4",
    "impl.log_every_steps=1", "impl.save_every_h=null",
]  # fmt: skip


def command(folder: Path, *overrides: str) -> list[str]:
    """The words of a small run under ``folder`` on the text ``folder/text.txt``."""
    return [f"base_dir={folder / 'outputs'}", f"data.path={folder / 'text.txt'}", *TINY, *overrides]


def start(words: list[str], kill_at: str = "") -> multiprocessing.process.BaseProcess:
    """Start a run in a process of its own, to be killed at a named point if asked for."""
    process = _CONTEXT.Process(target=_run, args=(words, kill_at))
    process.start()
    return process


def run(words: list[str], kill_at: str = "") -> int | None:
    """Run to its end; returns the exit code, ``-9`` for a process that was killed."""
    process = start(words, kill_at)
    process.join(600)  # a guard against hanging, not a limit
    return process.exitcode


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of a run's last checkpoint."""
    return load_file(checkpoints(folder / "outputs" / name / "checkpoints")[-1].folder / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are the same to the last bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def wait_for(condition: "object", seconds: float = 600) -> None:
    """Poll until ``condition()`` holds."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def _run(words: list[str], kill_at: str) -> None:
    from cramming import faults
    from cramming.cli import pretraining, run_command
    from cramming.session import pretrain

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    faults.arm(kill_at)
    run_command(lambda: pretraining(pretrain, words), ranks=True)
