"""Every task that has a name."""

from cramming.errors import UserError
from cramming.evaluation.tasks.choice import CHOICE
from cramming.evaluation.tasks.glue import GLUE
from cramming.evaluation.tasks.superglue import SUPERGLUE
from cramming.evaluation.tasks.task import Task
from cramming.suggest import nearest

TASKS: dict[str, Task] = {task.name: task for task in (*GLUE, *SUPERGLUE, *CHOICE)}


def find(name: str) -> Task:
    """The task called ``name``.

    Raises:
        UserError: there is none; the nearest is named.
    """
    if name not in TASKS:
        raise UserError(f"there is no task {name!r}{nearest(name, TASKS)}")
    return TASKS[name]


def of_collection(collection: str) -> list[Task]:
    """The tasks of a collection, in its order.

    Raises:
        UserError: there is none of that name.
    """
    found = [task for task in TASKS.values() if task.collection == collection]
    if not found:
        known = {task.collection for task in TASKS.values()}
        raise UserError(f"there is no collection {collection!r}{nearest(collection, known)}")
    return found
