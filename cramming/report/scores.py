"""Scores of fine-tuning: ``<run>/eval/<suite>/results.json``, as ``cramming.evaluation.results`` writes it.

Here they are in percent. A run has one pretraining seed and was fine-tuned with several: its score is the mean over
those. A score that is undefined (a correlation with something constant) counts as 0.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PERCENT = 100.0


@dataclass(frozen=True)
class Score:
    """One outcome of one model; ``by_seed`` are the seeds of fine-tuning, empty where they are not known."""

    value: float
    by_seed: Mapping[int, float]


@dataclass(frozen=True)
class Scores:
    """What a model scored in one suite.

    Attributes:
        suite: its title.
        name: of its configuration.
        variant: what of the run was fine-tuned, where it is not what it ended with: ``untrained``, ``@12h``.
        rule: how the average is made; averages by different rules are different outcomes.
        average: None where there is none.
        tasks: task -> outcome (``accuracy``, ``accuracy@mismatched``) -> score.
        headlines: task -> the outcome it is known by.
        baselines: task -> name (``majority``, ``length``) -> outcome -> score.
        settings: task -> how it was fine-tuned, in words.
        failed: a line for each job that gave no result.
    """

    suite: str
    name: str
    variant: str
    rule: str
    average: Score | None
    tasks: Mapping[str, Mapping[str, Score]]
    headlines: Mapping[str, str]
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]]
    settings: Mapping[str, str]
    failed: Sequence[str]

    @property
    def key(self) -> str:
        """Equal where scores are outcomes of one suite."""
        return f"{self.name}/{self.rule}"


def files_of(run_dir: Path) -> list[Path]:
    """The results of every suite."""
    return sorted(run_dir.glob("eval/*/results.json"))


def read_scores(run_dir: Path) -> tuple[list[Scores], list[str]]:
    """All scores of a run, and a line for each file that cannot be used."""
    found, problems = [], []
    for file in files_of(run_dir):
        try:
            found.append(_parsed(json.loads(file.read_text(encoding="utf-8")), file.parent.name))
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            problems.append(f"{file.relative_to(run_dir)} cannot be used: {said}")
    return found, problems


def _parsed(document: Any, folder: str) -> Scores:
    if not isinstance(document, dict) or not isinstance(document.get("tasks"), dict):
        raise ValueError("it is not an object with tasks")
    details: dict[str, Any] = document.get("details") or {}
    seeds = {str(task): [int(seed) for seed in said.get("seeds") or ()] for task, said in details.items()}
    tasks = {
        str(task): {str(outcome): _score(said, seeds.get(task, ())) for outcome, said in outcomes.items()}
        for task, outcomes in document["tasks"].items()
    }
    name = str(document.get("name") or folder)
    return Scores(
        suite=str(document.get("suite") or name),
        name=name,
        variant=folder.removeprefix(name).removeprefix("-") if folder != name else "",
        rule=str(document.get("average_rule") or "not named"),
        average=_average(document, seeds),
        tasks={task: outcomes for task, outcomes in tasks.items() if outcomes},
        headlines={task: _headline(details.get(task), outcomes) for task, outcomes in tasks.items() if outcomes},
        baselines={
            str(task): {str(name): _numbers(scores) for name, scores in (said.get("baselines") or {}).items()}
            for task, said in details.items()
        },
        settings={
            str(task): json.dumps({**said["setting"], "seeds": None}, sort_keys=True)
            for task, said in details.items()
            if said.get("setting") and not said.get("selection")
        },
        failed=[f"{job['task']}, seed {job['seed']}: {job['reason']}" for job in document.get("failed") or ()],
    )


def _score(said: Mapping[str, Any], seeds: Sequence[int]) -> Score:
    values = [_percent(value) for value in said.get("seeds") or ()]
    known = seeds if len(seeds) == len(values) else range(len(values))
    return Score(_percent(said["mean"]), dict(zip(known, values, strict=True)))


def _average(document: Mapping[str, Any], seeds: Mapping[str, Sequence[int]]) -> Score | None:
    if document.get("average") is None:
        return None
    values = [_percent(value) for value in document.get("average_seeds") or ()]
    first = str(next(iter(document.get("average_of") or ()), "")).partition("@")[0].rpartition(".")[0]
    known = seeds.get(first, ())
    numbers = known if len(known) == len(values) else range(len(values))
    return Score(_percent(document["average"]), dict(zip(numbers, values, strict=True)))


def _headline(said: Mapping[str, Any] | None, outcomes: Mapping[str, Any]) -> str:
    named = str((said or {}).get("headline"))
    return named if named in outcomes else next(iter(outcomes))


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    return {str(outcome): _percent(value) for outcome, value in scores.items()}


def _percent(value: Any) -> float:
    """A fraction as percent; None is 0.

    Raises:
        ValueError: it is no number.
    """
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no score")
    return _PERCENT * value
