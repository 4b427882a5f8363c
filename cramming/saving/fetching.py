"""``init_from=s3://bucket/first``, ``checkpoint=``: what lies at an address, fetched into ``<base_dir>/_fetched``."""

import hashlib
import re
from pathlib import Path

from filelock import FileLock

from cramming import remote
from cramming.checkpoint import Checkpoint
from cramming.config import check_name
from cramming.errors import UserError
from cramming.saving.copies import Copies, Copy

FETCHED = "_fetched"


def split(given: str) -> tuple[str, str]:
    """An address, and which checkpoint of the run there: what follows the last name's ``@``."""
    head, slash, last = given.rstrip("/").rpartition("/")
    name, _, which = last.partition("@")
    return head + slash + name, which or "last"


def fetched(given: str, base_dir: str) -> tuple[Path, str | None]:
    """Copy what lies at an address to this machine, unless it is here.

    Args:
        given: the address of a run, with ``@last``, ``@step=4000`` or ``@12h`` behind it, or of a folder of weights.
        base_dir: where runs live.

    Returns:
        The folder here, and the checkpoint in it that is meant; None: the folder is no run's.

    Raises:
        UserError: there is nothing of that kind, it cannot be reached, or it is damaged.
    """
    address, which = split(given)
    shown = remote.shown(address)
    copies = Copies(address)
    place = Path(base_dir) / FETCHED / hashlib.sha256(address.encode()).hexdigest()[:12]
    folder = place / check_name(address.rpartition("/")[2])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); set base_dir to another folder") from error
    with FileLock(place / ".lock"), copies.storage.explained():
        records = copies.records()
        if not records:
            copies.storage.look()
            raise UserError(f"{shown} holds neither a run nor weights")
        whole, _ = copies.checkpoints()
        if "config.yaml" in records and whole:
            copy = _chosen(copies, whole, which, shown)
            copies.fetch_records(folder)
            if not _is_here(copies, copy, folder):
                copies.fetch(copy, folder)
            return folder, f"step={copy.step}"
        copies.fetch_records(folder)
        return folder, None


def _chosen(copies: Copies, whole: list[Copy], which: str, shown: str) -> Copy:
    if which == "last":
        return whole[-1]
    if match := re.fullmatch(r"step=(\d+)", which):
        matching = [copy for copy in whole if copy.step == int(match[1])]
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?)h", which):
        matching = [copy for copy in whole if float(match[1]) in _marks(copies, copy)]
    else:
        raise UserError(f"checkpoint @{which} is not understood: give @last, @step=4000 or @12h")
    if not matching:
        listed = ", ".join(f"step={copy.step}" for copy in whole)
        raise UserError(f"there is no checkpoint @{which} at {shown}; there are: {listed}")
    return matching[-1]


def _marks(copies: Copies, copy: Copy) -> list[float]:
    marks = copies.manifest(copy).get("kept_at_h")
    return marks if isinstance(marks, list) else []


def _is_here(copies: Copies, copy: Copy, folder: Path) -> bool:
    here = Checkpoint(folder / "checkpoints" / f"step={copy.step:08d}")
    try:
        return here.manifest() == copies.manifest(copy)
    except UserError:
        return False
