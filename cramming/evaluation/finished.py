"""Fine-tunings that are done: the suites of a run, the jobs of a suite, and which of them has the best model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cramming.config import check_name
from cramming.errors import UserError
from cramming.evaluation.config import SETTING_KEYS, EvalConfig
from cramming.evaluation.job import JobResult
from cramming.evaluation.tasks.registry import TASKS
from cramming.suggest import nearest

EVALUATIONS, JOBS, RESULT, MODEL, SUITE = "eval", "jobs", "result.json", "model", "suite.json"
FINAL = "final"  # the purpose of jobs that are no trials of a search


@dataclass(frozen=True)
class Finished:
    """A fine-tuning that is done.

    Attributes:
        suite: the name of its results' folder.
        folder: its own.
        result: what came out.
        metric: the headline's name.
        score: the headline at the end; None: undefined.
    """

    suite: str
    folder: Path
    result: JobResult
    metric: str
    score: float | None

    @property
    def model(self) -> Path | None:
        """The folder of its model; None: it was not kept."""
        place = self.folder / MODEL
        return place if place.is_dir() else None

    def __str__(self) -> str:
        score = "undefined" if self.score is None else f"{self.score:.4f}"
        return f"seed {self.result.seed} ({self.metric} {score} on dev, {self.suite})"


def run_folder(base_dir: str, name: str | None) -> Path:
    """The folder of a run or of an evaluated checkpoint that has results.

    Args:
        base_dir: where they live.
        name: which; None: the one evaluated last.

    Raises:
        UserError: there is none; those that exist are named.
    """
    root = Path(base_dir)
    evaluated: dict[str, float] = {}
    for file in root.glob(f"*/{EVALUATIONS}/*/{JOBS}/*/{RESULT}"):
        run = file.parents[4].name
        evaluated[run] = max(evaluated.get(run, 0.0), file.stat().st_mtime)
    if name is None:
        if not evaluated:
            raise UserError(f"nothing in {base_dir} is fine-tuned; do it with eval.py name=..., or give base_dir=...")
        return root / max(evaluated, key=lambda run: evaluated[run])
    if check_name(name) in evaluated:
        return root / name
    if (root / name).is_dir():
        raise UserError(f"{name} is not fine-tuned on anything: python eval.py name={name}")
    raise UserError(f"there is no {name!r} in {base_dir} that is fine-tuned{nearest(name, evaluated)}")


def suites(run_dir: Path) -> list[str]:
    """Names of the suites a run has results of, the newest first."""
    newest: dict[str, float] = {}
    for file in (run_dir / EVALUATIONS).glob(f"*/{JOBS}/*/{RESULT}"):
        suite = file.parents[2].name
        newest[suite] = max(newest.get(suite, 0.0), file.stat().st_mtime)
    return sorted(newest, key=lambda suite: newest[suite], reverse=True)


def suite_folder(run_dir: Path, name: str) -> Path:
    """The folder of a suite's results.

    Raises:
        UserError: there is none; those that exist are named.
    """
    known = suites(run_dir)
    if name not in known:
        raise UserError(f"{run_dir.name} has no results of suite={name}{nearest(name, known)}")
    return run_dir / EVALUATIONS / name


def config_of(suite_dir: Path) -> EvalConfig:
    """The suite as it was used.

    Raises:
        UserError: it is missing or damaged.
    """
    file = suite_dir / SUITE
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(EvalConfig), said))
    except (OSError, ValueError, TypeError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} cannot be used ({reason}): run eval.py once more, which loses no result") from error
    assert isinstance(config, EvalConfig)
    return config


def finished(suite_dir: Path) -> dict[str, list[Finished]]:
    """Of each task the jobs that are done, of each seed one, by seed.

    Where a task was fine-tuned in several ways under the suite's name, those with the settings that the suite has now
    count, if there are any; of the rest the newest.

    Raises:
        UserError: a result is damaged.
    """
    config = config_of(suite_dir) if (suite_dir / SUITE).is_file() else None
    settings: dict[str, dict[str, Any] | None] = {}
    found: dict[str, list[tuple[bool, float, Finished]]] = {}
    for file in sorted((suite_dir / JOBS).glob(f"*/{RESULT}")):
        try:
            result = JobResult.of_json(json.loads(file.read_text(encoding="utf-8")))
            scores = result.final.scores
        except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
            raise UserError(f"{file} is damaged ({error!r}): delete its folder and run eval.py again") from error
        if result.purpose != FINAL or not scores:
            continue
        task = TASKS.get(result.task)
        metric = task.metrics[0] if task is not None and task.metrics[0] in scores else next(iter(scores))
        done = Finished(suite_dir.name, file.parent, result, metric, scores[metric])
        if result.task not in settings:  # a search chooses its own
            fixed = config if config is not None and config.search.kind == "none" else None
            settings[result.task] = None if fixed is None else asdict(fixed.setting(result.task))
        asked_for = _asked_for(result, settings[result.task])
        found.setdefault(result.task, []).append((asked_for, file.stat().st_mtime, done))
    return {task: _one_of_each_seed(done) for task, done in found.items()}


def _one_of_each_seed(done: list[tuple[bool, float, Finished]]) -> list[Finished]:
    wanted = [one for one in done if one[0]] or done
    newest: dict[int, Finished] = {}
    for _, _, one in sorted(wanted, key=lambda each: each[1]):
        newest[one.result.seed] = one
    return [newest[seed] for seed in sorted(newest)]


def best(done: list[Finished], task: str, seed: int | None = None) -> tuple[Finished, str]:
    """The job whose model to use: the best on dev at the end, the lowest seed of equals, or that of ``seed``.

    Args:
        done: jobs of a task.
        task: its name, for messages.
        seed: None: the best.

    Returns:
        The job, and a line that says which it is and of how many.

    Raises:
        UserError: no such seed, or no model was kept.
    """
    suite = done[0].suite
    if seed is not None:
        known = [str(one.result.seed) for one in done]
        done = [one for one in done if one.result.seed == seed]
        if not done:
            raise UserError(f"{task} was not fine-tuned with seed={seed}; there are: {', '.join(known)}")
    ranked = sorted(done, key=lambda one: float("-inf") if one.score is None else one.score, reverse=True)
    kept = [one for one in ranked if one.model is not None]
    if not kept:
        raise UserError(
            f"no model of {task} was kept in {suite} (eval.save_models=none keeps none, best one of each task's seeds, "
            f"all each of them): fine-tune again with eval.save_models={'best' if seed is None else 'all'}"
        )
    said = f"{task}: {kept[0]}"
    if len(done) > 1:
        said += f", the best of {len(done)} seeds" if kept[0] is ranked[0] else ", the best whose model was kept"
    if kept[0] is not ranked[0]:
        said += f"; better, but not kept: {ranked[0]}"
    return kept[0], said


def _asked_for(result: JobResult, now: Mapping[str, Any] | None) -> bool:
    """Whether a job's setting is the one its suite has now; None: any is.

    Texts may be shorter than the suite's: no longer than the model takes.
    """
    if now is None:
        return True
    same = all(result.setting.get(key) == now[key] for key in SETTING_KEYS if key not in ("seeds", "max_length"))
    return same and result.setting.get("max_length", 0) <= now["max_length"]
