"""How a run saves: whole or by every rank, at once or beside the steps, and copied to where the mirror is."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cramming import checkpoint
from cramming.errors import UserError
from cramming.identity import check_fits
from cramming.parallel.ranks import here
from cramming.saving import sharded, snapshot
from cramming.saving.background import Background
from cramming.saving.exchange import Exchange
from cramming.saving.mirror import Mirror
from cramming.saving.placing import placing
from cramming.saving.snapshot import Snapshot
from cramming.train import Run

_log = logging.getLogger(__name__)


class Saver:
    """Writes a run's checkpoints, and takes up the newest. Every rank makes one and calls it at the same steps.

    As a context it waits, at the end, for what is still being written and copied.

    Args:
        run: how it saves is in ``impl``: ``checkpoints``, ``save_async``, ``keep_checkpoints``.
        run_dir: its folder.
        mirror: where the main rank's copies go; None: nowhere, or another rank's task.
    """

    def __init__(self, run: Run, run_dir: Path, mirror: Mirror | None = None) -> None:
        impl = run.config.impl
        self.folder = run_dir / "checkpoints"
        self.exchange = Exchange()
        self.shared = any(snapshot.is_shared(parameter) for parameter in run.model.parameters())
        self.in_parts = impl.checkpoints == "sharded" or (impl.checkpoints == "auto" and self.shared)
        self._run = run
        self._keep = impl.keep_checkpoints
        self._background = Background() if impl.save_async else None
        self._mirror = mirror

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except UserError as failure:
            if kind is None:
                raise
            _log.warning("%s", failure)  # beside what ended the run
        if self._mirror is not None and kind is not KeyboardInterrupt:
            self._mirror.finish()

    def resume(self, expected: Mapping[str, Any]) -> bool:
        """Load the newest checkpoint that is whole into the run, on every rank; whether there is one.

        Ranks that share the model read what they need of files they all see; else the main rank reads and tells.

        Args:
            expected: what must fit, see ``identity``.

        Raises:
            UserError: all are damaged, it is of another run, or a rank does not see them.
        """
        run, ranks = self._run, here()
        if self.shared:
            found = sharded.newest(self.folder, self.exchange, placing(run.model, run.engine.optimizer))
        else:
            found = checkpoint.newest(self.folder) if ranks.main else None
        if found is not None:
            check_fits(found[0], dict(expected))
        if self.shared or ranks.world == 1:
            state = found[1] if found else None
        elif ranks.told(found is not None):
            tree, tensors = checkpoint.flatten(found[1] if found else {})
            state = checkpoint.unflatten(ranks.told(tree), ranks.given(tensors))
        else:
            state = None
        if state is not None:
            run.load_state_dict(state)
        return state is not None

    def save(self, about: Mapping[str, Any], marks: list[float]) -> None:
        """Copy the run's state and write it; under ``save_async`` the writing goes on when this returns.

        Args:
            about: JSON values for the manifest.
            marks: hour marks this one is kept for.

        Raises:
            UserError: this checkpoint, or the one before that was still under way, cannot be written.
        """
        self.wait()
        step, state = self._run.step, self._run.state_dict()
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

    def _write(self, step: int, saved: Snapshot, about: Mapping[str, Any], marks: list[float]) -> None:
        if self.in_parts:
            sharded.write(self.folder, step, saved, about, exchange=self.exchange, keep=self._keep, kept_at_h=marks)
        elif self.exchange.main:
            checkpoint.write(self.folder, step, saved, about, keep=self._keep, kept_at_h=marks)
        if self._mirror is not None:
            self._mirror.copy_soon()
