"""MDS: what goes in comes out, and what is damaged is said in one line that names the file."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming.data.shards.compression import decompressed
from cramming.data.shards.formats import read_index
from cramming.data.shards.hashes import ALGORITHMS, check_file
from cramming.data.shards.mds import MdsIndex, MdsReader
from cramming.data.shards.mds_writer import MdsWriter, write_mds
from cramming.errors import UserError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ARRAYS = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9).map(lambda v: np.array(v, np.int32))
SAMPLES = st.lists(
    st.fixed_dictionaries(
        {"text": TEXTS, "raw": st.binary(max_size=30), "n": st.integers(-(2**63), 2**63 - 1), "x": ARRAYS}
    ),
    max_size=20,
)
COLUMNS = {"text": "str", "raw": "bytes", "n": "int", "x": "ndarray"}


def everything(folder: Path) -> list[dict[str, Any]]:
    index = read_index(folder)
    found = []
    for shard in index.shards:
        if shard.compression is not None:
            decompressed(shard, folder / shard.file.name, folder / shard.raw.name)
        check_file(folder / shard.raw.name, shard.raw)
        reader = index.open(shard, folder / shard.raw.name)
        assert len(reader) == shard.samples
        found += [reader[number] for number in range(len(reader))]
        reader.close()
    return found


@settings(max_examples=40, deadline=None)
@given(
    samples=SAMPLES,
    compression=st.sampled_from([None, "zstd", "zstd:1", "gz:1", "br:2", "bz2", "snappy"]),
    hashes=st.sets(st.sampled_from(ALGORITHMS), max_size=3),
    size_limit=st.one_of(st.none(), st.integers(1, 2000)),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    samples: list[dict[str, Any]],
    compression: str | None,
    hashes: set[str],
    size_limit: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("mds")
    write_mds(folder, COLUMNS, samples, compression=compression, hashes=sorted(hashes), size_limit=size_limit)
    found = everything(folder)
    assert len(found) == len(samples)
    for ours, given_ in zip(found, samples, strict=True):
        assert ours.keys() == given_.keys()
        assert all(np.array_equal(ours[name], given_[name]) for name in given_)
    for shard in read_index(folder).shards:
        assert shard.samples == 1 or size_limit is None or shard.raw.size <= size_limit
        assert set(shard.file.hashes) == hashes


def test_no_samples_and_first_sample_too_large(tmp_path: Path) -> None:
    write_mds(tmp_path / "none", {"text": "str"}, [])
    assert read_index(tmp_path / "none").shards == []
    write_mds(tmp_path / "large", {"text": "str"}, [{"text": "x" * 999}, {"text": "y"}], size_limit=200)
    assert [shard.samples for shard in read_index(tmp_path / "large").shards] == [1, 1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of four documents each."""
    texts = [{"text": f"document {number} " + "word " * 20} for number in range(8)]
    write_mds(tmp_path / "corpus", {"text": "str"}, texts, hashes=["sha1", "xxh64"], size_limit=740)
    assert [shard.samples for shard in read_index(tmp_path / "corpus").shards] == [4, 4]
    return tmp_path / "corpus"


def put(offset: int, data: bytes) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[offset : offset + len(data)] = data

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.clear(), "is empty"),
        (lambda content: content.__delitem__(slice(-1, None)), "bytes, the index says"),
        (lambda content: content.extend(b"x"), "bytes, the index says"),
        (put(0, b"\xff\xff\xff\xff"), "says it has 4,294,967,295 samples, the index says 4"),
        (put(0, b"\0\0\0\0"), "says it has 0 samples"),
        (put(4, b"\0\0\0\0"), "begin and end"),  # the first sample begins in the header
        (put(8, b"\xff\xff\xff\xff"), "begin and end"),  # the second behind the end
        (put(20, b"\1\0\0\0"), "begin and end"),  # the last ends elsewhere
    ],
)
def test_damaged_shard_is_refused_when_opened(folder: Path, change: Callable[[bytearray], None], said: str) -> None:
    index = read_index(folder)
    path = folder / index.shards[1].raw.name
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"shard.00001.mds .*{said}") as refused:
        index.open(index.shards[1], path)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"shard.00001.mds"):
        check_file(path, index.shards[1].raw)


