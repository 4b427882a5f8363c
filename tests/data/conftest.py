"""A vocabulary small enough to check rows by hand."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import published_set
import pytest
import s3_server

#: Ids 0 to 4 as everywhere, then a = 5, b = 6, ... z = 30.
LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture
def letters(tmp_path: Path) -> str:
    """A vocabulary file: every single letter is a token."""
    path = tmp_path / "letters" / "vocab.txt"
    path.parent.mkdir()
    path.write_text("\n".join(LETTERS) + "\n")
    return str(path)


@pytest.fixture
def english() -> str:
    """About 60 kB of text with many different words, the same every time: paragraphs, blank lines between documents."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    state = 1
    words: list[str] = []
    for number in range(9000):
        word = ""
        for _ in range(1 + number % 3):
            state = state * 6364136223846793005 % (1 << 64) + 1442695040888963407
            word += syllables[(state >> 40) % len(syllables)]
        words.append(word)
        if number % 20 == 19:
            words.append(".\n\n" if number % 100 == 99 else ".\n")
    return " ".join(words)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A published set: its folder, and its rows as the library that wrote it reads them."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abdegiklmnoprstu"), draw.integers(2, 9))) for _ in range(150)]
    text = "\n\n".join(" ".join(draw.choice(words, draw.integers(5, 40))) for _ in range(250))
    folder = tmp_path_factory.mktemp("set") / published_set.FOLDER
    return folder, published_set.make(folder, text)


@pytest.fixture(scope="session")
def published_archive(published: tuple[Path, np.ndarray]) -> bytes:
    """Its archive."""
    return published_set.archive(published[0])


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_server.S3]:
    """An S3 server on loopback, which this process's environment names."""
    pytest.importorskip("moto", reason="moto[s3], flask and flask-cors are not installed")
    pytest.importorskip("flask_cors", reason="moto[s3], flask and flask-cors are not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = s3_server.start(monkeypatch.setenv)
    for key in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(key, raising=False)
    yield server
    server.close()
