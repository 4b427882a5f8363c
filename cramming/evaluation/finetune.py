"""Fine-tuning of one model on one task: a job from its beginning to its scores.

Shape legend: E examples of a split, B of a batch, R texts, S positions, K spans of a text, N spans of all texts,
C outputs.
"""

import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.evaluation import batches, optimizing, scoring
from cramming.evaluation.batches import Inputs
from cramming.evaluation.config import Setting
from cramming.evaluation.encoded import Encoded
from cramming.evaluation.finetuned import FineTuned, Start, build, judged, loss
from cramming.evaluation.job import Evaluation, Job, JobResult
from cramming.evaluation.tasks import registry
from cramming.evaluation.tasks.task import Task
from cramming.evaluation.updating import Updater
from cramming.kernels import choice
from cramming.model import Model
from cramming.out_of_memory import is_out_of_memory
from cramming.precision import DTYPES

Score = Callable[[Task, np.ndarray, Encoded], Mapping[str, float | None]]
Report = Callable[[int, int, int], None]

TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65536}  # in evaluation, padding counted
MULTIPLE = {"cpu": 1, "cuda": 8}  # widths of batches
_LOOKED_AT_EVERY = 20  # steps: waiting for the device to say how it goes costs time


def run(
    job: Job,
    task: Task,
    start: Start,
    data: Mapping[str, Encoded],
    *,
    device: str = "cpu",
    precision: str = "float32",
    threads: int | None = None,
    microbatch_size: int | None = None,
    report: Report | None = None,
    keep: Path | None = None,
    score: Score = scoring.score,
) -> JobResult:
    """Fine-tune, evaluate, and say how it went.

    Args:
        job: what makes it; ``job.setting.precision`` wins over ``precision``.
        task: of that name.
        start: what the model begins with.
        data: ``train``; the splits in ``task.evaluated``, such as ``validation``, as far as they are labelled; for each
            task in ``job.also`` its splits as ``<task>/<split>``, which are scored at the end.
        device: such as ``cuda:1``.
        precision: ``float32``, ``bfloat16`` or ``float16``.
        threads: of the CPU; None: as they are.
        microbatch_size: examples of a pass; None: the whole batch. Without dropout it changes rounding only.
        report: called now and then with the step, the number of steps, and examples trained on so far.
        keep: folder to save the final model in; None: it is gone.
        score: metrics of a split from logits; for tests.

    Returns:
        The result; the same, seconds apart, to the last bit for the same job, data and threads on a CPU.

    Raises:
        UserError: weights of another architecture, memory that does not suffice, too many steps in a row whose loss or
            gradient is not finite, no training examples or none to evaluate on.
    """
    for split in ("train", task.evaluated[0]):
        if split not in data or not len(data[split]) or data[split].labels is None:
            raise UserError(f"{task.name} has no labelled examples in its split {split!r}")
    setting = job.setting
    precision = setting.precision if setting.precision not in (None, "auto") else precision  # type: ignore[assignment]
    began = time.perf_counter()
    with _threads(threads), _own_random_state(device, job.seeds.dropout):
        model = build(start, task, setting, job.seeds.initialization).to(device)
        kernels = choice.described(choice.use(model.encoder, device, DTYPES[precision]), model.encoder)
        updater = Updater(
            model,
            optimizing.optimizer(model, setting),
            precision=precision,
            microbatch_size=microbatch_size,
            clip_norm=setting.clip_norm,
        )
        training = _Training(job, task, updater, data, score)
        training.run(report)
        also = {name: training.scores_of(registry.find(name), f"{name}/")[0] for name in job.also}
    seconds = {"evaluate": training.evaluating_s, "all": time.perf_counter() - began}
    seconds["train"] = training.training_s
    result = JobResult(
        key=job.key,
        task=job.task,
        seed=job.seed,
        purpose=job.purpose,
        setting=asdict(setting),
        evaluations=tuple(training.evaluations),
        best=best(training.evaluations, training.headline),
        steps=training.step,
        examples=training.examples,
        stopped_early=training.step < training.steps,
        train_loss=training.train_loss,
        seconds=seconds,
        rows={split: len(encoded) for split, encoded in data.items()},
        data_sha256={split: encoded.sha256 for split, encoded in data.items()},
        cut={split: asdict(encoded.cut) for split, encoded in data.items()},
        also=also,
        versions=_versions(device, precision) | _attention(model.encoder) | kernels,
    )
    if keep is not None:
        from cramming.evaluation import saved

        assert start.weights.tokenizer is not None
        about = {"weights": start.weights.title, "untrained": start.untrained, "job": job.key, "seed": job.seed}
        about |= {"steps": result.steps, "scores": dict(result.final.scores)}
        saved.save(model, keep, tokenizer=start.weights.tokenizer, setting=setting, about=about)
    return result


