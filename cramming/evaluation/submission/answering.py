"""The answers for each file of a submission: a fine-tuned model's, or where there is none the commonest class."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cramming.errors import UserError
from cramming.evaluation import finetune, finished, material, saved, scoring
from cramming.evaluation.config import EvalConfig
from cramming.evaluation.encoding import in_memory
from cramming.evaluation.finished import Finished
from cramming.evaluation.saved import Saved
from cramming.evaluation.submission.benchmarks import ANSWERS, ENTITY, VALUE, Benchmark, File
from cramming.evaluation.submission.writing import Answers
from cramming.evaluation.tasks import forms
from cramming.evaluation.tasks.registry import TASKS
from cramming.evaluation.tasks.task import Example, Task
from cramming.kernels import choice

MAJORITY = "majority"


@dataclass(frozen=True)
class Chosen:
    """Which models answer a benchmark's tasks.

    Attributes:
        models: task -> the job whose model answers it; one job may answer several.
        said: lines about which they are.
        missing: task -> why no model answers it.
    """

    models: Mapping[str, Finished]
    said: tuple[str, ...]
    missing: Mapping[str, str]


def choose(benchmark: Benchmark, done: Mapping[str, list[Finished]]) -> Chosen:
    """Of each task the job that is best on dev.

    Args:
        benchmark: whose tasks.
        done: the jobs of a suite, by task.
    """
    models: dict[str, Finished] = {}
    said: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in benchmark.tasks:
        trained = TASKS[name].trained_by or name
        if trained not in done:
            missing[name] = "not fine-tuned"
            continue
        try:
            models[name], said[trained] = finished.best(done[trained], trained)
        except UserError as error:
            missing[name] = str(error)
    return Chosen(models, tuple(said.values()), missing)


@dataclass
class Answering:
    """Answers a benchmark's files, one after the other.

    Attributes:
        config: of the suite, which says where the rows are.
        data_dir: of the project.
        device: to compute on.
        notes: lines to show, such as differing row counts.
    """

    config: EvalConfig
    data_dir: Path
    device: torch.device
    notes: list[str]

    def __post_init__(self) -> None:
        self._loaded: tuple[Path, Saved] | None = None

    def test_rows(self, file: File) -> list[Example]:
        """The rows a file answers.

        Raises:
            UserError: they are not there, or cannot be used.
        """
        task = self._task(file)
        return material.examples_of(self.config, task, file.split, self.data_dir, self.notes)

    def by_model(self, file: File, job: Finished, examples: list[Example]) -> Answers:
        """What a model answers.

        Raises:
            UserError: the model is damaged, of another version of the task, or gives no numbers.
        """
        model, task = self._model(job), self._task(file)
        if task.labels != model.task.labels or task.choices != model.task.choices:
            raise UserError(f"{job.folder} is of another form of {task.name} than the suite's: fine-tune it again")
        encoded = in_memory(task, examples, model.tokenizer, max_length=model.max_length, spans=model.setting.spans)
        if encoded.cut.texts:
            self.notes.append(f"{file.name}: {encoded.cut.texts} of its texts were cut to {model.max_length} tokens")
        logits = finetune.evaluate(model.model, encoded)
        if not np.isfinite(logits).all():
            raise UserError(f"the model in {job.folder} gives no numbers, its fine-tuning failed: try another setting")
        if file.form == ENTITY:
            best = [encoded.keys[example] for example in scoring.chosen(task, logits, encoded)]
            return Answers(best, [str(key["entity"]) for key in best])
        return Answers(encoded.keys, scoring.predictions(task, logits, encoded).tolist())

    def by_majority(self, file: File) -> tuple[Answers, str]:
        """The commonest class of the training rows for everything, the mean for values, the first of entities.

        Returns:
            The answers, and what they are.

        Raises:
            UserError: the file's form depends on test rows, and those are not there.
        """
        if file.form == ENTITY:
            examples = self.test_rows(file)
            first = {example.key["query"]: example.key for example in reversed(examples)}
            keys = [first[query] for query in sorted(first)]
            return Answers(keys, [str(key["entity"]) for key in keys]), "the first entity"
        value, said = self._commonest(file)
        if file.form == ANSWERS:
            keys = [example.key for example in self.test_rows(file)]
        else:
            keys = [{"idx": number} for number in range(file.rows)]
        return Answers(keys, [value] * len(keys)), said

    def _commonest(self, file: File) -> tuple[float, str]:
        trained = TASKS[file.task].trained_by or file.task
        whole = replace(self.config, max_train_rows=None)
        try:
            rows = material.examples_of(whole, self._formed(trained), "train", self.data_dir, [])
            labels = [example.label for example in rows if isinstance(example.label, int | float)]
            origin = f"{len(labels):,} training rows of {trained}"
            values = Counter(labels)
            value = sum(labels) / len(labels) if file.form == VALUE else min(values, key=lambda v: (-values[v], v))
        except UserError:
            value, origin = file.commonest, f"the official training rows of {trained}"
        if file.form == VALUE:
            return value, f"{value:.3f}, the mean of {origin}"
        return value, f"{file.words[int(value)]!r}, the commonest of {origin}"

    def _task(self, file: File) -> Task:
        return self._formed(file.task)

    def _formed(self, name: str) -> Task:
        return forms.formed(TASKS[name], self.config.setting(name).choices)

    def _model(self, job: Finished) -> Saved:
        assert job.model is not None
        if self._loaded is None or self._loaded[0] != job.model:
            found = saved.load(job.model)
            choice.use(found.model.to(self.device).encoder)
            self._loaded = (job.model, found)
        return self._loaded[1]


def size_of(file: File, answers: Answers) -> tuple[int, int]:
    """Lines of a file, and what it decides in the form ``answers``."""
    if file.form == ANSWERS:
        return len({key["paragraph"] for key in answers.keys}), len(answers.keys)
    return len(answers.keys), 0
