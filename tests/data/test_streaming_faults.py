"""Trouble on the way from S3: what passes is asked for again, what is damaged fetched again, the rest is one line."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import s3_server
from sharded import ROWS, number_of, store_of, text_corpus, token_corpus

from cramming.data.shards.shard import ShardFile
from cramming.data.streaming import fetching
from cramming.data.streaming.corpus import find
from cramming.data.streaming.fetching import WAITS_S, Patience, fetch
from cramming.data.streaming.store import ShardedStore
from cramming.errors import UserError

ADDRESS = "s3://bucket/corpus"


@pytest.fixture
def corpus(tmp_path: Path, s3: s3_server.S3) -> s3_server.S3:
    """Forty rows in four shards at ``ADDRESS``."""
    s3.put_folder("bucket/corpus", token_corpus(tmp_path / "corpus", 40))
    return s3


@pytest.fixture
def opened(tmp_path: Path, letters: str) -> Callable[..., ShardedStore]:
    return lambda **options: store_of({"a": ADDRESS}, letters, tmp_path / "cache", **options)


def shard(store: ShardedStore, number: int) -> list[int]:
    """The rows of a shard, read."""
    ids = np.arange(number * ROWS, (number + 1) * ROWS)
    assert number_of(store.read(ids)[0]).tolist() == ids.tolist()
    return ids.tolist()  # type: ignore[no-any-return]


def test_too_many_requests(corpus: s3_server.S3, opened: Callable[..., ShardedStore]) -> None:
    corpus.refuse("shard.00001", times=3)
    shard(opened(), 1)
    assert corpus.count("shard.00001") == 4


def test_a_cut_connection_goes_on_where_it_was(
    corpus: s3_server.S3, opened: Callable[..., ShardedStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "CHUNK_BYTES", 300)
    corpus.cut("shard.00001", after=100)
    shard(opened(), 1)
    ranges = [one.range for one in corpus.asked if "shard.00001" in one.path]
    assert ranges[:3] == ["bytes=0-299", "bytes=0-299", "bytes=300-599"], "only the piece that was cut comes again"


def test_altered_on_the_way_once(corpus: s3_server.S3, opened: Callable[..., ShardedStore]) -> None:
    for trouble in (corpus.alter, corpus.shorten):
        before = corpus.count("shard.00002")
        trouble("shard.00002")
        store = opened()
        shard(store, 2)
        store.close()
        assert corpus.count("shard.00002") == before + 2
        for path in store.folder.glob("*.rows"):
            path.unlink()


def test_altered_where_it_lies(corpus: s3_server.S3, opened: Callable[..., ShardedStore], tmp_path: Path) -> None:
    data = (tmp_path / "corpus" / "shard.00001.mds").read_bytes()
    store = opened()
    for wrong, words in (
        (data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "is damaged: its sha1 is [0-9a-f]{40}, the index says"),
        (data[:-100], "has [0-9,]+ bytes, the index says [0-9,]+: it is damaged or incomplete"),
        (b"", "has 0 bytes"),
    ):
        corpus.put("bucket/corpus/shard.00001.mds", wrong)
        corpus.asked.clear()
        with pytest.raises(UserError, match=f"{ADDRESS}/shard.00001.mds, fetched twice, {words}") as caught:
            shard(store, 1)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value), "what is fetched again and again is no file of this machine"
        wholes = [one for one in corpus.asked if "shard.00001" in one.path and (one.range or "").startswith("bytes=0-")]
        assert len(wholes) == 2
        shard(store, 0)
    corpus.put("bucket/corpus/shard.00001.mds", data)
    shard(store, 1)


def test_a_missing_shard_and_a_missing_index(
    corpus: s3_server.S3, opened: Callable[..., ShardedStore], s3: s3_server.S3
) -> None:
    s3._directly("DELETE", "bucket/corpus/shard.00003.mds", b"")
    store = opened()
    with pytest.raises(UserError, match=r"corpus/shard\.00003\.mds is not there; check the bucket and the path"):
        shard(store, 3)
    for address, words in (
        ("s3://bucket/corpse", r"has no index of shards \(index\.json or .*set data\.remote"),
        ("s3://bukket/corpus", "the bucket does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            find(address, "auto", "auto", Patience(lambda seconds: None))


def test_expired_credentials_are_not_asked_again(corpus: s3_server.S3, opened: Callable[..., ShardedStore]) -> None:
    store = opened()
    corpus.refuse("shard", times=1000, how=s3_server.EXPIRED)
    with pytest.raises(UserError, match="the credentials have expired; renew them"):
        shard(store, 0)
    asked = corpus.count("shard.00000")
    assert asked <= 2
    corpus.mend()
    shard(store, 0)


def test_an_index_of_another_version(corpus: s3_server.S3, opened: Callable[..., ShardedStore]) -> None:
    index = corpus.get("bucket/corpus/index.json")
    assert index is not None
    corpus.put("bucket/corpus/index.json", index.replace(b'"version": 2', b'"version": 1'))
    with pytest.raises(UserError, match=r"s3://bucket/corpus/index\.json.* is of MDS version 1"):
        opened()


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """With longer and longer waits, by chance, so that many machines do not come back at the same moment."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    waits: list[float] = []
    asked: list[int] = []

    def cut() -> None:
        asked.append(1)
        raise ConnectionResetError("cut")

    with pytest.raises(ConnectionResetError):
        Patience(waits.append).ask(cut)
    assert waits == [1.5 * wait for wait in WAITS_S]
    assert len(asked) == len(WAITS_S) + 1
    monkeypatch.undo()
    drawn: list[float] = []
    with pytest.raises(ConnectionResetError):
        Patience(drawn.append).ask(cut)
    assert all(0.5 <= got / wait <= 1.5 for got, wait in zip(drawn, WAITS_S, strict=True))
    assert len({got / wait for got, wait in zip(drawn, WAITS_S, strict=True)}) > 5
    with pytest.raises(KeyError):
        Patience(waits.append).ask(lambda: {}[1])  # a mistake of ours is not asked for again
    assert len(waits) == len(WAITS_S)


