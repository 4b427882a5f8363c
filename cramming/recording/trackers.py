"""Optional trackers behind one small interface: Weights & Biases and TensorBoard. Both are off by default.

A tracker is a convenience: ``metrics.jsonl`` has everything, so one that breaks in the middle of a run is dropped with
a warning and the run goes on.
"""

import logging
import math
import os
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.recording.config import WandbConfig
from cramming.recording.strict_json import strict

if TYPE_CHECKING:
    import wandb
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

INIT_TIMEOUT_S = 20.0
FINISH_TIMEOUT_S = 300.0


class Tracker(Protocol):
    """Receives what a run logs."""

    def log(self, row: Mapping[str, Any]) -> None:
        """One row of ``metrics.jsonl``; ``row["step"]`` says where it belongs."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """The run is over; ``None`` if it ended without a summary. Nothing may be logged after it."""


def build_trackers(
    wandb_config: WandbConfig, tensorboard: bool, run_dir: Path, run_name: str, run_config: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers asked for; none by default, and then nothing is imported.

    Args:
        wandb_config: options of W&B; ``WANDB_MODE=offline`` or ``disabled`` in the environment holds online back.
        tensorboard: whether to write TensorBoard's event files.
        run_dir: the run's folder; all files go to ``wandb/`` and ``tensorboard/`` in it.
        run_name: what W&B shows.
        run_config: the whole configuration, plain values.

    Raises:
        UserError: a tracker whose package is not installed.
    """
    trackers: list[Tracker] = []
    mode = _mode(wandb_config)
    if mode != "disabled":
        _require("wandb", "wandb=default", "wandb=none")
        trackers.append(_Guarded(WandbTracker(wandb_config, mode, run_dir, run_name, run_config), "W&B"))
    if tensorboard:
        _require("tensorboard", "tensorboard", "impl.tensorboard=false")
        trackers.append(_Guarded(TensorBoardTracker(run_dir / "tensorboard"), "TensorBoard"))
    return trackers


def _mode(config: WandbConfig) -> str:
    allowed = os.environ.get("WANDB_MODE", "")
    return allowed if config.mode == "online" and allowed in ("offline", "disabled") else config.mode


def _require(package: str, asked: str, without: str) -> None:
    if find_spec(package) is None:
        raise UserError(f"{asked} needs the package {package}: pip install {package}, or go without it: {without}")


class WandbTracker:
    """A W&B run that lives as long as ours: its id is kept in ``wandb/run_id`` and used again on resume.

    Without a key, or when the server does not answer in ``INIT_TIMEOUT_S``, it records offline and says so once.
    """

    def __init__(
        self, config: WandbConfig, mode: str, run_dir: Path, run_name: str, run_config: Mapping[str, Any]
    ) -> None:
        folder = run_dir / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        # Its service process writes logs and caches below the home folder unless told otherwise before it starts.
        wanted = {
            "WANDB_CACHE_DIR": str(folder / "cache"),
            "WANDB_DATA_DIR": str(folder / "cache"),
            "WANDB_SILENT": "true",
        }
        self._environment = {key: value for key, value in wanted.items() if key not in os.environ}
        os.environ.update(self._environment)
        import wandb

        def start(mode: str) -> "wandb.Run":
            # Our panel owns the terminal, and W&B must neither capture it nor write on it.
            settings = wandb.Settings(silent=True, console="off", finish_timeout=FINISH_TIMEOUT_S)
            if mode == "online":
                settings.init_timeout = INIT_TIMEOUT_S
            return wandb.init(
                id=_run_id(folder / "run_id"),
                resume="allow",
                mode=mode,  # type: ignore[arg-type]  # checked by the config
                project=config.project,
                entity=config.entity,
                group=config.group,
                tags=list(config.tags),
                name=run_name,
                config=strict(run_config),
                dir=run_dir,
                settings=settings,
            )

        reason = _why_offline() if mode == "online" else None
        if mode == "online" and reason is None:
            try:
                self._run = start("online")
            except wandb.Error as error:
                wandb.teardown()
                unreachable = isinstance(error, wandb.errors.CommError)
                reason = "the server does not answer" if unreachable else str(error).split("\n", maxsplit=1)[0]
        if mode == "offline" or reason is not None:
            self._run = start("offline")
        if reason is not None:
            logger.warning("W&B: %s; recording offline, upload later with: wandb sync %s/offline-run-*", reason, folder)
        elif mode == "online":
            logger.info("W&B: %s", self._run.url)
        self._first_new_step = self._run.step

    def log(self, row: Mapping[str, Any]) -> None:
        """Steps the server has already, from before a kill, are left out: they are the same to the last bit."""
        if row["step"] >= self._first_new_step:
            self._run.log(strict(row), step=row["step"])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Upload what is left. Without a summary W&B shows the run as failed."""
        import wandb

        if summary is not None:
            self._run.summary.update(strict(summary))
        self._run.finish(exit_code=0 if summary is not None else 1)
        wandb.teardown()  # ends the service process, so the next run of this process keeps its files to itself
        for key in self._environment:
            os.environ.pop(key, None)


def _run_id(path: Path) -> str:
    if not path.exists():
        write_atomically(path, secrets.token_hex(4).encode())
    return path.read_text().strip()


def _why_offline() -> str | None:
    """Why W&B cannot be reached as it is configured, without asking the person anything."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        return None if wandb.login(prompt=False, verify=False) else "no API key (wandb login)"
    except wandb.Error as error:
        return str(error).split("\n", maxsplit=1)[0]


class TensorBoardTracker:
    """TensorBoard's event files, through the writer torch brings along.

    A resumed run starts a file whose first event tells TensorBoard to forget later steps of the files before it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def log(self, row: Mapping[str, Any]) -> None:
        """Every finite number of the row becomes a scalar of that name."""
        step = row["step"]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class _Guarded:
    """A tracker that cannot take the run down with it: at its first error it is named and not called again."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker: Tracker | None = tracker
        self._name = name

    def log(self, row: Mapping[str, Any]) -> None:
        if self._tracker is not None:
            try:
                self._tracker.log(row)
            except Exception as error:
                self._drop(error)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        if self._tracker is not None:
            try:
                self._tracker.finish(summary)
            except Exception as error:
                self._drop(error)

    def _drop(self, error: Exception) -> None:
        self._tracker = None
        logger.warning("%s failed and is left out from here on: %s: %s", self._name, type(error).__name__, error)
