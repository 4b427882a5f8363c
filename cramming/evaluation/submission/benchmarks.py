"""What the servers of GLUE and SuperGLUE want: which files, of how many lines, with which words for which class.

Sources: the rules at https://gluebenchmark.com/faq and https://super.gluebenchmark.com/faq, and what the benchmarks'
makers write themselves (https://github.com/nyu-mll/jiant-v1-legacy): WSC alone has capital letters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cramming.errors import UserError
from cramming.suggest import nearest

CLASS, VALUE, ENTITY, ANSWERS = "class", "value", "entity", "answers"
HIGHEST = 5.0  # similarity of STS-B; the lowest is 0
Word = str | int


@dataclass(frozen=True)
class File:
    """One file of a zip.

    Attributes:
        name: in the zip.
        task: whose answers it has, under the name it is typed by.
        split: which rows.
        rows: lines of the official test set, the header apart.
        form: ``class``; ``value``: a number; ``entity``: the text of one; ``answers``: a class for each of a passage's
            questions' answers.
        words: what stands for each class, numbered as in the Hugging Face datasets.
        commonest: the commonest class of the official training set (of its model's, where it has none), or the mean
            value.
        answers: how many the lines hold together, in the form ``answers``.
    """

    name: str
    task: str
    split: str
    rows: int
    form: str = CLASS
    words: tuple[Word, ...] = ()
    commonest: float = 0
    answers: int = 0

    @property
    def size(self) -> int:
        """Decisions in it."""
        return self.answers or self.rows


@dataclass(frozen=True)
class Benchmark:
    """What one server takes: files at the root of a zip, either ``tsv`` with a header or ``jsonl``."""

    name: str
    title: str
    server: str
    suffix: str
    files: tuple[File, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Whose answers it wants, each once."""
        return tuple(dict.fromkeys(file.task for file in self.files))

    def file(self, name: str) -> File:
        """The one with this name."""
        return next(file for file in self.files if file.name == name)

    def resized(self, rows: Mapping[str, int], answers: Mapping[str, int]) -> "Benchmark":
        """The same for test sets of other sizes, by the names of files."""
        files = (
            replace(file, rows=rows.get(file.name, file.rows), answers=answers.get(file.name, file.answers))
            for file in self.files
        )
        return replace(self, files=tuple(files))


_BINARY = ("0", "1")
_TWO = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")

GLUE = Benchmark(
    "glue",
    "GLUE",
    "https://gluebenchmark.com/submit",
    "tsv",
    (
        File("CoLA.tsv", "cola", "test", 1063, words=_BINARY, commonest=1),
        File("SST-2.tsv", "sst2", "test", 1821, words=_BINARY, commonest=1),
        File("MRPC.tsv", "mrpc", "test", 1725, words=_BINARY, commonest=1),
        File("QQP.tsv", "qqp", "test", 390965, words=_BINARY),
        File("STS-B.tsv", "stsb", "test", 1379, VALUE, commonest=2.701),
        File("MNLI-m.tsv", "mnli", "test_matched", 9796, words=_THREE, commonest=2),
        File("MNLI-mm.tsv", "mnli", "test_mismatched", 9847, words=_THREE, commonest=2),
        File("QNLI.tsv", "qnli", "test", 5463, words=_TWO, commonest=1),
        File("RTE.tsv", "rte", "test", 3000, words=_TWO),
        File("WNLI.tsv", "wnli", "test", 146, words=_BINARY),
        File("AX.tsv", "ax", "test", 1104, words=_THREE, commonest=2),
    ),
)

SUPERGLUE = Benchmark(
    "superglue",
    "SuperGLUE",
    "https://super.gluebenchmark.com/submit",
    "jsonl",
    (
        File("BoolQ.jsonl", "boolq", "test", 3245, words=("false", "true"), commonest=1),
        File("CB.jsonl", "cb", "test", 250, words=("entailment", "contradiction", "neutral"), commonest=1),
        File("COPA.jsonl", "copa", "test", 500, words=(0, 1), commonest=1),
        File("MultiRC.jsonl", "multirc", "test", 166, ANSWERS, words=(0, 1), answers=9693),
        File("ReCoRD.jsonl", "record", "test", 10000, ENTITY),
        File("RTE.jsonl", "rte_superglue", "test", 3000, words=_TWO),
        File("WiC.jsonl", "wic", "test", 1400, words=("false", "true")),
        File("WSC.jsonl", "wsc", "test", 146, words=("False", "True")),
        File("AX-b.jsonl", "axb", "test", 1104, words=_TWO),
        File("AX-g.jsonl", "axg", "test", 356, words=_TWO),
    ),
)

BENCHMARKS = {benchmark.name: benchmark for benchmark in (GLUE, SUPERGLUE)}


def benchmark_of(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        UserError: there is none.
    """
    if name not in BENCHMARKS:
        raise UserError(f"benchmark={name} is not known{nearest(name, BENCHMARKS)}")
    return BENCHMARKS[name]
