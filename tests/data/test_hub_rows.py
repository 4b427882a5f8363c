"""Rows of local files as documents: going on behind any of them, joining, sampling, and what is read for it."""

import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets.utils.file_utils
import pyarrow
import pyarrow.parquet
import pytest

from cramming.data.estimate import estimate
from cramming.data.sources.hub import HubConfig, HubSource
from cramming.data.sources.hub_repository import Repository, Wanted
from cramming.data.sources.hub_rows import ParquetRows, spread, without_torch
from cramming.data.sources.source import Piece
from cramming.errors import UserError
from cramming.progress import PlainProgress, Silent

Write = Callable[[Path, list[str | None]], None]


def write_parquet(path: Path, texts: list[str | None], row_group_size: int = 3) -> None:
    table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.string()), "other": [1] * len(texts)})
    pyarrow.parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=row_group_size)


def write_jsonl(path: Path, texts: list[str | None]) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


# Nothing and blanks in the middle, at the ends, and as all of a file.
FILES: list[list[str | None]] = [
    ["a0", None, "a2", "  ", "a4", "a5", "a6", ""],
    [None, ""],
    ["c0", "c1", "c2"],
    ["", "d1", "d2", "d3", "d4", "d5", "d6", None, None],
]
FORMATS = pytest.mark.parametrize("write", [write_parquet, write_jsonl])


def source(folder: Path, tmp_path: Path, join_rows: int = 1, max_documents: int | None = None) -> HubSource:
    repository = Repository(Wanted(str(folder)), tmp_path / "data", Silent())
    return HubSource(repository, "text", join_rows, max_documents)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "corpus"
    path.mkdir()
    return path


def fill(folder: Path, write: Write, files: list[list[str | None]]) -> None:
    for number, texts in enumerate(files):
        write(folder / f"train-{number:05d}", texts)


@FORMATS
@pytest.mark.parametrize("join_rows", [1, 2, 16])
def test_documents_and_going_on_behind_any_of_them(folder: Path, tmp_path: Path, write: Write, join_rows: int) -> None:
    fill(folder, write, FILES)
    one = source(folder, tmp_path, join_rows)
    joined = (
        " ".join(text for text in texts[start : start + join_rows] if text)
        for texts in FILES
        for start in range(0, len(texts), join_rows)
    )
    pieces = list(one.pieces())
    assert [piece.text for piece in pieces] == [text for text in joined if text.strip()]
    assert all(piece.last for piece in pieces)
    assert [piece.position for piece in pieces] == sorted(piece.position for piece in pieces)
    for number, piece in enumerate(pieces):
        cursor = json.loads(json.dumps(piece.cursor))
        assert list(source(folder, tmp_path, join_rows).pieces(cursor)) == pieces[number + 1 :], cursor


def test_a_finished_file_is_behind_its_last_document(folder: Path, tmp_path: Path) -> None:
    fill(folder, write_parquet, [["a", "b"], ["c"]])
    assert [piece.cursor for piece in source(folder, tmp_path).pieces()] == [[0, 1, 0], [1, 0, 2], [2, 0, 3]]


def test_a_long_document_comes_in_pieces_and_can_be_left_at_its_end_only(folder: Path, tmp_path: Path) -> None:
    long = "word " * 120_000
    fill(folder, write_parquet, [[long, "b"]])
    pieces = list(source(folder, tmp_path).pieces())
    assert "".join(piece.text for piece in pieces[:-1]) == long
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 2) + [True, True]
    assert [piece.cursor is None for piece in pieces] == [not piece.last for piece in pieces]


