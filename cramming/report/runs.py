"""Run folders as the report sees them: finished, unfinished, or damaged and named."""

import glob
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cramming.config import parse_budget
from cramming.errors import UserError
from cramming.recording import metrics
from cramming.report.scores import Scores, files_of, read_scores
from cramming.text import Unit

_NUMBERS = ("steps", "budget_s", "spent_s")  # that a summary must have


class DamagedRunError(ValueError):
    """A run's folder that cannot be used, with the reason in words."""


@dataclass(frozen=True)
class Run:
    """What one run's folder says.

    Attributes:
        path: the folder.
        config: ``config.yaml`` as plain values.
        summary: ``summary.json``; empty while there is none.
        rows: the lines of ``metrics.jsonl``.
        table: ``rst.json``, the cost table it was priced with; empty where a rule prices it.
        manifest: what its newest checkpoint says about it; empty where there is none.
        scores: of fine-tuning.
        unfinished: why it is not at the end it was asked for; None: it is.
        devices: it computed on, their mean over the budget where it went on with others; 1 where that is not recorded.

    Seconds of budget, here and in ``summary`` and ``rows``, are those of all devices together: runs on one device and
    on many are compared at equal device-hours. Steps are steps on any number of devices.
    """

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    table: Mapping[str, Any]
    manifest: Mapping[str, Any]
    scores: Sequence[Scores]
    unfinished: str | None
    devices: float = 1

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def seed(self) -> int:
        """Of weights, order and masks."""
        return int(self.config["seed"])

    @property
    def unit(self) -> Unit:
        """What the budget counts."""
        return "steps" if self.config["rst"]["kind"] == "steps" else "s"

    @property
    def budget_s(self) -> float:
        """The whole budget, in steps or seconds of all devices."""
        if "budget_s" in self.summary:
            return float(self.summary["budget_s"])
        steps = self.unit == "steps"
        return parse_budget(self.config["budget"], "budget", 1 if steps else 3600) * (1 if steps else self.devices)

    @property
    def stop_at(self) -> str | None:
        """The earlier end it was asked for and reached, in words."""
        reason = str(self.summary.get("end_reason", ""))
        return reason.removesuffix(" reached") if reason.startswith("stop_at=") and not self._spent_all else None

    @property
    def stop_at_s(self) -> float | None:
        """The same in the clock's unit, of each device."""
        words = (self.stop_at or "").removeprefix("stop_at=")
        return parse_budget(words, "stop_at", 1 if self.unit == "steps" else 3600) if words else None

    @property
    def spent_s(self) -> float:
        """Budget spent so far."""
        if self.unfinished is None:
            return float(self.summary["spent_s"])
        return max((float(row["spent_s"]) for row in self.rows if row.get("spent_s") is not None), default=0.0)

    @property
    def ledger(self) -> Mapping[str, float]:
        """Budget by account, free accounts too."""
        return self.summary.get("ledger") or {}

    @property
    def free(self) -> frozenset[str]:
        """Accounts that were written down and not paid."""
        return frozenset(self.summary.get("free") or ())

    @property
    def device_hours(self) -> float | None:
        """Of all devices together, spent so far; None where the clock counts steps."""
        return None if self.unit == "steps" else self.spent_s / 3600

    @property
    def _spent_all(self) -> bool:
        return float(self.summary["spent_s"]) >= float(self.summary["budget_s"]) * (1 - 1e-9)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with scores and no training to go with them: an imported checkpoint's, or one from elsewhere."""

    path: Path
    scores: Sequence[Scores]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


@dataclass(frozen=True)
class Reading:
    """What was found: runs, checkpoints that are none, and (folder, reason) of everything that cannot be used."""

    runs: list[Run]
    damaged: list[tuple[Path, str]]
    checkpoints: list[Checkpoint] = field(default_factory=list)


def read_all(words: Sequence[str]) -> Reading:
    """Every run that folders and globs name, once, in order.

    Args:
        words: folders, or globs that the shell did not expand.

    Raises:
        UserError: a word that names nothing, or nothing that is a folder.
    """
    if not words:
        raise UserError("name the runs: python report.py outputs/study-* out=report.html")
    runs, damaged, checkpoints = [], [], []
    for folder in _folders(words):
        if not any((folder / name).exists() for name in ("metrics.jsonl", "summary.json")) and files_of(folder):
            scores, problems = read_scores(folder)
            checkpoints += [Checkpoint(folder, scores)] if scores else []
            damaged += [(folder, problem) for problem in problems]
            continue
        try:
            run, problems = read(folder)
        except DamagedRunError as problem:
            damaged.append((folder, str(problem)))
            continue
        runs.append(run)
        damaged += [(folder, problem) for problem in problems]
    return Reading(runs, damaged, checkpoints)


