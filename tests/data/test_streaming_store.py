"""Rows of corpora in shards: what is read is what was written, wherever it lies and however little room there is."""

import functools
import http.server
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import s3_server
import sharded
import torch
from sharded import number_of, store_of, text_corpus, token_corpus

from cramming.data.shards.parquet import ParquetWriter
from cramming.data.shards.rows import RowsWriter
from cramming.data.shards.writing import write_folder
from cramming.data.stream import Stream
from cramming.data.streaming.cache import ShardCache
from cramming.data.streaming.split import ShardSplit
from cramming.data.streaming.store import ShardedStore
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError


def epoch_of(store: ShardedStore, epoch: int = 0, seed: int = 0, batch: int = 7) -> np.ndarray:
    """The numbers of the rows of an epoch as they are read, batch by batch."""
    split = ShardSplit(store)
    rows = split.shuffled(seed)(epoch)
    seen = []
    for start in range(0, split.train_rows, batch):
        ids = rows(np.arange(start, min(start + batch, split.train_rows)))
        tokens, lengths = store.read(ids)
        assert lengths is None
        np.testing.assert_array_equal(number_of(tokens), ids % store.rows)
        seen.append(ids)
    return np.concatenate(seen)


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name != ".lock")


@pytest.mark.parametrize("compression", [None, "zstd", "gz"])
def test_a_folder(tmp_path: Path, letters: str, compression: str | None) -> None:
    folder = token_corpus(tmp_path / "corpus", 105, compression=compression)
    store = store_of({"a": str(folder)}, letters, tmp_path / "cache")
    assert (store.rows, store.seq_length, store.layout) == (105, 8, "packed")
    assert sorted(epoch_of(store)) == list(range(105))
    assert bool(kept(tmp_path / "cache")) == (compression is not None), "what is not compressed is read where it lies"
    assert store.about_reading()["fetched_bytes"] == 0
    store.verify()


def test_from_s3_into_a_small_cache(tmp_path: Path, letters: str, s3: s3_server.S3) -> None:
    """Room for what is open at one time and little more: every shard is fetched about once a pass."""
    s3.put_folder("bucket/corpus", token_corpus(tmp_path / "corpus", 200, compression="zstd"))
    s3.asked.clear()
    store = store_of({"a": "s3://bucket/corpus"}, letters, tmp_path / "cache", limit=4_500)
    first = epoch_of(store)
    assert sorted(first) == list(range(200))
    assert 20 <= s3.count("shard.") <= 22
    assert ShardCache(tmp_path / "cache", 0).size() <= 4_500
    second = epoch_of(store, 1)
    assert sorted(second) == list(range(200))
    assert (first != second).any()
    store.close()
    large = store_of({"a": "s3://bucket/corpus"}, letters, tmp_path / "large")
    np.testing.assert_array_equal(epoch_of(large), first)
    fetched = s3.count("shard.")
    np.testing.assert_array_equal(epoch_of(large, 1, batch=64), second)
    assert s3.count("shard.") == fetched, "all is in the cache"
    again = store_of({"a": "s3://bucket/corpus"}, letters, tmp_path / "large")
    np.testing.assert_array_equal(epoch_of(again), first)
    assert s3.count("shard.") == fetched
    assert again.about_reading()["fetched_bytes"] == 0


@pytest.mark.parametrize("kind", ["rows", "parquet", "arrays"])
def test_other_formats(tmp_path: Path, letters: str, kind: str, s3: s3_server.S3) -> None:
    folder, samples = tmp_path / "corpus", [sharded.row(number) for number in range(95)]
    tokenizer = Tokenizer.load(Path(letters))
    if kind == "rows":
        writer = RowsWriter(8, "uint16", tokenizer.to_json().encode(), size_limit=160)
        write_folder(folder, writer, ({"tokens": one} for one in samples))
    elif kind == "parquet":
        parquet = ParquetWriter({"tokens": "bytes"}, size_limit=640, hashes=["xxh64"])
        write_folder(folder, parquet, ({"tokens": one.tobytes()} for one in samples))
    else:
        sharded.write_mds(folder, {"tokens": "ndarray:int32"}, ({"tokens": one.astype(np.int32)} for one in samples))
    s3.put_folder("bucket/corpus", folder)
    here = store_of({"a": str(folder)}, letters, tmp_path / "cache")
    there = store_of({"a": "s3://bucket/corpus"}, letters, tmp_path / "other")
    np.testing.assert_array_equal(epoch_of(here), epoch_of(there))
    assert here.fingerprint == there.fingerprint, "a run goes on from a copy elsewhere"


