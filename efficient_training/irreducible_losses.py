"""Irreducible losses on the disk: one number for every row of a token store that others train on.

Shape legend: N rows of the store, B sequences asked for.

A folder with ``losses.npy`` (N,) float32, NaN where a row is held out, mapped into memory and never unpickled, and
``manifest.json``: whose rows these are (fingerprint, tokenizer, split), the mask under which they were scored, which
model scored them and what that cost, checksums. The folder is made under another name and renamed: it is whole or not
there. ``python -m efficient_training.irreducible`` makes one in the folder of its run, and
``assets/download_irreducible_losses.py`` one of what the earlier study published.
"""

import json
import logging
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cramming.checkpoint import sealed
from cramming.data.fingerprint import file_sha256
from cramming.durable import replace, sync, sync_folder, write_file
from cramming.errors import UserError
from cramming.recording.strict_json import dumps
from cramming.suggest import nearest

if TYPE_CHECKING:
    from cramming.data.store import TokenStore
    from cramming.data.stream import Split

FOLDER = "irreducible"  # in a run's folder
LOSSES, MANIFEST = "losses.npy", "manifest.json"
FORMAT = 1
_ROWS_AT_A_TIME = 1 << 22
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mask:
    """The scoring mask: what of a sequence is predicted, whatever the run's seed and epoch (masked as in epoch 0)."""

    seed: int
    rate: float

    def __str__(self) -> str:
        return f"mask_rate={self.rate:g} mask_seed={self.seed}"


class IrreducibleLosses:
    """An array of irreducible losses, read only. ``IrreducibleLosses.open(folder)`` makes one."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        """The array in ``folder``, not looked at yet."""
        self.folder = folder
        self.manifest = manifest
        self._losses: NDArray[np.floating[Any]] | None = None

    @staticmethod
    def described(folder: Path) -> "IrreducibleLosses":
        """The array in ``folder`` by its manifest; ``verify`` looks at the numbers.

        Raises:
            UserError: the manifest is missing, damaged or of another version.
        """
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(manifest, dict) or manifest != sealed(manifest):
                raise ValueError("it does not match its checksum")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{path} is damaged ({reason}); delete {folder} and make it anew") from error
        if manifest.get("format") != FORMAT:
            raise UserError(f"{path} has format {manifest.get('format')}; this version reads {FORMAT}: make it anew")
        return IrreducibleLosses(folder, manifest)

    @property
    def title(self) -> str:
        """What messages call it: who made it, and where it is."""
        return f"{self.manifest['made_by']['name']} ({self.folder})"

    @property
    def sha256(self) -> str:
        """Of the losses."""
        return str(self.manifest["losses_sha256"])

    @property
    def mask(self) -> Mask | None:
        """The mask they were scored under; None where every row had one of its own that nobody knows."""
        mask = self.manifest["mask"]
        return None if mask is None else Mask(**mask)

    def misfit(self, store: "TokenStore", split: "Split") -> str | None:
        """In what these are not the losses of a split's training rows, in words; None if they are."""
        ours = identity(store, split)
        for key, words in (
            ("tokenizer_sha256", "another tokenizer"),
            ("data_fingerprint", "another corpus (its text, or how it is prepared)"),
            ("rows", "a corpus of another size"),
        ):
            if self.manifest[key] != ours[key]:
                return f"they are of {words}: {self.manifest[key]}, this run has {ours[key]}"
        if self.manifest["split"] != ours["split"]:
            theirs, own = (_split_in_words(given, store.rows) for given in (self.manifest["split"], ours["split"]))
            return f"they are of another split: {theirs}, this run {own}; data.heldout_fraction= must be the same"
        return None

    def verify(self, split: "Split") -> None:
        """Look at every number once.

        Raises:
            UserError: the file is missing or damaged, or training rows have no loss.
        """
        path = self.folder / LOSSES
        if not path.is_file():
            raise UserError(f"{path} is missing; delete {self.folder} and make it anew")
        if file_sha256(path) != self.sha256:
            raise UserError(f"{path} does not match its checksum; delete {self.folder} and make it anew")
        try:
            losses = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise UserError(
                f"{path} is no array of numbers ({error}); delete {self.folder} and make it anew"
            ) from error
        if losses.shape != (self.manifest["rows"],) or losses.dtype not in (np.float16, np.float32):
            raise UserError(
                f"{path} holds {losses.dtype}{list(losses.shape)}, not a float for each of {self.manifest['rows']} "
                f"rows; delete {self.folder} and make it anew"
            )
        holes = _holes(losses, split)
        if holes:
            raise UserError(
                f"{path} has holes: {holes:,} of the {split.train_rows:,} training rows have no irreducible loss; "
                f"delete {self.folder} and make it anew"
            )
        self._losses = losses

    def __call__(self, ids: Tensor) -> Tensor:
        """Row numbers (B,) int64 -> their irreducible losses (B,) float32, on the device of ``ids``."""
        assert self._losses is not None, "not verified"
        found = np.asarray(self._losses[ids.cpu().numpy()], dtype=np.float32)
        return torch.from_numpy(found).to(ids.device)


