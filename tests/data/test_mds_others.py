"""Parquet files and rows of token ids as shards: the same laws as for MDS."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming.data.shards.formats import read_index
from cramming.data.shards.hashes import check_file
from cramming.data.shards.parquet import ParquetIndex, ParquetWriter, listed, listing
from cramming.data.shards.rows import RowsIndex, RowsWriter
from cramming.data.shards.writing import write_folder
from cramming.errors import UserError


def everything(folder: Path) -> list[dict[str, Any]]:
    index = read_index(folder)
    found = []
    for shard in index.shards:
        check_file(folder / shard.file.name, shard.file)
        reader = index.open(shard, folder / shard.file.name)
        assert len(reader) == shard.samples
        assert shard.first == len(found)
        found += [dict(reader[number]) for number in range(len(reader))]
        reader.close()
    return found


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 65535), min_size=4, max_size=4), max_size=40),
    size_limit=st.integers(1, 100),
)
def test_rows_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], size_limit: int) -> None:
    folder = tmp_path_factory.mktemp("rows")
    writer = RowsWriter(4, "uint16", b"{}", size_limit=size_limit)
    write_folder(folder, writer, [{"tokens": np.array(row, np.uint16)} for row in rows])
    found = everything(folder)
    assert [sample["tokens"].tolist() for sample in found] == rows
    assert all(sample["tokens"].dtype == np.uint16 for sample in found)
    index = read_index(folder)
    assert isinstance(index, RowsIndex)
    assert index.tokenizer.name == "tokenizer.json"
    assert all(shard.raw.size <= max(8, size_limit) and "sha256" in shard.raw.hashes for shard in index.shards)


@settings(max_examples=20, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=30),
    compression=st.sampled_from([None, "zstd:5", "gz", "br:1", "snappy"]),
    size_limit=st.integers(1, 200),
)
def test_parquet_round_trip(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], compression: str | None, size_limit: int
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    writer = ParquetWriter({"text": "str"}, compression=compression, hashes=["sha1"], size_limit=size_limit)
    write_folder(folder, writer, [{"text": text} for text in texts])
    assert [sample["text"] for sample in everything(folder)] == texts


def test_parquet_of_others_with_row_groups_and_other_columns(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "text": ["a", None, "c", "d", "e"],
            "tokens": pyarrow.array([[1, 2], [3], [], [4, 5, 6], [7]], pyarrow.list_(pyarrow.int32())),
            "when": pyarrow.array([0] * 5, pyarrow.timestamp("s")),
        }
    )
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    with open(path, "rb") as file:
        columns, entry = listed(file, path.name, path.stat().st_size)
    assert columns == {"text": "str", "tokens": "ndarray:int32"}
    name, data = listing(columns, [entry])
    (tmp_path / name).write_bytes(data)
    found = everything(tmp_path)
    assert [sample["text"] for sample in found] == ["a", None, "c", "d", "e"]
    assert [sample["tokens"].tolist() for sample in found] == [[1, 2], [3], [], [4, 5, 6], [7]]
    index = read_index(tmp_path)
    reader = index.open(index.shards[0], path)
    assert [reader[number]["text"] for number in (4, 0, 3, 0)] == ["e", "a", "d", "a"]
    with pytest.raises(IndexError):
        reader[5]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    samples = [{"tokens": np.arange(8 * number, 8 * number + 8, dtype=np.uint16)} for number in range(6)]
    write_folder(tmp_path / "rows", RowsWriter(8, "uint16", b"{}", size_limit=48), samples)
    return tmp_path / "rows"


@pytest.fixture
def parquets(tmp_path: Path) -> Path:
    write_folder(tmp_path / "parquet", ParquetWriter({"text": "str"}), [{"text": "word " * 99}] * 20)
    return tmp_path / "parquet"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index.update(version=2), "reads rows, version 1"),
        (lambda index: index.update(format="mds"), "format 'mds'"),
        (lambda index: index.update(dtype="float32"), "no rows of token ids"),
        (lambda index: index.update(seq_length=0), "no rows of token ids"),
        (lambda index: index.update(seq_length=9), "3 rows of 18 bytes and 48 bytes"),
        (lambda index: index.pop("tokenizer"), "tokenizer is None"),
        (lambda index: index["tokenizer"].update(basename="../t.json"), "leads out of the folder"),
        (lambda index: index["shards"][1]["raw_data"].update(basename="/r.bin"), "leads out of the folder"),
    ],
)
def test_rows_index_that_is_refused(rows: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    edit(rows / "rows.json", change)
    with pytest.raises(UserError, match=said) as refused:
        read_index(rows)
    assert "\n" not in str(refused.value)


def test_damaged_rows(rows: Path) -> None:
    index = read_index(rows)
    path = rows / index.shards[0].raw.name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"rows.00000.bin is damaged: it has 47 bytes, the index says 48"):
        index.open(index.shards[0], path)
    path.unlink()
    with pytest.raises(UserError, match=r"rows.00000.bin cannot be read"):
        index.open(index.shards[0], path)


def test_rows_keep_no_file_open(rows: Path) -> None:
    index = read_index(rows)
    before = Path("/proc/self/maps").read_text().count("rows.00000.bin")
    reader = index.open(index.shards[0], rows / index.shards[0].raw.name)
    row = reader[1]["tokens"]
    reader.close()
    assert Path("/proc/self/maps").read_text().count("rows.00000.bin") == before == 0
    assert row.tolist() == list(range(8, 16))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index.update(version=0), "reads parquet, version 1: list the folder again"),
        (lambda index: index.update(columns={"text": 5}), "text is 5"),
        (lambda index: index["shards"][0]["raw_data"].update(basename="../x.parquet"), "leads out of the folder"),
    ],
)
def test_parquet_index_that_is_refused(parquets: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    edit(parquets / "parquet.json", change)
    with pytest.raises(UserError, match=said):
        read_index(parquets)


def test_damaged_parquet(parquets: Path) -> None:
    index = read_index(parquets)
    shard = index.shards[0]
    path = parquets / shard.raw.name
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"", b"PAR1" + b"\0" * 50 + b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"part-00000.parquet is not a usable parquet file"):
            index.open(shard, path)
    path.write_bytes(whole)
    edit(parquets / "parquet.json", lambda node: node["shards"][0].update(samples=19))
    fewer = read_index(parquets)
    assert isinstance(fewer, ParquetIndex)
    with pytest.raises(UserError, match=r"has 20 rows of .* the index says 19"):
        fewer.open(fewer.shards[0], path)
