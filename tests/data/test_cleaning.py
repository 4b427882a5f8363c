"""Cleaning as a stage: the order of documents, long ones, limits, kills, and what the manifest says."""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cramming.data.cleaning import cleaned, spool
from cramming.data.cleaning.cleaned import CleanedSource, character_limit
from cramming.data.cleaning.config import CleanConfig
from cramming.data.sources.local import LocalConfig
from cramming.data.sources.source import Piece, documents_to_pieces
from cramming.errors import UserError
from cramming.progress import Silent


class Listed:
    """Documents of a list; can go on behind each, and knows what was read of it."""

    name, fingerprint, unit, shuffled, sample_bytes = "listed", "0", "documents", False, 1000

    def __init__(self, documents: list[str], cursors: bool = True, stop_before: int | None = None) -> None:
        self.documents = documents
        self.total = float(len(documents))
        self.inputs: list[dict[str, str | int]] = []
        self.read: list[int] = []
        self._cursors = cursors
        self._stop_before = stop_before

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        for number in range(0 if after is None else after + 1, len(self.documents)):
            if number == self._stop_before:
                raise KeyboardInterrupt
            self.read.append(number)
            for piece in documents_to_pieces(iter([(self.documents[number], number + 1.0)])):
                yield piece._replace(cursor=number) if piece.last and self._cursors else piece

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        return self.documents[:1], 1.0


def clean(
    source: Listed, folder: Path, workers: int = 0, limits: dict[str, int] | None = None, **options: Any
) -> CleanedSource:
    config = LocalConfig(path="x", clean=CleanConfig(**options), **(limits or {}))  # type: ignore[arg-type]
    config.check()
    folder.mkdir(exist_ok=True)
    return CleanedSource(config, source, None, data_dir=folder, workers=workers, progress=Silent())


def documents(source: CleanedSource, after: Any = None) -> list[str]:
    texts = [""]
    for piece in source.pieces(after):
        texts[-1] += piece.text
        if piece.last:
            texts.append("")
    assert texts.pop() == ""
    return texts


