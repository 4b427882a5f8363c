"""``impl.mirror=s3://bucket/{name}``: a run's checkpoints and records copied to another storage as it goes.

Records are put first, each whole; then the files of the newest checkpoint, its manifest last; then what is outdated is
dropped. A kill at any moment leaves at the mirror a state to go on from, the new one or the one before. A copy that
fails is a warning, and is tried again with the next checkpoint.
"""

import logging
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cramming import faults, folder, remote
from cramming.checkpoint import Checkpoint, checkpoints
from cramming.config import PretrainConfig
from cramming.errors import UserError
from cramming.saving.copies import Copies

_CONFIG = "config.yaml"
_TOKENIZER = "tokenizer"
_HELD = ".mirroring"  # in a run's folder: links to the checkpoint that is being copied
_REACHED = ".reached"
_NOT_COPIED = ("run.log",)  # grows with every process, and nothing goes on from it
_log = logging.getLogger(__name__)


def address_of(given: str, name: str) -> str:
    """The mirror of a run: ``{name}`` stands for the run's."""
    return given.replace("{name}", name).rstrip("/")


def opened(config: PretrainConfig, run_dir: Path) -> "Mirror | None":
    """The mirror that a run asks for, reached; the newest state there is in the run's folder, if that had none so new.

    Raises:
        UserError: it cannot be reached, or holds another run, or one with other options.
    """
    if config.impl.mirror is None:
        return None
    mirror = Mirror(address_of(config.impl.mirror, run_dir.name), run_dir, config.impl.keep_checkpoints)
    mirror.reach()
    stored = mirror.config()
    if stored is not None and stored.get("name") != config.name:
        raise UserError(
            f"impl.mirror={mirror.shown} holds another run, {stored.get('name')}: "
            "give each a place of its own, such as impl.mirror=.../{name}"
        )
    if config.resume:
        if stored is not None:
            folder.refuse_another(config, stored, mirror.shown)
        with folder.held(run_dir):
            mirror.fetch()
    return mirror


