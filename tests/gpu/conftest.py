"""What runs on a GPU train on."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a text of made-up words."""
    words = [f"{a}{b}{c}" for a in "bcdfghjklmnp" for b in "aeiou" for c in "lmnrst"]
    text = "\n\n".join(" ".join(words[(i * j) % len(words)] for j in range(1, 40)) for i in range(1, 200))
    (tmp_path / "text.txt").write_text(text)
    return tmp_path
