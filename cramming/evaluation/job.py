"""One fine-tuning: what makes it, and what comes out. Both are JSON on disk."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cramming.evaluation.config import Setting

# Raised when fine-tuning computes something else than before: results of earlier versions are made again.
RESULT_VERSION = 1


@dataclass(frozen=True)
class Seeds:
    """Of the three things that are random in a job, each by itself."""

    initialization: int  # of the head, and of everything where weights are untrained
    order: int  # of training examples
    dropout: int


@dataclass(frozen=True)
class Job:
    """Fine-tune one model on one task.

    Attributes:
        task: its name.
        setting: how.
        seed: what the job is called by; ``seeds`` are what it draws from.
        seeds: of initialization, order and dropout.
        weights_sha256: of the pretrained weights it begins with; for untrained ones ``untrained``.
        parent: key of the job whose final model it begins with instead (all but the last layer of its head); None: the
            pretrained weights.
        also: tasks that have no training of their own and that this job's model answers, such as AX.
        purpose: ``final``, or ``search``: one of the trials that choose a setting.
        train_share: of the training rows; the others choose between trials.
    """

    task: str
    setting: Setting
    seed: int
    seeds: Seeds
    weights_sha256: str
    parent: str | None = None
    also: tuple[str, ...] = ()
    purpose: str = "final"
    train_share: float = 1.0

    @property
    def key(self) -> str:
        """A short name that differs wherever anything differs that can change the result, rows apart."""
        said = asdict(self)
        said["setting"].pop("seeds")  # those of the other jobs
        said.pop("also")  # asks the model more; it is the same model
        text = json.dumps([RESULT_VERSION, said], sort_keys=True)
        return f"{self.task}-seed={self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Evaluation:
    """Scores at one point of a job; names as of ``Task.outcome``, fractions, Pearson and Matthews from -1 to 1."""

    step: int
    epoch: float
    loss: float
    scores: Mapping[str, float | None]  # None: undefined there, such as the correlation of a constant


@dataclass(frozen=True)
class JobResult:
    """What a job leaves in ``result.json``.

    Attributes:
        key: of the job.
        task, seed, purpose: of the job.
        setting: of the job, as plain values.
        evaluations: in order; the last is the final one.
        best: number of the evaluation with the best headline; the first of equals.
        also: final scores of the tasks that the job's model answers besides its own.
        steps, examples: trained on, repetitions counted.
        stopped_early: whether patience ended it.
        train_loss: mean over the last tenth of the steps.
        seconds: wall time of training and of evaluating.
        rows: examples by split.
        data_sha256: of each split's encoded rows.
        cut: by split, what truncation left out: texts, tokens, spans.
        versions: software and device.
    """

    key: str
    task: str
    seed: int
    purpose: str
    setting: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...]
    best: int
    steps: int
    examples: int
    stopped_early: bool
    train_loss: float
    seconds: Mapping[str, float]
    rows: Mapping[str, int]
    data_sha256: Mapping[str, str]
    cut: Mapping[str, Mapping[str, int]]
    also: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def final(self) -> Evaluation:
        """The headline."""
        return self.evaluations[-1]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def of_json(values: Mapping[str, Any]) -> "JobResult":
        """The result that ``as_json`` described.

        Raises:
            TypeError, KeyError, ValueError: it is none.
        """
        evaluations = tuple(Evaluation(**evaluation) for evaluation in values["evaluations"])
        return JobResult(**{**values, "evaluations": evaluations})
