"""Which checkpoint is scored, and where its results go."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cramming.config import check_name
from cramming.errors import UserError
from cramming.evaluation.composing import UNTRAINED
from cramming.evaluation.config import EvaluateConfig
from cramming.evaluation.finetuned import length_for
from cramming.evaluation.trained import Selection, selected
from cramming.exchange.importing import FRESH
from cramming.exchange.weights import Weights, sha256


@dataclass(frozen=True)
class Subject:
    """What is scored.

    Attributes:
        name: of the folder under ``base_dir`` that gets the results: the run's, or one for a checkpoint of no run.
        title: what it is, the same at every call.
        weights: of all layers that are trained, with their tokenizer.
        sha256: of the tensors; ``untrained`` where they are not taken.
        suite: name of the results' folder.
    """

    name: str
    title: str
    weights: Weights
    sha256: str
    suite: str


def subject_of(config: EvaluateConfig) -> Subject:
    """The checkpoint that is asked for.

    Raises:
        UserError: there is none (those that exist are named), it cannot be used, or it is two at once.
    """
    untrained = config.weights == UNTRAINED
    selection = Selection(config.name, config.base_dir, config.checkpoint, "averaged" if untrained else config.weights)
    weights, found = selected(selection, FRESH)
    _, _, at = (config.checkpoint or "").partition("@")
    if found is not None:
        name, title = found.name, f"run {found.name}, step {found.checkpoint.step}"
        if config.name not in (None, name):
            raise UserError(
                f"name={config.name} and checkpoint={config.checkpoint} are two runs: leave one of them out"
            )
        at = "" if at == "last" else at
    else:
        name, title, at = _folder_name(config), weights.title, ""
    if untrained:
        title += ", untrained"
    suite = config.eval.name + ("-untrained" if untrained else "") + (f"@{at}" if at else "")
    named = UNTRAINED if untrained else str(weights.origin.get("weights_sha256") or sha256(weights.state))
    return Subject(name, title, replace(weights.trained(), title=title), named, suite)


def _folder_name(config: EvaluateConfig) -> str:
    """Where to put the results of a checkpoint that is no run's.

    Raises:
        UserError: a run has that name.
    """
    assert config.checkpoint is not None
    given = config.checkpoint.partition("@")[0].rstrip("/")
    last = Path(given).expanduser().name
    name = config.name or re.sub(r"[^A-Za-z0-9._=,+-]", "-", re.sub(r"\.(pt|pth|bin|safetensors)$", "", last))
    if (Path(config.base_dir) / check_name(name) / "config.yaml").is_file():
        raise UserError(f"{name} is a run in {config.base_dir}, not {config.checkpoint}: give name=... for its results")
    return name


def longest(weights: Weights, wanted: int) -> int:
    """How many tokens of a text of ``wanted`` the model takes."""
    with torch.device("meta"):
        model = weights.arch.build(weights.vocab_size, length_for(weights, wanted), labels=2)
    return min(wanted, int(model.max_positions))  # type: ignore[arg-type]
