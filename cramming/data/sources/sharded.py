"""``data=mds``: a corpus in shards, in a folder or in object storage, trained on without preparing it first."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cramming.data.config import TRAINED_HERE, DataConfig
from cramming.data.shards.formats import FORMATS
from cramming.data.streaming.corpus import AUTO
from cramming.errors import UserError
from cramming.registry import register
from cramming.suggest import nearest

if TYPE_CHECKING:
    from cramming.data.store import TokenStore
    from cramming.data.stream import Split

_UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**n for n, p in enumerate("kMGT", 1)}, "KB": 1000}
_UNITS |= {f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STREAMS_LIKE = "data.streams='{a: {remote: s3://bucket/a, weight: 0.7}, b: {remote: my/b, weight: 0.3}}'"
_STREAM_OPTIONS = ("remote", "weight", "split")
# They decide how a store is prepared, and nothing is.
_FIXED = ("row_cls", "clean", "max_documents", "max_tokens")


@register("data", "mds")
@dataclass
class StreamedConfig(DataConfig):
    """A corpus in shards."""

    kind: str = "mds"
    name: str = "mds"
    layout: str = AUTO  # as the column is: document for text, packed for tokens
    remote: str | None = None  # folder of the splits, or of one: s3://bucket/corpus, gs://, hf://, https://, or a path
    streams: Any = None  # several: '{a: {remote: ..., weight: 0.7}, b: {...}}'
    split: str = AUTO  # to train on; auto: train, or train_small
    format: str = AUTO
    column: str = AUTO  # of the samples: tokens, rows as they are; or text, one document a row
    cache_dir: str | None = None  # where shards are kept on this machine; null: data_dir/shards
    cache_limit: Any = "20GB"  # of all that lies there
    shuffle_window: int = 8  # shards whose sequences are mixed with one another
    fetch_ahead: int | None = None  # shards brought before they are needed; null: as many as are mixed
    fetch_threads: int = 4

    def check(self) -> None:
        """See ``DataConfig.check``."""
        if self.layout == AUTO:
            replace(self, layout=DataConfig.layout).check()
            return
        super().check()
        if bool(self.remote) == bool(self.streams):
            raise UserError(
                f"data={self.kind} needs data.remote=<folder or address of a corpus in shards>, or several; "
                f"{_STREAMS_LIKE}, and not both"
            )
        if self.format not in (AUTO, *FORMATS):
            raise UserError(f"data.format={self.format} is not known{nearest(self.format, (AUTO, *FORMATS))}")
        for key in _FIXED:
            if getattr(self, key) != getattr(StreamedConfig(), key):
                raise UserError(
                    f"data.{key} has no part in data={self.kind}, whose sequences are read as they are; leave it out, "
                    "or give it to python -m cramming.data.prepare or cramming.data.convert"
                )
        for key, value in (("order", "random"), ("train_on", "train")):
            if getattr(self, key) != value:
                raise UserError(
                    f"data.{key}={getattr(self, key)} needs all sequences at hand, and data={self.kind} has a few "
                    f"shards of them at a time; use data.{key}={value}, or prepare the text with data=local or data=hub"
                )
        for key in ("shuffle_window", "fetch_ahead", "fetch_threads"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value} leaves nothing; it takes 1 or more")
        byte_count(self.cache_limit)
        if self.streams is not None and not isinstance(self.streams, Mapping):
            raise UserError(f"data.streams={self.streams} names no streams; {_STREAMS_LIKE}")
        for name, one in (self.streams or {}).items():
            _check_stream(name, one)

    def ready_store(self, data_dir: Path) -> "TokenStore":
        """See ``DataConfig.ready_store``."""
        from cramming.data.streaming.opening import open_store

        return open_store(self, data_dir)  # type: ignore[return-value]  # read alike

    def split_of(self, store: "TokenStore") -> "Split":
        """See ``DataConfig.split_of``."""
        from cramming.data.streaming.split import ShardSplit  # needs torch

        return ShardSplit(store)  # type: ignore[arg-type]

    @property
    def members(self) -> dict[str, Mapping[str, Any]]:
        """The streams by name: where each lies, and its weight."""
        streams: dict[str, Mapping[str, Any]] = self.streams or {self.name: {"remote": self.remote}}
        return streams

    def cache_folder(self, data_dir: Path) -> Path:
        """Where shards are kept."""
        return Path(self.cache_dir).expanduser() if self.cache_dir else data_dir / "shards"

    @property
    def cache_bytes(self) -> int:
        """``cache_limit`` as a number."""
        return byte_count(self.cache_limit)

    @property
    def trains_tokenizer(self) -> bool:
        """Whether its tokenizer is made from the corpus."""
        return self.tokenizer == TRAINED_HERE


def byte_count(value: Any) -> int:
    """``20GB``, ``512MiB`` or a whole number of bytes -> bytes.

    Raises:
        UserError: something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value))
    if found is None or found[2] not in _UNITS:
        raise UserError(f"data.cache_limit={value} is no size; write it like 20GB, 500MB or 16GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def _check_stream(name: str, one: Any) -> None:
    if not _NAME.fullmatch(str(name)):
        raise UserError(f"data.streams has the name {name!r}; use letters, digits and ._-")
    if not isinstance(one, Mapping) or not one.get("remote"):
        raise UserError(f"data.streams.{name} needs an address: {name}: {{remote: s3://bucket/corpus, weight: 1}}")
    for key in one:
        if key not in _STREAM_OPTIONS:
            raise UserError(f"data.streams.{name}.{key} is not known{nearest(str(key), _STREAM_OPTIONS)}")
    weight = one.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise UserError(f"data.streams.{name}.weight={weight} is no share; it takes a number above 0")
