"""``python -m cramming.predict name=x task=sst2 "text"``: labels with probabilities from a fine-tuned model."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown

from cramming.cli import load_schemas, parse, run_command
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.evaluation import finished
from cramming.evaluation.tasks.registry import TASKS
from cramming.suggest import nearest

if TYPE_CHECKING:
    from cramming.evaluation.predictions import Prediction, Predictions
    from cramming.evaluation.rows.tables import Table
    from cramming.evaluation.saved import Saved
    from cramming.evaluation.tasks.task import Task

_USAGE = """\
Ask a fine-tuned model about texts: labels with probabilities, values, a label for each word.

  python -m cramming.predict name=first task=sst2 "a fine film" "a dull one"
  python -m cramming.predict name=first task=rte "It rains." text_pair="It is dry."
  python -m cramming.predict name=first task=wic file=words.jsonl out=answers.csv
  python -m cramming.predict model=outputs/first/eval/task/jobs/<job>/model file=- < texts.txt

file= is csv, tsv, jsonl or parquet with the task's fields as columns (or text, text_pair), or txt with a text a line,
where pairs have a tab between them; - is standard input: texts or JSON objects, one a line.
Options: name (the run; default: the one evaluated last), base_dir=outputs, task, suite (default: the newest results
         that have the task), seed (default: the one best on dev), model (a fine-tuned model's folder, instead of
         these), text_pair, file, out (.csv or .jsonl), top=3 (labels shown), batch (texts of a pass)"""
_FORMATS = (".csv", ".jsonl")
_SHOWN = 60  # characters of a text in the table


@dataclass
class Options:
    """What can be set."""

    name: str | None = None
    base_dir: str = "outputs"
    task: str | None = None
    suite: str | None = None
    seed: int | None = None
    model: str | None = None
    text_pair: str | None = None
    file: str | None = None
    out: str | None = None
    top: int = 3
    batch: int | None = None


def command(argv: list[str]) -> None:
    """Load a model, ask it, and print what it says.

    Raises:
        UserError: no texts, no such model, texts that the task cannot read.
    """
    # As it is typed: what a text says is no YAML.
    pair = next((word.partition("=")[2] for word in reversed(argv) if word.startswith("text_pair=")), None)
    options, words = parse([word for word in argv if not word.startswith("text_pair=")], Options, _USAGE)
    options.text_pair = pair
    _check(options, words)
    load_schemas()
    from cramming import resolve
    from cramming.evaluation import predictions, saved, texts

    folder, name = chosen(options)
    model = saved.load(folder)
    task = _task(model, name)
    table = texts.typed(task, words, pair) if options.file is None else texts.read(task, options.file)
    examples = texts.examples(task, table)
    said = predictions.predict(model, task, examples, resolve.device(), options.batch)
    _warn(model, said, len(examples))
    asked = _asked(task, table, said.all)
    if options.out is None:
        _print(task, asked, said.all, options.top)
    else:
        _write(Path(options.out).expanduser(), task, asked, said.all)
        print(f"{options.out}: {len(said.all)} predictions")


def chosen(options: Options) -> tuple[Path, str | None]:
    """The folder of the model that is asked for, and the task's name; says which it is.

    Raises:
        UserError: there is no such run, suite, task, seed or model; those that exist are named.
    """
    if options.model is not None:
        for key in ("name", "suite", "seed"):
            if getattr(options, key) is not None:
                raise UserError(f"{key}={getattr(options, key)} has no say beside model=, which is a folder")
        return Path(options.model).expanduser(), options.task
    run_dir = finished.run_folder(options.base_dir, options.name)
    names = finished.suites(run_dir) if options.suite is None else [options.suite]
    suites = [finished.finished(finished.suite_folder(run_dir, name)) for name in names]
    known = sorted({task for suite in suites for task in suite})
    where = run_dir.name if options.suite is None else f"{run_dir.name}'s {options.suite}"
    name = options.task
    if name is None:
        if len(known) != 1:
            raise UserError(f"task= is needed: {where} is fine-tuned on {', '.join(known)}")
        name = known[0]
    trained_by = TASKS[name].trained_by if name in TASKS else None
    wanted = trained_by or name
    done = next((suite[wanted] for suite in suites if wanted in suite), None)
    if done is None:
        raise UserError(f"{where} is not fine-tuned on task={name}{nearest(wanted, known)}")
    best, said = finished.best(done, wanted, options.seed)
    print(f"{run_dir.name}, {said}")
    assert best.model is not None
    return best.model, name


def _task(model: "Saved", name: str | None) -> "Task":
    """The model's own task, or one whose rows its model answers, too.

    Raises:
        UserError: it is another's.
    """
    if name is None or name == model.task.name:
        return model.task
    if name not in TASKS or TASKS[name].trained_by != model.task.name:
        raise UserError(f"this model is fine-tuned on {model.task.name}, not on task={name}")
    return TASKS[name]


def _check(options: Options, words: Sequence[str]) -> None:
    if options.file is None and not words:
        raise UserError('give a text, such as "a fine film", or file=...')
    if options.file is not None and (words or options.text_pair is not None):
        raise UserError(f"give either texts or file={options.file}, not both")
    for key in ("top", "batch"):
        value = getattr(options, key)
        if value is not None and value < 1:
            raise UserError(f"{key}={value} must be at least 1")
    if options.out is not None and Path(options.out).suffix not in _FORMATS:
        raise UserError(f"out={options.out} must end in {' or '.join(_FORMATS)}")


def _warn(model: "Saved", said: "Predictions", count: int) -> None:
    """Say what the model did not read."""
    if not said.cut.texts:
        return
    lost = f", and {said.cut.spans} of the words asked about with them" if said.cut.spans else ""
    print(
        f"warning: {said.cut.texts} of {count} texts are longer than the {model.max_length} tokens the model reads: "
        f"{said.cut.tokens} tokens were cut off{lost}",
        file=sys.stderr,
    )


def _asked(task: "Task", table: "Table", said: Sequence["Prediction"]) -> list[dict[str, Any]]:
    """The fields of each row, beside its prediction."""
    assert len(table.rows) == len(said), "a prediction for each row"
    return [{name: row.values.get(name) for name in task.fields} for row in table.rows]


def _print(task: "Task", asked: Sequence[dict[str, Any]], said: Sequence["Prediction"], top: int) -> None:
    """A table; of word labels a line for each word."""
    shown = Shown(title=task.title, title_justify="left")
    if task.kind == "tokens":
        for heading in ("text", "word", "label", "probability"):
            shown.add_column(heading, justify="right" if heading == "probability" else "left")
        for number, prediction in enumerate(said, 1):
            shown.add_section()
            for word in prediction.words:
                shown.add_row(str(number), escape(word.text), escape(word.label), f"{word.probability:.1%}")
    else:
        for name in task.fields:
            shown.add_column(name, overflow="fold")
        shown.add_column("value" if task.kind == "regression" else "label")
        if task.kind != "regression":
            shown.add_column("probabilities")
        for row, prediction in zip(asked, said, strict=True):
            cells = [*(_shortened(value) for value in row.values()), *_cells(prediction, top)]
            shown.add_row(*map(escape, cells))
    Console().print(shown)


def _cells(prediction: "Prediction", top: int) -> list[str]:
    if prediction.value is not None:
        return [f"{prediction.value:.3f}"]
    first = list(prediction.probabilities.items())[:top]
    return [", ".join(prediction.labels) or "none", "  ".join(f"{label} {share:.1%}" for label, share in first)]


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _write(path: Path, task: "Task", asked: Sequence[dict[str, Any]], said: Sequence["Prediction"]) -> None:
    """A line for each row: what was asked, and what the model says.

    Raises:
        UserError: the file cannot be written.
    """
    rows = [{**row, **_values(task, each)} for row, each in zip(asked, said, strict=True)]
    if path.suffix == ".csv":
        written = io.StringIO()
        lines = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
        lines.writeheader()
        lines.writerows([{key: _csv(value) for key, value in row.items()} for row in rows])
        text = written.getvalue()
    else:
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"out={path} cannot be written: {error.strerror or error}") from error


def _values(task: "Task", prediction: "Prediction") -> dict[str, Any]:
    if prediction.value is not None:
        return {"prediction": prediction.value}
    if task.kind == "tokens":
        return {
            "words": [word.text for word in prediction.words],
            "prediction": [word.label for word in prediction.words],
            "probability": [round(word.probability, 6) for word in prediction.words],
        }
    shares = {label: round(share, 6) for label, share in prediction.probabilities.items()}
    if task.kind == "multilabel":
        return {"prediction": list(prediction.labels), "probabilities": shares}
    return {
        "prediction": prediction.labels[0],
        "probability": shares[prediction.labels[0]],
        "probabilities": shares,
    }


def _csv(value: Any) -> Any:
    """A cell: several labels with ``|`` between them, as own tasks read them; other lists and tables as JSON."""
    if isinstance(value, list) and all(isinstance(part, str) and "|" not in part for part in value):
        return "|".join(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
