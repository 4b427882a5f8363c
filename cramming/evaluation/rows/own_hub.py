"""A split of a dataset of the Hugging Face hub, or of a folder that ``datasets`` can load, with all its columns.

Nothing of the dataset's own code is run. The commit that was found first is remembered, as it is for pretraining text.
``eval.dataset=owner/name@revision`` takes another branch, tag or commit.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cramming.data.sources.hub_repository import Repository, Wanted
from cramming.errors import UserError
from cramming.evaluation.rows.tables import Row, Table
from cramming.progress import progress_for

_CALLED = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def read(dataset: str, subset: str | None, split: str, data_dir: Path, wanted: Sequence[str]) -> Table | None:
    """The rows of a split under whatever of its usual names it has; None: it has none.

    Args:
        dataset: ``owner/name`` on the hub, perhaps with ``@revision``; or a folder or file.
        subset: of datasets that come in several.
        split: ``train``, ``validation`` or ``test``.
        data_dir: where commits are remembered.
        wanted: columns to keep, where they exist.

    Raises:
        UserError: there is no such dataset or subset, no training split, or it cannot be read.
    """
    return _read(dataset, subset, split, data_dir, tuple(wanted))


@lru_cache(maxsize=4)  # splits of one task are asked for again and again
def _read(dataset: str, subset: str | None, split: str, data_dir: Path, wanted: tuple[str, ...]) -> Table | None:
    here = Path(dataset).expanduser().exists()
    name, _, revision = (dataset, "", "") if here else dataset.partition("@")
    splits = _repository(name, subset, "train", revision, data_dir).splits
    found = next((called for called in _CALLED[split] if called in splits), None)
    if found is None:
        if split == "train":
            raise UserError(f"eval.dataset={dataset} has no split 'train'; its splits are: {', '.join(splits)}")
        return None
    repository = _repository(name, subset, found, revision, data_dir)
    streamed = repository.streamed()
    with repository.explaining():
        records = list(streamed)
    features: dict[str, Any] = dict(streamed.features or {})
    columns = dict.fromkeys(features) | dict.fromkeys(column for record in records for column in record)
    rows = tuple(
        Row(number, {column: record[column] for column in wanted if column in record})
        for number, record in enumerate(records, 1)
    )
    names = {
        column: tuple(map(str, inner.names))
        for column, feature in features.items()
        if getattr(inner := getattr(feature, "feature", feature), "names", None)
    }
    return Table(f"eval.dataset={dataset} split {found}", "row", tuple(columns), rows, names)


def _repository(name: str, subset: str | None, split: str, revision: str, data_dir: Path) -> Repository:
    wanted = Wanted(
        name,
        subset,
        split,
        revision or None,
        options="eval",
        revising=f"eval.dataset={name}@",
        offline="offline, give its files: eval.train_file=<csv, tsv, jsonl or parquet>",
    )
    return Repository(wanted, data_dir, progress_for())
