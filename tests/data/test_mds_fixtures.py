"""Shards the original library wrote: ours reads them, and writes them to the byte."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import zstandard

from cramming.data.shards.compression import decompressed
from cramming.data.shards.formats import read_index
from cramming.data.shards.hashes import check_file
from cramming.data.shards.mds_writer import write_mds

FIXTURES = Path(__file__).parent / "fixtures_mds"
_spec = importlib.util.spec_from_file_location("written", FIXTURES / "written.py")
assert _spec is not None
assert _spec.loader is not None
written = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(written)
# Whether a compressed file has the original's bytes. Those of gzip hold the time they were written at, and snappy there
# is another library; the others depend on the compressor's version, and these are the ones the original had.
SAME_BYTES = {
    "gz": False,
    "snappy": False,
    "bz2": True,
    "zstd": zstandard.ZSTD_VERSION == (1, 5, 7),
    "br": pyarrow.__version__.startswith("26."),
}


def contents(folder: Path, scratch: Path) -> list[dict[str, Any]]:
    """All samples, every file checked on the way."""
    index = read_index(folder)
    samples: list[dict[str, Any]] = []
    for shard in index.shards:
        check_file(folder / shard.file.name, shard.file)
        raw = folder / shard.raw.name
        if shard.compression is not None:
            raw = scratch / shard.raw.name
            decompressed(shard, folder / shard.file.name, raw)
        check_file(raw, shard.raw)
        assert shard.first == len(samples)
        reader = index.open(shard, raw)
        samples += [reader[number] for number in range(len(reader))]
        reader.close()
    assert index.samples == len(samples)
    return samples


@pytest.mark.parametrize("name", written.FOLDERS)
def test_reads_what_the_original_wrote(name: str, tmp_path: Path) -> None:
    columns, expected, _ = written.FOLDERS[name]
    found = contents(FIXTURES / name, tmp_path)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == set(columns)
        for column, value in ours.items():
            assert np.array_equal(value, theirs[column]), column
            assert getattr(value, "dtype", None) in (getattr(theirs[column], "dtype", None), columns[column])


@pytest.mark.parametrize("name", written.FOLDERS)
def test_writes_the_bytes_the_original_wrote(name: str, tmp_path: Path) -> None:
    columns, samples, options = written.FOLDERS[name]
    write_mds(tmp_path / name, columns, samples, **options)
    ours = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    theirs = {path.name: path.read_bytes() for path in (FIXTURES / name).iterdir()}
    assert set(ours) == set(theirs)
    if SAME_BYTES[str(options.get("compression", "bz2")).partition(":")[0]]:
        assert ours == theirs
    indexes = [json.loads(folder["index.json"]) for folder in (ours, theirs)]
    for shard in (shard for index in indexes for shard in index["shards"] if shard["zip_data"]):
        assert shard["zip_data"].keys() == {"basename", "bytes", "hashes"}
        shard["zip_data"] = shard["zip_data"]["basename"]
    assert indexes[0] == indexes[1]
    assert len(contents(tmp_path / name, tmp_path)) == len(samples)


def test_several_shards_and_compressions_are_among_them() -> None:
    indexes = {name: read_index(FIXTURES / name) for name in written.FOLDERS}
    assert [name for name, index in indexes.items() if len(index.shards) > 1] == ["text", "tokens", "zstd"]
    families = {shard.compression for index in indexes.values() for shard in index.shards}
    assert families == {None, "zstd", "zstd:7", "gz", "br", "br:4", "bz2", "snappy"}
    assert indexes["none"].samples == 0