def test_a_server_that_is_gone(tmp_path: Path, s3: s3_server.S3, letters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again until patience ends; one line."""
    monkeypatch.setattr(fetching, "WAITS_S", (1.0, 2.0))
    s3.put_folder("bucket/corpus", token_corpus(tmp_path / "corpus", 10))
    s3.cut("shard.00000", after=20, times=1000)
    waits: list[float] = []
    store = store_of({"a": ADDRESS}, letters, tmp_path / "cache", patience=Patience(waits.append))
    with pytest.raises(UserError, match=r"shard\.00000\.mds cannot be reached \(.*\); check the connection"):
        store.read(np.array([0]))
    assert len(waits) == 2


def test_servers_that_give_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a file comes for every part that is asked for."""
    data = bytes(range(256)) * 5

    class Whole:
        def cat_file(self, path: str, start: int, end: int) -> bytes:
            return data

    monkeypatch.setattr(fetching, "CHUNK_BYTES", 500)
    monkeypatch.setattr(fetching, "filesystem", lambda address: (Whole(), "x"))
    fetch("https://somewhere/corpus", ShardFile("x", len(data), {}), tmp_path / "x", Patience())
    assert (tmp_path / "x").read_bytes() == data


def test_texts_come_tokenized_and_a_damaged_text_shard_is_named(tmp_path: Path, s3: s3_server.S3, letters: str) -> None:
    folder = text_corpus(tmp_path / "corpus", ["a b c", "d e"] * 30, compression="br", hashes=["xxh64"], size_limit=500)
    s3.put_folder("bucket/corpus", folder)
    store = store_of({"a": ADDRESS}, letters, tmp_path / "cache", text=True)
    tokens, lengths = store.read(np.array([0, 1, 59]))
    assert tokens.tolist() == [[2, 5, 6, 7, 3, 0, 0, 0], [2, 8, 9, 3, 0, 0, 0, 0], [2, 8, 9, 3, 0, 0, 0, 0]]
    assert lengths is not None
    assert lengths.tolist() == [5, 4, 4]
    s3.alter("shard.00001", times=2)
    with pytest.raises(UserError, match=r"shard\.00001\.mds\.br, fetched twice, is damaged: its xxh64 is"):
        store.read(np.array([30]))
