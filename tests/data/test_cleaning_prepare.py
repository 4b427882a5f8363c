"""Cleaning as a part of preparing: killed anywhere, cached, and written down in the store's manifest."""

import lzma
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cramming.data.cleaning import spool
from cramming.data.cleaning.config import CleanConfig
from cramming.data.preparation import prepare
from cramming.data.sources.local import LocalConfig
from cramming.data.store import TokenStore
from cramming.errors import UserError
from cramming.progress import Silent

CHILD = """
import sys
from pathlib import Path
import cramming.data
from cramming.data.cleaning import duplicates, spool
from cramming.data.cleaning.config import CleanConfig
from cramming.data.preparation import prepare
from cramming.data.sources.local import LocalConfig
spool.BLOCK_CHARACTERS = 3000
duplicates._BUCKET_RECORDS = 200
corpus, data_dir, workers = sys.argv[1:]
options = CleanConfig(min_characters=400, max_tokens_per_character=0.9, duplicates="near")
config = LocalConfig(path=corpus, vocab_size=300, seq_length=32, clean=options)
print(prepare(config, Path(data_dir), int(workers)).folder)
"""

POINTS = [
    ("clean-part-fsync:3", 0),
    ("clean-part-rename:5", 2),
    ("clean-part-written:9", 2),
    ("clean-spread:4", 0),
    ("clean-bucket-fsync:2", 0),
    ("spread-rename:1", 0),
    ("clean-found-write:2", 0),
    ("clean-found-rename:3", 0),
    ("clean-dropped-rename:1", 0),
    ("clean-dropped-written:1", 2),
    ("clean-rename:1", 0),
    ("clean-renamed:1", 0),
]


def run(corpus: Path, data_dir: Path, workers: int, kill_at: str = "") -> tuple[int, str]:
    command = [sys.executable, "-c", CHILD, str(corpus), str(data_dir), str(workers)]
    environment = {**os.environ, "CRAMMING_KILL_AT": kill_at}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout.strip()


def test_killed_at_every_stage_in_turn(tmp_path: Path, english: str) -> None:
    """One data_dir; each time a little further, and at the end the bytes of a run that was never killed."""
    text = tmp_path / "corpus.txt"
    text.write_text(english + "\n\n" + english[:20000] + "\n\n" + "a b c d. " * 100)
    _, whole = run(text, tmp_path / "whole", 0)
    for point, workers in POINTS:
        status, _ = run(text, tmp_path / "killed", workers, point)
        assert status == -signal.SIGKILL, f"{point} was never passed"
    _, folder = run(text, tmp_path / "killed", 2)
    names = {path.name for path in Path(whole).iterdir()}
    assert "tokens.bin" in names
    for name in names - {"manifest.json"}:  # which holds seconds
        assert (Path(folder) / name).read_bytes() == (Path(whole) / name).read_bytes(), name
    for spooled in (tmp_path / "whole").glob("clean-*/dropped.bin"):
        assert (tmp_path / "killed" / spooled.parent.name / "dropped.bin").read_bytes() == spooled.read_bytes()
    assert not list((tmp_path / "killed").glob("*.work"))


