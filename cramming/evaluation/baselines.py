"""What a task's score is worth without reading: the same answer for every example, and one that knows lengths alone.

Every baseline answers through the same ``score`` as a model. ``length`` is a logistic regression (ridge for values) on
numbers of tokens, made on the training rows.

Shape legend: E examples, R texts, N spans, F features, C classes.
"""

from collections.abc import Mapping

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cramming.evaluation.encoded import Encoded
from cramming.evaluation.scoring import score
from cramming.evaluation.tasks.task import Task

Baselines = dict[str, dict[str, float | None]]
_POSITIVE = ("f1", "f1_a", "f1_m", "f1_m_binary")  # metrics that reward answering 1 whatever is asked


def of_splits(task: Task, train: Encoded, evaluated: Mapping[str, Encoded]) -> Baselines:
    """The baselines of every split that is scored, under the names that results have (``Task.outcome``)."""
    found: Baselines = {}
    for split, encoded in evaluated.items():
        for name, scores in of(task, train, encoded).items():
            own = found.setdefault(name, {})
            own |= {task.outcome(metric, split): value for metric, value in scores.items()}
    return found


def of(task: Task, train: Encoded, evaluated: Encoded) -> Baselines:
    """Scores that need no reading.

    Args:
        task: what is decided.
        train: labelled rows to learn from.
        evaluated: the rows that are scored; unlabelled ones have no scores.

    Returns:
        ``majority``: the training rows' most frequent class (the mean of values, each label's more frequent side, the
        most frequent place of a right choice) for every example. ``positive``: class 1 for every example, where the
        metrics reward that and class 0 is the majority. ``length``: from numbers of tokens alone.
    """
    assert train.labels is not None, "baselines are made from labelled rows"
    if evaluated.labels is None:
        return {}
    constant = _constant(task, train)
    rows = len(evaluated.spans) if task.kind == "tokens" else len(evaluated)
    found = {"majority": score(task, np.tile(constant, (rows, 1)), evaluated)}
    two = task.kind == "classification" and len(task.labels) == 2
    if two and constant[0] > constant[1] and any(metric in _POSITIVE for metric in task.metrics):
        found["positive"] = score(task, np.tile(constant[::-1], (rows, 1)), evaluated)
    found["length"] = score(task, _by_length(task, train, evaluated, constant), evaluated)
    return found


def _constant(task: Task, train: Encoded) -> np.ndarray:
    """(C,) logits of the best constant answer by the training rows."""
    labels = np.asarray(train.labels)
    if task.kind == "regression":
        return np.array([labels.mean(dtype=np.float64)])
    if task.kind == "multilabel":
        return np.where(labels.mean(axis=0) > 0.5, 1.0, -1.0)
    classes = train.choices if task.kind == "choice" else len(task.labels)
    counts = np.bincount(labels[labels >= 0].astype(np.int64), minlength=classes)
    return (np.arange(classes) == counts.argmax()).astype(np.float64)


def _by_length(task: Task, train: Encoded, evaluated: Encoded, constant: np.ndarray) -> np.ndarray:
    """Logits of the evaluated rows, from numbers of tokens alone."""
    labels = np.asarray(train.labels)
    if task.kind == "tokens":
        judged = labels >= 0
        fitted = _classified(_of_words(train)[judged], labels[judged], _of_words(evaluated))
        return _among(fitted, len(task.labels))
    known, asked = _of_texts(train), _of_texts(evaluated)
    if task.kind == "regression":
        ridge = make_pipeline(StandardScaler(), Ridge(alpha=1.0)).fit(known, labels)
        return np.asarray(ridge.predict(asked)).reshape(-1, 1)
    if task.kind == "multilabel":
        columns = [_among(_classified(known, labels[:, c].astype(np.int64), asked), 2) for c in range(labels.shape[1])]
        return np.stack([column[:, 1] - column[:, 0] for column in columns], axis=1)
    if task.kind == "choice":  # whether a text is the right one, by how it differs from the other choices
        right = (np.arange(train.choices) == labels[:, None]).reshape(-1).astype(np.int64)
        fitted = _classified(_beside_others(known, train.choices), right, _beside_others(asked, evaluated.choices))
        return _among(fitted, 2)[:, 1].reshape(-1, evaluated.choices)
    return _among(_classified(known, labels, asked), len(constant))


def _classified(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes that occur, and the log-probability of each for every row asked about; (C',), (E, C')."""
    classes = np.unique(labels)
    if len(classes) < 2:
        return classes, np.zeros((len(asked), len(classes)))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(known, labels)
    return classes, np.asarray(model.predict_log_proba(asked))


def _among(fitted: tuple[np.ndarray, np.ndarray], classes: int) -> np.ndarray:
    """(E, C) logits; a class that did not occur has a very low one."""
    there, values = fitted
    logits = np.full((len(values), classes), -1e9)
    logits[:, there.astype(np.int64)] = values
    return logits


def _of_texts(encoded: Encoded) -> np.ndarray:
    """(R, 6): tokens of a text, of its first segment, of the others; each as it is and as its logarithm."""
    starts = np.asarray(encoded.starts)
    whole = np.diff(starts)
    after = np.add.reduceat(np.asarray(encoded.types), starts[:-1], dtype=np.int64)
    return _with_logarithms(np.stack([whole, whole - after, after], axis=1))


def _of_words(encoded: Encoded) -> np.ndarray:
    """(N, 6): tokens of a word, tokens before it, and tokens of its text; each as it is and as its logarithm."""
    spans, starts = np.asarray(encoded.spans, np.int64), np.asarray(encoded.starts)
    text = np.repeat(np.diff(starts), np.diff(encoded.span_starts))
    return _with_logarithms(np.stack([spans[:, 1] - spans[:, 0], spans[:, 0], text], axis=1))


def _with_logarithms(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([counts, np.log1p(counts)], axis=1).astype(np.float64)


def _beside_others(features: np.ndarray, choices: int) -> np.ndarray:
    """(R, F) less the mean over the choices of the same example."""
    grouped = features.reshape(-1, choices, features.shape[1])
    return (grouped - grouped.mean(axis=1, keepdims=True)).reshape(features.shape)