def without_seconds(report: dict[str, Any]) -> dict[str, Any]:
    return {**report, "stages": [{**entry, "core_s": None} for entry in report["stages"]]}


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Documents of all lengths, some of them repeated; the longest are judged by their beginning and span blocks."""
    monkeypatch.setattr(spool, "BLOCK_CHARACTERS", 1000)
    monkeypatch.setattr(spool, "JUDGED_CHARACTERS", 1500)
    monkeypatch.setattr("cramming.data.sources.source.PIECE_CHARACTERS", 400)
    draw = random.Random(4)
    texts = [" ".join(f"w{draw.randrange(1000)}" for _ in range(draw.randrange(3, 120))) for _ in range(120)]
    for number in (15, 40, 90):
        texts[number] = " ".join(f"w{draw.randrange(1000)}" for _ in range(900))
    texts[60] = texts[40]  # a long one again,
    texts[61] = texts[15] + " and more"  # one with the same beginning,
    texts[90] = "1 2 3 4 5 " * 600  # and one that a filter removes
    for number in range(3, 120, 10):
        texts[number] = texts[number - 1] if number % 20 else texts[2]
    return texts


OPTIONS: dict[str, Any] = {"min_characters": 100, "charset": ["latin"], "min_charset_share": 0.1, "duplicates": "exact"}


def expected(texts: list[str]) -> list[str]:
    """What ``OPTIONS`` leave."""
    kept: dict[str, None] = {}
    for text in texts:
        if len(text) >= 100 and "w" in text:
            kept.setdefault(text)
    return list(kept)


@pytest.mark.parametrize("workers", [0, 2])
def test_keeps_what_it_should_in_its_order(
    tmp_path: Path, corpus: list[str], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = clean(Listed(corpus), tmp_path, workers, **OPTIONS)
    assert documents(source) == expected(corpus)
    report = source.report
    assert report["parts"] > 20
    assert report["documents"] == 120
    assert report["text_bytes"] == sum(map(len, corpus))
    assert report["kept_documents"] == len(expected(corpus))
    assert report["kept_bytes"] == sum(map(len, expected(corpus))) == source.total
    short = [text for text in corpus if len(text) < 100]
    stages = {entry["stage"]: entry for entry in report["stages"]}
    assert list(stages) == ["length", "charset", "duplicates"]
    assert stages["length"]["removed_documents"] == len(short) > 5
    assert stages["length"]["removed_bytes"] == sum(map(len, short))
    assert stages["charset"]["removed_documents"] == 1
    assert stages["charset"]["removed_bytes"] == len(corpus[90])
    assert stages["charset"]["seen_documents"] == 120 - len(short)
    seen = [(entry["seen_documents"], entry["seen_bytes"]) for entry in report["stages"]]
    removed = [(entry["removed_documents"], entry["removed_bytes"]) for entry in report["stages"]]
    after = [*seen[1:], (report["kept_documents"], report["kept_bytes"])]
    assert [(a - c, b - d) for (a, b), (c, d) in zip(seen, removed, strict=True)] == after


def test_workers_change_nothing(tmp_path: Path, corpus: list[str]) -> None:
    """Nor does what they remember of earlier blocks."""
    options = {**OPTIONS, "duplicates": "near"}
    alone = clean(Listed(corpus), tmp_path / "0", 0, **options)
    helped = clean(Listed(corpus, cursors=False), tmp_path / "3", 3, **options)
    assert without_seconds(alone.report) == without_seconds(helped.report)
    assert list(alone.pieces()) == list(helped.pieces())
    dropped = [next(folder.glob("clean-*/dropped.bin")).read_bytes() for folder in (tmp_path / "0", tmp_path / "3")]
    assert dropped[0] == dropped[1]


def test_near_removes_what_exact_does_and_more(tmp_path: Path, corpus: list[str]) -> None:
    words = corpus[-2].split()
    corpus.append(" ".join([*words[:3], "changed", *words[4:]]))
    exact = clean(Listed(corpus), tmp_path, duplicates="exact")
    near = clean(Listed(corpus), tmp_path, duplicates="near", near_threshold=0.5)
    assert corpus[-1] in documents(exact)
    assert corpus[-1] not in documents(near)
    # The documents that begin alike for longer than is judged are taken for the same here, and only here.
    assert corpus[61] in documents(exact)
    assert corpus[61] not in documents(near)
    assert set(documents(near)) < set(documents(exact))


def test_goes_on_behind_any_document(tmp_path: Path, corpus: list[str]) -> None:
    source = clean(Listed(corpus), tmp_path, **OPTIONS)
    whole = list(source.pieces())
    ends = [at for at, piece in enumerate(whole) if piece.last]
    for at in ends:
        assert list(source.pieces(whole[at].cursor)) == whole[at + 1 :]
    assert all((piece.cursor is not None) == piece.last for piece in whole)
    assert max(len(piece.text) for piece in whole) <= 400


def test_a_glimpse_is_the_beginning(tmp_path: Path, corpus: list[str]) -> None:
    source = clean(Listed(corpus), tmp_path, **OPTIONS)
    texts, position = source.glimpse(3000)
    assert 3000 <= sum(map(len, texts)) < 3400
    assert "".join(expected(corpus)).startswith("".join(texts))
    assert position == pytest.approx(sum(map(len, texts)), abs=1500)


def test_made_once(tmp_path: Path, corpus: list[str]) -> None:
    first, again = Listed(corpus), Listed(corpus)
    kept = documents(clean(first, tmp_path, **OPTIONS))
    assert documents(clean(again, tmp_path, **OPTIONS)) == kept
    assert (len(first.read), again.read) == (120, [])
    # Another option or limit is another result; an option that is off is none.
    assert clean(again, tmp_path, **OPTIONS, near_words=9).fingerprint == clean(again, tmp_path, **OPTIONS).fingerprint
    others = [
        clean(again, tmp_path, **{**OPTIONS, "min_characters": 101}),
        clean(again, tmp_path, **{**OPTIONS, "duplicates": "near"}),
        clean(again, tmp_path, limits={"max_documents": 50}, **OPTIONS),
    ]
    assert len({source.fingerprint for source in others} | {clean(again, tmp_path, **OPTIONS).fingerprint}) == 4


@pytest.mark.parametrize("limit", [1, 50, 120, 500])
def test_max_documents_counts_what_is_read(tmp_path: Path, corpus: list[str], limit: int) -> None:
    raw = Listed(corpus)
    source = clean(raw, tmp_path, limits={"max_documents": limit}, **OPTIONS)
    assert documents(source) == expected(corpus[:limit])
    assert raw.read == list(range(min(limit, 120)))


def test_max_tokens_stops_reading(tmp_path: Path, corpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaned, "SAMPLED_TEXT", 100)
    raw = Listed(corpus)
    source = clean(raw, tmp_path, limits={"max_tokens": 300}, min_characters=100)
    kept = documents(source)
    wanted = 300 * cleaned.CHARACTERS_PER_TOKEN
    assert wanted <= source.report["kept_bytes"] < 2 * wanted + 3000
    assert source.report["stopped"]
    whole = [text for text in corpus if len(text) >= 100][: len(kept)]
    assert kept[:-1] == whole[:-1]
    assert whole[-1].startswith(kept[-1])  # a long one may be cut
    assert raw.read[-1] < 119
    parts = len(list(tmp_path.glob("clean-*/part-*")))
    assert parts == source.report["parts"]


def test_limits_do_not_change_what_a_tokenizer_is_trained_on(tmp_path: Path, corpus: list[str]) -> None:
    """Similar limits share a spool; one for a tokenizer's sample holds what the sample is taken from."""
    source = Listed(corpus)

    def limit(max_tokens: int | None, tokenizer: str = "train") -> int | None:
        return character_limit(LocalConfig(max_tokens=max_tokens, tokenizer=tokenizer), source)

    assert limit(None) is None
    assert limit(1) == limit(10_000_000) == 1 << 31
    assert limit(1_000_000_000) == 1 << 34
    assert limit(1000, "some/tokenizer") == 1 << 14