def identity(store: "TokenStore", split: "Split") -> dict[str, Any]:
    """Whose training rows losses are of: what must be the same in the run that uses them."""
    return {
        "data_fingerprint": store.fingerprint,
        "tokenizer_sha256": store.tokenizer.sha256,
        "rows": store.rows,
        "split": {"name": split.name, "heldout_rows": split.heldout_rows},
    }


def fitting(base_dir: Path, store: "TokenStore", split: "Split", foreign: bool) -> list[IrreducibleLosses]:
    """The arrays of all runs under ``base_dir`` that are of a split's training rows, newest first.

    Args:
        base_dir: where runs live.
        store: the corpus.
        split: which of it trains.
        foreign: whether arrays with unknown masks are among them.
    """
    found = []
    for folder in _folders(base_dir):
        try:
            array = IrreducibleLosses.described(folder)
        except UserError as error:
            _log.warning("%s", error)
        else:
            if (foreign or array.mask is not None) and array.misfit(store, split) is None:
                found.append(array)
    return found


def named(given: str, base_dir: Path) -> IrreducibleLosses:
    """The array of a run under ``base_dir``, in a folder, or of a file.

    Raises:
        UserError: there is none; those that exist are named.
    """
    path = Path(given).expanduser()
    for folder in (base_dir / given / FOLDER, path / FOLDER, path.parent if path.name == LOSSES else path):
        if (folder / MANIFEST).is_file():
            return IrreducibleLosses.described(folder)
    if (base_dir / given / "config.yaml").is_file():
        raise UserError(
            f"method.rho_loss.irreducible={given}: the run {base_dir / given} has no irreducible losses; if they are "
            "only half written, give the command that makes them again: it goes on"
        )
    raise UserError(
        f"method.rho_loss.irreducible={given} is no run under {base_dir}, and no folder or file of irreducible losses"
        f"{nearest(given, [folder.parent.name for folder in _folders(base_dir)])}"
    )


def _folders(base_dir: Path) -> list[Path]:
    manifests = base_dir.glob(f"*/{FOLDER}/{MANIFEST}")
    return [p.parent for p in sorted(manifests, key=lambda path: (-path.stat().st_mtime_ns, str(path)))]


def complete(work: Path, folder: Path, facts: Mapping[str, Any]) -> IrreducibleLosses:
    """Make ``folder`` of ``work``, which holds the losses: what a kill leaves is one of the two, never a part.

    Args:
        work: beside ``folder``, with ``losses.npy`` in it, and nothing else that is to stay.
        folder: where the array is to be; what is there is replaced.
        facts: ``identity``, ``mask``, ``made_by``, ``cost`` and whatever else is worth knowing.
    """
    losses = work / LOSSES
    sync(losses, "irreducible")
    versions = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    manifest = {"format": FORMAT, **facts, "losses_sha256": file_sha256(losses), "versions": versions}
    plain = json.loads(dumps(manifest))  # what the file will say: the seal is of that
    write_file(work / MANIFEST, [json.dumps(sealed(plain), indent=2).encode()], "irreducible-manifest")
    for path in work.iterdir():
        if path.name not in (LOSSES, MANIFEST):
            path.unlink()
    sync_folder(work)
    if folder.exists():  # of a run that has been trained again since
        shutil.rmtree(folder)
    replace(work, folder, "irreducible")
    return IrreducibleLosses.described(folder)


def write(folder: Path, losses: NDArray[np.floating[Any]], facts: Mapping[str, Any]) -> IrreducibleLosses:
    """Write an array that is in memory; see ``complete``.

    Args:
        folder: where it is to be.
        losses: (N,) float16 or float32, NaN at rows that are held out.
        facts: see ``complete``.
    """
    work = folder.with_name(f".{folder.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    np.save(work / LOSSES, losses, allow_pickle=False)
    return complete(work, folder, facts)


def _holes(losses: NDArray[np.floating[Any]], split: "Split") -> int:
    """How many training rows have no loss; rows that are held out may have one or not."""
    missing = sum(int(np.isnan(losses[a : a + _ROWS_AT_A_TIME]).sum()) for a in range(0, len(losses), _ROWS_AT_A_TIME))
    for first in range(0, split.heldout_rows, _ROWS_AT_A_TIME):
        held_out = split.heldout(np.arange(first, min(first + _ROWS_AT_A_TIME, split.heldout_rows)))
        missing -= int(np.isnan(losses[held_out]).sum())
    return missing


def _split_in_words(split: Mapping[str, Any], rows: int) -> str:
    order = "" if split["name"] == "keyed" else f" as {split['name']} says"
    return f"{split['heldout_rows']:,} of {rows:,} rows held out{order}"
