"""Tasks of the Hugging Face hub, fetched once into a folder of parquet files with a manifest of their checksums.

Nothing of a dataset's own code is run: only parquet files are read, those of the dataset itself
(``rte/train-00000-of-00001.parquet``) or of the hub's own conversion of it. Below ``<data_dir>/tasks/<collection>``::

    .<task>-<commit>.work/    files on their way; asked for again, it goes on where it was, within a file too
    <task>/                   <split>.parquet and manifest.json, renamed into place when all is there
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cramming import faults
from cramming.data.fingerprint import file_sha256
from cramming.data.lock import locked
from cramming.data.sources.hub_connection import connection_errors, line, unreachable
from cramming.durable import replace, room_for, sync, write_atomically
from cramming.errors import UserError
from cramming.evaluation.rows import parquet
from cramming.evaluation.tasks.task import Task
from cramming.progress import ProgressSink

DATASETS = {"glue": "nyu-mll/glue", "superglue": "aps/super_glue", "swag": "allenai/swag", "race": "ehovy/race"}
# Subsets that are called otherwise than the task. In wsc.fixed places of words that were wrong are right.
_SUBSETS = {"rte_superglue": "rte", "wsc": "wsc.fixed", "swag": "regular", "race": "all"}
_CONVERTED = "refs/convert/parquet"  # where the hub keeps its own conversion of datasets with code of their own
_ASK_S = 10.0
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Part:
    """A file of the hub.

    Attributes:
        path: in the dataset's repository.
        size: bytes.
        sha256: as the hub has it, if it does.
    """

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Remote:
    """A task as the hub has it at one commit: the files of each split, in their order."""

    dataset: str
    commit: str
    subset: str
    splits: dict[str, list[Part]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(part.size for parts in self.splits.values() for part in parts)


def folder_of(task: Task, data_dir: Path) -> Path:
    """Where a fetched task lies."""
    return data_dir / "tasks" / task.collection / task.name


def is_whole(task: Task, folder: Path) -> bool:
    """Whether every file is there in its size; reading compares checksums.

    Raises:
        UserError: the manifest is damaged.
    """
    known = parquet.manifest(folder)
    if known is None or set(task.rows) - set(known["splits"]):
        return False
    files = {split: folder / f"{split}.parquet" for split in known["splits"]}
    return all(
        file.is_file() and file.stat().st_size == known["splits"][split]["bytes"] for split, file in files.items()
    )


def read(task: Task, split: str, data_dir: Path, progress: ProgressSink) -> list[dict[str, Any]]:
    """The rows of a split, fetched first unless they were.

    Raises:
        UserError: they are not here and the hub cannot be reached, or what is here is damaged.
    """
    folder = folder_of(task, data_dir)
    if not is_whole(task, folder):
        remote = look_up(task, folder)
        progress.stage(f"downloading {task.title}", remote.size - begun(task, remote, folder), "B")
        fetch(task, remote, folder, progress)
        progress.done()
    return parquet.read(task, folder, [folder / f"{split}.parquet"])


def look_up(task: Task, folder: Path) -> Remote:
    """What the hub has of a task.

    Args:
        task: of the registry.
        folder: it is wanted in, for messages.

    Raises:
        UserError: the hub cannot be reached, or has no such files.
    """
    dataset, subset = DATASETS.get(task.name) or DATASETS[task.collection], _SUBSETS.get(task.name, task.name)
    reason = unreachable()
    if reason:
        raise _offline(task, folder, reason)
    with _explained(task, folder):
        for revision in ("main", _CONVERTED):
            commit = _commit(dataset, revision)
            splits = _splits(dataset, commit, subset, list(task.rows)) if commit else {}
            if commit and len(splits) == len(task.rows):
                return Remote(dataset, commit, subset, splits)
    raise UserError(
        f"https://huggingface.co/datasets/{dataset} has no parquet files for the splits {', '.join(task.rows)} of "
        f"{subset!r}; give a folder with {task.title}'s files: eval.data_dir=<folder>"
    )


def _commit(dataset: str, revision: str) -> str | None:
    """The commit under a revision now; None: there is no such revision."""
    import huggingface_hub
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        info = huggingface_hub.HfApi().dataset_info(dataset, revision=revision, timeout=_ASK_S, expand=["sha"])
    except RevisionNotFoundError:
        return None
    return info.sha


def _splits(dataset: str, commit: str, subset: str, names: list[str]) -> dict[str, list[Part]]:
    """The parquet files of each split that has some."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    try:
        entries = huggingface_hub.HfApi().list_repo_tree(
            dataset, path_in_repo=subset, recursive=True, revision=commit, repo_type="dataset"
        )
        files = [entry for entry in entries if isinstance(entry, huggingface_hub.RepoFile)]
    except EntryNotFoundError:
        return {}
    found: dict[str, list[Part]] = {}
    for file in sorted(files, key=lambda file: file.path):
        inner = file.path.removeprefix(f"{subset}/")
        for split in names:
            if re.fullmatch(rf"{split}(-\d+-of-\d+|/\d+)?\.parquet", inner):
                sha256 = file.lfs.sha256 if file.lfs is not None else None
                found.setdefault(split, []).append(Part(file.path, file.size, sha256))
    return {split: found[split] for split in names if split in found}


