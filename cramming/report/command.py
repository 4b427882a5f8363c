"""``report.py``: run folders in, a page, figures, a Markdown file and a table out."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cramming.cli import parse
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.report.document import Document, figures_of
from cramming.report.figures import styles
from cramming.report.html import page
from cramming.report.markdown import markdown, terminal
from cramming.report.runs import Reading, read_all
from cramming.report.sections import document
from cramming.report.study import study_of

USAGE = """\
One page from many runs: curves, final losses and scores with error bars over seeds, what each budget was spent on.

  python report.py outputs/study_small-* out=report.html
  python report.py outputs/a-* outputs/b-* baseline=train/optim=adamw
  python report.py outputs/sweep-* by=[method,train.optim.lr] confidence=0.9

Folders of runs, or globs; folders that hold nothing but scores (eval/<suite>/results.json of somebody's checkpoint) are
shown beside them. Beside the page, <out>_files/ has the figures as PNG and everything as Markdown.

Options:
  out=report.html     the page, one file that needs nothing else
  baseline=none       what the others are compared with: a method, an arm as the report names it, or key=value;
                      a list where several must hold; null for none
  by=null             options that name an arm; by default everything in which the runs differ but the seed
  confidence=0.95     of every interval
  title=Report        above the page

Damaged runs are named and left out, unfinished ones are drawn by themselves, and runs that cannot be compared (other
data, tokenizer, split, budget, precision, prices or devices) are kept apart. Exit code 2 if anything was damaged."""

_OURS = re.compile(r"[a-z0-9_]+\.png|report\.md")  # in the folder beside the page


@dataclass
class Options:
    """What can be set."""

    out: str = "report.html"
    baseline: Any = "none"
    by: Any = None
    confidence: float = 0.95
    title: str = "Report"


def command(argv: Sequence[str]) -> None:
    """Write a report and say where it is.

    Raises:
        UserError: nothing to report, wrong options, or, after the report of the others is written, damaged runs.
    """
    options, words = parse(argv, Options, USAGE)
    out, confidence = Path(options.out), options.confidence
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={options.out} is a page: give a name that ends in .html")
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence} must lie between 0 and 1, such as 0.95")
    baseline, by = _words(options.baseline, "baseline"), _words(options.by, "by")
    reading = read_all(words)
    if not reading.runs and not reading.checkpoints:
        raise UserError(f"no run can be used: {_damage(reading)}")
    study = study_of(reading.runs, baseline or [], by)
    made, main = document(study, reading, options.title, confidence)
    look = styles(study.labels, study.baselines)
    files = write(made, out, {label: style.colour for label, style in look.items()})
    for table in main:
        print(terminal(table))
    print(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB), with figures and Markdown in {files}/")
    if reading.damaged:
        raise UserError(f"left out of {out}: {_damage(reading)}")


def write(made: Document, out: Path, colours: dict[str, str]) -> Path:
    """Write the page and, beside it, the folder of figures and Markdown, which is returned.

    Raises:
        UserError: a folder that cannot be made, or a full disk.
    """
    files = out.with_name(f"{out.stem}_files")
    try:
        files.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: {files} cannot be made: {error.strerror}") from error
    figures = {f"{figure.name}.png": figure.png for figure in figures_of(made.blocks)}
    for old in files.iterdir():
        if _OURS.fullmatch(old.name) and old.name not in figures:  # of an earlier report
            old.unlink()
    for name, image in figures.items():
        write_atomically(files / name, image)
    write_atomically(files / "report.md", markdown(made).encode())
    write_atomically(out, page(made, colours).encode())
    return files


def _words(given: Any, key: str) -> list[str] | None:
    """An option that takes a word or a list of them."""
    if given is None:
        return None
    words = given if isinstance(given, list) else [given]
    if not all(isinstance(word, str) and word for word in words) or not words:
        raise UserError(f"{key}={given} is not understood; see {Path(sys.argv[0]).name} --help")
    return words


def _damage(reading: Reading) -> str:
    return "; ".join(f"{path.name}: {reason}" for path, reason in reading.damaged)