def test_the_place_is_all_that_counts(tmp_path: Path, letters: str) -> None:
    """In the middle of a shard, on several ranks that each read their own: the same rows."""
    folder = token_corpus(tmp_path / "corpus", 210)
    whole = epoch_of(store_of({"a": str(folder)}, letters, tmp_path / "cache"))
    store = store_of({"a": str(folder)}, letters, tmp_path / "cache2")
    rows = ShardSplit(store).shuffled(0)(0)
    ids = rows(np.arange(101, 109))
    np.testing.assert_array_equal(number_of(store.read(ids)[0]), whole[101:109])
    assert len(store._ahead._state.opened) <= 6, "only the shards around that place were opened"
    ranks = [store_of({"a": str(folder)}, letters, tmp_path / "cache3") for _ in range(3)]
    read = np.empty(210, np.int64)
    orders = [ShardSplit(rank).shuffled(0)(0) for rank in ranks]
    for start in range(0, 210, 30):
        for number, rank in enumerate(ranks):
            own = orders[number](np.arange(start, start + 30))[number::3]
            read[start + number : start + 30 : 3] = number_of(rank.read(own)[0])
    np.testing.assert_array_equal(read, whole)


def test_texts_are_rows_of_their_own(tmp_path: Path, letters: str) -> None:
    folder = text_corpus(tmp_path / "corpus", ["a b", "", "c d e f g h i j k", "z " * 300_000], size_limit=400)
    store = store_of({"a": str(folder)}, letters, tmp_path / "cache", text=True)
    assert store.layout == "document"
    tokens, lengths = store.read(np.array([2, 0, 1, 3]))
    a, cls, sep = 5, 2, 3
    assert tokens.tolist() == [
        [cls, a + 2, a + 3, a + 4, a + 5, a + 6, a + 7, sep],
        [cls, a, a + 1, sep, 0, 0, 0, 0],
        [cls, sep, 0, 0, 0, 0, 0, 0],
        [cls, *[a + 25] * 6, sep],
    ]
    assert lengths is not None
    assert lengths.tolist() == [8, 4, 2, 8]


def test_held_out_rows(tmp_path: Path, letters: str) -> None:
    """A split to validate on, behind the others; or the last rows, in whole shards where that is not far too much."""
    both = tmp_path / "both"
    token_corpus(both / "train", 60)
    token_corpus(both / "val", 15, first=60)
    split = ShardSplit(store_of({"a": str(both)}, letters, tmp_path / "cache", heldout_fraction=0.5))
    assert (split.train_rows, split.heldout_rows) == (60, 15)
    assert split.heldout(np.arange(15)).tolist() == list(range(60, 75))
    assert split.train(np.arange(60)).tolist() == list(range(60))
    alone = token_corpus(tmp_path / "alone", 95)
    for fraction, heldout in ((0.08, 15), (0.02, 2), (0.0, 0), (0.4, 45)):
        store = store_of({"a": str(alone)}, letters, tmp_path / "cache", heldout_fraction=fraction)
        split = ShardSplit(store)
        assert split.heldout_rows == heldout
        assert sorted(epoch_of(store)) == list(range(95 - heldout))
        assert split.heldout(np.arange(heldout)).tolist() == list(range(95 - heldout, 95))


