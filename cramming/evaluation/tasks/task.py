"""What a downstream task is, and what one example of it is, wherever its rows come from.

Vocabulary: a *row* is what a file holds; an *example* is one decision, made from one *text*, or from one text for each
choice; a text is one or more *segments* (a premise and a hypothesis, say) and the *spans* in them that it asks about.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Kind = Literal["classification", "regression", "multilabel", "tokens", "choice"]
Label = int | float | tuple[int, ...]


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) of a segment, which truncation must not cut unnoticed."""

    segment: int
    start: int
    end: int


@dataclass(frozen=True)
class Text:
    """What the model reads at once.

    Attributes:
        segments: in order, each followed by [SEP].
        spans: what the task asks about, such as the two uses of WiC's word; for token classification the words.
    """

    segments: tuple[str, ...]
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Example:
    """One decision.

    Attributes:
        texts: one; in a multiple choice one for each choice.
        label: a class, a value, the class of each word (-100: not to be judged), or 0/1 for each class of a multi-label
            task; for a choice the right one's number; None: nobody says, as in test sets.
        key: what metrics and submissions need beside it, as JSON values: at least ``index``, the row's own number.
    """

    texts: tuple[Text, ...]
    label: Label | None
    key: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A task as its makers published it.

    Attributes:
        name: as it is typed (``sst2``).
        title: as its makers write it (``SST-2``); the name of its official folder, too.
        collection: ``glue``, ``superglue``, ``choice`` or ``own``.
        kind: what is decided.
        fields: columns that the model reads, in order, under the names of the Hugging Face datasets.
        labels: class names; a label is a position in them, numbered as in the Hugging Face datasets. Empty: regression.
        metrics: names of what is measured, the headline first.
        evaluated: splits that are scored, the headline first; MNLI has two.
        rows: official number of rows by split, where there is one.
        groups: what in ``Example.key`` holds together examples that are judged together (MultiRC's questions, ReCoRD's
            queries); empty: each by itself.
        trained_by: the task whose model answers this one (AX: mnli); None: its own.
        span_count: spans in every text; 0: none. Token classification has any number.
        choices: texts of every example; 1 where nothing is chosen.
        source: paper and data.
    """

    name: str
    title: str
    collection: str
    kind: Kind
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    evaluated: tuple[str, ...] = ("validation",)
    rows: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    trained_by: str | None = None
    span_count: int = 0
    choices: int = 1
    source: str = ""

    @property
    def outputs(self) -> int:
        """Numbers the model gives for each text (each word, in token classification)."""
        return 1 if self.kind in ("regression", "choice") else len(self.labels)

    def outcome(self, metric: str, split: str) -> str:
        """What a measurement is called in results: the metric, and the split where it is not the headline's."""
        if not self.evaluated or split == self.evaluated[0]:
            return metric
        return f"{metric}@{split.removeprefix('validation_')}"
