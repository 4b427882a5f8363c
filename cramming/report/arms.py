"""What an arm of a study is: runs that differ in their seed alone.

By default everything that differs between comparable runs tells arms apart, and the fewest options that do so name
them: the method, then architecture, optimizer and schedule by name, then single options.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cramming.errors import UserError
from cramming.report.runs import Run
from cramming.suggest import nearest

ABSENT = "-"  # the value of an option that a run does not have, such as another method's
# Where a run lives and how it is computed names no arm; budget, clock and precision decide what is comparable at all.
_NO_ARM = re.compile(
    r"(name|seed|base_dir|data_dir|resume|from_run|stop_at|budget|data(\.sources\.[^.]+)*\.path)|(wandb|impl|rst)\..*"
)


def _methods(config: Mapping[str, Any]) -> str:
    return "+".join(config.get("method") or {}) or "none"


def _optimizer(config: Mapping[str, Any]) -> str:
    node = config["train"].get("optim") or {}
    kind = str(node.get("kind"))
    return f"{kind}:{node['name']}" if node.get("name") not in (None, kind) else kind


# Choices by name, in the order in which they name an arm. Options inside a choice tell apart runs of that choice only.
CHOICES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "method": _methods,
    "arch": lambda config: str(config["arch"].get("name")),
    "train.optim": _optimizer,
    "train.schedule": lambda config: str((config["train"].get("schedule") or {}).get("kind")),
    "data": lambda config: str(config["data"].get("name")),
}


@dataclass(frozen=True)
class Arm:
    """Runs of one setting.

    Attributes:
        label: what tells it from the other arms.
        values: every option in which arms differ -> its value here.
        by_seed: seed -> runs; more than one only where a run was repeated, or ``by`` leaves out what differs.
    """

    label: str
    values: Mapping[str, str]
    by_seed: Mapping[int, Sequence[Run]]

    @property
    def runs(self) -> list[Run]:
        """All runs, by seed."""
        return [run for seed in sorted(self.by_seed) for run in self.by_seed[seed]]


@dataclass(frozen=True)
class Naming:
    """How runs of one study become arms.

    Attributes:
        keys: the options that name an arm; the method where all are alike.
        also: options that differ between arms beside those that name them: what else a difference may come from.
        usual: choices that go without saying, such as the optimizer that most arms have.
    """

    keys: Sequence[str]
    also: Sequence[str]
    usual: Mapping[str, str] = field(default_factory=dict)

    def values(self, run: Run) -> tuple[str, ...]:
        """The values that name the arm of a run."""
        found = options(run)
        return tuple(found.get(key, ABSENT) for key in self.keys)

    def label(self, run: Run) -> str:
        """The name of a run's arm: ``layer_stacking``, or ``selective_backprop, lion, beta=2``."""
        return self.spelled(self.values(run))

    def spelled(self, values: Sequence[str]) -> str:
        """The name for the values of ``keys``."""
        present = [(key, value) for key, value in zip(self.keys, values, strict=True) if value != ABSENT]
        told = [(key, value) for key, value in present if self.usual.get(key) != value]
        if len(told) > 1 and ("method", "none") in told:
            told.remove(("method", "none"))
        return ", ".join(_word(key, value, self.keys) for key, value in told or present)


def naming(runs: Sequence[Run], by: Sequence[str] | None = None) -> Naming:
    """What names the arms of runs that could be compared but for their budget.

    Args:
        runs: finished and unfinished ones.
        by: options that name an arm; None: all in which runs differ.

    Raises:
        UserError: an option that no run has.
    """
    found = [options(run) for run in runs]
    if by is not None:
        known = {key for run in found for key in run}
        by = [_stored(key) for key in by]
        for key in by:
            if key not in known:
                raise UserError(f"by={key} is no option of these runs{nearest(key, known)}")
        return _shortest(Naming(tuple(by), ()), found)
    varying = [key for key in _ordered({key for run in found for key in run})
               if len({run.get(key, ABSENT) for run in found}) > 1]  # fmt: skip
    keys: list[str] = []
    for key in varying:
        if len({_tuple(run, [*keys, key]) for run in found}) > len({_tuple(run, keys) for run in found}):
            keys.append(key)
    keys = keys or ["method"]
    also = [key for key in varying if key not in keys and not _inside_a_choice(key, found)]
    return _shortest(Naming(tuple(keys), tuple(also)), found)


