"""A small task with real labels and no download: which package's documentation does this sentence come from?

The rows are sentences of the documentation strings of what is installed; the label is the package. A package's files
are in the training part or in the validation part, never in both, and sentences that name one of the packages are left
out.
"""

import csv
import hashlib
import io
import re
from collections import Counter
from pathlib import Path

from cramming.data.sources.python_docs import DISTRIBUTIONS, harvest, installed, named_files
from cramming.durable import write_atomically
from cramming.errors import UserError

TRAIN, VALIDATION = "train.csv", "validation.csv"
MODULES = 6  # packages: those with the most files
_VALIDATION_EVERY = 5  # files
_WORDS = range(6, 41)  # in a sentence
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def write(folder: Path, sentences: int) -> list[Path]:
    """Make ``train.csv`` and ``validation.csv``, columns ``text`` and ``module``.

    Args:
        folder: where to.
        sentences: of each package in the training part; in the validation part a quarter of that.

    Returns:
        The two files.

    Raises:
        UserError: the installed packages have too few sentences.
    """
    files = named_files(installed(DISTRIBUTIONS))
    counts = Counter(name.partition("/")[0] for name, _, _ in files)
    modules = sorted(module for module, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MODULES])
    names = re.compile("|".join(map(re.escape, modules)), re.IGNORECASE)
    wanted = {TRAIN: sentences, VALIDATION: max(1, sentences // 4)}
    rows: dict[str, list[tuple[str, str]]] = {part: [] for part in wanted}
    seen: set[str] = set()
    for module in modules:
        left = dict(wanted)
        own = [path for name, path, _ in files if name.partition("/")[0] == module]
        for number, path in enumerate(own):
            part = VALIDATION if number % _VALIDATION_EVERY == 0 else TRAIN
            if not left[part]:
                continue
            for sentence in _sentences(path):
                if left[part] and sentence.lower() not in seen and not names.search(sentence):
                    seen.add(sentence.lower())
                    rows[part].append((sentence, module))
                    left[part] -= 1
            if not any(left.values()):
                break
        if any(left.values()):
            raise UserError(
                f"{module} has too few sentences for module_task={sentences}: {left} are missing; ask fewer"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for part, found in rows.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("text", "module"))
        found.sort(key=_place)
        writer.writerows(found)
        write_atomically(folder / part, text.getvalue().encode())
    return [folder / TRAIN, folder / VALIDATION]


def _place(row: tuple[str, str]) -> bytes:
    """Of a row in its file, so that packages are mixed."""
    return hashlib.sha256(row[0].encode()).digest()


def _sentences(path: Path) -> list[str]:
    answer, _ = harvest({"files": [str(path)]})
    found = []
    for document in answer["documents"]:
        for paragraph in document:
            for sentence in _SENTENCE_ENDS.split(" ".join(paragraph.split())):
                if len(sentence.split()) in _WORDS:
                    found.append(sentence)
    return found
