"""Fine-tuned models on the disk, as ``eval.py`` leaves them, without training any."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import small_tasks
import torch

from cramming.architectures.configs import ArchConfig, BertConfig
from cramming.data.tokenizer import Tokenizer
from cramming.evaluation import finetuned, saved
from cramming.evaluation.config import EvalConfig, Setting
from cramming.evaluation.finetuned import FineTuned, Start
from cramming.evaluation.job import Evaluation, Job, JobResult, Seeds
from cramming.evaluation.tasks import forms, registry
from cramming.evaluation.tasks.task import Task
from cramming.exchange.weights import Weights

POSITIONS = 64


def bert() -> ArchConfig:
    """Sizes that take no time."""
    return BertConfig(layers=2, hidden=32, heads=2, intermediate=64, max_positions=None, token_types=2)


def weights(arch: ArchConfig, words: Tokenizer | None = None, positions: int = POSITIONS) -> Weights:
    """Random weights of an architecture."""
    words = words or small_tasks.letters()
    torch.manual_seed(0)
    model = arch.build(words.vocab_size, positions)
    return Weights("random", arch, words.vocab_size, positions, dict(model.state_dict()), words, {})


def model(task: Task, setting: Setting | None = None, arch: ArchConfig | None = None, seed: int = 1) -> FineTuned:
    """Random weights, large enough that every part of a model matters to what it says."""
    made = finetuned.build(Start(weights(arch or bert())), task, setting or Setting(), seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def finished(
    suite_dir: Path,
    task: Task,
    scores: dict[int, float | None],
    *,
    setting: Setting | None = None,
    kept: tuple[int, ...] | None = None,
    purpose: str = "final",
) -> dict[int, Path]:
    """Jobs of a task that are done, with their models.

    Args:
        suite_dir: where.
        task: as of the registry, or one of one's own.
        scores: seed -> the headline at the end.
        setting: how.
        kept: seeds whose models are kept; None: all.
        purpose: of the jobs.

    Returns:
        Seed -> the job's folder.
    """
    setting = setting or Setting(max_length=POSITIONS)
    folders = {}
    for seed, score in scores.items():
        job = Job(task.name, setting, seed, Seeds(seed, seed, seed), "none", purpose=purpose)
        outcomes = {metric: score if place == 0 else 0.5 for place, metric in enumerate(task.metrics)}
        result = JobResult(
            key=job.key, task=task.name, seed=seed, purpose=purpose, setting=asdict(setting),
            evaluations=(Evaluation(1, 1.0, 0.5, outcomes),), best=0, steps=1, examples=1, stopped_early=False,
            train_loss=0.5, seconds={}, rows={}, data_sha256={}, cut={},
        )  # fmt: skip
        folder = suite_dir / "jobs" / job.key
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result.as_json()))
        if kept is None or seed in kept:
            made = model(task, setting, seed=seed)
            saved.save(made, folder / "model", tokenizer=small_tasks.letters(), setting=setting, about={"seed": seed})
        folders[seed] = folder
    return folders


def suite(suite_dir: Path, **options: object) -> EvalConfig:
    """``suite.json`` of a suite as it is used."""
    config = replace(EvalConfig(name=suite_dir.name, suite="made up", max_length=POSITIONS), **options)
    suite_dir.mkdir(parents=True, exist_ok=True)
    (suite_dir / "suite.json").write_text(json.dumps(asdict(config)))
    return config


def task(name: str) -> Task:
    """A task of the registry, a choice as one of each text."""
    return forms.formed(registry.find(name), "each")