def steps_of(setting: Setting, examples: int) -> tuple[int, int]:
    """Optimizer steps of an epoch, and of the whole job."""
    epoch = batches.count(examples, setting.batch_size)
    steps = max(1, round(setting.epochs * epoch), setting.min_steps)
    return epoch, steps if setting.max_steps is None else min(steps, setting.max_steps)


def best(evaluations: list[Evaluation], headline: str) -> int:
    """Number of the evaluation with the best headline, the first of equals; undefined ones are the worst."""
    scores = [evaluation.scores.get(headline) for evaluation in evaluations]
    return max(range(len(scores)), key=lambda i: (float("-inf") if scores[i] is None else scores[i], -i))


def evaluate(model: FineTuned, encoded: Encoded, *, tokens_per_batch: int | None = None) -> np.ndarray:
    """Logits of a split, in its order.

    Args:
        model: on the device and in the type to compute in; it is left in the mode it was in.
        encoded: the split; labels are not looked at.
        tokens_per_batch: with padding; None: what suits the device. Half of it where memory does not suffice.

    Returns:
        float32: (E, C); (E, choices) of a choice; (N, C) of the words of token classification.

    Raises:
        UserError: one example alone does not fit the memory.
    """
    device = next(model.parameters()).device
    size = tokens_per_batch or TOKENS_PER_BATCH.get(device.type, 4096)
    while True:
        try:
            return _logits(model, encoded, size, device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        longest = int(batches.lengths(encoded).max()) * encoded.choices
        if size <= longest:
            raise UserError(f"out of memory with one example of {longest} tokens: give a shorter eval.max_length")
        size = max(longest, size // 2)


def mean_loss(task: Task, logits: np.ndarray, encoded: Encoded) -> float:
    """What training makes small, over a split with labels."""
    assert encoded.labels is not None
    labels = torch.from_numpy(np.array(encoded.labels))
    return float(loss(task, torch.from_numpy(logits), labels)) / max(1, judged(task, labels))


@torch.no_grad()
def _logits(model: FineTuned, encoded: Encoded, size: int, device: torch.device) -> np.ndarray:
    training = model.training
    model.eval()
    found: list[tuple[Inputs, Tensor]] = []
    try:
        for inputs in batches.evaluation(encoded, size, multiple=MULTIPLE.get(device.type, 1)):
            found.append((inputs, model(inputs.to(device)).float()))
    finally:
        model.train(training)
    rows = len(encoded.spans) if model.task.kind == "tokens" else len(encoded)
    logits = np.zeros((rows, found[0][1].shape[-1] if found else 0), np.float32)
    for inputs, part in found:
        if model.task.kind == "tokens":
            assert inputs.spans is not None
            there = (inputs.spans[..., 0] >= 0).numpy()
            first = np.asarray(encoded.span_starts)[inputs.examples.numpy()]
            places = first[:, None] + np.arange(there.shape[1])
            logits[places[there]] = part.cpu().numpy()[there]
        else:
            logits[inputs.examples.numpy()] = part.cpu().numpy()
    return logits


@dataclass
class _Clock:
    """Seconds of what is done inside ``with``."""

    seconds: float = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


class _Training:
    """The loop, and what it leaves."""

    def __init__(self, job: Job, task: Task, updater: Updater, data: Mapping[str, Encoded], score: Score) -> None:
        self.job, self.task, self.updater, self.data, self.score = job, task, updater, data, score
        self.epoch_steps, self.steps = steps_of(job.setting, len(data["train"]))
        self.factor = optimizing.factors(job.setting, self.steps)
        self.headline = task.outcome(task.metrics[0], task.evaluated[0])
        self.step, self.examples = 0, 0
        self.evaluations: list[Evaluation] = []
        self.losses = torch.zeros(self.steps, device=updater.device)
        self.evaluating, self.all = _Clock(), _Clock()

    @property
    def evaluating_s(self) -> float:
        """Seconds of evaluating."""
        return self.evaluating.seconds

    @property
    def training_s(self) -> float:
        """Seconds of the loop without evaluating."""
        return self.all.seconds - self.evaluating.seconds

    @property
    def train_loss(self) -> float:
        """Mean over the last tenth of the steps."""
        return float(self.losses[self.step - max(1, self.step // 10) : self.step].mean())

    def run(self, report: Report | None) -> None:
        """Train, and evaluate in between and at the end."""
        every = self.job.setting.evaluate_every_steps or self.epoch_steps
        with self.all:
            for inputs in self._batches():
                self.losses[self.step] = self.updater.step(inputs, self.factor(self.step))
                self.step += 1
                self.examples += len(inputs)
                due = self.step % every == 0 or self.step == self.steps
                if due or self.step % _LOOKED_AT_EVERY == 0:
                    self.updater.check()
                    if report is not None:
                        report(self.step, self.steps, self.examples)
                if due and self._evaluated():
                    break

    def scores_of(self, task: Task, prefix: str = "") -> tuple[dict[str, float | None], float]:
        """Scores of a task's labelled splits, by outcome; and the headline's loss, NaN where it has no labels."""
        scores, value = dict[str, float | None](), float("nan")
        for split in task.evaluated:
            encoded = self.data.get(f"{prefix}{split}")
            if encoded is None or encoded.labels is None:
                continue
            with self.evaluating:
                logits = evaluate(self.updater.module, encoded)
                if split == task.evaluated[0]:
                    value = mean_loss(task, logits, encoded)
                scores |= {task.outcome(m, split): score for m, score in self.score(task, logits, encoded).items()}
        return scores, value

    def _evaluated(self) -> bool:
        """Evaluate; whether patience is at its end."""
        scores, value = self.scores_of(self.task)
        self.evaluations.append(Evaluation(self.step, self.step / self.epoch_steps, value, scores))
        patience = self.job.setting.patience
        since = len(self.evaluations) - 1 - best(self.evaluations, self.headline)
        return patience is not None and since >= patience

    def _batches(self) -> Iterator[Inputs]:
        """Batches of as many epochs as it takes."""
        setting, train, left, epoch = self.job.setting, self.data["train"], self.steps, 0
        while left:
            for inputs in batches.training(train, setting.batch_size, self.job.seeds.order, epoch):
                yield inputs
                left -= 1
                if not left:
                    return
            epoch += 1


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _own_random_state(device: str, seed: int) -> Iterator[None]:
    """A context that draws from ``seed`` and leaves everybody else's state as it was."""
    where = torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _attention(encoder: Model) -> dict[str, str]:
    """How it is computed, for the record."""
    return {name: form for name, form in encoder.fast_paths().items() if name.startswith("attention")}


def _versions(device: str, precision: str) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else platform.processor()
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": name or device,
        "precision": precision,
        "threads": str(torch.get_num_threads()),
    }
