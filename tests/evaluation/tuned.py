"""Models and splits for tests of fine-tuning: every family with every kind of task."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cramming.architectures import ArchConfig
from cramming.architectures.configs.hf import HfConfig
from cramming.evaluation.config import Setting
from cramming.evaluation.encoded import Cut, Encoded
from cramming.evaluation.finetuned import FineTuned, Start, build
from cramming.evaluation.job import Job, Seeds
from cramming.evaluation.tasks.task import Task
from cramming.exchange.weights import Weights
from tests.architectures.families import TINY, VOCABULARY, arch

LENGTH = 24  # positions of the models
SETTING = Setting(batch_size=8, epochs=1, max_length=LENGTH, lr=1e-3)
HF_SIZES = {
    "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 2,
    "max_position_embeddings": 40,
}  # fmt: skip
FAMILIES = (*TINY, "hf")
# Kind, and whether the task asks about spans.
KINDS = (
    ("classification", 0), ("classification", 2), ("regression", 0), ("multilabel", 0), ("choice", 0), ("tokens", 0)
)  # fmt: skip
# Every family with every kind; of them, one of each and all kinds are in the quick run.
GRID = [
    pytest.param(family, kind, spans, marks=[] if (i + j) % len(KINDS) == 0 else pytest.mark.full)
    for i, family in enumerate(FAMILIES)
    for j, (kind, spans) in enumerate(KINDS)
]
_METRICS = {"regression": "pearson", "multilabel": "micro_f1"}


def options(family: str, **more: Any) -> ArchConfig:
    """A family's smallest options."""
    return HfConfig(model_type="electra", config=HF_SIZES) if family == "hf" else arch(family, **more)


def weights(family: str, length: int = LENGTH, **more: Any) -> Weights:
    """Random weights, large enough that every part matters."""
    chosen = options(family, **more)
    torch.manual_seed(1)
    model = chosen.build(VOCABULARY, length)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "filters" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Weights(family, chosen, VOCABULARY, length, dict(model.state_dict()), None, {})


def task(kind: str, spans: int = 0, name: str = "made") -> Task:
    """A task of that kind: three classes, three labels or three choices."""
    labels = () if kind == "regression" else ("a", "b", "c")
    metric = _METRICS.get(kind, "accuracy")
    choices = 3 if kind == "choice" else 1
    return Task(name, name.upper(), "own", kind, ("text",), labels, (metric,), span_count=spans, choices=choices)  # type: ignore[arg-type]


def split(asked: Task, examples: int = 24, seed: int = 0) -> Encoded:
    """Random texts of 4 to 17 tokens with random labels."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(4, 18, examples * asked.choices)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    types = np.concatenate([np.arange(size) >= size // 2 for size in sizes]).astype(np.uint8)
    per_span = asked.kind == "tokens"
    counts = draw.integers(1, 4, len(sizes)) if per_span else np.full(len(sizes), asked.span_count)
    spans = np.array([(1 + i, 2 + i) for count in counts for i in range(count)], np.int32).reshape(-1, 2)
    labels = {
        "classification": draw.integers(0, 3, examples),
        "regression": draw.random(examples, np.float32),
        "multilabel": draw.integers(0, 2, (examples, 3)).astype(np.float32),
        "choice": draw.integers(0, 3, examples),
        "tokens": draw.integers(0, 3, len(spans)),
    }[asked.kind]
    return Encoded(
        tokens=draw.integers(5, VOCABULARY, starts[-1]).astype(np.uint16),
        types=types,
        starts=starts,
        span_starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        spans=spans,
        labels=labels,
        choices=asked.choices,
        keys=[{"index": number} for number in range(examples)],
        cut=Cut(),
        sha256=f"{asked.kind} {seed}",
        per_span=per_span,
    )


def model(family: str, asked: Task, seed: int = 0, **setting: Any) -> FineTuned:
    """What a job on a task begins with."""
    return build(Start(weights(family)), asked, Setting(max_length=LENGTH, **setting), seed)


def unlabelled(encoded: Encoded) -> Encoded:
    """As a test set is."""
    return replace(encoded, labels=None)


def job(asked: Task, setting: Setting = SETTING, seeds: tuple[int, int, int] = (0, 0, 0), **more: Any) -> Job:
    """A job on a task."""
    return Job(asked.name, setting, 0, Seeds(*seeds), "made up", **more)


def splits(asked: Task, examples: int = 24) -> dict[str, Encoded]:
    """What a job on it needs."""
    return {"train": split(asked, examples), "validation": split(asked, 9, seed=1)}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether weights are the same to the last bit."""
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())
