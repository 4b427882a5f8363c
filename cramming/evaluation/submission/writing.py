"""Answers as the lines that a server reads, and the zip of all of them."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from cramming.durable import write_file
from cramming.errors import UserError
from cramming.evaluation.submission.benchmarks import ANSWERS, ENTITY, HIGHEST, VALUE, Benchmark, File
from cramming.evaluation.submission.check import HEADER, problems

README = "README.txt"  # in a zip that must not be submitted, and says so there
_DATE = (1980, 1, 1, 0, 0, 0)  # of every file in a zip: the same answers are the same bytes


@dataclass(frozen=True)
class Answers:
    """What goes into one file.

    Attributes:
        keys: of each answer: ``idx``, its makers' number; or for MultiRC ``paragraph``, ``question``, ``answer``, and
            for ReCoRD ``query``.
        values: of each answer: a class, a number, or the text of an entity.
    """

    keys: Sequence[Mapping[str, Any]]
    values: Sequence[int | float | str]


def lines(file: File, answers: Answers) -> list[str]:
    """The lines of a file after its header, in the server's order.

    Raises:
        UserError: rows are not numbered from 0 on, one by one.
    """
    if file.form == ANSWERS:
        return _passages(file, answers)
    if file.form == ENTITY:
        return [
            json.dumps({"idx": int(key["query"]), "label": value}, ensure_ascii=False)
            for key, value in zip(answers.keys, answers.values, strict=True)
        ]
    by_number = {int(key["idx"]): value for key, value in zip(answers.keys, answers.values, strict=True)}
    if sorted(by_number) != list(range(len(answers.keys))):
        raise UserError(
            f"the test rows of {file.task} are not numbered 0 to {len(answers.keys) - 1}, each once: it is not the "
            "official file"
        )
    ordered = [by_number[number] for number in range(len(by_number))]
    if file.name.endswith(".tsv"):
        return [f"{number}\t{_cell(file, value)}" for number, value in enumerate(ordered)]
    return [json.dumps({"idx": number, "label": file.words[int(value)]}) for number, value in enumerate(ordered)]


def content(file: File, answers: Answers) -> bytes:
    """A whole file.

    Raises:
        UserError: see ``lines``.
    """
    header = [HEADER] if file.name.endswith(".tsv") else []
    return "".join(f"{line}\n" for line in (*header, *lines(file, answers))).encode()


def write(to: Path, benchmark: Benchmark, contents: Mapping[str, bytes], unfit: str | None = None) -> None:
    """Write a zip, whole or not at all; it takes its place only if a server with these test sets would take it.

    Args:
        to: the zip.
        benchmark: whose server; with the sizes of the test sets that were answered.
        contents: of every file, by name.
        unfit: why it must not be submitted all the same, which is then written into it.

    Raises:
        UserError: the server would not take it, or it cannot be written.
    """
    beside = to.with_name(f".unchecked-{to.name}")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        write_file(beside, [_packed(contents)], "submission")
        found = problems(beside, benchmark)
        if found:
            raise UserError(f"{to} is not written, as {benchmark.title} would not take it: {'; '.join(found[:3])}")
        note = {} if unfit is None else {README: f"NOT TO BE SUBMITTED: {unfit}\n".encode()}
        write_file(to, [_packed({**contents, **note})], "submission")
    except OSError as error:
        raise UserError(f"{to} cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def _packed(contents: Mapping[str, bytes]) -> bytes:
    """A zip of these files: of the same content, the same bytes."""
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16  # readable for everyone who unpacks it
            opened.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _cell(file: File, value: int | float | str) -> str:
    if file.form == VALUE:
        return f"{min(max(float(value), 0.0), HIGHEST):.3f}"
    return str(file.words[int(value)])


def _passages(file: File, answers: Answers) -> list[str]:
    """A line for each passage, in the order of its first answer."""
    passages: dict[int, dict[int, list[dict[str, int]]]] = {}
    for key, value in zip(answers.keys, answers.values, strict=True):
        questions = passages.setdefault(int(key["paragraph"]), {})
        label = int(file.words[int(value)])
        questions.setdefault(int(key["question"]), []).append({"idx": int(key["answer"]), "label": label})
    return [
        json.dumps(
            {
                "idx": passage,
                "passage": {
                    "questions": [{"idx": question, "answers": given} for question, given in questions.items()]
                },
            }
        )
        for passage, questions in passages.items()
    ]