class Notes(Silent):
    """What was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def corpus(tmp_path: Path, english: str) -> str:
    """About 90 documents, then one of them again, and one that is no text."""
    path = tmp_path / "corpus.txt"
    again = english.split("\n\n")[5]
    path.write_text(f"{english}\n\n{again}\n\n{'ab cd ef ' * 200}\n\nshort\n")
    return str(path)


def config(corpus: str, options: dict[str, Any] | None = None, **others: Any) -> LocalConfig:
    settings: dict[str, Any] = {"vocab_size": 300, "seq_length": 32, **others}
    return LocalConfig(path=corpus, clean=CleanConfig(**(options or {})), **settings)


OPTIONS: dict[str, Any] = {"min_characters": 10, "max_compression_ratio": 8.0, "duplicates": "exact"}


def test_the_manifest_and_the_screen_say_what_was_removed(tmp_path: Path, corpus: str) -> None:
    notes = Notes()
    store = prepare(config(corpus, OPTIONS), tmp_path / "data", 0, notes)
    whole = prepare(config(corpus), tmp_path / "data", 0)
    assert "cleaning" not in whole.manifest
    entry = store.manifest["cleaning"]
    assert entry["documents"] == whole.manifest["documents"]
    assert entry["text_bytes"] == whole.manifest["text_bytes"]
    assert entry["kept_documents"] == store.manifest["documents"] == whole.manifest["documents"] - 3
    assert entry["kept_bytes"] == store.manifest["text_bytes"]
    assert [(stage["stage"], stage["removed_documents"]) for stage in entry["stages"]] == [
        ("length", 1),
        ("compression", 1),
        ("duplicates", 1),
    ]
    assert all(stage["core_s"] >= 0 for stage in entry["stages"])
    assert entry["stages"][1]["options"] == {"max_compression_ratio": 8.0}
    assert store.manifest["inputs"] == whole.manifest["inputs"]
    (line,) = [line for line in notes.lines if line.startswith("cleaning kept")]
    share = 1 / entry["documents"]
    assert f"length {share:.1%}, compression {share:.1%}, duplicates {share:.1%}" in line


def test_one_spool_for_every_tokenizer_and_length(tmp_path: Path, corpus: str, letters: str) -> None:
    data_dir = tmp_path / "data"
    first = prepare(config(corpus, OPTIONS), data_dir, 0)
    (manifest,) = data_dir.glob("clean-*/manifest.json")
    before = manifest.stat().st_mtime_ns
    second = prepare(config(corpus, OPTIONS, seq_length=16, tokenizer=letters), data_dir, 0)
    assert first.manifest["cleaning"] == second.manifest["cleaning"]
    (again,) = data_dir.glob("clean-*/manifest.json")
    assert again.stat().st_mtime_ns == before
    # The stores do without it.
    for path in [*manifest.parent.iterdir(), manifest.parent]:
        path.rmdir() if path.is_dir() else path.unlink()
    assert prepare(config(corpus, OPTIONS), data_dir, 0).folder == first.folder
    assert not manifest.parent.exists()


def test_tokens_are_counted_by_a_tokenizer_of_the_text_itself_or_another(
    tmp_path: Path, corpus: str, letters: str
) -> None:
    data_dir = tmp_path / "data"
    whole = prepare(config(corpus), data_dir, 0)
    marks = "#%&!" * 300  # a token each
    Path(corpus).write_text(Path(corpus).read_text() + f"\n{marks}\n")
    store = prepare(config(corpus, {"max_tokens_per_character": 0.6}), data_dir, 0)
    (stage,) = store.manifest["cleaning"]["stages"]
    assert stage["options"] == {"max_tokens_per_character": 0.6, "tokenizer": "self"}
    assert stage["removed_documents"] == 2  # these, and "short" with its two special tokens
    assert store.manifest["documents"] == whole.manifest["documents"] - 1
    assert stage["removed_bytes"] - len(marks) == pytest.approx(len("short"), abs=2)
    # With letters for tokens, a word of several is one token that is not known.
    with pytest.raises(UserError, match=r"cleaning leaves nothing .*tokens \(max_tokens_per_character=0.1"):
        prepare(config(corpus, {"max_tokens_per_character": 0.1, "tokenizer": letters}), data_dir, 0)
    with pytest.raises(UserError, match="does not exist"):
        prepare(config(corpus, {"max_tokens_per_character": 0.5, "tokenizer": "./nowhere"}), data_dir, 0)


def test_a_setting_that_leaves_nothing_keeps_what_was_done(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "BLOCK_CHARACTERS", 3000)
    nothing = config(corpus, {**OPTIONS, "min_characters": 100_000})
    made = set()
    for _ in range(2):
        with pytest.raises(UserError, match=r"length \(min_characters=100000\) removed 9\d, compression .* removed 0"):
            prepare(nothing, tmp_path / "data", 0)
        (manifest,) = (tmp_path / "data").glob("clean-*/manifest.json")
        made.add(manifest.stat().st_mtime_ns)
    assert len(made) == 1
    assert not list((tmp_path / "data").glob("store-*"))


def test_japanese(tmp_path: Path, shared: Path) -> None:
    with lzma.open(shared / "data" / "text_ja" / "aozora_ja.txt.xz", "rt", encoding="utf-8") as file:
        text = file.read(300_000)
    works = text.split("\n\n")[:-1]
    assert len(works) > 4
    changed = works[2].replace("、", "", 40)
    english = "A cat sat on the mat, and the mat was on the floor. " * 30
    path = tmp_path / "ja.txt"
    path.write_text("\n\n".join([*works, changed, english]), encoding="utf-8")
    options = {"charset": ["japanese"], "max_compression_ratio": 5.0, "duplicates": "near"}
    store = prepare(config(str(path), options, vocab_size=3000), tmp_path / "data", 0)
    removed = {stage["stage"]: stage["removed_documents"] for stage in store.manifest["cleaning"]["stages"]}
    assert removed == {"charset": 1, "compression": 0, "duplicates": 1}


@dataclass
class _Ready(LocalConfig):
    """Sequences that were made elsewhere."""

    def ready_store(self, data_dir: Path) -> TokenStore:
        return TokenStore.open(next(data_dir.glob("store-*[0-9a-f]")))


def test_ready_sequences_cannot_be_cleaned(tmp_path: Path, corpus: str) -> None:
    prepare(config(corpus), tmp_path / "data", 0)
    assert prepare(_Ready(path=corpus), tmp_path / "data").rows > 0
    with pytest.raises(UserError, match=r"data\.clean \(length\) cannot clean"):
        prepare(_Ready(path=corpus, clean=CleanConfig(min_characters=5)), tmp_path / "data")