def begun(task: Task, remote: Remote, folder: Path) -> int:
    """Bytes of ``remote`` that an earlier attempt has brought."""
    work = _work_of(task, remote, folder)
    return sum(file.stat().st_size for file in work.glob("part-*")) if work.is_dir() else 0


def _work_of(task: Task, remote: Remote, folder: Path) -> Path:
    return folder.with_name(f".{task.name}-{remote.commit[:12]}.work")


def fetch(task: Task, remote: Remote, folder: Path, progress: ProgressSink) -> None:
    """Bring a task into its folder; killed or cut off and called again, it asks for what is missing.

    Args:
        task: of the registry.
        remote: what ``look_up`` found.
        folder: it is to lie in; what is there and not whole is replaced.
        progress: is told of each byte, in a stage that has begun.

    Raises:
        UserError: the connection was lost, the disk is full, or a file is not what the hub says it is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder, progress):
        if is_whole(task, folder):
            return
        work = _work_of(task, remote, folder)
        work.mkdir(exist_ok=True)
        known: dict[str, Any] = {}
        with room_for(work), _explained(task, folder):
            here = {
                split: [_part(remote, part, work / f"part-{split}-{n}", progress) for n, part in enumerate(parts)]
                for split, parts in remote.splits.items()
            }
            for split, files in here.items():
                known[split] = _joined(files, work / "whole" / f"{split}.parquet")
            told = {"dataset": remote.dataset, "commit": remote.commit, "subset": remote.subset, "splits": known}
            write_atomically(work / "whole" / parquet.MANIFEST, json.dumps(told, indent=1).encode())
            if folder.exists():
                shutil.rmtree(folder)
            replace(work / "whole", folder, "task")
        shutil.rmtree(work)


def _part(remote: Remote, part: Part, target: Path, progress: ProgressSink) -> Path:
    """One file of the hub; what an earlier attempt brought of it is kept."""
    import huggingface_hub

    have = target.stat().st_size if target.exists() else 0
    if have < part.size:
        address = f"datasets/{remote.dataset}@{remote.commit}/{part.path}"
        files = huggingface_hub.HfFileSystem(use_listings_cache=False)
        with open(target, "ab") as output, files.open(address, "rb", block_size=_BLOCK_BYTES) as source:
            source.seek(have)
            while data := source.read(_BLOCK_BYTES):
                output.write(data)
                output.flush()
                progress.advance(len(data))
                faults.point("task-block")
        sync(target, "task-part")
    if target.stat().st_size != part.size or (part.sha256 is not None and file_sha256(target) != part.sha256):
        target.unlink()
        raise UserError(
            f"{part.path} of {remote.dataset} came with another content than the hub lists; run the same command again"
        )
    return target


def _joined(parts: list[Path], target: Path) -> dict[str, Any]:
    """The files of a split as one, and what the manifest says of it."""
    import pyarrow
    import pyarrow.parquet

    target.parent.mkdir(exist_ok=True)
    try:
        if len(parts) == 1:
            shutil.copyfile(parts[0], target)
        else:
            table = pyarrow.concat_tables(pyarrow.parquet.read_table(part) for part in parts)
            pyarrow.parquet.write_table(table, target)
        with pyarrow.parquet.ParquetFile(target) as file:
            rows = file.metadata.num_rows
    except pyarrow.ArrowException as error:
        raise UserError(f"{parts[0]} came as no usable parquet file ({str(error).splitlines()[0]})") from error
    sync(target, "task-split")
    return {"rows": rows, "bytes": target.stat().st_size, "sha256": file_sha256(target)}


@contextmanager
def _explained(task: Task, folder: Path) -> Iterator[None]:
    """What the hub's library raises in the block, as a line.

    Raises:
        UserError: in place of it.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    lost = connection_errors()
    try:
        yield
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{task.title}'s dataset is on the hub no more, or private ({line(error)}); give a folder with its files: "
            "eval.data_dir=<folder>"
        ) from error
    except lost as error:
        raise _offline(task, folder, line(error)) from error


def _offline(task: Task, folder: Path, reason: str) -> UserError:
    begun_before = any(folder.parent.glob(f".{task.name}-*.work")) or folder.exists()
    state = f"only a part of {task.title} is in {folder.parent}" if begun_before else f"{task.title} is not in {folder}"
    return UserError(
        f"{state}, and the hub cannot be reached ({reason}); where there is a network, run: "
        f"{parquet.COMMAND} tasks={task.name} data_dir={folder.parents[2]} (it goes on where it was), "
        "or give a folder with its files: eval.data_dir=<folder>"
    )
