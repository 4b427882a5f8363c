"""Whether a zip is what a benchmark's server takes; looked at afresh, whoever wrote it."""

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.evaluation.submission.benchmarks import ANSWERS, CLASS, ENTITY, HIGHEST, VALUE, Benchmark, File

HEADER = "index\tprediction"
_DECIMALS = re.compile(r"\d\.\d{3}")


def check(path: Path, benchmark: Benchmark) -> None:
    """Refuse a zip that the server would refuse or misread.

    Args:
        path: the zip.
        benchmark: whose server.

    Raises:
        UserError: it is no zip, or what is wrong in it: the first thing of each file.
    """
    found = problems(path, benchmark)
    if found:
        rest = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(f"{path} cannot be submitted to {benchmark.title}: {'; '.join(found[:3])}{rest}")


def problems(path: Path, benchmark: Benchmark) -> list[str]:
    """What is wrong with a zip: of each file the first thing; empty: nothing.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            return list(_problems(opened, benchmark))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path} is no zip, or a damaged one ({error})") from error


def _problems(opened: zipfile.ZipFile, benchmark: Benchmark) -> Iterator[str]:
    names = opened.namelist()
    wanted = [file.name for file in benchmark.files]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name} is there twice"
    for name in wanted:
        if name not in names:
            inside = next((other for other in names if other.endswith(f"/{name}")), None)
            yield f"{name} is missing" if inside is None else f"{inside} must be at the root, as {name}"
    for name in names:
        if name not in wanted and name.rpartition("/")[2] not in wanted:
            yield f"{name} is none of the server's files"
    for file in benchmark.files:
        if file.name in names:
            wrong = _wrong(opened.read(file.name), file, benchmark.suffix)
            if wrong is not None:
                yield f"{file.name}: {wrong}"


def _wrong(data: bytes, file: File, suffix: str) -> str | None:
    """The first thing that is wrong in a file; None: nothing."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return "is not UTF-8"
    if text and not text.endswith("\n"):
        return "its last line has no end"
    lines = text.split("\n")[:-1]
    if suffix == "tsv":
        if not lines or lines[0] != HEADER:
            return f"its first line is {lines[0] if lines else ''!r}, not {HEADER!r}"
        lines = lines[1:]
    if len(lines) != file.rows:
        return f"has {len(lines)} rows, the test set has {file.rows}"
    return _wrong_in_table(lines, file) if suffix == "tsv" else _wrong_in_objects(lines, file)


def _wrong_in_table(lines: Sequence[str], file: File) -> str | None:
    for number, line in enumerate(lines):
        cells = line.split("\t")
        if len(cells) != 2:
            return f"line {number + 2} has {len(cells)} fields, not 2"
        if cells[0] != str(number):
            return f"line {number + 2} has index {cells[0]!r}, not {number}"
        if file.form == CLASS and cells[1] not in file.words:
            return f"line {number + 2} says {cells[1]!r}, not {_either(file.words)}"
        if file.form == VALUE and not (_DECIMALS.fullmatch(cells[1]) and float(cells[1]) <= HIGHEST):
            return f"line {number + 2} says {cells[1]!r}, no number from 0 to {HIGHEST:g} with three decimals"
    return None


def _wrong_in_objects(lines: Sequence[str], file: File) -> str | None:
    seen: list[int] = []
    looks: dict[str, Callable[[Any, File], str | None]] = {CLASS: _of_class, ENTITY: _of_entity, ANSWERS: _of_passage}
    for number, line in enumerate(lines):
        try:
            said = json.loads(line)
        except ValueError:
            return f"line {number + 1} is not JSON"
        if not isinstance(said, dict) or type(said.get("idx")) is not int:
            return f"line {number + 1} has no whole number idx"
        wrong = looks[file.form](said, file)
        if wrong is not None:
            return f"line {number + 1} {wrong}"
        seen.append(said["idx"])
    if len(set(seen)) < len(seen):
        return "two lines have one idx"
    if file.form == CLASS and seen != list(range(file.rows)):
        return f"idx does not go from 0 to {file.rows - 1}"
    return _wrong_in_answers([json.loads(line) for line in lines], file) if file.form == ANSWERS else None


def _of_class(said: dict[str, Any], file: File) -> str | None:
    if set(said) != {"idx", "label"}:
        return f"has {', '.join(said)}, not idx and label"
    fits = any(type(said["label"]) is type(word) and said["label"] == word for word in file.words)
    return None if fits else f"says {said['label']!r}, not {_either(file.words)}"


def _of_entity(said: dict[str, Any], file: File) -> str | None:
    if set(said) != {"idx", "label"}:
        return f"has {', '.join(said)}, not idx and label"
    return None if isinstance(said["label"], str) and said["label"] else "names no entity"


def _of_passage(said: dict[str, Any], file: File) -> str | None:
    form = "has not the form {idx, passage: {questions: [{idx, answers: [{idx, label}]}]}}, each idx once"
    passage = said.get("passage")
    questions: Any = passage.get("questions") if isinstance(passage, dict) else None
    if not _all_numbered(questions):
        return form
    for question in questions:
        if not _all_numbered(question.get("answers")):
            return form
        for answer in question["answers"]:
            if type(answer.get("label")) is not int or answer["label"] not in file.words:
                return f"says {answer.get('label')!r}, not {_either(file.words)}"
    return None


def _all_numbered(entries: Any) -> bool:
    """Whether these are one or more objects with a whole number idx, none of them twice."""
    if not isinstance(entries, list) or not entries:
        return False
    if not all(isinstance(entry, dict) and type(entry.get("idx")) is int for entry in entries):
        return False
    return len({entry["idx"] for entry in entries}) == len(entries)


def _wrong_in_answers(passages: Sequence[dict[str, Any]], file: File) -> str | None:
    questions = [question for passage in passages for question in passage["passage"]["questions"]]
    count = sum(len(question["answers"]) for question in questions)
    return None if count == file.answers else f"has {count} answers, the test set has {file.answers}"


def _either(words: Sequence[str | int]) -> str:
    return " or ".join(repr(word) for word in words)