@FORMATS
def test_a_sample_is_spread_over_the_corpus(
    folder: Path, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cramming.data.sources.hub.SAMPLE_BYTES", 16 * 40)
    fill(folder, write, [[f"{file} {row:02d} xxxxxxxxxx" for row in range(30)] for file in range(40)])
    one = source(folder, tmp_path)
    sampled = [piece.text for piece in one.sample_pieces()]
    assert sampled == [piece.text for piece in source(folder, tmp_path, max_documents=3).sample_pieces()]
    first = [text.split() for text in sampled[: 16 * 3]]
    # The first 40 characters of every 40/16th file, before more of any.
    assert [(file, row) for file, row, _ in first] == [
        (str(file * 40 // 16), f"{row:02d}") for file in range(16) for row in range(3)
    ]
    assert len(set(sampled)) == len(sampled) == 16 * 30


@pytest.mark.parametrize("files", [1, 3])
def test_few_parquet_files_are_sampled_inside(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    monkeypatch.setattr("cramming.data.sources.hub.SAMPLE_BYTES", 16 * 10)
    texts: list[list[str | None]] = [[f"{file} {row:03d} xx" for row in range(300)] for file in range(files)]
    fill(folder, write_parquet, texts)
    sampled = [piece.text for piece in source(folder, tmp_path).sample_pieces()]
    assert sorted(sampled) == [text for file in texts for text in file], (
        "a small corpus is sampled whole, nothing twice"
    )
    places = 16 // files * files
    rows = [300 * int(text[0]) + int(text[2:5]) for text in sampled[: places * 2 : 2]]
    assert [round(row * places / (300 * files)) for row in rows] == list(range(places))


def test_row_groups_that_are_skipped_are_not_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "train.parquet"
    texts = [f"{row} " * 20_000 for row in range(100)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="none", row_group_size=10)
    read: list[int] = []

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:  # type: ignore[override]
            data = super().read(size) or b""
            read.append(len(data))
            return data

    monkeypatch.setattr(datasets.utils.file_utils, "xopen", Counting)
    rows = ParquetRows([str(path)], "text", "x")
    assert [str(text).split()[0] for text in rows.read(0, 95)] == [str(row) for row in range(95, 100)]
    assert sum(read) < 0.2 * path.stat().st_size


def test_memory_does_not_grow_with_the_row_group(folder: Path) -> None:
    path = folder / "train.parquet"
    state, texts = 1, []
    for _ in range(20_000):
        state = state * 6364136223846793005 % (1 << 64) + 1442695040888963407
        texts.append(f"{state:x}" * 120)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, compression="none", row_group_size=10**6)
    assert path.stat().st_size > 25_000_000
    before = pyarrow.total_allocated_bytes()
    most = max(pyarrow.total_allocated_bytes() - before for _ in ParquetRows([str(path)], "text", "x").read(0, 0))
    assert most < 8_000_000


@pytest.mark.parametrize(
    ("places", "n", "chosen"), [(3, 5, [0, 1, 2]), (10, 5, [0, 2, 4, 6, 8]), (7, 3, [0, 2, 4]), (0, 4, [])]
)
def test_spread(places: int, n: int, chosen: list[int]) -> None:
    assert spread([(place, 0) for place in range(places)], n) == [(place, 0) for place in chosen]


@pytest.mark.parametrize(
    ("write", "limits", "total"),
    [
        (write_parquet, (1, None), 22),
        (write_parquet, (1, 5), 5),
        (write_parquet, (16, 5), 80),
        (write_jsonl, (1, None), math.inf),
        (write_jsonl, (1, 5), 5),
    ],
)
def test_how_much_there_is(
    folder: Path, tmp_path: Path, write: Write, limits: tuple[int, int | None], total: float
) -> None:
    fill(folder, write, FILES)
    assert source(folder, tmp_path, *limits).total == total


class Endless:
    """Nobody knows how much text it has; each document is a letter and counts one."""

    name, fingerprint, unit, shuffled, sample_bytes, total = "endless", "0", "documents", True, 1000, math.inf
    inputs: list[dict[str, str | int]] = []  # noqa: RUF012

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        yield Piece("a", True, 1.0)

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        return ["a b"] * 10, 10.0


def test_expectations_of_a_source_that_cannot_say_how_much_it_has(tmp_path: Path, letters: str) -> None:
    from cramming.data.tokenizer import Tokenizer

    config, tokenizer = HubConfig(dataset="x"), Tokenizer.load(Path(letters))
    unknown = estimate(config, Endless(), tokenizer, 0)
    assert unknown.tokens == math.inf
    assert "nobody knows" in str(unknown)
    unknown.check_disk(tmp_path)
    documents = estimate(replace(config, max_documents=1000), Endless(), tokenizer, 0)
    assert (documents.tokens, documents.text_bytes) == (3000, 3000)
    assert estimate(replace(config, max_tokens=600), Endless(), tokenizer, 0).tokens == 600


def test_progress_of_an_unknown_amount() -> None:
    said = io.StringIO()
    progress = PlainProgress(said, every_s=0.0)
    progress.stage("reading", math.inf, "documents")
    progress.advance(5)
    progress.done()
    lines = said.getvalue().splitlines()
    assert lines[0].startswith("reading: 5 documents, ")
    assert lines[1].startswith("reading: done, 5 documents")


def test_torch_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "TORCH_AVAILABLE", True)
    with without_torch():
        assert datasets.config.TORCH_AVAILABLE  # torch was imported by something else
    monkeypatch.delitem(sys.modules, "torch")
    with without_torch():
        assert not datasets.config.TORCH_AVAILABLE
    assert datasets.config.TORCH_AVAILABLE


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"dataset": None}, "data=hub needs data.dataset="),
        ({"dataset": "a/b", "split": "train[:5%]"}, "data.max_documents"),
        ({"dataset": "a/b", "split": "train+test"}, "not the name of a split"),
        ({"dataset": "a/b", "join_rows": 0}, "data.join_rows=0"),
    ],
)
def test_options_that_cannot_work(words: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        HubConfig(**words).check()


def test_a_local_corpus_has_no_revision(folder: Path, tmp_path: Path) -> None:
    fill(folder, write_parquet, FILES)
    with pytest.raises(UserError, match="is on this disk"):
        Repository(Wanted(str(folder), revision="main"), tmp_path / "data", Silent())
