"""Rows of a suite's tasks as token ids, made before any job begins; what cannot be used fails its own task alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.evaluation import encoding, material
from cramming.evaluation.config import EvaluateConfig, Setting
from cramming.evaluation.encoded import Encoded
from cramming.evaluation.job import Job
from cramming.evaluation.tasks.task import Task
from cramming.progress import ProgressSink

CACHE = Path("tasks") / "_encoded"


@dataclass
class Material:
    """Encoded rows.

    Attributes:
        splits: task -> split -> rows.
        failures: task -> why its rows cannot be used.
        notes: lines a person should know.
    """

    splits: dict[str, dict[str, Encoded]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, job: Job) -> dict[str, Encoded]:
        """A job's splits; those of a task that it answers besides its own are called ``<task>/<split>``."""
        others = {f"{name}/{split}": rows for name in job.also for split, rows in self.splits[name].items()}
        return {**self.splits[job.task], **others}

    def folders(self, job: Job) -> dict[str, Path]:
        """Where a worker finds them."""
        return {split: folder_of(rows) for split, rows in self.of(job).items()}

    def sha256(self, job: Job) -> dict[str, str]:
        """What the job's result must say it was made of."""
        return {split: rows.sha256 for split, rows in self.of(job).items()}


def prepare(
    config: EvaluateConfig,
    tasks: Mapping[str, Task],
    settings: Mapping[str, Setting],
    tokenizer: Tokenizer,
    progress: ProgressSink,
) -> Material:
    """Read and encode the training rows and the scored splits of every task.

    Args:
        config: says where rows are.
        tasks: of the suite and what they need.
        settings: of each task with a model of its own.
        tokenizer: the model's.
        progress: sees how far it is.
    """
    data_dir, made = Path(config.data_dir), Material()
    wanted = {name: [*([] if task.trained_by else ["train"]), *task.evaluated] for name, task in tasks.items()}
    progress.stage("rows", sum(map(len, wanted.values())), "splits")
    for name, task in tasks.items():
        setting = settings[task.trained_by or name]
        try:
            for split in wanted[name]:
                examples = material.examples_of(config.eval, task, split, data_dir, made.notes)
                made.splits.setdefault(name, {})[split] = encoding.encode(
                    task,
                    examples,
                    tokenizer,
                    max_length=setting.max_length,
                    spans=setting.spans,
                    cache=data_dir / CACHE,
                )
                progress.advance(1)
            made.splits.setdefault(name, {})
        except UserError as error:
            made.failures[name] = str(error)
            made.splits.pop(name, None)
    progress.done()
    return made


def folder_of(encoded: Encoded) -> Path:
    """Where a split that is mapped into memory lies."""
    assert isinstance(encoded.tokens, np.memmap), "this split is in memory only"
    return Path(str(encoded.tokens.filename)).parent
