"""A task of one's own (``eval=task``): what it is, from its files or dataset, and its rows as examples.

    eval.train_file=my.csv eval.validation_file=dev.csv eval.text_column=text eval.label_column=topic
    eval.dataset=owner/name eval.label_column=stars eval.kind=regression

Rows without a label are left out of training and validation, and said. Classes are called as the training rows call
them, sorted, or as ``eval.labels`` lists them; a class number of a hub's dataset is called by its name.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from cramming.errors import UserError
from cramming.evaluation.config import KINDS, EvalConfig
from cramming.evaluation.rows import columns, kinds, own_hub, tables
from cramming.evaluation.rows.labels import NOT_JUDGED, Labels, missing, names_in
from cramming.evaluation.rows.tables import Table
from cramming.evaluation.tasks.task import Example, Kind, Task
from cramming.suggest import nearest

SPLITS = ("train", "validation", "test")
_METRICS: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "regression": ("pearson", "spearmanr"),
    "multilabel": ("micro_f1", "macro_f1", "subset_accuracy"),
    "tokens": ("accuracy",),
}
_OF_TWO_CLASSES = ("f1", "matthews_correlation")
_OF_ENTITIES = ("entity_f1", "accuracy")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def own_task(config: EvalConfig, data_dir: Path) -> Task:
    """The task that the training rows and the options describe.

    Args:
        config: with the options of ``OwnTask``.
        data_dir: where what is fetched from the hub is remembered.

    Raises:
        UserError: files or options that cannot be used, or labels that leave nothing to learn.
    """
    if not _NAME.fullmatch(config.task_name):
        raise UserError(f"eval.task_name={config.task_name} names files: use letters, digits, '_', '-' and '.'")
    kind, _ = _kind(config, data_dir)
    table = _training(config, data_dir)
    names = _names(config, kind, table)
    check_varied(_labelled(config, kind, names, table), table.name)
    return Task(
        name=config.task_name,
        title=config.task_name,
        collection="own",
        kind=kind,
        fields=_fields(config),
        labels=names,
        metrics=_metrics(config, kind, names),
        source=table.name,
    )


def examples_of(config: EvalConfig, task: Task, split: str, data_dir: Path, notes: list[str]) -> list[Example]:
    """The examples of a split, in the order of their rows.

    Args:
        config: with the options of ``OwnTask``.
        task: ``own_task(config, data_dir)``.
        split: ``train``, ``validation`` or ``test``; labels of a test split may be missing.
        data_dir: where what is fetched from the hub is remembered.
        notes: takes lines to show.

    Raises:
        UserError: the split is not there or empty, or a row cannot be used.
    """
    if split not in SPLITS:
        raise UserError(f"{task.name} has no split {split!r}{nearest(split, SPLITS)}")
    reader = Labels(task.kind, config.label_column, task.labels)
    if split == "test":
        return _test(config, task, reader, data_dir, notes)
    training = _training(config, data_dir)
    validation = _table(config, "validation", data_dir)
    table = training if split == "train" or validation is None else validation
    if split == "train":
        notes += _said(config, task, data_dir)
    examples = _checked(table, task, reader, notes)
    if validation is None:
        kept, chosen = columns.held_out(examples)
        if not kept or not chosen:
            raise UserError(
                f"{table.name} has too few different rows ({len(examples)}) to hold some out; give eval.validation_file"
            )
        if split == "validation":
            notes.append(
                f"{task.name}: no eval.validation_file, so {len(chosen):,} of {len(examples):,} training rows are held "
                "out for it, the same every time"
            )
        examples = kept if split == "train" else chosen
    elif split == "validation":
        notes += _seen(task, examples, _examples(training, task, reader))
    if split == "train":
        check_varied(examples, table.name)
    return examples


def check_varied(examples: Sequence[Example], name: str) -> None:
    """Refuse training rows that all say the same.

    Raises:
        UserError: they do.
    """
    found = {example.label for example in examples}
    if any(isinstance(label, tuple) for label in found):
        judged = {part for label in found if isinstance(label, tuple) for part in label if part != NOT_JUDGED}
        # Words each have one class; classes of a multi-label row may differ from row to row or not at all.
        varied = len(judged) > 1 and (len(found) > 1 or examples[0].texts[0].spans != ())
    else:
        varied = len(found) > 1
    if not varied:
        raise UserError(
            f"{name}: all of its {len(examples)} training rows have the same label; there is nothing to learn"
        )


def _kind(config: EvalConfig, data_dir: Path) -> tuple[Kind, str]:
    """The kind of task, and why if it was decided here."""
    if config.kind not in KINDS:
        raise UserError(f"eval.kind={config.kind} is not known{nearest(config.kind, KINDS)}")
    if config.labels and config.kind == "regression":
        raise UserError("eval.labels names classes, and eval.kind=regression has none: leave one of them out")
    table = _training(config, data_dir)
    kind, why = config.kind, ""
    if kind == "auto":
        kinds.check_not_swapped(table, config.text_column, config.label_column)
        kind, why = kinds.decide(table, config.text_column, config.label_column, bool(config.labels))
    elif kind in ("classification", "regression"):
        kinds.check_not_swapped(table, config.text_column, config.label_column)
    if kind == "tokens" and config.text_pair_column is not None:
        raise UserError(
            f"eval.text_pair_column={config.text_pair_column}: words are classified in one text; leave it out"
            + (f" or say eval.kind ({why})" if why else "")
        )
    return kind, why  # type: ignore[return-value]  # one of KINDS but auto


def _names(config: EvalConfig, kind: Kind, table: Table) -> tuple[str, ...]:
    names = tuple(config.labels) or names_in(kind, table, config.label_column)
    if len(set(names)) < len(names):
        raise UserError(f"eval.labels={list(names)} has a name twice")
    return names


def _metrics(config: EvalConfig, kind: Kind, names: tuple[str, ...]) -> tuple[str, ...]:
    metrics = _METRICS[kind]
    if kind == "classification" and len(names) == 2:
        metrics += _OF_TWO_CLASSES
    if kind == "tokens" and kinds.marks_entities(names):
        metrics = _OF_ENTITIES
    if config.metric is None:
        return metrics
    if config.metric not in metrics:
        raise UserError(
            f"eval.metric={config.metric} is not measured for {kind} with these labels{nearest(config.metric, metrics)}"
        )
    return (config.metric, *(metric for metric in metrics if metric != config.metric))


def _fields(config: EvalConfig) -> tuple[str, ...]:
    pair = config.text_pair_column
    return (config.text_column,) if pair is None else (config.text_column, pair)


def _training(config: EvalConfig, data_dir: Path) -> Table:
    table = _table(config, "train", data_dir)
    if table is None:
        raise UserError(
            "eval=task needs eval.train_file=<csv, tsv, jsonl or parquet>, or eval.dataset=<owner/name on the hub>"
        )
    return table


def _table(config: EvalConfig, split: str, data_dir: Path) -> Table | None:
    """The rows of a split, whose columns are there; None: the split was not given."""
    if config.train_file is not None and config.dataset is not None:
        raise UserError(f"give either eval.train_file={config.train_file} or eval.dataset={config.dataset}, not both")
    wanted = (*_fields(config), config.label_column)
    if len(set(wanted)) < len(wanted):
        raise UserError(f"columns {', '.join(wanted)}: text and label must be different ones")
    given = {"train": config.train_file, "validation": config.validation_file, "test": config.test_file}[split]
    if given is not None:
        table: Table | None = tables.read(Path(given), f"eval.{split}_file", wanted)
    elif config.dataset is not None:
        table = own_hub.read(config.dataset, config.subset, split, data_dir, wanted)
    else:
        return None
    if table is None:
        return None
    if not table.columns or not table.rows:
        raise UserError(f"{table.name} has no rows; the {split} split of eval=task is empty")
    table.need(config.text_column, "eval.text_column")
    if config.text_pair_column is not None:
        table.need(config.text_pair_column, "eval.text_pair_column")
    if split != "test":
        table.need(config.label_column, "eval.label_column")
    return table


def _labelled(config: EvalConfig, kind: Kind, names: tuple[str, ...], table: Table) -> list[Example]:
    """Those rows of a table that have a label."""
    reader = Labels(kind, config.label_column, names)
    task = Task(config.task_name, config.task_name, "own", kind, _fields(config), names, ())
    return _checked(table, task, reader, [])


def _examples(table: Table, task: Task, reader: Labels) -> list[Example]:
    return [columns.example(table, index, task.fields, reader) for index in range(len(table.rows))]


def _checked(table: Table, task: Task, reader: Labels, notes: list[str]) -> list[Example]:
    """The examples of a table with labels; those without are left out, which is noted.

    Raises:
        UserError: a row cannot be used, or none has a label.
    """
    placeholder = _placeholder(table, reader)
    if placeholder is not None and len(table.rows) > 1:
        raise UserError(
            f"{table.name}: every label in column {reader.column!r} is {placeholder}, which is no class of "
            f"{task.name}; it takes a file with labels"
        )
    everything = _examples(table, task, reader)
    examples = [example for example in everything if example.label is not None]
    if not examples:
        raise UserError(f"{table.name}: every label in column {reader.column!r} is missing")
    notes += table.remarks
    if len(examples) < len(everything):
        first = next(row for row, example in zip(table.rows, everything, strict=True) if example.label is None)
        notes.append(
            f"{table.name}: {len(everything) - len(examples):,} rows without a label are left out, "
            f"{table.unit} {first.number} first"
        )
    empty = sum(not any(segment.strip() for segment in example.texts[0].segments) for example in examples)
    if empty:
        notes.append(f"{table.name}: {empty:,} texts are empty")
    return examples


def _placeholder(table: Table, reader: Labels) -> str | None:
    """What stands in every row in place of a label, such as -1; None: labels do."""
    if reader.kind != "classification" or reader.column in table.names:
        return None
    values = {repr(row.values.get(reader.column)): row.values.get(reader.column) for row in table.rows}
    value = next(iter(values.values()))
    return None if len(values) > 1 or missing(value) or reader.known(value) else str(value)


def _test(config: EvalConfig, task: Task, reader: Labels, data_dir: Path, notes: list[str]) -> list[Example]:
    table = _table(config, "test", data_dir)
    if table is None:
        raise UserError(f"{task.name} has no test split; give eval.test_file=<csv, tsv, jsonl or parquet>")
    notes += table.remarks
    labelled = table.has(config.label_column) and _placeholder(table, reader) is None
    return [columns.example(table, index, task.fields, reader, labelled=labelled) for index in range(len(table.rows))]


def _said(config: EvalConfig, task: Task, data_dir: Path) -> list[str]:
    """What ``eval.kind=auto`` decided."""
    _, why = _kind(config, data_dir)
    if not why:
        return []
    some = ", ".join(task.labels[:8]) + (", ..." if len(task.labels) > 8 else "")
    classes = f"; {len(task.labels)} classes: {some}" if task.labels else ""
    return [f"{task.name}: eval.kind={task.kind}, since {why}{classes}"]


def _seen(task: Task, examples: Sequence[Example], training: Sequence[Example]) -> list[str]:
    """That texts which are to be judged were trained on."""
    known = {example.texts[0].segments for example in training if example.label is not None}
    seen = sum(example.texts[0].segments in known for example in examples)
    return [f"{task.name}: {seen:,} of {len(examples):,} validation texts are training texts, too"] if seen else []