def test_streams_mixed(tmp_path: Path, letters: str) -> None:
    large, small = token_corpus(tmp_path / "large", 300), token_corpus(tmp_path / "small", 20, first=300)
    token_corpus(tmp_path / "small" / "x", 1)  # no index of its own split: not looked at
    addresses = {"large": str(large), "small": str(small)}
    store = store_of(addresses, letters, tmp_path / "cache", weights={"large": 0.75, "small": 0.25})
    ids = epoch_of(store)
    assert len(ids) == 320
    assert abs((ids % 320 >= 300).mean() - 0.25) < 0.01
    assert len(set(ids.tolist())) == 320
    tokenizer = store.tokenizer
    stream = Stream(
        store,  # type: ignore[arg-type]
        ShardSplit(store),
        seed=0,
        mask_rate=lambda: 0.25,
        max_mask_rate=0.25,
        device=torch.device("cpu"),
        order=ShardSplit(store).shuffled(0),
    )
    batch = stream.draw(320)
    repeated = {}
    for row, one, positions in zip(
        (batch.ids % 320).tolist(), batch.ids.tolist(), batch.positions.tolist(), strict=True
    ):
        repeated.setdefault(row, {})[one] = tuple(positions)
    masks = [places for places in repeated.values() if len(places) > 1]
    assert len(masks) == 20
    assert sum(len(set(places.values())) > 1 for places in masks) > 15, "a repeated row is masked anew"
    assert tokenizer.mask_id in batch.inputs


def test_too_small_a_cache_says_how_much_is_needed(tmp_path: Path, letters: str) -> None:
    folder = token_corpus(tmp_path / "corpus", 200, compression="zstd")
    with pytest.raises(
        UserError,
        match=r"data\.cache_limit=1\.0 kB is less than shards in use take at one time; set data\.cache_limit=4kB",
    ):
        store_of({"a": str(folder)}, letters, tmp_path / "cache", limit=1_000)
    os.chmod(tmp_path, 0o500)
    if not os.access(tmp_path, os.W_OK):
        with pytest.raises(UserError, match=r"data\.cache_dir=.* cannot be written"):
            store_of({"a": str(folder)}, letters, tmp_path / "new")
    os.chmod(tmp_path, 0o700)


def test_rows_that_do_not_fit(tmp_path: Path, letters: str) -> None:
    folder = tmp_path / "corpus"
    sharded.write_mds(folder, {"tokens": "bytes"}, [{"tokens": np.arange(5, 15, dtype="<i8").tobytes()}])
    with pytest.raises(UserError, match=r"holds rows of 10 tokens, and data\.seq_length=8; use data\.seq_length=10"):
        store_of({"a": str(folder)}, letters, tmp_path / "cache").read(np.array([0]))
    sharded.write_mds(tmp_path / "high", {"tokens": "bytes"}, [{"tokens": np.full(8, 31, "<i8").tobytes()}])
    with pytest.raises(UserError, match=r"has the token id 31, and the tokenizer has 31 pieces"):
        store_of({"a": str(tmp_path / "high")}, letters, tmp_path / "cache").read(np.array([0]))


def test_a_damaged_shard_of_this_machine(tmp_path: Path, letters: str) -> None:
    folder = token_corpus(tmp_path / "corpus", 30)
    path = folder / "shard.00001.mds"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    store = store_of({"a": str(folder)}, letters, tmp_path / "cache")
    store.read(np.array([3]))
    with pytest.raises(UserError, match=r"shard\.00001\.mds is damaged: its sha1 is"):
        store.read(np.array([13]))
    with pytest.raises(UserError, match="sha1"):
        store.verify()


def test_from_a_web_server(tmp_path: Path, letters: str) -> None:
    """Any address fsspec knows goes the same way."""
    pytest.importorskip("aiohttp")
    token_corpus(tmp_path / "corpus" / "train", 30)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        store = store_of({"a": f"{address}/corpus"}, letters, tmp_path / "cache")
        assert sorted(epoch_of(store)) == list(range(30))
        with pytest.raises(UserError, match="/nothing has no index of shards"):
            store_of({"a": f"{address}/nothing"}, letters, tmp_path / "cache")
        server.shutdown()


def test_a_stream_of_one_sample_cannot_be_split(tmp_path: Path, letters: str) -> None:
    folder = text_corpus(tmp_path / "corpus", ["a b"])
    with pytest.raises(UserError, match=r"has 1 samples, .* leaves none of them to train on"):
        store_of({"a": str(folder)}, letters, tmp_path / "cache", text=True, heldout_fraction=0.1)
