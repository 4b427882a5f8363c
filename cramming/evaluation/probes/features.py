"""A task's rows as frozen features: what a model that learns nothing more makes of them.

A text is the mean of its hidden states; where a task asks about words in it, theirs stand beside that, and of two words
the difference. For token classification every word is a row.

Shape legend: E examples, R texts (R = E * choices), N words, D rows of a table (R, or N), H hidden, F features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cramming.errors import UserError
from cramming.evaluation import encoding, material
from cramming.evaluation.config import EvalConfig, OwnTask
from cramming.evaluation.encoded import Encoded
from cramming.evaluation.probes.config import ProbeOptions
from cramming.evaluation.probes.reader import Reader
from cramming.evaluation.probes.sampling import sampled
from cramming.evaluation.tasks import registry
from cramming.evaluation.tasks.task import Example, Task
from cramming.progress import ProgressSink


@dataclass(frozen=True)
class TaskRows:
    """What a probe of a task reads.

    Attributes:
        task: the task.
        train: at most ``max_rows`` examples to fit to.
        evaluated: at most ``max_eval_rows`` to be judged on.
        remarks: what was left out or decided.
    """

    task: Task
    train: list[Example]
    evaluated: list[Example]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Features (D, F) float64, as they come, and what is to be predicted from them.

    ``labels``: (E,) classes or values, (E, C) of 0 and 1, or (N,) classes of words, -100 where none counts.
    """

    features: NDArray[np.float64]
    labels: NDArray[Any]
    encoded: Encoded


def suite_of(options: ProbeOptions) -> EvalConfig:
    """The options as a suite of one task, a known one or one's own.

    Raises:
        UserError: no such task, or one that has no training rows.
    """
    own = {option.name: getattr(options, option.name) for option in fields(OwnTask)}
    known = []
    if options.train_file is not None or options.dataset is not None:
        own |= {"task_name": options.task or options.task_name}
    elif options.task is not None:
        known = [registry.find(options.task)]
    for task in known:
        if task.trained_by is not None:
            raise UserError(f"probe.task={task.name} has nothing to fit a probe to: take probe.task={task.trained_by}")
    return EvalConfig(
        name="probe", suite="probe", tasks=[task.name for task in known], data_dir=options.data_dir, **own
    )


@contextmanager
def as_typed() -> Iterator[None]:
    """What is wrong with options of a suite, under the names they have as options of probes."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("eval.", "probe.")) from error


def read(options: ProbeOptions, data_dir: Path) -> TaskRows:
    """The examples of the task the options name.

    Args:
        options: with the task.
        data_dir: what runs share.

    Raises:
        UserError: no such task, one that has no training rows, or rows that are missing or have no labels.
    """
    suite = suite_of(options)
    notes: list[str] = []
    with as_typed():
        (task,) = material.tasks_of(suite, data_dir)
        split = task.evaluated[0]
        whole, judged = (material.examples_of(suite, task, part, data_dir, notes) for part in ("train", split))
    train, fewer = sampled(_labelled(whole, task, "train"), options.max_rows, "training rows")
    evaluated, fewer_evaluated = sampled(_labelled(judged, task, split), options.max_eval_rows, f"rows of {split}")
    return TaskRows(task, train, evaluated, (*notes, *fewer, *fewer_evaluated))


def _labelled(examples: Sequence[Example], task: Task, split: str) -> list[Example]:
    found = [example for example in examples if example.label is not None]
    if not found:
        raise UserError(f"{task.title}: no row of {split} has a label, so that there is nothing to probe")
    return found


def table(
    reader: Reader,
    task: Task,
    examples: Sequence[Example],
    *,
    options: ProbeOptions,
    progress: ProgressSink,
) -> Table:
    """Features of examples that all have a label.

    Raises:
        UserError: they cannot be encoded.
    """
    limit = min(options.max_length, reader.longest)
    encoded = encoding.in_memory(task, examples, reader.tokenizer, max_length=limit, spans="pooled")
    assert encoded.labels is not None, "examples without labels"
    starts = encoded.starts
    texts = [np.asarray(encoded.tokens[a:b], dtype=np.int64) for a, b in pairwise(starts.tolist())]
    progress.stage(f"features of {task.title}", len(texts), "texts")
    words = task.kind == "tokens"
    means: list[Any] = [None] * len(texts)
    spans: list[Any] = [None] * len(texts)
    with reader.at_layer(options.layer):
        for rows, states in reader.states(texts):
            averages = states.mean(1).double().cpu().numpy()
            for row, average, own in zip(rows.tolist(), averages, states, strict=True):
                means[row] = average
                places = encoded.spans[encoded.span_starts[row] : encoded.span_starts[row + 1]]
                if words or task.span_count:
                    spans[row] = [_mean(own.double().cpu().numpy(), int(first), int(last)) for first, last in places]
            progress.advance(len(rows))
    if words:
        features = np.array([vector for row in spans for vector in row])
    elif task.span_count:
        features = np.array([_beside(mean, row) for mean, row in zip(means, spans, strict=True)])
    else:
        features = np.array(means)
    return Table(features, np.asarray(encoded.labels), encoded)


def _mean(states: NDArray[np.float64], first: int, last: int) -> NDArray[np.float64]:
    """Of a word, (S, H) -> (H,); zeros where it was cut off."""
    return states[first:last].mean(0) if first < last else np.zeros(states.shape[1])


def _beside(text: NDArray[np.float64], spans: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Text and words, and of two words how they differ: whether WiC's mean the same is no linear function of them."""
    difference = [np.abs(spans[0] - spans[1])] if len(spans) == 2 else []
    return np.concatenate([text, *spans, *difference])
