"""Where a corpus in shards lies: a folder with an index, or a folder of splits that have one each."""

from dataclasses import dataclass
from pathlib import Path

from cramming.data.shards.formats import FORMATS
from cramming.data.shards.hashes import hash_of_bytes
from cramming.data.shards.rows import RowsIndex
from cramming.data.shards.shard import ShardIndex
from cramming.data.streaming.fetching import Patience, read_small
from cramming.data.tokenizer import FILE
from cramming.errors import UserError
from cramming.remote import join, local_path, shown

AUTO = "auto"
TRAIN_SPLITS = ("train", "train_small")
HELDOUT_SPLITS = ("val", "val_small", "validation")


@dataclass(frozen=True)
class Corpus:
    """The shards of one split."""

    address: str  # of the folder with the index
    format: str
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
        return Found(here, None, _tokenizer(here, [address], patience))
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
    return Found(train, heldout, _tokenizer(train, [train.address, address], patience))


def _read(address: str, format_: str, patience: Patience) -> Corpus | None:
    """The corpus whose index lies in the folder at an address, if there is one."""
    for name, (file, parse) in FORMATS.items():
        if format_ not in (AUTO, name):
            continue
        data = read_small(address, file, patience)
        if data is not None:
            where = shown(join(address, file))
            try:
                index = parse(data.decode("utf-8"), where)
            except UnicodeDecodeError as error:
                raise UserError(f"{where} is no text: it is damaged") from error
            if not any(shard.samples for shard in index.shards):
                raise UserError(f"{where} lists no samples; convert the corpus again")
            return Corpus(address, name, index)
    return None


def _tokenizer(corpus: Corpus, places: list[str], patience: Patience) -> bytes | None:
    """What lies beside the shards, or the splits; compared, where the index has its checksum."""
    place, data = next(((one, data) for one in places if (data := read_small(one, FILE, patience))), ("", None))
    if data is not None and isinstance(corpus.index, RowsIndex):
        for algorithm, digest in corpus.index.tokenizer.hashes.items():
            if hash_of_bytes(data, algorithm) != digest:
                raise UserError(
                    f"{shown(join(place, FILE))} is not the tokenizer the rows were made with (its {algorithm} is not "
                    "the index's); convert the corpus again"
                )
    return data


def _names(format_: str) -> list[str]:
    return sorted({file for name, (file, _) in FORMATS.items() if format_ in (AUTO, name)})
