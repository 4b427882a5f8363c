"""One thread, the schemas, and a corpus of letters."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text of made-up words, about 600 sequences of 16 letters."""
    folder = tmp_path_factory.mktemp("letters")
    state, words = 1, []
    for number in range(3000):
        state = state * 6364136223846793005 % (1 << 64) + 1442695040888963407
        words.append("".join(chr(97 + (state >> shift) % 26) for shift in (20, 30, 40, 50)[: 1 + number % 4]))
    (folder / "text.txt").write_text("\n\n".join(" ".join(words[i : i + 50]) for i in range(0, len(words), 50)))
    return folder
