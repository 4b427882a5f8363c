"""What cannot be used is refused in one line that names it and the way out."""

import errno
import gzip
import json
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import zstandard

from cramming.data.preparation import prepare
from cramming.data.sources.local import LocalConfig
from cramming.errors import UserError

LONG = ("All work and no play makes Jack a dull boy. " * 3 + "\n\n") * 200


def refused(config: LocalConfig, tmp_path: Path, *words: str) -> None:
    """Preparing ends in a one-line UserError with these words, and no store."""
    with pytest.raises(UserError) as caught:
        prepare(config, tmp_path / "data", workers=0)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    assert not [path for path in tmp_path.glob("data/store-*") if path.suffix not in (".lock", ".work")]


def corpus(tmp_path: Path, content: bytes | str, name: str = "corpus.txt") -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize("name", ["missing.txt", "missing/*.txt"])
def test_missing(tmp_path: Path, name: str) -> None:
    refused(LocalConfig(path=str(tmp_path / name)), tmp_path, f"data.path={tmp_path / name}")


def test_no_path(tmp_path: Path) -> None:
    refused(LocalConfig(), tmp_path, "data.path=")


@pytest.mark.parametrize("content", ["", "\n \n\t\n"])
@pytest.mark.parametrize("document", ["line", "block", "file"])
def test_empty_file(tmp_path: Path, content: str, document: str) -> None:
    path = corpus(tmp_path, content)
    refused(LocalConfig(path=path, document=document), tmp_path, path, "holds no text")


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside one that can: what lies there must not be left out in silence."""
    inner = tmp_path / "folder" / "inner"
    inner.mkdir(parents=True)
    corpus(tmp_path / "folder", LONG)
    scandir = os.scandir

    def no(path: str) -> object:
        if Path(path) == inner:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", no)
    refused(LocalConfig(path=str(tmp_path / "folder")), tmp_path, str(inner), "Permission denied")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refused(LocalConfig(path=str(tmp_path / "folder")), tmp_path, "folder", "without files")


@pytest.mark.parametrize("content", [b"\x7fELF\0\0\0" * 100, bytes(range(128, 256)) * 20, LONG.encode("utf-16")])
def test_binary(tmp_path: Path, content: bytes) -> None:
    path = corpus(tmp_path, content)
    refused(LocalConfig(path=path), tmp_path, path, "is binary")


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress, zstandard.compress])
@pytest.mark.parametrize("offset", [17, 200_000])
def test_broken_utf8(tmp_path: Path, compress: Callable[[bytes], bytes], offset: int) -> None:
    suffix = {bytes: "", gzip.compress: ".gz", lzma.compress: ".xz"}.get(compress, ".zst")
    data = bytearray((LONG * 20).encode())
    data[offset] = 0xE9  # é in Latin-1
    path = corpus(tmp_path, compress(bytes(data)), f"corpus.txt{suffix}")
    refused(LocalConfig(path=path), tmp_path, path, "UTF-8", "0xe9", f"offset {offset} ")


def test_utf8_that_ends_in_the_middle(tmp_path: Path) -> None:
    path = corpus(tmp_path, LONG.encode() + "é".encode()[:1])
    refused(LocalConfig(path=path), tmp_path, path, f"offset {len(LONG)} ")


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstandard.compress])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_damaged_compression(tmp_path: Path, compress: Callable[[bytes], bytes], damage: str) -> None:
    suffix = {gzip.compress: ".gz", lzma.compress: ".xz"}.get(compress, ".zst")
    data = compress(LONG.encode())
    path = corpus(tmp_path, data[: len(data) // 2] if damage == "cut" else b"garbage" * 9, f"corpus.txt{suffix}")
    refused(LocalConfig(path=path), tmp_path, path, "damaged")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus(tmp_path, LONG)

    def no(*_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("cramming.data.fingerprint.open", no, raising=False)
    refused(LocalConfig(path=path), tmp_path, path, "Permission denied")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.jsonl", '{"content": "x", "url": "y"}\n', ["'text'", "content, url"]),
        ("c.csv", "content,url\nx,y\n", ["'text'", "content, url"]),
        ("c.jsonl", '{"text": "x"}\nnot json\n', ["line 2"]),
        ("c.jsonl", '{"text": 3}\n', ["line 1", "int"]),
        ("c.csv", "id,text\n1,x\n2\n", ["line 3"]),
        ("c.parquet", "PAR1 is not enough", ["parquet"]),
    ],
)
def test_records(tmp_path: Path, name: str, content: str, words: list[str]) -> None:
    path = corpus(tmp_path, content, name)
    refused(LocalConfig(path=path), tmp_path, path, *words)


def test_vocabulary_larger_than_the_text_supports(tmp_path: Path, english: str) -> None:
    path = corpus(tmp_path, english)
    with pytest.raises(UserError, match=r"data.vocab_size=30000 .* supports \(\d+ pieces\)") as caught:
        prepare(LocalConfig(path=path, vocab_size=30_000), tmp_path / "data", workers=0)
    supported = int(str(caught.value).split("(")[1].split()[0])
    store = prepare(LocalConfig(path=path, vocab_size=supported), tmp_path / "data", workers=0)
    assert store.tokenizer.vocab_size == supported


def test_text_too_small_for_any_vocabulary(tmp_path: Path) -> None:
    """No size is suggested that is refused in turn."""
    refused(LocalConfig(path=corpus(tmp_path, "hello")), tmp_path, "corpus.txt", "pieces only; use more text")


def test_a_limit_below_one_sequence(tmp_path: Path, letters: str) -> None:
    path = corpus(tmp_path, LONG)
    refused(LocalConfig(path=path, tokenizer=letters, max_tokens=10), tmp_path, "data.max_tokens=10", "seq_length=128")


def test_less_than_one_sequence(tmp_path: Path, letters: str) -> None:
    path = corpus(tmp_path, "a b c")
    refused(LocalConfig(path=path, tokenizer=letters), tmp_path, "4 tokens", "data.seq_length=128")


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    path = corpus(tmp_path, LONG)
    refused(LocalConfig(path=path, tokenizer="nowhere/vocab.txt"), tmp_path, "nowhere/vocab.txt", "tokenizer=train")
    (tmp_path / "folder").mkdir()
    refused(LocalConfig(path=path, tokenizer=str(tmp_path / "folder")), tmp_path, "no tokenizer.json or vocab.txt")


def test_a_tokenizer_on_a_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_reach(*_: object, **__: object) -> None:
        raise OSError("Name or service not known\nmore lines")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", out_of_reach)
    path = corpus(tmp_path, LONG)
    refused(LocalConfig(path=path, tokenizer="some/bert"), tmp_path, "some/bert", "not known", "tokenizer=train")


def test_a_tokenizer_without_a_mask_token(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3}, "a"))
    backend.save(str(tmp_path / "tokenizer.json"))
    name = str(tmp_path / "tokenizer.json")
    refused(LocalConfig(path=corpus(tmp_path, LONG), tokenizer=name), tmp_path, name, "no mask token")


@pytest.mark.parametrize("content", ["a\nb\na\n[UNK]\n", "a\nb\n", json.dumps({"model": "strange"})])
def test_files_that_are_no_tokenizer(tmp_path: Path, content: str) -> None:
    name = corpus(tmp_path, content, "strange.txt")
    refused(LocalConfig(path=corpus(tmp_path, LONG), tokenizer=name), tmp_path, name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layout", "pakced"),
        ("document", "lines"),
        ("seq_length", 3),
        ("vocab_size", 100),
        ("heldout_fraction", 1.0),
        ("max_tokens", 0),
        ("max_documents", -1),
        ("tokenizer", ""),
    ],
)
def test_values(tmp_path: Path, key: str, value: object) -> None:
    config = LocalConfig(path=corpus(tmp_path, LONG))
    setattr(config, key, value)
    refused(config, tmp_path, f"data.{key}")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_data_dir_that_cannot_be_written(
    tmp_path: Path, letters: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = corpus(tmp_path, LONG)
    prepare(LocalConfig(path=path, tokenizer=letters), tmp_path / "whole", workers=0)
    create = os.open

    def no(file: str, flags: int, *rest: int, **options: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), file)
        return create(file, flags, *rest, **options)

    monkeypatch.setattr(os, "open", no)
    refused(LocalConfig(path=path, tokenizer=letters), tmp_path, "data/hashes.json", "data_dir", os.strerror(number))
    prepare(LocalConfig(path=path, tokenizer=letters), tmp_path / "whole", workers=0)  # what is there can be used


def test_a_disk_that_is_too_small(tmp_path: Path, letters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 999, 1))  # type: ignore[attr-defined]
    path = corpus(tmp_path, LONG)
    refused(LocalConfig(path=path, tokenizer=letters), tmp_path, "1 B free", "data.max_tokens")
