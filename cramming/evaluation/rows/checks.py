"""What can be wrong with the rows of a task as a whole, each in one line; and what only differs, as a note."""

from collections.abc import Sequence
from typing import Any

from cramming.errors import UserError
from cramming.evaluation.tasks.task import Example, Task

_FEWEST = 4  # rows from which a column can be told by its values


def check_rows(task: Task, split: str, rows: Sequence[dict[str, Any]], where: str, notes: list[str]) -> None:
    """Refuse rows that nothing can be learned from or scored on; say where their number is not the official one.

    Args:
        task: whose rows they are.
        split: which ones.
        rows: all of them, under Hugging Face's column names.
        where: they are from, for messages.
        notes: gets a line where their number differs.

    Raises:
        UserError: there are none, a column is missing, holds only labels, or no row that needs a label has one.
    """
    name = f"{task.title}'s {split} split in {where}"
    if not rows:
        raise UserError(f"{name} is empty; download it again, or leave {task.name} out of eval.tasks")
    missing = [field for field in task.fields if field not in rows[0]]
    if missing:
        raise UserError(f"{name} has no column {missing[0]!r}; its columns are: {', '.join(rows[0])}")
    for field in task.fields:
        if _holds_labels(task, [row.get(field) for row in rows]):
            raise UserError(f"{name}: column {field!r} holds only labels, no text; are its columns swapped?")
    expected = task.rows.get(split)
    if expected is not None and expected != len(rows):
        notes.append(f"{name}: {len(rows):,} rows, officially {expected:,}")


def _holds_labels(task: Task, values: Sequence[Any]) -> bool:
    if len(values) < _FEWEST:
        return False
    named = {name.lower() for name in task.labels}
    return all(
        isinstance(value, bool | int | float)
        or (isinstance(value, str) and (value.strip().lower() in named or value.strip().isdigit()))
        for value in values
    )


def labelled(
    task: Task, split: str, examples: Sequence[Example], *, where: str, notes: list[str], hint: str = ""
) -> list[Example]:
    """The examples of a split that is learned from or scored, those without a label left out.

    Args:
        task: whose examples they are.
        split: which ones.
        examples: of it.
        where: they are from, for messages.
        notes: gets a line where some are left out.
        hint: what else may be the reason for a single class.

    Raises:
        UserError: none has a label, or all that are to be learned from have the same.
    """
    name = f"{task.title}'s {split} split in {where}"
    found = [example for example in examples if example.label is not None]
    if not found:
        way_out = "nothing can be learned from it" if split == "train" else "nothing can be scored on it"
        raise UserError(f"{name} has no labels (all are -1 or missing, as in test sets): {way_out}")
    if len(found) < len(examples):
        notes.append(f"{name}: {len(examples) - len(found):,} examples without a label are left out")
    if split == "train" and len(examples) > 1 and len({example.label for example in found}) == 1:
        label = found[0].label
        said = task.labels[label] if task.labels and isinstance(label, int) else label
        raise UserError(f"all {len(found):,} examples of {name} have the label {said}: nothing can be learned{hint}")
    return found
