"""What a probe answers: a score, what chance gives, and an interval; and how answers are kept beside a run.

Intervals are of 95 %, over the examples asked about. They say nothing about another seed of pretraining.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cramming.data.lock import locked
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.recording.strict_json import dumps

FILE = "probes.json"  # in a run's folder
LAST_FILE = "probes-last.json"  # with the weights last trained, where the run's method lends others
_Z = 1.959963984540054  # the standard normal distribution has 97.5 % below it

Interval = tuple[float, float]


@dataclass(frozen=True)
class Result:
    """One probe's answer.

    Attributes:
        probe: its name.
        of: what it was asked on: a task, a file, or what comes with the probe.
        metric: what the score is.
        score: fractions, correlations from -1 to 1; None: undefined, such as the correlation of a constant.
        chance: the same metric of a model that knows nothing; None where there is no such thing.
        interval: of the score, 95 %.
        examples: it was judged on.
        also: further numbers by name.
        parts: by band, phenomenon and so on, numbers by name.
        setting: the options that can change it.
        remarks: what was left out or decided, for a person.
    """

    probe: str
    of: str
    metric: str
    score: float | None
    chance: float | None
    interval: Interval | None
    examples: int
    also: Mapping[str, float | None] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    setting: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What it is called among others: two tasks of one probe are two curves."""
        return f"{self.probe}/{self.of}"

    @property
    def shown(self) -> str:
        """Score and chance for a line of a log."""
        score = "undefined" if self.score is None else f"{self.score:.3f}"
        return score if self.chance is None else f"{score} (chance {self.chance:.3f})"


def keep(file: Path, step: int, results: Sequence[Result]) -> None:
    """Add results to ``{"steps": {step: {label: result}}}``; one of the same step and label takes the old one's place.

    Raises:
        UserError: what is there is no such file, or the disk is full.
    """
    with locked(file):
        kept = read(file)
        answers = kept.setdefault(str(step), {})
        answers |= {result.label: asdict(result) for result in results}
        steps = {key: kept[key] for key in sorted(kept, key=int)}
        write_atomically(file, (dumps({"steps": steps}, indent=2) + "\n").encode())


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The results that ``keep`` wrote, by step and label; none where there is no file.

    Raises:
        UserError: it is no such file.
    """
    if not file.exists():
        return {}
    try:
        steps = json.loads(file.read_text(encoding="utf-8"))["steps"]
        return {str(int(step)): dict(answers) for step, answers in steps.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): move it away, and probes begin a new one") from error


def of_share(right: float, total: float) -> Interval | None:
    """Interval of a share of ``total`` independent examples (Wilson, 1927); None without any."""
    if not total:
        return None
    share = right / total
    centre = share + _Z**2 / (2 * total)
    half = _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    scale = 1 + _Z**2 / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def of_mean(values: NDArray[np.float64]) -> Interval | None:
    """Interval of the mean of independent values from 0 to 1, (N,), by its standard error; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, half = float(values.mean()), _Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return max(0.0, mean - half), min(1.0, mean + half)


def of_clustered_share(right: NDArray[np.float64], examples: NDArray[np.float64]) -> Interval | None:
    """Interval of a share where only groups of examples are independent: of each, (N,), how many are right, and all.

    Wilson's, of as many independent examples as would vary as much as the groups do; the variance of a ratio is by
    linearisation (Cochran, "Sampling Techniques", 1977, sections 2.11 and 3.12). None for fewer than two groups.
    """
    used = examples > 0
    right, examples = right[used], examples[used]
    groups, total = len(examples), float(examples.sum())
    if groups < 2:
        return None
    share = float(right.sum()) / total
    variance = groups / (groups - 1) * float(((right - share * examples) ** 2).sum()) / total**2
    independent = share * (1 - share) / variance if 0 < share < 1 and variance > 0 else total
    effective = min(total, independent)
    return of_share(share * effective, effective)


def of_correlation(value: float | None, pairs: int, *, ranks: bool) -> Interval | None:
    """Interval of a correlation by Fisher's transformation; None where it is undefined or of fewer than four pairs.

    Args:
        value: the correlation.
        pairs: it is of.
        ranks: Spearman's, whose variance is (1 + r^2 / 2) / (N - 3) (Bonett & Wright, 2000); else Pearson's.
    """
    if value is None or pairs < 4:
        return None
    if abs(value) >= 1:
        return value, value
    half = _Z * math.sqrt((1 + value**2 / 2 if ranks else 1.0) / (pairs - 3))
    return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)
