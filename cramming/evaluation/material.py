"""Tasks of a suite and their examples, wherever their rows are.

``eval.data_dir`` names official folders or parquet files; ``generated`` are rows made here; null is what
``python -m cramming.evaluation.download`` fetched, or else the hub.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.evaluation.config import EvalConfig
from cramming.evaluation.rows import checks, generated, hub, official
from cramming.evaluation.tasks import forms, registry
from cramming.evaluation.tasks.task import Example, Task
from cramming.progress import progress_for
from cramming.suggest import nearest

OWN = "own"


def tasks_of(config: EvalConfig, data_dir: Path) -> list[Task]:
    """All tasks of a suite, in its order and each once; a multiple choice in the form that is asked for.

    Args:
        config: of the suite.
        data_dir: of the project: what is shared between runs.

    Raises:
        UserError: a task that does not exist (the nearest is named), none at all, or one whose model is not trained.
    """
    names = list(dict.fromkeys(config.tasks))
    has_own = not names or config.train_file is not None or config.dataset is not None
    found = [registry.find(name) for name in names if not (has_own and name == config.task_name)]
    for name in config.per_task:
        if name not in registry.TASKS and not (has_own and name == config.task_name):
            raise UserError(f"eval.per_task.{name}: there is no such task{nearest(str(name), names or registry.TASKS)}")
    for task in found:
        if task.trained_by is not None and task.trained_by not in names:
            raise UserError(
                f"eval.tasks has {task.name}, which has no training rows and is answered by the model of "
                f"{task.trained_by}: add {task.trained_by}, or leave {task.name} out"
            )
    tasks = [forms.formed(task, config.setting(task.name).choices) for task in found]
    if has_own:
        from cramming.evaluation.rows import own  # needs more than the names of tasks

        tasks.append(own.own_task(_with_own_files(config, data_dir), data_dir))
    return tasks


def examples_of(config: EvalConfig, task: Task, split: str, data_dir: Path, notes: list[str]) -> list[Example]:
    """The examples of a split; of splits that are learned from or scored, those with a label.

    Args:
        config: of the suite.
        task: one of ``tasks_of``.
        split: train, validation (MNLI: validation_matched, validation_mismatched), test.
        data_dir: of the project.
        notes: gets a line for everything a person should know, such as another number of rows than the official one.

    Raises:
        UserError: rows that are missing or cannot be used.
    """
    if task.collection == OWN:
        from cramming.evaluation.rows import own

        examples = own.examples_of(_with_own_files(config, data_dir), task, split, data_dir, notes)
        return _first(config, split, examples)
    rows, where = _rows(config, task, split, data_dir, notes)
    counted = replace(task, rows={}) if config.data_dir == generated.NAME else task
    checks.check_rows(counted, split, rows, where, notes)
    examples = forms.to_examples(task, _first(config, split, rows), config.setting(task.name).choices)
    if split != "train" and split not in task.evaluated:
        return examples
    hint = "" if config.max_train_rows is None else f"; take more than eval.max_train_rows={config.max_train_rows}"
    return checks.labelled(task, split, examples, where=where, notes=notes, hint=hint)


def _first(config: EvalConfig, split: str, rows: Sequence[Any]) -> list[Any]:
    return list(rows[: config.max_train_rows] if split == "train" else rows)


def _rows(
    config: EvalConfig, task: Task, split: str, data_dir: Path, notes: list[str]
) -> tuple[list[dict[str, Any]], str]:
    """The rows of a split, and where they are from."""
    if config.data_dir is None:
        return hub.read(task, split, data_dir, progress_for()), str(hub.folder_of(task, data_dir))
    folder = generated.folder(data_dir) if config.data_dir == generated.NAME else Path(config.data_dir).expanduser()
    return official.read(task, split, folder, notes), str(folder)


def _with_own_files(config: EvalConfig, data_dir: Path) -> EvalConfig:
    """``eval.data_dir=generated`` without a file of one's own means the csv that is made here."""
    if config.data_dir != generated.NAME or config.train_file is not None or config.dataset is not None:
        return config
    folder = generated.folder(data_dir)
    return replace(
        config,
        train_file=str(folder / generated.OWN_TRAIN),
        validation_file=config.validation_file or str(folder / generated.OWN_VALIDATION),
    )