def read(folder: Path) -> tuple[Run, list[str]]:
    """One run, and what is damaged of its scores.

    Raises:
        DamagedRunError: it cannot be used at all.
    """
    config = _config(folder)
    if not (folder / "metrics.jsonl").exists():
        raise DamagedRunError("it has no metrics.jsonl: it has not begun to train")
    rows = metrics.read(folder / "metrics.jsonl")
    lost = (folder / "metrics.jsonl").read_bytes().count(b"\n") - len(rows)
    if lost:
        raise DamagedRunError(f"metrics.jsonl has {lost} line{'s' * (lost != 1)} that cannot be read")
    summary = _summary(folder)
    scores, problems = read_scores(folder)
    manifests = sorted(folder.glob("checkpoints/step=*/manifest.json"), key=lambda file: len(file.parent.name))
    unfinished = _unfinished(summary, rows)
    manifest = _object(manifests[-1]) if manifests else {}
    try:
        devices = _devices(summary or manifest)
        if config["rst"]["kind"] != "steps":
            summary, rows = _of_all(devices, summary), [_of_all(devices, row) for row in rows]
        run = Run(folder, config, summary, rows, _object(folder / "rst.json"), manifest, scores, unfinished, devices)
        _ = run.seed, run.budget_s
    except (UserError, ValueError, TypeError, KeyError) as error:
        raise DamagedRunError(f"config.yaml is not as a run writes it: {error}") from error
    return run, problems


def _folders(words: Sequence[str]) -> list[Path]:
    found: dict[Path, Path] = {}
    for word in words:
        paths = [Path(word)] if Path(word).exists() else [Path(path) for path in sorted(glob.glob(word))]
        if not paths:
            raise UserError(f"{word} names no folder; give folders of runs, such as outputs/study-*")
        for path in paths:
            # What runs share (_data, _rst), and files such as a report, match globs like outputs/* too.
            if path.is_dir() and not path.name.startswith(("_", ".")):
                found.setdefault(path.resolve(), path)
    if not found:
        raise UserError(f"{' '.join(words)}: no run's folder is among these; give folders such as outputs/study-*")
    return list(found.values())


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    if not file.is_file():
        inside = len(list(folder.glob("*/config.yaml")))
        hint = f"; it holds {inside} runs: give {folder}/*" if inside else ""
        raise DamagedRunError(f"it has no config.yaml{hint}")
    try:
        config = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise DamagedRunError(f"config.yaml cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise DamagedRunError("config.yaml is not as a run writes it")
    for key in ("arch", "data", "train", "impl", "rst"):
        if not isinstance(config.get(key), dict):
            raise DamagedRunError(f"config.yaml has no {key}: it is not a pretraining run's")
    return {str(key): value for key, value in config.items()}


def _summary(folder: Path) -> dict[str, Any]:
    file = folder / "summary.json"
    if not file.exists():
        return {}
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedRunError(f"summary.json cannot be read: {error}") from error
    if not isinstance(summary, dict):
        raise DamagedRunError("summary.json is not an object")
    for key in _NUMBERS:
        value = summary.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DamagedRunError(f"summary.json says {key}={value!r}")
    ledger = summary.get("ledger")
    if not isinstance(ledger, dict) or not all(isinstance(value, int | float) for value in ledger.values()):
        raise DamagedRunError("summary.json has no ledger")
    return summary


def _unfinished(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str | None:
    last = max((int(row.get("step") or 0) for row in rows), default=0)
    progress = max((float(row.get("progress") or 0.0) for row in rows), default=0.0)
    if not summary:
        return f"no summary yet: running or stopped, at step {last:,}, {progress:.0%} of its budget"
    if last > summary["steps"]:
        return f"it goes on beyond an earlier end: at step {last:,}, {progress:.0%} of its budget"
    if last < summary["steps"]:
        raise DamagedRunError(f"metrics.jsonl ends at step {last}, summary.json at step {summary['steps']}")
    reason = str(summary.get("end_reason") or "no reason given")
    spent_all = summary["spent_s"] >= summary["budget_s"] * (1 - 1e-9)
    if spent_all or reason.startswith("stop_at="):
        return None
    return f"it ended at {summary['spent_s'] / summary['budget_s']:.0%} of its budget: {reason}"


def _devices(said: Mapping[str, Any]) -> float:
    """Devices of a run, by its summary or a checkpoint; 1 where they are older than several devices are."""
    hours, spent_s = said.get("device_hours"), said.get("spent_s")
    if hours and spent_s:
        return round(3600 * float(hours) / float(spent_s), 6)
    return float(said.get("ranks") or 1)


def _of_all(devices: float, said: Mapping[str, Any]) -> dict[str, Any]:
    """A summary or a row whose seconds of budget are those of all devices."""
    found = dict(said)
    for key in ("budget_s", "spent_s"):
        if found.get(key) is not None:
            found[key] *= devices
    if "ledger" in found:
        found["ledger"] = {account: devices * value for account, value in found["ledger"].items()}
    return found


def _object(file: Path) -> dict[str, Any]:
    """A JSON object that is only looked at; empty where there is none or it cannot be read."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
