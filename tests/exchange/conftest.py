"""One thread, the schemas, and a corpus of letters."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cramming.cli import load_schemas


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads."""
    load_schemas()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
