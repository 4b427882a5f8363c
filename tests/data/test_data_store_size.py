"""A store of any size: opening it and drawing from it touch a bounded part of it, and the same rows come in order."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import store as benchmark
from cramming.data.store import TokenStore
from cramming.data.stream import Split, Stream

# Rows of 128 ids in two bytes: 17 MB, several times as many as have their order worked out at a time, and 10 GB.
# Only the first of them are on the disk.
SMALL, LARGE = 1 << 16, 10 * 2**30 // 256
WRITTEN = 4096
DRAWN = 64
FAULT_BYTES = 128 * 1024  # at most, that the system maps around a byte that is read


def made(folder: Path, rows: int) -> Path:
    return benchmark.make(folder / str(rows), rows, seq_length=128, vocab_size=64, written_bytes=WRITTEN * 256)


def opened(folder: Path) -> Stream:
    """As ``cramming.build`` makes it, and moved far into a later epoch, as a resumed run does."""
    store = TokenStore.open(folder)
    split = Split(store.rows, 0.005)
    stream = Stream(store, split, seed=1, mask_rate=lambda: 0.15, max_mask_rate=0.15, device=torch.device("cpu"))
    stream.load_state_dict({"epoch": 3, "offset": split.train_rows // 2})
    return stream


def allocated(work: Callable[[], object]) -> int:
    """The most bytes held at once meanwhile, arrays of numpy among them."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def read_bytes() -> int:
    """What this process has read from files so far."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("this system does not count what a process reads")
    return int(counters.read_text().split("rchar:")[1].split()[0])


def mapped_bytes(file: Path) -> int:
    """What of a mapped file is in this process's memory."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(" ", 1)[0].endswith(":"):  # the head of a mapping
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def test_opening_allocates_nothing_for_the_size(tmp_path: Path) -> None:
    small, large = made(tmp_path, SMALL), made(tmp_path, LARGE)
    assert (large / "tokens.bin").stat().st_size > 10e9
    opened(small).draw(DRAWN)  # what is done once
    bytes_of = {
        folder: (allocated(lambda: opened(folder)), allocated(lambda: opened(folder).draw(DRAWN)))  # noqa: B023
        for folder in (small, large)
    }
    for few, many in zip(bytes_of[small], bytes_of[large], strict=True):
        assert many < few + 64 * 1024, bytes_of  # a byte for every row would be 42 million


def test_opening_reads_the_manifest_and_the_tokenizer(tmp_path: Path) -> None:
    read = {}
    for rows in (SMALL, LARGE):
        folder = made(tmp_path, rows)
        opened(folder)  # imports
        before = read_bytes()
        stream = opened(folder)
        read[rows] = read_bytes() - before
        assert mapped_bytes(folder / "tokens.bin") == 0
        stream.draw(DRAWN)
        assert 0 < mapped_bytes(folder / "tokens.bin") <= DRAWN * FAULT_BYTES
    assert read[LARGE] < read[SMALL] + 1024, read


def test_rows_of_a_large_store_are_where_they_were_written(tmp_path: Path) -> None:
    folder, order = made(tmp_path, LARGE), np.array([0, 1, WRITTEN - 1, LARGE - 1])
    with open(folder / "tokens.bin", "r+b") as file:
        file.seek((LARGE - 1) * 256)
        file.write(np.arange(128, dtype=np.uint16).tobytes())
    tokens, lengths = TokenStore.open(folder).read(order)
    assert lengths is None
    assert tokens[3].tolist() == list(range(128))
    assert (tokens[:3, 0] == 2).all()
    again = opened(folder)
    first = again.draw(3)
    again.load_state_dict({"epoch": 3, "offset": again.split.train_rows // 2})
    assert torch.equal(first.inputs, again.draw(3).inputs)
    assert first.ids.max() > SMALL