class Mirror:
    """The copies of one run, made on a thread.

    Args:
        address: where; any storage fsspec knows, or a folder.
        run_dir: the run's folder.
        keep: how many of the newest checkpoints stay there, beside those of hour marks.

    Raises:
        UserError: no such storage, or its package is not installed.
    """

    def __init__(self, address: str, run_dir: Path, keep: int) -> None:
        self.shown = remote.shown(address)
        self.failure: str | None = None  # why the mirror is behind
        self._copies = Copies(address)
        self._run_dir = run_dir
        self._held = run_dir / _HELD
        self._keep = keep
        self._asked = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._put: dict[str, tuple[int, int]] = {}  # records there, by size and time of change

    def reach(self) -> None:
        """Make sure that the storage is there and takes files.

        Raises:
            UserError: in one line, why not.
        """
        storage = self._copies.storage
        try:
            with storage.explained():
                storage.write(_REACHED, b"")
                storage.remove(_REACHED)
        except NotImplementedError as error:
            raise UserError(f"impl.mirror={self.shown} takes no files; give a place that can be written to") from error

    def config(self) -> DictConfig | None:
        """The options of the run that the mirror holds; None: it holds none.

        Raises:
            UserError: they cannot be read.
        """
        storage = self._copies.storage
        with storage.explained():
            if _CONFIG not in storage.files():
                return None
            text = storage.read(_CONFIG)
        try:
            found = OmegaConf.create(text.decode())
        except (OmegaConfBaseException, YAMLError, ValueError) as error:
            raise UserError(f"{self.shown}/{_CONFIG} cannot be read: {error}") from error
        return found if isinstance(found, DictConfig) else None

    def fetch(self) -> Checkpoint | None:
        """Copy the newest whole state into the run's folder, if that has none or an older one.

        Raises:
            UserError: it cannot be fetched.
        """
        with self._copies.storage.explained():
            held = checkpoints(self._run_dir / "checkpoints")
            found = self._copies.fetch_newest(self._run_dir, held[-1].step if held else -1)
        if found is not None:
            _log.info("fetched step %d from %s", found.step, self.shown)
        return found

    def clear(self) -> None:
        """Remove what the run left there before (``resume=false``).

        Raises:
            UserError: it cannot be removed.
        """
        with self._copies.storage.explained():
            whole, partial = self._copies.checkpoints()
            self._copies.drop(reversed(whole))
            self._copies.clear(partial)
            for file in self._copies.records():
                self._copies.storage.remove(file)

    def copy_soon(self) -> None:
        """Bring the mirror up to date, on a thread; what is saved meanwhile is copied after that."""
        with self._lock:
            self._asked = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Copy what is left and wait for it; a mirror that is behind is said."""
        self.copy_soon()
        thread = self._thread
        if thread is not None:
            thread.join()
        if self.failure is not None:
            _log.warning("the mirror is behind: %s; the same command again copies what is left", self.failure)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    self._thread = None
                    return
                self._asked = False
            try:
                with self._copies.storage.explained():
                    self._copy()
                self.failure = None
            except Exception as error:  # whatever it is, training goes on
                self.failure = str(error) or type(error).__name__
                _log.warning("impl.mirror: %s; trying again with the next checkpoint", self.failure)

    def _copy(self) -> None:
        there = {copy.folder for copy in self._copies.checkpoints()[0]}
        here = checkpoints(self._run_dir / "checkpoints")  # before the records, so that theirs are not older
        self._put_records()
        faults.point("mirror-records")
        mine = {}
        for saved in reversed(here):
            place = self._hold(saved)
            if place is None:
                continue
            mine[saved.step] = place
            if place not in there:
                self._copies.put(self._held, place)
        shutil.rmtree(self._held, ignore_errors=True)
        self._prune(mine)
        faults.point("mirror-pruned")

    def _put_records(self) -> None:
        files = [*self._run_dir.glob("*"), *(self._run_dir / _TOKENIZER).glob("*")]
        for file in sorted(files):
            name = str(file.relative_to(self._run_dir))
            if not file.is_file() or file.name.startswith(".") or name in _NOT_COPIED:
                continue
            stat = file.stat()
            state = stat.st_size, stat.st_mtime_ns
            if self._put.get(name) != state:
                self._copies.storage.put(file, name)
                self._put[name] = state

    def _hold(self, saved: Checkpoint) -> str | None:
        """Keep a checkpoint's files for as long as they are copied, whatever training deletes meanwhile.

        Returns:
            Its folder there; None: it is gone already, or damaged.
        """
        shutil.rmtree(self._held, ignore_errors=True)
        self._held.mkdir()
        try:
            for file in saved.folder.iterdir():
                _link(file, self._held / file.name)
            manifest = Checkpoint(self._held).manifest()
        except (FileNotFoundError, UserError) as error:
            if saved.folder.exists():
                _log.warning("%s; it is not copied", error)
            return None
        if manifest["step"] != saved.step or not all((self._held / name).is_file() for name in manifest["sha256"]):
            return None
        return f"checkpoints/step={saved.step:08d}-{manifest['seal'][:8]}"

    def _prune(self, mine: Mapping[int, str]) -> None:
        """The rule of the run's folder: the newest stay, and those of hour marks; and nothing that is incomplete.

        Args:
            mine: folder by step of what lies here, which is right where there are two of a step.
        """
        whole, partial = self._copies.checkpoints()
        one_each = {copy.step: copy for copy in whole}
        one_each |= {copy.step: copy for copy in whole if mine.get(copy.step) == copy.folder}
        outdated = [one_each[step] for step in sorted(one_each)[: -self._keep]]
        unmarked = [copy for copy in outdated if not self._copies.manifest(copy).get("kept_at_h")]
        self._copies.drop([copy for copy in whole if copy not in one_each.values()] + unmarked)
        self._copies.clear(partial)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except FileNotFoundError:
        raise
    except OSError:  # a disk without links
        shutil.copy2(file, target)