def test_any_flipped_byte_is_found_by_hashes_and_never_an_odd_error(folder: Path) -> None:
    index = read_index(folder)
    shard = index.shards[0]
    path = folder / shard.raw.name
    whole = path.read_bytes()
    draw = random.Random(0)
    said = set()
    for _ in range(300):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"shard.00000.mds is damaged: its sha1 is"):
            check_file(path, shard.raw)
        try:
            reader = index.open(shard, path)
            _ = [reader[number] for number in range(len(reader))]
            reader.close()
        except UserError as error:
            said.add("shard.00000.mds" in str(error))
    assert said == {True}


def test_missing_file(folder: Path) -> None:
    index = read_index(folder)
    path = folder / index.shards[0].raw.name
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        check_file(path, index.shards[0].raw)
    with pytest.raises(UserError, match="cannot be read"):
        index.open(index.shards[0], path)


@pytest.mark.parametrize("compression", ["zstd", "gz", "br", "bz2", "snappy"])
def test_damaged_compressed_shard(tmp_path: Path, compression: str) -> None:
    texts = [{"text": f"document {number} " * 10} for number in range(50)]
    write_mds(tmp_path, {"text": "str"}, texts, compression=compression)
    shard = read_index(tmp_path).shards[0]
    path, raw = tmp_path / shard.file.name, tmp_path / shard.raw.name
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1], b"", b"nonsense" * 20, whole[:20] + b"\0" * 50):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{shard.file.name} is damaged"):
            decompressed(shard, path, raw)
        assert sorted(found.name for found in tmp_path.iterdir()) == ["index.json", shard.file.name]


def test_what_unfolds_to_more_than_the_index_says_is_stopped(tmp_path: Path) -> None:
    write_mds(tmp_path, {"text": "str"}, [{"text": "x" * 50_000_000}], compression="zstd")
    shard = read_index(tmp_path).shards[0]
    edit(tmp_path, lambda index: index["shards"][0]["raw_data"].update(bytes=1000))
    smaller = read_index(tmp_path).shards[0]
    with pytest.raises(UserError, match=r"holds more, the index says 1,000 bytes"):
        decompressed(smaller, tmp_path / shard.file.name, tmp_path / shard.raw.name)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def of_first(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda index: index["shards"][0].update(values)


def raw(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda index: index["shards"][0]["raw_data"].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index.update(version=1), "is of MDS version 1, this program reads version 2"),
        (lambda index: index.pop("version"), "is of MDS version None"),
        (of_first(version=3), "shard 0 is of MDS version 3"),
        (of_first(format="csv"), "is of the format 'csv'"),
        (lambda index: index.pop("shards"), "shards is None, not a list"),
        (lambda index: index.update(shards=[7]), "version"),
        (of_first(samples=-1), "samples is -1, not a whole number"),
        (of_first(samples=True), "samples is True"),
        (of_first(raw_data=None), "raw_data is None"),
        (raw(basename="../shard.00000.mds"), "leads out of the folder"),
        (raw(basename="/etc/passwd"), "leads out of the folder"),
        (raw(basename=".."), "leads out of the folder"),
        (raw(basename="a/../../b"), "leads out of the folder"),
        (raw(basename="a\\..\\b"), "leads out of the folder"),
        (raw(basename="c:evil"), "leads out of the folder"),
        (raw(basename="a\0b"), "leads out of the folder"),
        (raw(basename=""), "leads out of the folder"),
        (raw(basename="shard.00001.mds"), "is listed twice"),
        (raw(bytes="12"), "bytes is '12'"),
        (raw(hashes={"sha0": "00"}), "the hash 'sha0' is not known; did you mean"),
        (raw(hashes={"sha1": 5}), "is no text"),
        (of_first(zip_data={"basename": "a", "bytes": 1, "hashes": {}}), "compression is None"),
        (of_first(zip_data={"basename": "a", "bytes": 1, "hashes": {}}, compression="lz4"), "'lz4' is not known"),
        (of_first(zip_data={"basename": "a", "bytes": 1, "hashes": {}}, compression="zstd:99"), "1 to 22"),
        (of_first(zip_data={"basename": "../a", "bytes": 1, "hashes": {}}, compression="zstd"), "leads out"),
        (of_first(column_encodings=["pkl"]), "encoding 'pkl' are not read"),
        (of_first(column_encodings=["ndarray:int64:0"]), "are not read"),
        (of_first(column_sizes=[8]), "has size 8"),
        (of_first(column_names=["text", "text"]), "the index is damaged"),
        (of_first(column_names=["words"]), "those before .'words'"),
    ],
)
def test_index_that_is_refused(folder: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    edit(folder, change)
    with pytest.raises(UserError, match=said) as refused:
        read_index(folder)
    assert "index.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_index_that_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not JSON"):
        MdsIndex.parse("{", "s3://bucket/index.json")
    with pytest.raises(UserError, match="is not JSON"):
        MdsIndex.parse("[" * 100_000, "index.json")
    with pytest.raises(UserError, match="no JSON object"):
        MdsIndex.parse("[]", "index.json")
    with pytest.raises(UserError, match=r"has no index"):
        read_index(tmp_path)
    write_mds(tmp_path / "train", {"text": "str"}, [])
    with pytest.raises(UserError, match="its splits are folders, name one: train"):
        read_index(tmp_path)


