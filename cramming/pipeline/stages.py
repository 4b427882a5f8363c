"""The stages of a pipeline: what each runs, what it reads, and what it leaves.

Every stage but the corpus and the task that is made here is a command of the project, run as a process of its own:
what a stage can do, a person can do by hand, and what was killed goes on by itself.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cramming.checkpoint import select
from cramming.cli import compose
from cramming.config import PretrainConfig
from cramming.data.preparation import prepare
from cramming.errors import UserError
from cramming.evaluation.composing import UNTRAINED, asked
from cramming.evaluation.finished import EVALUATIONS
from cramming.evaluation.heldout import VALIDATION
from cramming.pipeline import module_task
from cramming.pipeline.config import PipelineConfig, split
from cramming.progress import Silent, progress_for
from cramming.text import amount

ROOT = Path(__file__).resolve().parents[2]
_SWEEP = ("-m", "--multirun")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        label: what it is called in tables and in the record.
        commands: argument lists behind ``python``; none where ``work`` is done in this process.
        work: what is done in this process.
        reads: facts beyond the command lines that its result depends on.
        after: stages whose outputs it needs.
        uses: stages whose outputs it reads where they are there.
        outputs: the files it leaves, asked once it is done.
        said: what came out of it, in a few words.
        needed: nothing can follow if it fails.
    """

    label: str
    commands: Callable[[], list[list[str]]]
    outputs: Callable[[], list[Path]]
    said: Callable[[], str]
    after: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    work: Callable[[], None] | None = None
    reads: Callable[[], Any] = lambda: None
    needed: bool = False