def test_nothing_left_is_one_line_and_stays_cached(tmp_path: Path, corpus: list[str]) -> None:
    options = {**OPTIONS, "min_charset_share": 1.0, "max_characters": 3000, "max_compression_ratio": 0.5}
    raw = Listed(corpus)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            documents(clean(raw, tmp_path, **options))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cleaning leaves nothing of the 120 documents of listed: length (min_characters=100 max_")
    assert sum(map(int, re.findall(r"removed (\d+)", message))) == 120
    assert len(raw.read) == 120, "it cleaned again what it had"


def test_no_text_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no text"):
        documents(clean(Listed([]), tmp_path, **OPTIONS))


@pytest.mark.parametrize("cursors", [True, False])
def test_interrupted_it_goes_on(tmp_path: Path, corpus: list[str], cursors: bool) -> None:
    with pytest.raises(KeyboardInterrupt):
        documents(clean(Listed(corpus, cursors, stop_before=80), tmp_path, **OPTIONS))
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("clean-*.work/part-*")}
    assert len(made) > 20
    again = Listed(corpus, cursors)
    source = clean(again, tmp_path, **OPTIONS)
    assert documents(source) == expected(corpus)
    assert again.read[0] > 60 if cursors else again.read[0] == 0
    folder = next(tmp_path.glob("clean-*/manifest.json")).parent
    assert all((folder / path.name).stat().st_mtime_ns == before for path, before in made.items())
    assert without_seconds(source.report) == without_seconds(clean(Listed(corpus), tmp_path / "new", **OPTIONS).report)