def test_merged_index_with_folders_below(tmp_path: Path) -> None:
    for part in ("a", "b"):
        write_mds(tmp_path / part, {"text": "str"}, [{"text": part}])
    shards = []
    for part in ("a", "b"):
        (entry,) = json.loads((tmp_path / part / "index.json").read_text())["shards"]
        entry["raw_data"]["basename"] = f"{part}/{entry['raw_data']['basename']}"
        shards.append(entry)
    (tmp_path / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    assert [sample["text"] for sample in everything(tmp_path)] == ["a", "b"]


def test_a_shard_of_another_corpus(folder: Path, tmp_path: Path) -> None:
    """The right size and number of samples, other columns: the sample does not fit."""
    index = read_index(folder)
    edit(folder, lambda node: [shard.update(column_encodings=["int"], column_sizes=[8]) for shard in node["shards"]])
    other = read_index(folder)
    assert other.fingerprint != index.fingerprint
    reader = other.open(other.shards[0], folder / other.shards[0].raw.name)
    with pytest.raises(UserError, match=r"shard.00000.mds is damaged: sample 0"):
        reader[0]
    with pytest.raises(IndexError):
        reader[4]


def test_fingerprint_is_of_the_samples(folder: Path, tmp_path: Path) -> None:
    before = read_index(folder).fingerprint
    edit(folder, lambda index: index["shards"][0].update(size_limit=5, hashes=[]))
    assert read_index(folder).fingerprint == before
    edit(folder, raw(hashes={"sha1": "0" * 40}))
    assert read_index(folder).fingerprint != before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compression": "zip"}, "'zip' is not known"),
        ({"compression": "snappy:3"}, "has no levels"),
        ({"compression": "gz:x"}, "levels of gz are 0 to 9"),
        ({"hashes": ["crc"]}, "'crc' is not known"),
        ({"size_limit": 0}, "size_limit=0 is out of range"),
        ({"size_limit": 1 << 32}, "out of range"),
    ],
)
def test_writer_refuses(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        MdsWriter({"text": "str"}, **options)


def test_reader_keeps_no_file_open(folder: Path) -> None:
    index = read_index(folder)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        reader = MdsReader(folder / index.shards[0].raw.name, index.shards[0], index.columns)
        reader[3]
        reader.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
