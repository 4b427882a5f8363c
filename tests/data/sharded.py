"""Small corpora in shards, for the tests of streaming."""

from pathlib import Path
from typing import Any

import numpy as np

from cramming.data.shards.mds_writer import write_mds
from cramming.data.streaming.cache import ShardCache
from cramming.data.streaming.corpus import find
from cramming.data.streaming.fetching import Patience
from cramming.data.streaming.rows import RowForm
from cramming.data.streaming.store import Member, Reading, ShardedStore
from cramming.data.tokenizer import Tokenizer

LENGTH = 8
#: In a shard.
ROWS = 10


def row(number: int) -> np.ndarray:
    """The row of a number: its digits base 20, as letters."""
    digits = [number // 20**place % 20 for place in range(LENGTH)]
    return np.array(digits, dtype="<i8") + 5


def number_of(tokens: np.ndarray) -> np.ndarray:
    """Rows (n, S) back to their numbers (n,)."""
    return ((tokens.astype(np.int64) - 5) * 20 ** np.arange(LENGTH)).sum(1)


def token_corpus(folder: Path, rows: int, first: int = 0, **options: Any) -> Path:
    """Rows ``first`` to ``first + rows - 1``, ten a shard."""
    head = 4 * (ROWS + 2) + 190
    settings: dict[str, Any] = {"size_limit": head + ROWS * (4 + 8 * LENGTH), "hashes": ["sha1"]} | options
    samples = ({"tokens": row(number).tobytes()} for number in range(first, first + rows))
    write_mds(folder, {"tokens": "bytes"}, samples, **settings)
    return folder


def text_corpus(folder: Path, texts: list[str], **options: Any) -> Path:
    """A document a sample."""
    write_mds(folder, {"text": "str"}, ({"text": text} for text in texts), **options)
    return folder


def store_of(
    addresses: dict[str, str],
    tokenizer: str,
    cache: Path,
    *,
    limit: int = 1 << 30,
    weights: dict[str, float] | None = None,
    reading: Reading | None = None,
    text: bool = False,
    **options: Any,
) -> ShardedStore:
    """A store of the corpora at some addresses."""
    patience = options.pop("patience", None) or Patience(sleep=lambda seconds: None)
    form = RowForm("text" if text else "tokens", text, LENGTH, Tokenizer.load(Path(tokenizer)))
    members = []
    for name, address in addresses.items():
        found = find(address, "auto", "auto", patience)
        members.append(Member(name, (weights or {}).get(name, 1.0), found.train, found.heldout))
    return ShardedStore(
        members,
        [form] * len(members),
        ShardCache(cache, limit),
        reading or Reading(window=3, ahead=3, threads=2),
        patience=patience,
        **options,
    )
