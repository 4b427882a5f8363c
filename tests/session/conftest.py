"""A small corpus, and one finished run that nobody interrupted."""

import random
from pathlib import Path

import pytest

from . import runs


@pytest.fixture(scope="session")
def corpus() -> str:
    """About 40 kB of made-up words in documents, the same every time."""
    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 3))) for _ in range(400)]
    documents = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(200)]
    return "\n\n".join(documents)


@pytest.fixture
def folder(tmp_path: Path, corpus: str) -> Path:
    """An empty place with the corpus in it."""
    (tmp_path / "text.txt").write_text(corpus)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> Path:
    """The folder of a finished run named ``whole``."""
    place = tmp_path_factory.mktemp("finished")
    (place / "text.txt").write_text(corpus)
    assert runs.run(runs.command(place, "name=whole")) == 0
    return place


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> Path:
    """The folder of a sweep ``s`` over two seeds that nobody interrupted, one job after another on one thread."""
    place = tmp_path_factory.mktemp("finished_sweep")
    (place / "text.txt").write_text(corpus)
    assert runs.run([*runs.command(place, "name=s"), "-m", "seed=0,1"]) == 0
    return place
