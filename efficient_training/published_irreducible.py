"""The irreducible losses that the earlier study published of its C4 subset, as an array for ``method.rho_loss``.

Zenodo record 8279728, ``il_losses_c4.tar``: pickled dicts {place: loss}, ``dict_chunk_<n>.pkl``. A place is that of a
row among the study's training rows, in the order of its split (``cramming.data.published_split``); the losses are of a
model that was trained for 12 hours on the rows held out, each under a mask of its own that was not kept
(https://arxiv.org/abs/2307.06440, appendix C.4, and that study's code). So they fit the published token rows alone,
split as the study split them, and RHO-loss uses them only when it is told that masks differ.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from cramming.data.archives import DAMAGE, archive_files
from cramming.data.number_dicts import read_numbers
from cramming.data.published_split import study_split
from cramming.data.store import TokenStore
from cramming.errors import UserError
from cramming.progress import ProgressSink
from efficient_training.irreducible_losses import IrreducibleLosses, identity, write

ARCHIVE = "il_losses_c4.tar"
HELDOUT_FRACTION = 0.2  # of the study's runs with RHO-loss
REFUSED = {
    name: f"{name} is of the study's own copy of {corpus}, which was not published: nobody can say which rows its "
    f"places are of; make losses of your own with python -m efficient_training.irreducible data={data}"
    for name, corpus, data in (
        ("il_losses_bcwk.tar", "BookCorpus and Wikipedia", "bookcorpus_wikipedia"),
        ("il_losses_mp.tar", "MiniPile", "minipile"),
    )
}
_COST = {"total": 12 * 3600.0, "training": 12 * 3600.0, "scoring": 0.0, "unit": "s", "rst": "rtx3090"}
_CHUNK = re.compile(r"dict_chunk_\d+\.pkl")
_MOST_CHUNK_BYTES = 1 << 28  # theirs have 4 MB


@dataclass(frozen=True)
class Origin:
    """What the losses were published as; it is written into the manifest."""

    file: str  # the name of the archive or folder
    md5: str | None = None  # that the archive was found to have; None: nothing to compare with
    record: str | None = None  # the publisher's record the checksum comes from


def convert(
    source: Path,
    store: TokenStore,
    target: Path,
    origin: Origin,
    *,
    heldout_fraction: float = HELDOUT_FRACTION,
    progress: ProgressSink,
) -> IrreducibleLosses:
    """Write the losses in ``source`` as an array of the rows of ``store``.

    It takes four bytes a row of memory and a minute; killed, it is simply done again.

    Args:
        source: an archive whose checksum was compared, or a folder of its chunks.
        store: the published token rows, all of them.
        target: the array's folder.
        origin: what they were published as.
        heldout_fraction: of the split whose training rows they are of.
        progress: told how far it is.

    Raises:
        UserError: something else than numbers in them, a place twice, or not as many as the split has training rows.
    """
    split = study_split(store, heldout_fraction)
    losses = np.full(store.rows, np.nan, dtype=np.float32)
    found = without_loss = 0
    progress.stage(f"reading {source.name}", _size(source), "B")
    for name, data in _chunks(source, progress):
        places, values = read_numbers(data, name)
        if len(places) and (places.min() < 0 or places.max() >= split.train_rows):
            wrong = int(places.min() if places.min() < 0 else places.max())
            raise UserError(_misfit(f"{name} has a loss of place {wrong:,}", store, split.train_rows, heldout_fraction))
        rows = split.train(places)
        if not np.isnan(losses[rows]).all() or len(np.unique(places)) < len(places):
            raise UserError(f"{name} has losses of places that had one before: these files do not belong together")
        # A sequence of which nothing happened to be masked has no loss (0 / 0): it is never better than another.
        without_loss += int(np.isnan(values).sum())
        losses[rows] = np.where(np.isnan(values), np.inf, values)
        found += len(places)
    progress.done()
    if found != split.train_rows:
        raise UserError(_misfit(f"{source} has {found:,} losses", store, split.train_rows, heldout_fraction))
    facts: dict[str, Any] = {
        **identity(store, split),
        "mask": None,
        "made_by": {"name": "published", "file": origin.file, "md5": origin.md5, "record": origin.record},
        "heldout_fraction": heldout_fraction,
        "training_rows": split.train_rows,
        "rows_without_loss": without_loss,
        "mean_loss": float(losses[np.isfinite(losses)].mean(dtype=np.float64)),
        "cost": _COST,
    }
    return write(target, losses, facts)


def _chunks(source: Path, progress: ProgressSink) -> Iterator[tuple[str, bytes]]:
    """Name and content of every chunk, in the order they lie there."""
    names: set[str] = set()
    for name, file in _files(source, progress):
        if name in names:
            raise UserError(f"{source} holds {name} twice: it is damaged")
        names.add(name)
        try:
            data = file.read(_MOST_CHUNK_BYTES + 1)
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(f"{source} is damaged ({error}); download it again") from error
        if len(data) > _MOST_CHUNK_BYTES:
            raise UserError(f"{name} has more than {_MOST_CHUNK_BYTES} bytes: it is not what the study published")
        yield name, data
    if not names:
        raise UserError(f"{source} holds no dict_chunk_0.pkl: it is no set of irreducible losses")


def _files(source: Path, progress: ProgressSink) -> Iterator[tuple[str, IO[bytes]]]:
    if not source.is_dir():
        for path, file in archive_files(source, progress):
            if _CHUNK.fullmatch(path.name):
                yield path.name, file
        return
    for chunk in sorted(source.rglob("dict_chunk_*.pkl")):
        if _CHUNK.fullmatch(chunk.name):
            with open(chunk, "rb") as opened:
                yield chunk.name, opened
            progress.advance(chunk.stat().st_size)


def _size(source: Path) -> int:
    return source.stat().st_size if source.is_file() else sum(f.stat().st_size for f in source.rglob("*.pkl"))


def _misfit(found: str, store: TokenStore, train_rows: int, heldout_fraction: float) -> str:
    return (
        f"{found}, and of the {store.rows:,} rows of {store.folder.name} {train_rows:,} train at heldout_fraction="
        f"{heldout_fraction:g}: they are of other rows, or of another split"
    )
