"""Killed anywhere while converting, and given again: the bytes of a conversion that was never killed."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cramming import faults
from cramming.data.converting.options import ConvertOptions
from cramming.data.converting.plan import Plan
from cramming.data.converting.target import Target
from cramming.data.converting.writing import write_plan
from cramming.data.sources.local import LocalConfig
from cramming.errors import UserError
from cramming.progress import Silent

# Each is passed in what the one before it left to do. The journal has a line for the beginning of a split, for each of
# its shards, and for its end.
POINTS = {
    "texts": [
        "journal-written:1", "shard-write:1", "shard-fsync:1", "shard-rename:1", "journal-written:1", "shard-rename:2",
        "journal-written:2", "index-write:1", "index-rename:1", "journal-written:1", "shard-rename:1", "index-rename:1",
    ],
    "tokens": ["journal-written:2", "shard-rename:1", "shard-write:3", "journal-written:1", "index-write:2"],
    "rows": ["journal-written:2", "shard-fsync:3", "index-rename:1"],
}  # fmt: skip


def killed(run: Callable[[], object], point: str) -> bool:
    """Whether a process that did this was killed at the point, or did it all."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            faults.arm(point)
            run()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    return os.waitstatus_to_exitcode(status) != 0


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def convert(tmp_path: Path, out: str | Path, kind: str, **changed: Any) -> None:
    path, data_dir = tmp_path / "corpus.jsonl", tmp_path / "data"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": "a b c d e " * (number % 9 + 1)}) + "\n" for number in range(300)))
    letters = tmp_path / "vocab.txt"
    letters.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg"]) + "\n")
    own: dict[str, dict[str, Any]] = {
        "texts": {"size_limit": "4KiB", "val_share": 0.1},
        "tokens": {
            "concat_tokens": 16, "tokenizer": str(letters), "eos_text": "[SEP]", "size_limit": "10KiB",
            "compression": "zstd", "val_share": 0.1,
        },
        "rows": {"format": "rows", "tokenizer": str(letters), "size_limit": "4KiB"},
    }  # fmt: skip
    options = ConvertOptions(out=str(out), splits=["train", "val"], **(own[kind] | changed))
    config = LocalConfig(path=str(path), seq_length=16)
    write_plan(Plan(config, options, data_dir, Silent()), str(out), data_dir, Silent())


@pytest.mark.parametrize("kind", ["texts", "tokens", "rows"])
def test_killed_again_and_again(tmp_path: Path, kind: str) -> None:
    convert(tmp_path, tmp_path / "whole", kind)
    expected = content(tmp_path / "whole")
    assert sum(name.startswith("train/") for name in expected) > 4
    out = tmp_path / "killed"
    for point in POINTS[kind]:
        assert killed(lambda: convert(tmp_path, out, kind), point), point
    convert(tmp_path, out, kind)
    assert content(out) == expected
    assert not list((tmp_path / "data").glob("convert-*.jsonl"))


@pytest.mark.parametrize("shard", [1, 4])
def test_a_finished_shard_is_not_written_again(tmp_path: Path, shard: int) -> None:
    out = tmp_path / "out"
    assert killed(lambda: convert(tmp_path, out, "tokens"), f"shard-write:{shard}")
    before = {path.name: path.stat().st_mtime_ns for path in (out / "train").glob("shard*")}
    assert len(before) == shard - 1
    convert(tmp_path, out, "tokens")
    after = {path.name: path.stat().st_mtime_ns for path in (out / "train").glob("shard*")}
    assert before.items() <= after.items()


def test_what_was_deleted_meanwhile_is_written_again(tmp_path: Path) -> None:
    convert(tmp_path, tmp_path / "whole", "texts")
    out = tmp_path / "out"
    assert killed(lambda: convert(tmp_path, out, "texts"), "shard-write:5")
    (out / "train" / "shard.00001.mds").unlink()
    assert killed(lambda: convert(tmp_path, out, "texts"), "shard-write:2")
    convert(tmp_path, out, "texts")
    assert content(out) == content(tmp_path / "whole")


def test_other_options_do_not_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert killed(lambda: convert(tmp_path, out, "texts"), "shard-write:3")
    for other in ({"compression": "zstd"}, {"max_characters": 5}, {"val_share": 0.2}):
        with pytest.raises(UserError, match="was begun with other text or other options"):
            convert(tmp_path, out, "texts", **other)


def test_a_torn_journal(tmp_path: Path) -> None:
    convert(tmp_path, tmp_path / "whole", "texts")
    out = tmp_path / "out"
    assert killed(lambda: convert(tmp_path, out, "texts"), "shard-write:4")
    (journal,) = (tmp_path / "data").glob("convert-*.jsonl")
    journal.write_bytes(journal.read_bytes()[:-20])  # as a power cut may leave its last line
    convert(tmp_path, out, "texts")
    assert content(out) == content(tmp_path / "whole")


def test_a_storage_that_refuses_and_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    convert(tmp_path, tmp_path / "whole", "texts")
    put, left = Target.put, iter([True] * 3 + [False] + [True] * 100)

    def failing(self: Target, name: str, data: bytes) -> Any:
        if not next(left):
            raise UserError("the credentials have expired")
        return put(self, name, data)

    monkeypatch.setattr(Target, "put", failing)
    fs = fsspec.filesystem("memory")
    try:
        with pytest.raises(UserError, match="expired"):
            convert(tmp_path, "memory://resumed/corpus", "texts")
        convert(tmp_path, "memory://resumed/corpus", "texts")
        fs.get("/resumed/corpus", str(tmp_path / "fetched"), recursive=True)
        assert content(tmp_path / "fetched") == content(tmp_path / "whole")
    finally:
        fs.rm("/resumed", recursive=True)
