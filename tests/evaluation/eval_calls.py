"""``eval.py`` in processes of their own that can be killed, without paying for imports each time."""

import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_SLOW = ("torch._dynamo", "transformers.models.auto.modeling_auto")  # to import; jobs need them

PRETRAINED = [
    "arch=bert_tiny", "arch.layers=2", "arch.hidden=32", "arch.heads=2", "arch.intermediate=64", "data=local",
    "data.seq_length=16", "data.vocab_size=256", "data.heldout_fraction=0.05", "train.batch_size=8", "rst=steps",
    "budget=4", "impl.threads=1", "impl.precision=float32", "impl.microbatch_size=8", "impl.save_every_h=null",
]  # fmt: skip
# Two tasks with two seeds each, of which one begins with the other's model.
SUITE = """\
# Small tasks for tests.
defaults:
  - schema_suite

name: small
suite: small tasks
tasks: [sst2, cola]
data_dir: generated
lr: 3e-3
epochs: 3
evaluate_every_steps: 6
max_length: 16
seeds: [0, 1]
per_task:
  cola: {start_from: sst2}
average:
  of: [sst2.accuracy, cola.matthews_correlation]
  rule: mean of 2 numbers
"""
FAST = ["eval=small", "impl.threads=1", "impl.jobs=2", "impl.precision=float32"]


def import_once() -> None:
    """Let workers that are forked from this process find what they need."""
    for module in _SLOW:
        importlib.import_module(module)


def make_run(folder: Path, name: str = "whole") -> None:
    """Pretrain a tiny run under ``folder/outputs``, and put the suite into ``folder/more``."""
    from cramming.evaluation.rows import generated

    generated.write(folder / "rows", ["sst2", "cola"])  # a model that knows the words of its tasks learns them
    lines = [line for file in sorted(folder.glob("rows/glue/*/train.tsv")) for line in file.read_text().splitlines()]
    (folder / "text.txt").write_text("\n\n".join(line.replace("\t", " ") for line in lines))
    (folder / "more" / "eval").mkdir(parents=True, exist_ok=True)
    (folder / "more" / "eval" / "small.yaml").write_text(SUITE)
    where = [f"name={name}", f"base_dir={folder / 'outputs'}", f"data.path={folder / 'text.txt'}"]
    process = _CONTEXT.Process(target=_pretrain, args=([*where, *PRETRAINED],))
    process.start()
    process.join(600)  # a guard against hanging, not a limit
    assert process.exitcode == 0


def words(folder: Path, *overrides: str) -> list[str]:
    """The command line of the small suite on the run ``whole`` under ``folder``."""
    return ["--config-dir", str(folder / "more"), f"base_dir={folder / 'outputs'}", "name=whole", *FAST, *overrides]


def start(argv: list[str], kill_at: str = "", said: Path | None = None) -> Any:
    """Start ``eval.py`` in a process of its own, to be killed at a named point if asked for; it says into a file."""
    process = _CONTEXT.Process(target=_evaluate, args=(argv, kill_at, said))
    process.start()
    return process


def run(argv: list[str], kill_at: str = "", said: Path | None = None) -> int | None:
    """Run to the end; returns the exit code, ``-9`` for a process that was killed."""
    process = start(argv, kill_at, said)
    process.join(600)
    return process.exitcode


def results(folder: Path, name: str = "whole", suite: str = "small") -> dict[str, Any]:
    """``results.json`` without what depends on the time of day."""
    content = json.loads((folder / "outputs" / name / "eval" / suite / "results.json").read_text())
    content["cost"] = {key: value for key, value in content["cost"].items() if not key.endswith("_s")}
    return dict(content)


def wait_for(condition: Any, seconds: float = 600) -> None:
    """Poll until ``condition()`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def _pretrain(argv: list[str]) -> None:
    from cramming.cli import pretraining, run_command
    from cramming.session import pretrain

    _say_into(None)
    run_command(lambda: pretraining(pretrain, argv))


def _evaluate(argv: list[str], kill_at: str, said: Path | None) -> None:
    import torch

    from cramming import faults
    from cramming.cli import run_command
    from cramming.evaluation import runner
    from cramming.evaluation.command import command

    # Ignored where the tests themselves run in the background of a shell.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    torch.set_num_threads(1)
    runner.START = "fork"  # a worker that imports everything anew would cost seconds; one test lets it
    sys.argv = ["eval.py", *argv]
    _say_into(said)
    faults.arm(kill_at)
    run_command(lambda: command(argv))


def _say_into(file: Path | None) -> None:
    where = os.open(file or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(where, 1)
    os.dup2(where, 2)


def share(folder: Path, kill_at: str = "") -> int | None:
    """Do a share of a suite in a process of its own; returns the exit code."""
    process = _CONTEXT.Process(target=_share, args=(folder, kill_at))
    process.start()
    process.join(600)
    return process.exitcode


def _share(folder: Path, kill_at: str) -> None:
    import torch

    from cramming import faults
    from cramming.cli import run_command
    from cramming.evaluation import runner
    from cramming.evaluation.share import command

    torch.set_num_threads(1)
    runner.START = "fork"
    _say_into(folder.with_suffix(".log"))
    faults.arm(kill_at)
    run_command(lambda: command([str(folder)]))
