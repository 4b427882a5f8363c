"""Ten thousand shards through a small cache: memory and open files stay what they were."""

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cramming.data.shards.shard import Shard, ShardFile
from cramming.data.streaming import bringing
from cramming.data.streaming.cache import ShardCache
from cramming.data.streaming.corpus import Corpus
from cramming.data.streaming.fetching import Patience
from cramming.data.streaming.rows import RowForm
from cramming.data.streaming.split import ShardSplit
from cramming.data.streaming.store import Member, Reading, ShardedStore
from cramming.data.tokenizer import Tokenizer

ROWS, LENGTH = 10, 8


class Generated:
    """An index whose shards hold their own numbers."""

    def __init__(self, shards: int) -> None:
        def one(number: int) -> Shard:
            file = ShardFile(f"{number}", 8, {})
            return Shard(number, number * ROWS, ROWS, file, file, None)

        self.shards = [one(number) for number in range(shards)]
        self.columns = {"tokens": "ndarray:int64"}
        self.fingerprint = f"generated {shards}"

    def open(self, shard: Shard, raw: Path) -> "_Reader":
        assert int(raw.read_bytes()) == shard.number
        return _Reader(shard.number)


class _Reader:
    def __init__(self, number: int) -> None:
        self._number = number

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, sample: int) -> dict[str, np.ndarray]:
        digits = (self._number * ROWS + sample) // 10 ** np.arange(LENGTH) % 10
        return {"tokens": digits + 5}

    def close(self) -> None:
        pass


@pytest.mark.parametrize("shards", [600, pytest.param(10_000, marks=pytest.mark.scale)])
def test_memory_and_files_stay_constant(
    tmp_path: Path, letters: str, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    fetched: list[str] = []

    def fetch(folder: str, file: ShardFile, target: Path, patience: Patience) -> None:
        fetched.append(file.name)
        target.write_bytes(f"{int(file.name):8}".encode())

    monkeypatch.setattr(bringing, "fetch", fetch)
    form = RowForm("tokens", False, LENGTH, Tokenizer.load(Path(letters)))
    corpus = Corpus("s3://bucket/generated", "mds", Generated(shards))
    cache = ShardCache(tmp_path / "cache", 8_000)
    store = ShardedStore([Member("a", 1.0, corpus, None)], [form], cache, Reading(4, 8, 3))
    split = ShardSplit(store)
    rows = split.shuffled(0)(0)

    def read(start: int, end: int) -> tuple[int, int]:
        for place in range(start, end, 40):
            ids = rows(np.arange(place, place + 40))
            tokens = store.read(ids)[0].astype(np.int64)
            np.testing.assert_array_equal(((tokens - 5) * 10 ** np.arange(LENGTH)).sum(1), ids)
        gc.collect()
        return len(os.listdir("/proc/self/fd")), tracemalloc.get_traced_memory()[0]

    quarter = shards * ROWS // 4 // 40 * 40
    tracemalloc.start()
    files, memory = read(0, quarter)
    names = len(fetched)
    more_files, more_memory = read(quarter, shards * ROWS)
    tracemalloc.stop()
    assert len(fetched) >= shards, "more than the cache holds, so each was fetched"
    assert abs(more_files - files) <= 2 * 12, "no more than shards are open at one time"
    grown = more_memory - memory - 60 * (len(fetched) - names)  # names in this test's own list
    assert grown < 150_000, f"{grown} bytes more for {shards} shards"
    assert cache.size() <= 8_000
    store.close()
