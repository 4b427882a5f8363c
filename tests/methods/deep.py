"""Runs in memory of a model as deep as a test needs; ``memory.run_of`` has two layers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from memory import FLAT, engine_of, store, stream

from cramming.config import PretrainConfig
from cramming.method import Method
from cramming.model import Model
from cramming.train import Run
from rst.clock import Clock, CostModel
from rst.costs import StepsCost
from tests.architectures.families import arch

SEQUENCES = 8
_STEPS = StepsCost()


def deep_model(layers: int, family: str = "bert_tiny", **options: Any) -> Model:
    """A small model of ``family`` of that many layers, in evaluation mode; with no two layers alike."""
    torch.manual_seed(0)
    built = replace(arch(family), layers=layers, **options).build(64, 24)
    assert isinstance(built, Model)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return built.eval()


def deep_run(
    method: Method,
    layers: int = 4,
    *,
    model: Model | None = None,
    optimizer: str = "adamw",
    hyperparameters: dict[str, Any] | None = None,
    budget: float = 10,
    costs: CostModel = _STEPS,
    precision: str = "float32",
    schedule: Callable[[float], float] = FLAT,
    clip_norm: float | None = 0.5,
    seed: int = 0,
    sequences: int = SEQUENCES,
    microbatch_size: int = 4,
) -> Run:
    """A run at step 0 of batches of 8 sequences; its clock counts steps unless ``costs`` says otherwise."""
    clock = Clock({"main": costs}, budget)
    engine = engine_of(
        model or deep_model(layers, hidden=32, heads=2, intermediate=64),
        optimizer,
        clock=clock,
        hyperparameters=hyperparameters,
        lr=1e-3,
        precision=precision,
        microbatch_size=microbatch_size,
        clip_norm=clip_norm,
    )
    run = Run(
        PretrainConfig(seed=seed),
        engine.model,
        engine,
        stream(store(), seed),
        clock,
        method,
        schedule,
        lambda progress: sequences,
    )
    method.setup(run)
    return run


def layer_weights(model: Model) -> list[torch.Tensor]:
    """Each layer's weights as one vector, copies."""
    return [torch.cat([p.detach().flatten() for p in block.parameters()]) for block in model.blocks]
