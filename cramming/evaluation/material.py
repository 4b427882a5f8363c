"""Tasks of a suite and their examples, wherever their rows are.

``eval.data_dir`` names official folders or parquet files; ``generated`` are rows made here; null is what
``python -m cramming.evaluation.download`` fetched, or else the hub.
"""

from pathlib import Path

from cramming.evaluation.config import EvalConfig
from cramming.evaluation.tasks import forms, registry
from cramming.evaluation.tasks.task import Example, Task


def tasks_of(config: EvalConfig, data_dir: Path) -> list[Task]:
    """All tasks of a suite, in its order and each once; a multiple choice in the form that is asked for.

    Args:
        config: of the suite.
        data_dir: of the project: what is shared between runs.

    Raises:
        UserError: a task that does not exist (the nearest is named), none at all, or one whose model is not trained.
    """
    found = [registry.find(name) for name in dict.fromkeys(config.tasks)]
    return [forms.formed(task, config.setting(task.name).choices) for task in found]


def examples_of(config: EvalConfig, task: Task, split: str, data_dir: Path, notes: list[str]) -> list[Example]:
    """The examples of a split.

    Args:
        config: of the suite.
        task: one of ``tasks_of``.
        split: train, validation (MNLI: validation_matched, validation_mismatched), test.
        data_dir: of the project.
        notes: gets a line for everything a person should know, such as another number of rows than the official one.

    Raises:
        UserError: rows that are missing or cannot be used.
    """
    raise NotImplementedError
