"""A suite in Weights & Biases: one W&B run in the group of the model, with a row for each job that is done."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cramming.evaluation.config import EvaluateConfig
from cramming.evaluation.executor import Outcome
from cramming.evaluation.tasks.task import Task
from cramming.recording.strict_json import strict
from cramming.recording.trackers import Tracker, build_trackers


class Tracking:
    """Rows of jobs as they end, final scores by task and seed; use it as a context manager.

    Args:
        config: of the call; without W&B (the default) nothing is done, and nothing imported.
        suite_dir: where results are; W&B's files go to ``wandb/`` in it.
        name: of the model.
        tasks: by name.

    Raises:
        UserError: W&B is asked for and not installed.
    """

    def __init__(self, config: EvaluateConfig, suite_dir: Path, name: str, tasks: Mapping[str, Task]) -> None:
        options = replace(config.wandb, group=config.wandb.group or name)
        title = f"{name} {suite_dir.name}"
        self._trackers: list[Tracker] = build_trackers(options, False, suite_dir, title, strict(asdict(config)))
        self._tasks = tasks
        self._ended = 0
        self._summary: dict[str, Any] = {}

    def ended(self, outcome: Outcome) -> None:
        """A job is over."""
        if outcome.result is None:
            return
        job, result = outcome.job, outcome.result
        final = {f"{job.task}/{name}": score for name, score in result.final.scores.items()}
        final |= {f"{task}/{name}": score for task, own in result.also.items() for name, score in own.items()}
        row = {"step": self._ended, "seed": job.seed, "steps": result.steps, "lr": job.setting.lr, **final}
        self._ended += 1
        self._summary |= {f"{name}/seed={job.seed}": score for name, score in final.items()}
        for tracker in self._trackers:
            tracker.log(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for tracker in self._trackers:
            tracker.finish(self._summary if kind is None else None)
