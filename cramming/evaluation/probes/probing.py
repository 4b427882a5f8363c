"""Ask a model what it is worth: read what the probes need, then ask them one after another."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cramming.evaluation import material
from cramming.evaluation.probes import features, frequency, minimal_pairs, of_task, retrieval, sts
from cramming.evaluation.probes.config import OF_A_TASK, ProbeOptions
from cramming.evaluation.probes.features import TaskRows
from cramming.evaluation.probes.grammar import Pair
from cramming.evaluation.probes.reader import Reader
from cramming.evaluation.probes.result import Result
from cramming.evaluation.probes.retrieval import Sought
from cramming.evaluation.probes.sts import Rated
from cramming.progress import ProgressSink

_STSB = "stsb"


@dataclass(frozen=True)
class Inputs:
    """What the probes named read from files; None: nothing.

    Attributes:
        names: of the probes, in the order asked for.
        options: theirs.
        rows: of the task of linear and kNN.
        pairs: minimal pairs.
        rated: sentence pairs, and what they are called.
        sought: queries and passages; None: halves of held-out sequences.
    """

    names: tuple[str, ...]
    options: ProbeOptions
    rows: TaskRows | None = None
    pairs: list[Pair] | None = None
    rated: tuple[list[Rated], str] | None = None
    sought: list[Sought] | None = None

    @property
    def need_corpus(self) -> bool:
        """Whether a probe asks about held-out sequences."""
        return "frequency" in self.names or ("retrieval" in self.names and self.sought is None)


def read(names: Sequence[str], options: ProbeOptions, data_dir: Path) -> Inputs:
    """Everything that can be wrong with files and tasks is found here, before a model is asked.

    Args:
        names: probes that ``config.check`` has seen.
        options: theirs.
        data_dir: what runs share.

    Raises:
        UserError: a file or task that is missing or cannot be used.
    """
    return Inputs(
        tuple(names),
        options,
        rows=features.read(options, data_dir) if set(names) & set(OF_A_TASK) else None,
        pairs=minimal_pairs.read(options) if "minimal_pairs" in names else None,
        rated=_rated(options, data_dir) if "sts" in names else None,
        sought=retrieval.read(Path(options.retrieval)) if "retrieval" in names and options.retrieval else None,
    )


def _rated(options: ProbeOptions, data_dir: Path) -> tuple[list[Rated], str]:
    if options.sts is not None:
        return sts.read(Path(options.sts)), Path(options.sts).stem
    suite = features.suite_of(ProbeOptions(task=_STSB, data_dir=options.data_dir))
    with features.as_typed():
        (task,) = material.tasks_of(suite, data_dir)
        examples = material.examples_of(suite, task, task.evaluated[0], data_dir, [])
    pairs = [(example.texts[0].segments, example.label) for example in examples]
    return [Rated(first, second, float(label)) for (first, second), label in pairs if isinstance(label, float)], _STSB


def ask(
    reader: Reader, inputs: Inputs, progress: ProgressSink, failed: Callable[[str, Exception], None] | None = None
) -> list[Result]:
    """Every probe's answer, in the order they were named. Nothing random is drawn and no weight is changed.

    Args:
        reader: the model.
        inputs: what was read for the probes.
        progress: of each by itself.
        failed: is told of a probe that breaks, which then has no answer; None: the error ends it all.

    Raises:
        UserError: the model cannot be asked, such as about halves of sequences that are not there.
    """
    found: dict[str, Result] = {}
    with _uncompiled():
        for name in dict.fromkeys(OF_A_TASK[0] if name in OF_A_TASK else name for name in inputs.names):
            try:
                found |= {result.probe: result for result in _asked(name, reader, inputs, progress)}
            except Exception as error:
                if failed is None:
                    raise
                failed(name, error)
            finally:
                progress.done()
    return [found[name] for name in inputs.names if name in found]


def _asked(name: str, reader: Reader, inputs: Inputs, progress: ProgressSink) -> list[Result]:
    options = inputs.options
    if name in OF_A_TASK:
        assert inputs.rows is not None
        wanted = [each for each in inputs.names if each in OF_A_TASK]  # of the same features
        return of_task.probe(reader, wanted, inputs.rows, options=options, progress=progress)
    if name == "frequency":
        return [frequency.probe(reader, options, progress)]
    if name == "minimal_pairs":
        assert inputs.pairs is not None
        return [minimal_pairs.probe(reader, inputs.pairs, options, progress)]
    if name == "sts":
        assert inputs.rated is not None
        return [sts.probe(reader, *inputs.rated, options, progress)]
    assert name == "retrieval", name
    return [retrieval.probe(reader, inputs.sought, options, progress)]


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Blocks that were compiled run as they are: probes' many shapes would be compiled, and might change what a later
    step of training is compiled to."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
