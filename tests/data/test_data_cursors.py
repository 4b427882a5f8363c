"""A source that can go on in the middle is asked to: killed preparation does not read again what it has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cramming.data.sources.source import Piece
from cramming.data.tokenizer import Tokenizer, wordpiece
from cramming.data.tokenizing import tokenize
from cramming.progress import Silent

WORDS = [f"w{number}" for number in range(50)]


class Numbered:
    """Documents of words; each piece's cursor is its number, and what was read is written down."""

    name, fingerprint, unit, shuffled, sample_bytes, total = "numbered", "0", "documents", True, 1000, 40.0

    def __init__(self, stop_before: int | None = None) -> None:
        self.inputs: list[dict[str, str | int]] = []
        self.read: list[int] = []
        self.stop_before = stop_before

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        for number in range(0 if after is None else after + 1, 40):
            if number == self.stop_before:
                raise KeyboardInterrupt
            self.read.append(number)
            text = " ".join(WORDS[(number * 7 + k) % 50] for k in range(60))
            yield Piece(text, True, number + 1.0, number)

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        return [WORDS[0]], 1.0


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    vocabulary = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    Tokenizer(wordpiece(vocabulary, lowercase=True)).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def run(source: Numbered, tokenizer: Path, work: Path, **limits: int | None) -> int:
    work.mkdir(exist_ok=True)
    limits = {"max_documents": None, "max_tokens": None, **limits}
    return tokenize(source, tokenizer, work, workers=0, progress=Silent(), **limits)  # type: ignore[arg-type]


def parts(work: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(work.glob("part-*.bin"))]


@pytest.mark.parametrize("limits", [{}, {"max_documents": 33}, {"max_tokens": 1900}])
def test_goes_on_behind_the_last_block(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int | None]
) -> None:
    monkeypatch.setattr("cramming.data.tokenizing.BLOCK_CHARACTERS", 1000)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    count = run(Numbered(), tokenizer_folder, whole, **limits)
    with pytest.raises(KeyboardInterrupt):
        run(Numbered(stop_before=20), tokenizer_folder, killed, **limits)
    kept = len(parts(killed))
    assert 0 < kept < count
    again = Numbered()
    assert run(again, tokenizer_folder, killed, **limits) == count
    assert parts(killed) == parts(whole)
    assert again.read[0] > 10, "it read again what it had"
    # A part that is missing in the middle is made again, from the block before it on.
    (killed / "part-000002.bin").unlink()
    patching = Numbered()
    assert run(patching, tokenizer_folder, killed, **limits) == count
    assert parts(killed) == parts(whole)
    assert 0 < patching.read[0] < again.read[0]
