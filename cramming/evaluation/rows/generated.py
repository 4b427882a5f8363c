"""Rows made here, in the formats of the official files: a clone checks itself with them, and tests need no network.

``eval.data_dir=generated`` means these. They are no benchmark: CoLA, SST-2, RTE and the csv of one's own task follow
rules that a tiny model learns in some dozens of steps, the others are a few rows of the right form.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from cramming.data.lock import locked
from cramming.durable import write_atomically
from cramming.evaluation.rows import generated_glue, generated_superglue, official_tsv
from cramming.evaluation.rows.generated_words import pick, said, sentence
from cramming.evaluation.tasks import registry
from cramming.evaluation.tasks.task import Task

NAME = "generated"
OWN_TRAIN, OWN_VALIDATION = "topics.csv", "topics_dev.csv"
_VERSION = 1  # raised when the rows change
_TOPICS = {
    "food": ("bread", "fish", "soup", "milk"),
    "music": ("song", "sound", "voice", "note"),
    "sport": ("ball", "race", "team", "game"),
}


def folder(data_dir: Path) -> Path:
    """Where the rows lie, made unless they are there: a folder for each collection, and the csv files.

    Args:
        data_dir: of the project.
    """
    where = data_dir / "tasks" / NAME
    whole = where / f"version-{_VERSION}"
    where.mkdir(parents=True, exist_ok=True)
    with locked(where):
        if not whole.is_file():
            write(where)
            write_atomically(whole, b"")
    return where


def write(where: Path, tasks: Sequence[str] | None = None) -> None:
    """Write the official files of tasks into ``<where>/<collection>/<title>``, and the csv files beside them.

    Args:
        where: a folder.
        tasks: their names; None: all.

    Raises:
        UserError: a task does not exist.
    """
    for task in registry.TASKS.values() if tasks is None else map(registry.find, tasks):
        made = generated_glue.files(task.name) if task.collection == "glue" else generated_superglue.files(task.name)
        for name, text in made.items():
            _put(where / task.collection / _folder_name(task) / name, text)
    train = _own(200, {})
    _put(where / OWN_TRAIN, _csv(train))
    _put(where / OWN_VALIDATION, _csv(_own(50, train)))


def _folder_name(task: Task) -> str:
    return official_tsv.FOLDERS.get(task.name, task.title)


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def _own(count: int, known: Mapping[str, str]) -> dict[str, str]:
    """Sentences that are not known yet, each with the topic that two of its words belong to."""
    made: dict[str, str] = {}
    for number in itertools.count(len(known)):
        topic = pick(list(_TOPICS), "topic", number)
        words = [pick(_TOPICS[topic], "word", place, number) for place in range(2)]
        one = said("topic", number)
        text = sentence(one.who, "saw the", words[0], "and the", words[1])
        if text not in known:
            made[text] = topic
        if len(made) == count:
            break
    return made


def _csv(topics: Mapping[str, str]) -> str:
    return "".join(f"{text},{topic}\n" for text, topic in {"text": "topic", **topics}.items())
