"""The folder of a run: one process at a time, one configuration for its whole life; and finding runs by name."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from cramming import checkpoint
from cramming.checkpoint import Checkpoint
from cramming.cli import stored_config
from cramming.config import PretrainConfig, check_name, typed
from cramming.durable import write_atomically
from cramming.errors import UserError

# May differ when a run is started again: where and how much of it is done, and what is only looked at.
_MAY_DIFFER = (
    "base_dir", "data_dir", "resume", "from_run", "stop_at", "wandb", "data.path",
    "data.remote", "data.cache_dir", "data.cache_limit", "data.fetch_ahead", "data.fetch_threads",
    "impl", "rst.refresh", "rst.within_s",
)  # fmt: skip
# What data.path and data.remote are to the sources of a mixture and to streams.
_PLACE_OF_A_SOURCE = re.compile(r"data(\.sources\.[^.]+)+\.path|data\.streams\.[^.]+\.remote")
_BEGUN = "metrics.jsonl"  # opened when training begins
_MADE_BY_A_RUN = (
    "config.yaml", "resolved.json", "rst.json", "init.json", "metrics.jsonl", "summary.json", "curves.png",
    "validation.json", "probes.json", "probes-last.json",
)  # fmt: skip
BUSY = "another process is working on"
_OTHER_TABLES = "rst-*.json"  # prices of models a run asks beside its own


class BusyError(UserError):
    """Another process trains this run."""


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Make the folder and keep every other process out of it.

    Raises:
        BusyError: another process trains this run.
        UserError: the folder cannot be made, or not be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run's folder {run_dir}: {error.strerror}") from error
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"{BUSY} {run_dir}; wait for it to end, or choose another name") from None
    except OSError as error:
        raise UserError(
            f"the run's folder {run_dir} cannot be written ({error.strerror or error}): set base_dir to another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def start_over(run_dir: Path) -> None:
    """Remove what a run made there before (``resume=false``)."""
    for name in ("checkpoints", "eval", "profile"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    for name in (*_MADE_BY_A_RUN, *(table.name for table in run_dir.glob(_OTHER_TABLES))):
        (run_dir / name).unlink(missing_ok=True)


def remember(config: PretrainConfig, run_dir: Path) -> None:
    """Write ``config.yaml``, or check that it says what is asked for now.

    A run that was refused before it began to train leaves its name free: the corrected command takes it.

    Raises:
        UserError: this name was trained with another configuration; the difference is shown.
    """
    check_same(config, run_dir)
    file = run_dir / "config.yaml"
    if not (run_dir / _BEGUN).exists():
        start_over(run_dir)
    if not file.exists():
        write_atomically(file, OmegaConf.to_yaml(OmegaConf.create(asdict(config))).encode())


def check_same(config: PretrainConfig, run_dir: Path) -> None:
    """Refuse another configuration for a run that has begun to train.

    Raises:
        UserError: the difference is shown.
    """
    if not ((run_dir / _BEGUN).exists() and (run_dir / "config.yaml").exists()):
        return
    refuse_another(config, stored_config(run_dir.parent, run_dir.name), run_dir.name)


def refuse_another(config: PretrainConfig, stored: DictConfig, title: str) -> None:
    """Refuse a configuration that is not a run's own.

    Raises:
        UserError: the difference is shown.
    """
    # Typed, so that options which are newer than the run have the defaults it was trained with.
    differing = differences(asdict(typed(stored)), asdict(config))
    if differing:
        raise UserError(
            f"{title} was started with other options: "
            + "; ".join(f"{key} was {old}, now {new}" for key, old, new in differing)
            + ". Choose another name, or start over with resume=false"
        )


def differences(stored: Any, asked: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two configurations differ in anything that can change a result: (key, stored, asked)."""
    if path in _MAY_DIFFER or _PLACE_OF_A_SOURCE.fullmatch(path) or stored == asked:
        return []
    if not (isinstance(stored, dict) and isinstance(asked, dict)):
        return [(path, stored, asked)]
    found = []
    for key in sorted({*stored, *asked}):
        inner = f"{path}.{key}" if path else str(key)
        found += differences(stored.get(key), asked.get(key), inner)
    return found


@dataclass(frozen=True)
class Found:
    """A trained run and one of its checkpoints."""

    name: str
    run_dir: Path
    config: PretrainConfig
    checkpoint: Checkpoint

    def __str__(self) -> str:
        age_s = time.time() - os.path.getmtime(self.checkpoint.folder / "manifest.json")
        amount, unit = next(
            ((age_s // size, unit) for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")) if age_s >= size),
            (age_s // 1, "second"),
        )
        return f"run {self.name}, step {self.checkpoint.step}, saved {amount:.0f} {unit}{'s' * (amount != 1)} ago"


def find(base_dir: str, name: str | None, which: str | None = None) -> Found:
    """A run by name, or the one trained last under ``base_dir``.

    Args:
        base_dir: where runs live.
        name: the run's name; None: the one whose newest checkpoint is the newest.
        which: ``<run>@last``, ``<run>@step=4000``, ``<run>@12h``, or ``<run>`` for its last; instead of ``name``.

    Raises:
        UserError: there is no such run or checkpoint; those that exist are named.
    """
    at = "last"
    if which is not None:
        run_name, _, at = which.partition("@")
        name, at = run_name or name, at or "last"
    root = Path(base_dir)
    newest: dict[str, float] = {}
    for file in root.glob("*/checkpoints/step=*/manifest.json"):
        run = file.parents[2].name
        newest[run] = max(newest.get(run, 0.0), os.path.getmtime(file))
    if name is None:
        if not newest:
            raise UserError(
                f"there is no trained run in {base_dir}; train one with pretrain_bert.py, or give base_dir=..."
            )
        name = max(newest, key=lambda run: newest[run])
    check_name(name)
    run_dir = root / name
    config = typed(stored_config(root, name))
    return Found(name, run_dir, config, checkpoint.select(run_dir / "checkpoints", at))
