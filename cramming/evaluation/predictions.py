"""What a fine-tuned model says of texts: labels with probabilities, values, a label for each word.

Shape legend: E examples, N spans of all texts, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from cramming.evaluation import finetune, scoring
from cramming.evaluation.encoded import Cut, Encoded
from cramming.evaluation.encoding import in_memory
from cramming.evaluation.saved import Saved
from cramming.evaluation.tasks.task import Example, Task, Text
from cramming.kernels import choice


@dataclass(frozen=True)
class Word:
    """A word of a text that is classified word by word."""

    text: str
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the model says of one thing it is asked.

    Attributes:
        labels: those it decides for: one; any number for a multi-label task; none for a regression and for words.
        probabilities: of every label, the likeliest first; of several labels at once each by itself.
        value: of a regression.
        words: in order, where each has a label.
    """

    labels: tuple[str, ...] = ()
    probabilities: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """Of all that was asked; ``cut``: what truncation left out."""

    all: tuple[Prediction, ...]
    cut: Cut


def predict(
    saved: Saved, task: Task, examples: Sequence[Example], device: torch.device, batch: int | None = None
) -> Predictions:
    """What a model says of examples; for ReCoRD of queries, each of which has an example for every entity.

    Args:
        saved: the model; it is moved to ``device``.
        task: whose examples they are: its own, or one that it answers, too.
        examples: labels are not looked at.
        device: to compute on.
        batch: the longest texts a pass takes; None: what suits the device.

    Raises:
        UserError: texts with more segments than the model's length holds.
    """
    encoded = in_memory(task, examples, saved.tokenizer, max_length=saved.max_length, spans=saved.setting.spans)
    tokens = None if batch is None else batch * saved.max_length
    model = saved.model.to(device)
    choice.use(model.encoder)
    logits = finetune.evaluate(model, encoded, tokens_per_batch=tokens)
    return Predictions(tuple(_read(task, logits, examples, encoded)), encoded.cut)


def _read(task: Task, logits: np.ndarray, examples: Sequence[Example], encoded: Encoded) -> list[Prediction]:
    if task.kind == "regression":
        return [Prediction(value=float(value)) for value in scoring.predictions(task, logits, encoded)]
    if task.kind == "tokens":
        return _words(task, logits, examples, encoded)
    if any(metric in scoring.RECORD for metric in task.metrics):
        return _entities(task, logits, encoded)
    if task.kind == "multilabel":
        chances = 1 / (1 + np.exp(-logits.astype(np.float64)))
        decided = scoring.predictions(task, logits, encoded).astype(bool)
        return [
            Prediction(_names(task.labels, chosen, row), _ranked(task.labels, row))
            for row, chosen in zip(chances, decided, strict=True)
        ]
    best = scoring.predictions(task, logits, encoded)
    return [
        Prediction((task.labels[int(chosen)],), _ranked(task.labels, row))
        for row, chosen in zip(_softmax(logits), best, strict=True)
    ]


def _words(task: Task, logits: np.ndarray, examples: Sequence[Example], encoded: Encoded) -> list[Prediction]:
    best, chances = scoring.predictions(task, logits, encoded), _softmax(logits)
    found = []
    for number, example in enumerate(examples):
        places = range(int(encoded.span_starts[number]), int(encoded.span_starts[number + 1]))
        texts = words_of(example.texts[0])
        assert len(texts) == len(places), "a span for each word"
        found.append(
            Prediction(
                words=tuple(
                    Word(text, task.labels[int(best[place])], float(chances[place, best[place]]))
                    for text, place in zip(texts, places, strict=True)
                )
            )
        )
    return found


def _entities(task: Task, logits: np.ndarray, encoded: Encoded) -> list[Prediction]:
    """Of each query, how likely each of its entities is the answer, each by itself."""
    chances = _softmax(logits)[:, 1]
    groups = scoring.groups(task, encoded)
    members: dict[object, list[int]] = {}
    for example, group in enumerate(groups):
        members.setdefault(group, []).append(example)
    found = []
    for best in scoring.chosen(task, logits, encoded):
        entities = {str(encoded.keys[example]["entity"]): float(chances[example]) for example in members[groups[best]]}
        ranked = dict(sorted(entities.items(), key=lambda item: -item[1]))
        found.append(Prediction((str(encoded.keys[best]["entity"]),), ranked))
    return found


def words_of(text: Text) -> list[str]:
    """The words that a text's spans are."""
    return [text.segments[span.segment][span.start : span.end] for span in text.spans]


def _softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) -> (N, C) float64."""
    wide = logits.astype(np.float64)
    grown = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares: np.ndarray = grown / grown.sum(axis=1, keepdims=True)
    return shares


def _names(labels: Sequence[str], chosen: np.ndarray, chances: np.ndarray) -> tuple[str, ...]:
    order = sorted(np.flatnonzero(chosen), key=lambda place: -chances[place])
    return tuple(labels[int(place)] for place in order)


def _ranked(labels: Sequence[str], chances: np.ndarray) -> dict[str, float]:
    order = sorted(range(len(labels)), key=lambda place: -chances[place])
    return {labels[place]: float(chances[place]) for place in order}
