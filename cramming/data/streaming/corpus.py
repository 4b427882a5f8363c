"""Where a corpus in shards lies: a folder with an index, or a folder of splits that have one each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cramming.data.shards.mds import INDEX, MdsIndex
from cramming.data.shards.shard import ShardIndex
from cramming.data.streaming.fetching import Patience, read_small
from cramming.data.tokenizer import FILE
from cramming.errors import UserError
from cramming.remote import join, local_path, shown

AUTO = "auto"
TRAIN_SPLITS = ("train", "train_small")
HELDOUT_SPLITS = ("val", "val_small", "validation")
#: The name of a format's index, and what makes one of its content and of what to call it in messages.
FORMATS: dict[str, tuple[str, Callable[[str, str], Any]]] = {"mds": (INDEX, MdsIndex.parse)}


@dataclass(frozen=True)
class Corpus:
    """The shards of one split."""

    address: str  # of the folder with the index
    index: ShardIndex

    @property
    def folder(self) -> Path | None:
        """The same on this machine; None: it is elsewhere."""
        return local_path(self.address)

    @property
    def rows(self) -> int:
        """Samples of all shards."""
        return sum(shard.samples for shard in self.index.shards)


@dataclass(frozen=True)
class Found:
    """What lies at an address."""

    train: Corpus
    heldout: Corpus | None  # a split to validate on
    tokenizer: bytes | None  # tokenizer.json beside the splits, as ``cramming.data.convert`` leaves it


def find(address: str, split: str, format_: str, patience: Patience) -> Found:
    """The corpus at an address.

    Args:
        address: a folder of splits, or one with an index.
        split: the name of the split to train on, or auto: ``TRAIN_SPLITS``, the first there is.
        format_: one of ``FORMATS``, or auto.
        patience: for what passes.

    Raises:
        UserError: there is none, or it cannot be read or used.
    """
    if split == AUTO and (here := _read(address, format_, patience)) is not None:
        return Found(here, None, read_small(address, FILE, patience))
    wanted = TRAIN_SPLITS if split == AUTO else (split,)
    train = next(filter(None, (_read(join(address, name), format_, patience) for name in wanted)), None)
    if train is None:
        raise UserError(
            f"{shown(address)} has no index of shards ({' or '.join(_names(format_))}), and no folder "
            f"{' or '.join(wanted)} with one; set data.remote to a folder that python -m cramming.data.convert "
            "wrote, or data.split to the name of a split"
        )
    others = (_read(join(address, name), format_, patience) for name in HELDOUT_SPLITS if name not in wanted)
    heldout = next(filter(None, others), None)
    found = (read_small(place, FILE, patience) for place in (address, train.address))
    return Found(train, heldout, next(filter(None, found), None))


def _read(address: str, format_: str, patience: Patience) -> Corpus | None:
    """The corpus whose index lies in the folder at an address, if there is one."""
    for name, (file, parse) in FORMATS.items():
        if format_ not in (AUTO, name):
            continue
        data = read_small(address, file, patience)
        if data is not None:
            where = shown(join(address, file))
            try:
                index: ShardIndex = parse(data.decode("utf-8"), where)
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is no text: it is damaged") from error
            if not any(shard.samples for shard in index.shards):
                raise UserError(f"{where} lists no samples; convert the corpus again")
            return Corpus(address, index)
    return None


def _names(format_: str) -> list[str]:
    return sorted({file for name, (file, _) in FORMATS.items() if format_ in (AUTO, name)})
