"""Where a task's rows are below ``eval.data_dir``: official TSV and JSONL folders, or parquet files.

A task's folder is called as its makers call it (``SST-2``) or as it is typed (``sst2``), in upper or lower case, and
may lie in a folder of its collection (``glue/SST-2``).
"""

from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.evaluation.rows import official_jsonl, official_tsv, parquet
from cramming.evaluation.tasks.task import Task

_FOLDERS = {"ax": (official_tsv.FOLDERS["ax"], "MNLI")}  # that are not called by the task's name
_COLLECTIONS = {
    "glue": ("glue", "glue_data"),
    "superglue": ("superglue", "super_glue"),
    "choice": ("choice",),
}


def read(task: Task, split: str, data_dir: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The rows of a split under ``data_dir``, under Hugging Face's column names.

    Args:
        task: of the registry.
        split: train, validation, test, or MNLI's.
        data_dir: ``eval.data_dir``.
        notes: gets a line for everything that was left out.

    Raises:
        UserError: the folder or the split's file is missing (what is there is named), or it cannot be read.
    """
    folders = folders_of(task, data_dir)
    for folder in folders:
        if files := parquet.files_of(folder, split):
            return parquet.read(task, folder, files)
        name = _official_name(task, split)
        if name is not None and (folder / name).is_file():
            if task.collection == "glue":
                return official_tsv.read(task, split, folder / name, notes)
            return official_jsonl.read(task, folder / name)
    raise _missing(task, split, folders[0])


def folders_of(task: Task, data_dir: Path) -> list[Path]:
    """Folders that may hold the task's files, the likeliest first.

    Raises:
        UserError: there is none.
    """
    if not data_dir.is_dir():
        raise UserError(f"eval.data_dir={data_dir} is no folder (relative to where you started)")
    roots = [data_dir, *_named(data_dir, _COLLECTIONS.get(task.collection, ()))]
    names = (task.name, task.title, *_FOLDERS.get(task.name, ()))
    found = [folder for root in roots for folder in _named(root, names)]
    if data_dir.name.lower() in (name.lower() for name in names):  # the task's own folder was named
        found.append(data_dir)
    if not found:
        there = sorted(path.name for path in data_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
        raise UserError(
            f"eval.data_dir={data_dir} has no folder {names[-1] if task.name == 'ax' else task.title}, where "
            f"{task.name}'s files would be; its folders are: {', '.join(there) or 'none'}"
        )
    return found


def _named(root: Path, names: tuple[str, ...]) -> list[Path]:
    """Folders in ``root`` called so, in the order of ``names``."""
    there = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    wanted = dict.fromkeys(name.lower() for name in names)
    return [there[name] for name in wanted if name in there]


def _official_name(task: Task, split: str) -> str | None:
    if task.collection == "glue":
        return official_tsv.file_name(task, split)
    return official_jsonl.file_name(task, split)


def _missing(task: Task, split: str, folder: Path) -> UserError:
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return UserError(
        f"{folder} has no {_official_name(task, split)} and no {split}.parquet, {task.name}'s {split} split; "
        f"it has: {', '.join(there) or 'nothing'}; download it again, or leave {task.name} out of eval.tasks"
    )
