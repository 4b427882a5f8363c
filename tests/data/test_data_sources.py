"""Every way of writing the same documents down gives the same documents."""

import csv
import gzip
import io
import itertools
import json
import lzma
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from cramming.data.sources import files, formats, source
from cramming.data.sources.local import LocalSource
from cramming.progress import Silent

DOCUMENTS = ["First, a line.\nAnd a second one", 'Quotes "and" commas, ünïcödé 漢字 🙂', "third\tone", "x" * 70_000]


def documents_of(path: Path, document: str = "block", text_column: str = "text") -> list[str]:
    """Documents of a path, pieces joined, without the newline that ends a plain line."""
    found = [""]
    pieces = LocalSource(str(path), document, text_column, path.parent / "data", Silent()).pieces()
    for text, last, *_ in pieces:
        found[-1] += text
        if last:
            found.append("")
    assert found.pop() == "", "the last document was not ended"
    return [text.removesuffix("\n") for text in found]


def as_csv(delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["id", "text"])
    writer.writerows([number, text] for number, text in enumerate(DOCUMENTS))
    return out.getvalue().encode()


FORMATS = {
    ".txt": "\n\n".join(DOCUMENTS).encode(),
    ".jsonl": "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in DOCUMENTS).encode(),
    ".json": "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in DOCUMENTS).encode(),
    ".csv": as_csv(","),
    ".tsv": as_csv("\t"),
    ".unheard_of": b"\xef\xbb\xbf" + "\n \n\n".join(DOCUMENTS).replace("\n", "\r\n").encode(),
}
COMPRESSIONS = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),  # two members, as gzip >> makes them
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.compress(data[:100]) + zstandard.compress(data[100:]),
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_formats_and_compressions_agree(tmp_path: Path, suffix: str, compression: str) -> None:
    path = tmp_path / f"corpus{suffix}{compression}"
    path.write_bytes(COMPRESSIONS[compression](FORMATS[suffix]))
    assert documents_of(path) == DOCUMENTS


def test_parquet_agrees(tmp_path: Path) -> None:
    table = pyarrow.table({"n": range(5), "body": [*DOCUMENTS, None]})
    pyarrow.parquet.write_table(table, tmp_path / "corpus.parquet", row_group_size=2)
    assert documents_of(tmp_path / "corpus.parquet", text_column="body") == DOCUMENTS


def test_what_a_document_is(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\na\nb\n \nc\n\n\n\nd")
    assert documents_of(path, "line") == ["a", "b", "c", "d"]
    assert documents_of(path, "block") == ["a\nb", "c", "d"]
    assert documents_of(path, "file") == ["\n\na\nb\n \nc\n\n\n\nd"]


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for name in ("b.txt", "a/z.txt", "a/b.txt", ".hidden", "a/.git/x.txt"):
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text(name)
    assert documents_of(corpus) == ["a/b.txt", "a/z.txt", "b.txt"]
    assert documents_of(corpus / "**" / "?.txt") == ["a/b.txt", "a/z.txt", "b.txt"]


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    def fingerprint(path: Path, document: str = "block") -> str:
        return LocalSource(str(path), document, "text", tmp_path / "data", Silent()).fingerprint

    one, other = tmp_path / "one.txt", tmp_path / "elsewhere" / "other.txt"
    other.parent.mkdir()
    one.write_text("same")
    other.write_text("same")
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(one, "line")
    before = fingerprint(one)
    one.write_text("samf")
    assert fingerprint(one) != before


@pytest.mark.parametrize("document", ["line", "block", "file"])
@pytest.mark.parametrize(
    "text", ["word " * 3000, "unbroken" * 2000, ("ab " * 200 + "\n") * 20], ids=["long", "solid", "lines"]
)
def test_long_documents_come_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str, text: str
) -> None:
    """Bounded, cut before white space where there is any, nothing lost, wherever reads of the file happen to end."""
    path = tmp_path / "corpus.txt"
    path.write_text(text)
    monkeypatch.setattr(source, "PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(formats, "PIECE_CHARACTERS", 1000)
    seen: list[list[tuple[str, bool]]] = []
    for read_bytes in (37, 1000, 1 << 20):
        monkeypatch.setattr(files, "READ_BYTES", read_bytes)
        seen.append([(piece.text, piece.last) for piece in formats.read(path, document, "text")])
    assert seen[0] == seen[1] == seen[2]
    pieces = [piece for piece, _ in seen[0]]
    assert "".join(pieces).removesuffix("\n") == text.removesuffix("\n")
    assert max(map(len, pieces)) <= 1001  # a line end may be added to a full piece
    if " " in text:
        ends = itertools.pairwise(pieces)
        assert all(one[-1].isspace() or next_one[0].isspace() for one, next_one in ends if one and next_one)


def test_positions_reach_the_total(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt.gz"):
        data = b"some words here\n\n" * 50
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    local = LocalSource(f"{tmp_path}/*.*", "block", "text", tmp_path / "data", Silent())
    positions = [piece.position for piece in local.pieces()]
    assert positions == sorted(positions)
    assert positions[-1] == local.total == sum((tmp_path / n).stat().st_size for n in ("a.txt", "b.txt.gz"))


def test_an_expensive_beginning_does_not_stand_for_a_compressed_file(tmp_path: Path) -> None:
    """The first part of this file takes twice the bytes that the rest does; xz does likewise."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=7)) for _ in range(300)]
    beginning = (draw.choices("abcdefghijklmnopqrstuvwxyz", k=7) for _ in range(20_000))
    text = " ".join(["".join(word) for word in beginning] + draw.choices(words, k=800_000)).replace("aa", "\n\n")
    path = tmp_path / "corpus.txt.gz"
    path.write_bytes(gzip.compress(text.encode(), 1))
    local = LocalSource(str(path), "block", "text", tmp_path / "data", Silent())
    texts, raw = local.glimpse(100_000)
    taken = sum(map(len, texts))
    assert 100_000 <= taken < 2_000_000
    assert taken / raw * local.total == pytest.approx(len(text), rel=0.05)
