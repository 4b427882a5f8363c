"""How a run saves: whole or by every rank, at once or beside the steps, and copied to where the mirror is."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cramming import checkpoint
from cramming.checkpoint import Checkpoint
from cramming.config import ImplConfig
from cramming.saving import sharded, snapshot
from cramming.saving.background import Background
from cramming.saving.exchange import Exchange
from cramming.saving.mirror import Mirror
from cramming.saving.placing import placing
from cramming.saving.snapshot import Snapshot

if TYPE_CHECKING:
    from cramming.train import Run


class Saver:
    """Writes a run's checkpoints, and finds the newest. Every rank makes one and calls it at the same steps.

    Args:
        run_dir: the run's folder, which all ranks see.
        impl: how to save: ``checkpoints``, ``save_async``, ``keep_checkpoints``, ``mirror``.
        shared: whether the ranks share the model (``fsdp``).
        mirror: where copies go; None: nowhere, or another rank's task.
    """

    def __init__(self, run_dir: Path, impl: ImplConfig, *, shared: bool = False, mirror: Mirror | None = None) -> None:
        self.folder = run_dir / "checkpoints"
        self.exchange = Exchange()
        self.in_parts = impl.checkpoints == "sharded" or (impl.checkpoints == "auto" and shared)
        self._keep = impl.keep_checkpoints
        self._background = Background() if impl.save_async else None
        self._mirror = mirror

    def save(self, step: int, state: Mapping[str, Any], about: Mapping[str, Any], marks: list[float]) -> None:
        """Copy a state and write it; under ``save_async`` the writing goes on when this returns.

        Args:
            step: optimizer steps taken.
            state: all of it; what ranks do not share is equal on all.
            about: JSON values for the manifest.
            marks: hour marks this one is kept for.

        Raises:
            UserError: this checkpoint, or the one before that was still under way, cannot be written.
        """
        if self._background is not None:
            self._background.wait()
        if self.in_parts:
            saved = snapshot.share(state, self.exchange.world, self.exchange.rank)
        else:
            saved = snapshot.whole(state, kept=self.exchange.main)
        if self._background is None:
            self._write(step, saved, about, marks)
        else:
            self._background.start(lambda: self._write(step, saved, about, marks))

    def wait(self) -> None:
        """Until what was saved is on the disk.

        Raises:
            UserError: it cannot be written.
        """
        if self._background is not None:
            self._background.wait()

    def newest(self, run: "Run") -> tuple[Checkpoint, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and of its state what this rank needs.

        Raises:
            UserError: all are damaged, or a rank does not see them.
        """
        if self.exchange.world == 1:
            return checkpoint.newest(self.folder)
        return sharded.newest(self.folder, self.exchange, placing(run.model, run.engine.optimizer))

    def _write(self, step: int, saved: Snapshot, about: Mapping[str, Any], marks: list[float]) -> None:
        if self.in_parts:
            sharded.write(
                self.folder, step, saved, about, keep=self._keep, kept_at_h=marks, exchange=self.exchange
            )  # fmt: skip
        elif self.exchange.main:
            checkpoint.write(self.folder, step, saved, about, keep=self._keep, kept_at_h=marks)
        if self._mirror is not None:
            self._mirror.copy_soon()