def arms_of(runs: Sequence[Run], name: Naming) -> list[Arm]:
    """The arms of comparable runs, in the order of their labels."""
    places: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        places.setdefault(name.values(run), []).append(run)
    arms = []
    for members in places.values():
        by_seed: dict[int, list[Run]] = {}
        for run in members:
            by_seed.setdefault(run.seed, []).append(run)
        first = options(members[0])
        values = {key: first.get(key, ABSENT) for key in (*name.keys, *name.also)}
        arms.append(Arm(name.label(members[0]), values, dict(sorted(by_seed.items()))))
    return sorted(arms, key=lambda arm: arm.label)


def baseline_of(arms: Sequence[Arm], wanted: Sequence[str]) -> tuple[Arm | None, list[Arm]]:
    """The arm the others are compared with, and all arms that were meant by ``wanted``.

    Of several, the one whose options are the most usual among the arms, then the one with the most seeds.

    Args:
        arms: comparable ones.
        wanted: a method's name, or ``key=value``; all must hold. Empty: none is wanted.
    """
    if not wanted:
        return None, []
    meant = [arm for arm in arms if all(_matches(arm, word) for word in wanted)]
    usual = Counter((key, value) for arm in arms for key, value in arm.values.items())

    def rank(arm: Arm) -> tuple[int, int]:
        return sum(usual[item] for item in arm.values.items()), len(arm.by_seed)

    return (max(meant, key=rank) if meant else None), meant


def options(run: Run) -> dict[str, str]:
    """Every option that could name an arm -> its value in words; choices by their names."""
    found = {key: choice(run.config) for key, choice in CHOICES.items()}
    found |= {key: value for key, value in _flat(run.config) if not _NO_ARM.fullmatch(key)}
    return found


def _matches(arm: Arm, word: str) -> bool:
    if word == arm.label:
        return True
    key, value = word.split("=", 1) if "=" in word else ("method", word)
    return options(arm.runs[0]).get(_stored(key), ABSENT) == value


def _stored(key: str) -> str:
    """An option's name in a stored configuration: groups are spelled ``train/optim`` on the command line."""
    return key.replace("/", ".")


def _flat(node: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(node, dict) and node:
        return [pair for key, inner in node.items() for pair in _flat(inner, f"{path}.{key}" if path else str(key))]
    if isinstance(node, dict):
        return []
    if isinstance(node, float):
        return [(path, f"{node:.6g}")]
    if isinstance(node, list):
        return [(path, f"[{','.join(map(str, node))}]")]
    return [(path, node if isinstance(node, str) else json.dumps(node))]


def _ordered(keys: set[str]) -> list[str]:
    """Choices first, then their options, then the rest; inside each as spelled."""
    names = list(CHOICES)

    def place(key: str) -> tuple[int, int, str]:
        if key in names:
            return 0, names.index(key), key
        owner = next((i for i, name in enumerate(names) if key.startswith(f"{name}.")), len(names))
        return 1, owner, key

    return sorted(keys, key=place)


def _shortest(name: Naming, found: Sequence[Mapping[str, str]]) -> Naming:
    """The naming without the choices that most arms share, if arms can still be told apart by it."""
    arms = {_tuple(run, name.keys) for run in found}
    usual = {}
    for place, key in enumerate(name.keys):
        counts = Counter(values[place] for values in arms).most_common(2)
        if key in CHOICES and key != "method" and len(counts) > 1 and counts[0][1] > counts[1][1]:
            usual[key] = counts[0][0]
    shorter = replace(name, usual=usual)
    return shorter if len({shorter.spelled(values) for values in arms}) == len(arms) else name


def _tuple(run: Mapping[str, str], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(run.get(key, ABSENT) for key in keys)


def _inside_a_choice(key: str, found: Sequence[Mapping[str, str]]) -> bool:
    """Whether an option differs only because something else was chosen: within each choice it has one value."""
    owner = next((name for name in CHOICES if key.startswith(f"{name}.")), None)
    if owner is None:
        return False
    values: dict[str, set[str]] = {}
    for run in found:
        values.setdefault(run[owner], set()).add(run.get(key, ABSENT))
    return all(len(seen) == 1 for seen in values.values())


def _word(key: str, value: str, keys: Sequence[str]) -> str:
    if key in CHOICES:
        return value
    last = key.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == last for other in keys) == 1
    return f"{last if alone else key}={value}"
