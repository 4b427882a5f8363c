"""Rows of a published set on their way into a store: blocks on the disk, and what the pass over the set found.

Shape legend: n rows, S positions.

A block is a file ``<shard>.<number>`` with (n, S) ids of two bytes each, or of four where one needs them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cramming import faults
from cramming.data.saved_rows import Member, row_batches
from cramming.data.tokenizer import Tokenizer
from cramming.durable import write_file
from cramming.errors import UserError

BLOCK_TOKENS = 1 << 25  # kept in memory: 64 MB at two bytes each


@dataclass
class Contents:
    """What the pass over the set found, kept beside the blocks once it is over."""

    shards: list[str]  # in their order
    rows: dict[str, int]  # of each shard, as far as they are wanted
    seq_length: int
    block_rows: int  # of every block but a shard's last
    folder: str
    settings: dict[str, Any]

    def blocks(self, work: Path) -> Iterator[tuple[Path, int]]:
        """All blocks in their order, with their rows."""
        for shard in self.shards:
            rows = self.rows.get(shard, 0)
            for number, start in enumerate(range(0, rows, self.block_rows)):
                yield block_path(work, shard, number), min(self.block_rows, rows - start)

    def read(self, path: Path, rows: int) -> np.ndarray:
        """The ``rows`` of a block, (n, S).

        Raises:
            UserError: it is damaged.
        """
        tokens = rows * self.seq_length
        item_bytes, rest = divmod(path.stat().st_size, tokens)
        if rest or item_bytes not in (2, 4):
            raise UserError(f"{path} is damaged; delete {path.parent} and run the same command again")
        return np.fromfile(path, dtype=f"u{item_bytes}").reshape(rows, self.seq_length)


class Blocks:
    """Writes the rows of shards in blocks.

    Args:
        work: the folder they are kept in.
        limit: rows that are wanted of a shard at most.
    """

    def __init__(self, work: Path, limit: int | None) -> None:
        self._work = work
        self._limit = limit
        self._highest = -1
        self.seq_length: int | None = None

    @property
    def rows_each(self) -> int:
        """Rows of every block but a shard's last."""
        assert self.seq_length, "no row was read yet"
        return max(1, BLOCK_TOKENS // self.seq_length)

    def check_ids(self, tokenizer: Tokenizer, where: str) -> None:
        """Hold the highest id so far against the vocabulary.

        Raises:
            UserError: the tokenizer has no such piece.
        """
        if self._highest >= tokenizer.vocab_size:
            raise UserError(
                f"{where} holds the token id {self._highest}, its tokenizer only has {tokenizer.vocab_size} pieces: "
                "they do not belong together"
            )

    def write(self, member: Member, tokenizer: Tokenizer | None) -> int:
        """Keep the rows of a shard, the first ``limit`` of them; blocks that are there are not written again.

        Returns:
            Its number of rows.

        Raises:
            UserError: rows of another length than those before, or ids that are none.
        """
        rows = number = 0
        pending: list[np.ndarray] = []
        for batch in row_batches(member.file, member.name):
            if not len(batch):
                continue
            wanted = batch if self._limit is None else batch[: self._limit - rows]
            pending.append(self._narrow(wanted, member.name))
            rows += len(wanted)
            if tokenizer is not None:
                self.check_ids(tokenizer, member.name)
            if sum(map(len, pending)) >= self.rows_each:
                joined = np.concatenate(pending)
                while len(joined) >= self.rows_each:
                    self._keep(joined[: self.rows_each], member.name, number)
                    joined = joined[self.rows_each :]
                    number += 1
                pending = [joined]
            if rows == self._limit:
                break
        if any(map(len, pending)):
            self._keep(np.concatenate(pending), member.name, number)
        return rows

    def _narrow(self, ids: np.ndarray, name: str) -> np.ndarray:
        """A batch of rows (n, S), checked, in the smaller type that holds it."""
        if self.seq_length is None:
            self.seq_length = ids.shape[1]
        if ids.shape[1] != self.seq_length:
            raise UserError(f"{name} has rows of {ids.shape[1]} tokens, the first ones have {self.seq_length}")
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= 1 << 32:
            raise UserError(f"{name} holds {lowest if lowest < 0 else highest}, which is no token id")
        self._highest = max(self._highest, highest)
        return ids.astype(np.uint16 if highest < 1 << 16 else np.uint32)

    def _keep(self, tokens: np.ndarray, shard: str, number: int) -> None:
        path = block_path(self._work, shard, number)
        if not path.exists():
            write_file(path, [tokens.tobytes()], "rows")
            faults.point("rows-written")


def block_path(work: Path, shard: str, number: int) -> Path:
    """Where a block of a shard is kept."""
    return work / f"{shard}.{number:05d}"
