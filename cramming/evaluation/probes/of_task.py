"""Linear and kNN probes of a task: fitted to frozen features of some training rows, judged on the dev rows.

Classes are judged by accuracy beside the share of the class that is most frequent in training; choices by how often the
right one is found beside one in so many; values by Pearson's correlation. The task's own metrics stand beside that.

Shape legend: E examples, N words, Q rows asked about, C classes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cramming.evaluation import scoring
from cramming.evaluation.metrics.single import pearson
from cramming.evaluation.probes import knn, linear
from cramming.evaluation.probes.config import ProbeOptions
from cramming.evaluation.probes.features import Table, TaskRows, table
from cramming.evaluation.probes.reader import Reader
from cramming.evaluation.probes.result import Interval, Result, of_correlation, of_mean, of_share
from cramming.evaluation.tasks.task import Task
from cramming.progress import ProgressSink

_NOT_JUDGED = -100  # the label of a word that nobody labelled


def probe(
    reader: Reader,
    names: Sequence[str],
    rows: TaskRows,
    *,
    options: ProbeOptions,
    progress: ProgressSink,
) -> list[Result]:
    """Both probes, or one of them, of the same features.

    Args:
        reader: the model.
        names: ``linear``, ``knn``.
        rows: the task's.
        options: of the probes.
        progress: gets the texts that are done.
    """
    fitted, asked = (
        table(reader, rows.task, examples, options=options, progress=progress)
        for examples in (rows.train, rows.evaluated)
    )
    cut = fitted.encoded.cut.texts + asked.encoded.cut.texts
    remarks = (*rows.remarks, *([f"{cut:,} texts were cut to {options.max_length} tokens"] if cut else []))
    return [replace(result(name, rows.task, fitted, asked, options), remarks=remarks) for name in names]


def result(name: str, task: Task, fitted: Table, asked: Table, options: ProbeOptions) -> Result:
    """One probe on features that are there."""
    scores = _scores(name, task, fitted, asked, options)
    metric, score, interval, chance, examples = judged(task, scores, fitted.labels, asked.labels)
    # Metrics of groups mean nothing where a group is not whole, as in a sample.
    also = {} if task.groups else scoring.score(task, scores, asked.encoded)
    return Result(
        probe=name,
        of=task.name,
        metric=metric,
        score=score,
        chance=chance,
        interval=interval,
        examples=examples,
        also={key: value for key, value in also.items() if key != metric},
        setting={
            "rows": len(fitted.encoded),
            "layer": options.layer,
            "max_length": options.max_length,
            **({"l2": options.l2} if name == "linear" else {"k": options.k}),
        },
    )


def _scores(name: str, task: Task, fitted: Table, asked: Table, options: ProbeOptions) -> NDArray[np.float64]:
    """What a model would give as logits: (E, C), (E,) values, (E, choices), (N, C)."""
    known, right = linear.standardised(fitted.features, asked.features)
    labels = fitted.labels

    def classes(features: NDArray[np.float64], targets: NDArray[Any], count: int) -> NDArray[np.float64]:
        whole = targets.astype(np.int64)
        if name == "linear":
            return linear.classes(features, whole, right, count, options.l2)
        return knn.classes(features, whole, right, count, options.k)

    if task.kind == "regression":
        if name == "linear":
            return linear.values(known, labels.astype(np.float64), right, options.l2)
        return knn.values(known, labels.astype(np.float64), right, options.k)
    if task.kind == "multilabel":
        votes = np.stack([classes(known, labels[:, label], 2) for label in range(labels.shape[1])], axis=1)
        margins: NDArray[np.float64] = votes[..., 1] - votes[..., 0]
        return margins
    if task.kind == "choice":  # every choice by itself: is it the right one?
        votes = classes(known, (np.arange(task.choices) == labels[:, None]).ravel(), 2)
        return (votes[:, 1] - votes[:, 0]).reshape(-1, task.choices)
    if task.kind == "tokens":
        judged_words = labels != _NOT_JUDGED
        return classes(known[judged_words], labels[judged_words], task.outputs)
    return classes(known, labels, task.outputs)


def judged(
    task: Task, scores: NDArray[np.float64], fitted: NDArray[Any], labels: NDArray[Any]
) -> tuple[str, float | None, Interval | None, float, int]:
    """Metric, score, interval, chance level and number of examples of what was decided.

    Args:
        task: what was decided.
        scores: as a model's logits.
        fitted: labels of the training rows.
        labels: the right ones.
    """
    if task.kind == "regression":
        value = pearson(scores, labels.astype(np.float64))
        return "pearson", value, of_correlation(value, len(labels), ranks=False), 0.0, len(labels)
    if task.kind == "multilabel":
        usual = fitted.mean(0) > 0.5
        right = ((scores > 0) == (labels > 0.5)).mean(1)
        return (
            "accuracy of labels",
            float(right.mean()),
            of_mean(right),
            float((usual == (labels > 0.5)).mean()),
            len(right),
        )
    if task.kind == "choice":
        best = scores == scores.max(1, keepdims=True)
        right = best[np.arange(len(labels)), labels.astype(np.int64)] / best.sum(1)
        chance = 1 / task.choices
    else:
        known, usual_of = labels != _NOT_JUDGED, fitted[fitted != _NOT_JUDGED].astype(np.int64)
        right = (scores.argmax(1) == labels)[known].astype(np.float64)
        chance = float((labels[known] == np.bincount(usual_of).argmax()).mean())
    return "accuracy", float(right.mean()), of_share(float(right.sum()), len(right)), chance, len(right)