class Stages:
    """The stages of one pipeline, in order.

    Raises:
        UserError: a command line that cannot be used.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.folder = Path(config.folder)
        words = split(config.pretrain)
        self.sweeps = bool(set(_SWEEP) & set(words))
        self._pretrain = [word for word in words if word not in _SWEEP]
        # A sweep is checked by its own command, before anything of it starts.
        self._run: PretrainConfig | None = (
            None if self.sweeps else compose([*self._pretrain, *self._place(), self._name])
        )

    def all(self) -> list[Stage]:
        """Those that were asked for."""
        made: dict[str, Callable[[], list[Stage]]] = {
            "data": self._data,
            "pretrain": self._pretraining,
            "validate": self._validation,
            "module_task": self._module_task,
            "evaluate": self._fine_tuning,
            "report": self._report,
            "submit": self._submission,
        }
        return [stage for name in made if name in self.config.stages for stage in made[name]()]

    def run_dirs(self) -> list[Path]:
        """The runs that are validated, fine-tuned and compared.

        Raises:
            UserError: there is none yet.
        """
        base, pattern = Path(self.config.base_dir), self.config.runs or self._default_runs
        found = sorted(place.parent for place in base.glob(f"{pattern}/config.yaml"))
        if not found:
            raise UserError(f"there is no run {pattern!r} in {base}: stages=[pretrain,...] makes it")
        return found

    @property
    def _default_runs(self) -> str:
        return f"{self.config.name}-*" if self.sweeps else self.config.name

    @property
    def _name(self) -> str:
        return f"name={self.config.name}"

    def _place(self) -> list[str]:
        return [f"base_dir={self.config.base_dir}", f"data_dir={self.config.data_dir}"]

    def _data(self) -> list[Stage]:
        """The corpus of a single run; a sweep may have several, and prepares each when it comes to it."""
        if self._run is None:
            return []
        data, data_dir = self._run.data, Path(self._run.data_dir)

        def files() -> list[Path]:
            return sorted(path for path in prepare(data, data_dir).folder.iterdir() if path.is_file())

        def said() -> str:
            store = prepare(data, data_dir)
            return f"{store.rows:,} sequences of {store.seq_length} tokens"

        def identity() -> Any:
            return data.source(data_dir, 0, Silent()).fingerprint if data.ready_store(data_dir) is None else None

        def work() -> None:
            prepare(data, data_dir, progress=progress_for())

        words = [word for word in self._pretrain if word.startswith(("data", "arch=", "experiment="))]
        return [Stage("data", lambda: [], files, said, work=work, reads=lambda: [words, identity()], needed=True)]

    def _pretraining(self) -> list[Stage]:
        flag = ["-m"] if self.sweeps else []
        command = [str(ROOT / "pretrain_bert.py"), *flag, *self._pretrain, *self._place(), self._name]
        after = () if self._run is None else ("data",)
        return [Stage("pretraining", lambda: [command], self._trained, self._losses, after, needed=True)]

    def _trained(self) -> list[Path]:
        found = []
        for run_dir in self.run_dirs():
            last = select(run_dir / "checkpoints", "last").folder
            found += [run_dir / "config.yaml", run_dir / "summary.json"]
            found += sorted(path for path in last.iterdir() if path.is_file())
        return found

    def _losses(self) -> str:
        summaries = [json.loads((run_dir / "summary.json").read_text()) for run_dir in self.run_dirs()]
        losses = [one["validation_loss"] for one in summaries if one.get("validation_loss") is not None]
        said = f"held-out loss {min(losses):.3f}" if losses else "nothing held out"
        if len(losses) > 1:
            said = f"{len(losses)} runs, {said} to {max(losses):.3f}"
        return f"{said}, {amount(sum(one['spent_s'] for one in summaries), summaries[0]['unit'])} of budget"

    def _validation(self) -> list[Stage]:
        words = split(self.config.validate)

        def commands() -> list[list[str]]:
            base = f"base_dir={self.config.base_dir}"
            return [
                [str(ROOT / "validate_bert.py"), f"name={run_dir.name}", base, *words] for run_dir in self.run_dirs()
            ]

        def outputs() -> list[Path]:
            return [run_dir / VALIDATION for run_dir in self.run_dirs()]

        def said() -> str:
            found = [json.loads(file.read_text()) for file in outputs()]
            return ", ".join(f"perplexity {one['perplexity']:.1f}" for one in found[:3])

        return [Stage("validation", commands, outputs, said, ("pretraining",))]

    def _module_task(self) -> list[Stage]:
        rows, folder = self.config.module_task, self.folder / "modules"
        if rows is None:
            return []
        files = [folder / module_task.TRAIN, folder / module_task.VALIDATION]

        def work() -> None:
            module_task.write(folder, rows)

        def said() -> str:
            return f"{sum(1 for _ in open(files[0], encoding='utf-8')) - 1:,} sentences, {module_task.MODULES} packages"

        return [
            Stage("a task from the installed packages", lambda: [], lambda: files, said, work=work, reads=lambda: rows)
        ]

    def _fine_tuning(self) -> list[Stage]:
        return [self._suite(label, split(words)) for label, words in self.config.evaluate.items()]

    def _suite(self, label: str, words: Sequence[str]) -> Stage:
        place = [f"base_dir={self.config.base_dir}", f"data_dir={self.config.data_dir}"]

        def commands() -> list[list[str]]:
            return [[str(ROOT / "eval.py"), f"name={run_dir.name}", *place, *words] for run_dir in self.run_dirs()]

        def outputs() -> list[Path]:
            return [results_folder(run_dir, words) / "results.json" for run_dir in self.run_dirs()]

        def said() -> str:
            return "; ".join(_scores(json.loads(file.read_text())) for file in outputs()[:2])

        tasks = "a task from the installed packages" if self.config.module_task else None
        uses_task = tasks is not None and any(str(self.folder) in word for word in words)
        after = ("pretraining", tasks) if uses_task and tasks else ("pretraining",)
        return Stage(f"fine-tuning {label}", commands, outputs, said, after)

    def _report(self) -> list[Stage]:
        page = self.folder / "report.html"
        words = split(self.config.report)

        def commands() -> list[list[str]]:
            return [[str(ROOT / "report.py"), *map(str, self.run_dirs()), f"out={page}", *words]]

        return [Stage("report", commands, lambda: [page], lambda: str(page), ("pretraining",), self._suites())]

    def _suites(self) -> tuple[str, ...]:
        return tuple(f"fine-tuning {label}" for label in self.config.evaluate)

    def _submission(self) -> list[Stage]:
        stages = []
        for label, words in self.config.submit.items():
            stages.append(self._zips(label, split(words)))
        return stages

    def _zips(self, label: str, words: Sequence[str]) -> Stage:
        def file(run_dir: Path) -> Path:
            return self.folder / f"{run_dir.name}-{label}.zip"

        def commands() -> list[list[str]]:
            place = [f"base_dir={self.config.base_dir}", f"data_dir={self.config.data_dir}"]
            module = ["-m", "cramming.evaluation.submit"]
            return [
                [*module, f"name={run_dir.name}", *place, f"out={file(run_dir)}", *words] for run_dir in self.run_dirs()
            ]

        def outputs() -> list[Path]:
            return [file(run_dir) for run_dir in self.run_dirs()]

        after = (f"fine-tuning {label}",) if label in self.config.evaluate else self._suites()
        return Stage(f"submission {label}", commands, outputs, lambda: ", ".join(map(str, outputs()[:2])), after)


def results_folder(run_dir: Path, words: Sequence[str]) -> Path:
    """Where ``eval.py`` puts the results of a run.

    Raises:
        UserError: words that it cannot use.
    """
    config = asked([f"name={run_dir.name}", *words]).config
    untrained = f"-{UNTRAINED}" if config.weights == UNTRAINED else ""
    return run_dir / EVALUATIONS / f"{config.eval.name}{untrained}"


def argv(command: Sequence[str]) -> list[str]:
    """A command as a process is started with it."""
    return [sys.executable, *command]


def _scores(results: dict[str, Any]) -> str:
    """A suite's results in a few words: the average, or every task's headline beside the majority class."""
    average = results.get("average")
    if average is not None:
        return f"average {100 * average:.1f}"
    parts = []
    for task, metrics in results["tasks"].items():
        metric, values = next(iter(metrics.items()))
        if values.get("mean") is not None:
            guess = results["details"][task]["baselines"].get("majority", {}).get(metric)
            beside = "" if guess is None else f" (majority {100 * guess:.1f})"
            parts.append(f"{task} {metric} {100 * values['mean']:.1f}{beside}")
    return ", ".join(parts)
