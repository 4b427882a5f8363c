"""``pipeline.py``: every stage once, and a table of what came of it."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from cramming.cli import CONFIG_DIR, load_schemas
from cramming.data.fingerprint import fingerprint
from cramming.errors import UserError
from cramming.folder import held
from cramming.pipeline.config import launched, load
from cramming.pipeline.record import Record
from cramming.pipeline.stages import ROOT, Stage, Stages, argv
from cramming.sweeps.beside import told_to_stop
from cramming.text import duration

USAGE = """\
Data, pretraining, validation, fine-tuning, report and submission from one file.

  python pipeline.py experiment=demo_pipeline
  python pipeline.py experiment=demo_pipeline name=mine budget=5m arch=modern_small     words for pretraining
  python pipeline.py experiment=demo_pipeline name=mine eval.seeds=[0,1,2]              words for every fine-tuning
  python pipeline.py experiment=first_paper_24h --dry                                   say what would be done

The same command again goes on where it was. A stage is left out when its command line and what it reads are unchanged
and every file it left is whole.

Pipelines (config/pipeline/): {known}
Options of a pipeline: name, base_dir=outputs, data_dir, stages=[data,pretrain,validate,module_task,evaluate,report,
submit], runs, validate, report, launcher='slurm partition=gpu' (for pretraining and fine-tuning; docs/clusters.md), and
in its file pretrain, evaluate, submit"""


@dataclass
class Ended:
    """How a stage ended."""

    stage: Stage
    state: str  # done, unchanged, failed, left out
    wall_s: float = 0.0
    reason: str = ""


def command(words: Sequence[str]) -> None:
    """Run a pipeline, or what is left of it.

    Raises:
        UserError: words that cannot be used, or in the end, which stages failed.
    """
    if {"-h", "--help"} & set(words):
        print(USAGE.format(known=", ".join(sorted(file.stem for file in (CONFIG_DIR / "pipeline").glob("*.yaml")))))
        return
    load_schemas()
    config = load([word for word in words if word != "--dry"])
    stages = Stages(config)
    if "--dry" in words:
        _dry(stages)
        return
    with held(stages.folder):
        record = Record(stages.folder)
        ended = _through(stages.all(), record, config.launcher)
        Console().print(_table(config.name, ended, record))
    failed = [end for end in ended if end.state == "failed"]
    if failed:
        raise UserError(f"{failed[0].stage.label}: {failed[0].reason}; the same command again goes on from there")


def _through(stages: Sequence[Stage], record: Record, launcher: str = "") -> list[Ended]:
    """Every stage in order; one that fails takes those that need it with it."""
    ended: list[Ended] = []
    lost: set[str] = set()
    for number, stage in enumerate(stages, 1):
        if missing := [label for label in stage.after if label in lost]:
            lost.add(stage.label)
            ended.append(Ended(stage, "left out", reason=f"{missing[0]} failed"))
            continue
        begun = time.monotonic()
        try:
            inputs = _inputs(stage, record)
            if record.whole(stage.label, inputs):
                print(f"{number} of {len(stages)}, {stage.label}: unchanged", flush=True)
                ended.append(Ended(stage, "unchanged"))
                continue
            print(f"{number} of {len(stages)}, {stage.label}", flush=True)
            _run(stage, launcher)
            took_s = time.monotonic() - begun
            record.done(stage.label, inputs, stage.outputs(), took_s)
            ended.append(Ended(stage, "done", took_s))
        except UserError as error:
            print(f"error: {stage.label}: {error}", file=sys.stderr, flush=True)
            ended.append(Ended(stage, "failed", time.monotonic() - begun, str(error)))
            lost.add(stage.label)
            if stage.needed:
                break
    return ended


def _inputs(stage: Stage, record: Record) -> str:
    """What a stage's result depends on: its command lines, but for what only changes the speed, and what it reads."""
    lines = [[word for word in line if not word.startswith("impl.")] for line in stage.commands()]
    lines = [[os.path.relpath(word, ROOT) if word.startswith(str(ROOT)) else word for word in line] for line in lines]
    before = {label: entry.digest for label in (*stage.after, *stage.uses) if (entry := record.entry(label))}
    return fingerprint(lines, stage.reads(), before)


def _run(stage: Stage, launcher: str) -> None:
    if stage.work is not None:
        stage.work()
    for line in (launched(line, launcher) for line in stage.commands()):
        print(f"$ python {shlex.join(_short(line))}", flush=True)
        with subprocess.Popen(argv(line)) as process, told_to_stop(process.pid):
            try:
                code = process.wait()
            except KeyboardInterrupt:  # the terminal has told it too: it saves
                process.wait()
                raise
        if code:
            program = line[1] if line[0] == "-m" else _short(line)[0]
            raise UserError(f"{program} ended with exit code {code}; what it said is above")


def _dry(stages: Stages) -> None:
    for stage in stages.all():
        try:
            lines = stage.commands()
        except UserError as error:  # of runs that pretraining will make
            print(f"{stage.label}: {error}")
            continue
        print(f"{stage.label}:" + ("" if lines else " in this process"))
        for line in (launched(line, stages.config.launcher) for line in lines):
            print(f"  python {shlex.join(_short(line))}")
            if stages.sweeps and stage.label == "pretraining":
                subprocess.run([*argv(line), "--dry"], check=False)
    print("nothing was started: leave --dry out to run it")


def _short(line: Sequence[str]) -> list[str]:
    """A command as a person types it in the project's folder."""
    return [os.path.relpath(word, ROOT) if word.startswith(f"{ROOT}{os.sep}") else word for word in line]


def _table(name: str, ended: Sequence[Ended], record: Record) -> Table:
    table = Table(title=f"pipeline {name}", title_justify="left", box=box.ROUNDED)
    for column in ("stage", "what came out"):
        table.add_column(column, overflow="fold")
    table.add_column("wall", justify="right")
    table.add_column("")
    total_s = 0.0
    for end in ended:
        entry = record.entry(end.stage.label)
        took_s = end.wall_s if end.state != "unchanged" or entry is None else entry.wall_s
        total_s += took_s
        said = end.stage.said() if end.state in ("done", "unchanged") else end.reason
        table.add_row(end.stage.label, said, duration(took_s), end.state)
    table.add_section()
    table.add_row("all of it", "", duration(total_s), "")
    return table
