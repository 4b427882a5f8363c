"""From what a model says of a split to its predictions, and to the task's metrics.

Shape legend: E examples, N spans of all texts, C classes.

What ``Example.key`` must hold beside ``index``: the entries that ``Task.groups`` names; for ReCoRD (metrics
``record_f1``, ``record_exact_match``) ``entity``, the text that an example asks about, and ``answers``, the right texts
of its query.
"""

from collections.abc import Callable, Hashable

import numpy as np

from cramming.evaluation.encoded import Encoded
from cramming.evaluation.metrics import answers, entities, grouped, single
from cramming.evaluation.tasks.task import Task

# Metrics of each example by itself, of predictions and labels.
SINGLE: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "accuracy": single.accuracy,
    "f1": single.f1,
    "macro_f1": single.macro_f1,
    "micro_f1": single.micro_f1,
    "subset_accuracy": single.subset_accuracy,
    "matthews_correlation": single.matthews_correlation,
    "pearson": single.pearson,
    "spearmanr": single.spearmanr,
}
MULTIRC = ("f1_a", "exact_match", "f1_m", "f1_m_binary")
RECORD = ("record_f1", "record_exact_match")
METRICS = (*SINGLE, *MULTIRC, *RECORD, "gender_parity", "entity_f1")  # what ``Task.metrics`` may name


def predictions(task: Task, logits: np.ndarray, encoded: Encoded) -> np.ndarray:
    """What a model decides.

    Args:
        task: what is decided.
        logits: (E, C) of classes or labels, (E, 1) or (E,) values of a regression, (E, choices) of a choice, (N, C) of
            words.
        encoded: the split.

    Returns:
        (E,) int64 classes or choices, the first of equals; (E,) float64 values; (E, C) int64 of 0 and 1 for a
        multi-label task, 1 where the logit is above 0; (N,) int64 classes of words.
    """
    spans = task.kind == "tokens"
    assert len(logits) == (len(encoded.spans) if spans else len(encoded)), "logits of another split"
    if task.kind == "regression":
        return np.asarray(logits, np.float64).reshape(-1)
    if task.kind == "multilabel":
        return (np.asarray(logits) > 0).astype(np.int64)
    return np.asarray(logits).argmax(axis=1).astype(np.int64)


def score(task: Task, logits: np.ndarray, encoded: Encoded) -> dict[str, float | None]:
    """The task's metrics, the headline first; none of an unlabelled split.

    Args:
        task: whose ``metrics`` are asked for.
        logits: as for ``predictions``.
        encoded: the split, with its labels.

    Returns:
        Metric -> a fraction, or a correlation from -1 to 1; None where it is undefined.
    """
    if encoded.labels is None:
        return {}
    predicted, labels = predictions(task, logits, encoded), np.asarray(encoded.labels)
    found: dict[str, float | None] = {}
    if any(metric in RECORD for metric in task.metrics):
        best = chosen(task, logits, encoded)
        found |= answers.record(
            [str(encoded.keys[example]["entity"]) for example in best],
            [[str(text) for text in encoded.keys[example]["answers"]] for example in best],
        )
    if any(metric in MULTIRC for metric in task.metrics):
        found |= grouped.multirc(predicted, labels, groups(task, encoded))
    if "gender_parity" in task.metrics:
        found["gender_parity"] = grouped.gender_parity(predicted, groups(task, encoded))
    if task.kind == "tokens":
        judged = labels >= 0
        if "entity_f1" in task.metrics:
            found["entity_f1"] = entities.entity_f1(_tags(task, predicted, encoded), _tags(task, labels, encoded))
        predicted, labels = predicted[judged], labels[judged]
    found |= {metric: SINGLE[metric](predicted, labels) for metric in task.metrics if metric in SINGLE}
    return {metric: found[metric] for metric in task.metrics}


def groups(task: Task, encoded: Encoded) -> list[Hashable]:
    """(E,) what each example is judged together with: the values of ``task.groups``."""
    assert task.groups, f"{task.name} judges every example by itself"
    return [tuple(key[name] for name in task.groups) for key in encoded.keys]


def chosen(task: Task, logits: np.ndarray, encoded: Encoded) -> list[int]:
    """For each group, in order, the example that is most likely the right one.

    That is ReCoRD's entity with the largest difference between the logits of class 1 and class 0; the first of equals.

    Args:
        task: with ``groups``.
        logits: (E, 2), or (E, 1) which is the difference itself.
        encoded: the split.
    """
    logits = np.asarray(logits, np.float64).reshape(len(encoded), -1)
    margins = logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]
    best: dict[Hashable, int] = {}
    for example, group in enumerate(groups(task, encoded)):
        if group not in best or margins[example] > margins[best[group]]:
            best[group] = example
    return list(best.values())


def _tags(task: Task, classes: np.ndarray, encoded: Encoded) -> list[list[str]]:
    """The tags of each text's words, without those that are not to be judged."""
    judged = np.asarray(encoded.labels) >= 0
    return [
        [task.labels[tag] for tag in classes[begin:end][judged[begin:end]]]
        for begin, end in zip(encoded.span_starts[:-1], encoded.span_starts[1:], strict=True)
    ]
