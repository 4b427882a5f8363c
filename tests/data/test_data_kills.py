"""SIGKILL at every stage of preparing, and the same call again: the bytes of a run that was never killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cramming.data import tokenizing
from cramming.data.preparation import prepare
from cramming.data.sources.local import LocalConfig
from cramming.data.workers import Workers
from cramming.errors import UserError

CHILD = """
import sys
from pathlib import Path
import cramming.data
from cramming.data import tokenizing
from cramming.data.preparation import prepare
from cramming.data.sources.local import LocalConfig
tokenizing.BLOCK_CHARACTERS = 4000
corpus, data_dir, workers, layout = sys.argv[1:]
config = LocalConfig(path=corpus, vocab_size=500, seq_length=32, layout=layout)
print(prepare(config, Path(data_dir), int(workers)).folder)
"""

POINTS = [
    "hashes-fsync:1",
    "hashes-rename:1",
    "tokenizer-trained:1",
    "tokenizer-fsync:1",
    "tokenizer-rename:1",
    "tokenizer-written:1",
    "tokenizer-rename:2",  # the store's own copy
    "block-fsync:1",
    "block-rename:2",
    "block-written:3",
    "block-written:9",
    "pack-row-chunk:2",
    "store-fsync:1",
    "store-fsync:2",
    "manifest-fsync:1",
    "manifest-rename:1",
    "store-rename:1",
    "store-renamed:1",
]
SAMPLE = ["hashes-rename:1", "tokenizer-rename:2", "block-rename:2", "pack-row-chunk:2", "store-rename:1"]
OTHERS = [point for point in POINTS if point not in SAMPLE]


def run(corpus: Path, data_dir: Path, kill_at: str = "", workers: int = 0, layout: str = "packed") -> tuple[int, str]:
    """A process that prepares: its status and the store's folder.

    Workers share its error stream: that this returns at all shows that they ended with it.
    """
    command = [sys.executable, "-c", CHILD, str(corpus), str(data_dir), str(workers), layout]
    environment = {**os.environ, "CRAMMING_KILL_AT": kill_at}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout.strip()


def content(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.fixture
def corpus(tmp_path: Path, english: str) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(english)
    return path


@pytest.mark.parametrize("points", [SAMPLE, pytest.param(OTHERS, marks=pytest.mark.full)], ids=["some", "others"])
def test_killed_anywhere(points: list[str], tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", 4000)
    _, whole = run(corpus, tmp_path / "whole")
    expected = content(whole)
    assert set(expected) == {"tokens.bin", "manifest.json", "tokenizer.json"}
    for point in points:
        data_dir = tmp_path / point
        status, _ = run(corpus, data_dir, point)
        assert status == -signal.SIGKILL, f"{point} was never passed"
        config = LocalConfig(path=str(corpus), vocab_size=500, seq_length=32)
        assert content(prepare(config, data_dir, workers=0).folder) == expected, point
        assert not list(data_dir.glob("*.work")), point


def test_killed_again_and_again_with_processes(tmp_path: Path, corpus: Path) -> None:
    """One data_dir, killed at each stage in turn; finished blocks are not done again."""
    _, whole = run(corpus, tmp_path / "whole", layout="document")
    data_dir = tmp_path / "data"
    for point in ("tokenizer-trained:1", "block-written:4", "block-fsync:3", "pack-row-chunk:5", "store-rename:1"):
        status, _ = run(corpus, data_dir, point, workers=2, layout="document")
        assert status == -signal.SIGKILL, point
        if point == "block-written:4":
            parts = {path: path.stat().st_mtime_ns for path in data_dir.glob("*.work/part-*.bin")}
            assert len(parts) >= 4
        if point == "store-rename:1":
            assert all(path.stat().st_mtime_ns == before for path, before in parts.items())
    _, folder = run(corpus, data_dir, workers=2, layout="document")
    assert content(folder) == content(whole)


def test_two_at_once(tmp_path: Path, corpus: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(corpus), str(tmp_path / "data"), "0", "packed"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate(timeout=120)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    assert Path(folders.pop()).is_dir()


def test_a_killed_worker_is_named() -> None:
    with Workers(1) as pool, pytest.raises(UserError, match=r"ended unexpectedly .*run the same command again"):
        pool.call("os:_exit", 7)  # type: ignore[arg-type]


def test_errors_of_a_worker_reach_the_caller() -> None:
    with Workers(1) as pool:
        with pytest.raises(UserError, match="cannot be read"):
            pool.call("cramming.data.sources.python_docs:harvest", {"files": ["/nowhere"]})
        with pytest.raises(RuntimeError, match="KeyError: 'files'"):
            pool.call("cramming.data.sources.python_docs:harvest", {})
        assert pool.call("cramming.data.sources.python_docs:harvest", {"files": []})[0] == {"documents": []}
