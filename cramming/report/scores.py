"""Scores of fine-tuning: ``<run>/eval/<suite>/scores.json``.

{"suite": "glue", "rule": "final, mean of the tasks", "average": 78.1, "tasks": {"CoLA": {"matthews": 51.0}, ...}}
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Scores:
    """What a run scored in one suite.

    Attributes:
        suite: its name.
        rule: how the average is made; averages by different rules are different outcomes.
        average: the suite's average; None where there is none.
        tasks: task -> metric -> value.
    """

    suite: str
    rule: str
    average: float | None
    tasks: dict[str, dict[str, float]]


def read_scores(run_dir: Path) -> tuple[list[Scores], list[str]]:
    """All scores of a run, and a line for each file that cannot be used."""
    found, problems = [], []
    for file in sorted(run_dir.glob("eval/*/scores.json")):
        try:
            found.append(_parsed(json.loads(file.read_text(encoding="utf-8")), file.parent.name))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            problems.append(f"{file.relative_to(run_dir)} cannot be used: {error}")
    return found, problems


def _parsed(document: Any, folder: str) -> Scores:
    if not isinstance(document, dict) or not isinstance(document.get("tasks", {}), dict):
        raise ValueError("it is not an object with tasks")
    tasks = {
        str(task): {str(metric): float(value) for metric, value in metrics.items() if _number(value)}
        for task, metrics in document.get("tasks", {}).items()
    }
    average = document.get("average")
    if average is not None and not _number(average):
        raise ValueError(f"its average is {average!r}")
    return Scores(
        suite=str(document.get("suite") or folder),
        rule=str(document.get("rule") or "not named"),
        average=None if average is None else float(average),
        tasks={task: metrics for task, metrics in tasks.items() if metrics},
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
