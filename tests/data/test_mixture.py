"""The text of a mixture: its shares at every prefix, its end, its cursors; and a store made of it, killed or not."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cramming.data import tokenizing
from cramming.data.preparation import prepare
from cramming.data.sources.mixture import MixtureConfig
from cramming.data.sources.mixture_source import Member, Mixture
from cramming.data.sources.source import Piece
from cramming.data.store import TokenStore
from cramming.errors import UserError
from cramming.progress import Silent

LONGEST = 400  # characters of a document


class Documents:
    """Documents of one letter, of drawn lengths, each in pieces of at most 150 characters."""

    unit, shuffled, sample_bytes = "documents", True, 1000

    def __init__(self, letter: str, count: int, cursors: bool = False) -> None:
        draw = random.Random(letter)
        self.name = self.fingerprint = letter
        self.inputs: list[dict[str, str | int]] = [{"letter": letter}]
        self.lengths = [draw.randint(1, LONGEST) for _ in range(count)]
        self.total = float(count)
        self.cursors = cursors
        self.begun: list[Any] = []  # where it was asked to begin
        self.closed = 0

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        assert after is None or self.cursors
        self.begun.append(after)
        try:
            for number in range(0 if after is None else after, len(self.lengths)):
                text = self.name * self.lengths[number]
                parts = [text[at : at + 150] for at in range(0, len(text), 150)]
                for part in parts[:-1]:
                    yield Piece(part, False, float(number))
                yield Piece(parts[-1], True, number + 1.0, number + 1 if self.cursors else None)
        finally:
            self.closed += 1

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        taken: list[str] = []
        for length in self.lengths:
            if sum(map(len, taken)) >= characters:
                break
            taken.append(self.name * length)
        return taken, float(len(taken))


class Heard(Silent):
    """Progress that remembers its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def mixture(
    sizes: dict[str, int], shares: dict[str, float] | None, exhausted: str = "stop", cursors: str = "", **limits: int
) -> tuple[Mixture, Heard]:
    """Of one-letter sources with so many documents each; those in ``cursors`` can go on in the middle."""
    heard = Heard()
    members = [
        Member(name, Documents(name, size, name in cursors), shares[name] if shares else None, limits.get(name))
        for name, size in sizes.items()
    ]
    return Mixture(members, exhausted, heard), heard


def given(pieces: list[Piece]) -> dict[str, int]:
    """Characters by letter."""
    text = "".join(piece.text for piece in pieces)
    return {letter: text.count(letter) for letter in sorted(set(text))}


@pytest.mark.parametrize(
    "shares", [{"a": 0.7, "b": 0.3}, {"a": 0.5, "b": 0.5}, {"a": 0.97, "b": 0.03}, {"a": 0.2, "b": 0.5, "c": 0.3}]
)
@pytest.mark.parametrize("exhausted", ["stop", "repeat"])
def test_shares_hold_at_every_prefix(shares: dict[str, float], exhausted: str) -> None:
    """Never ahead of it by more than a document, nor behind by more than its share of a document of each other."""
    source = mixture(dict.fromkeys(shares, 300), shares, exhausted)[0]
    so_far = dict.fromkeys(shares, 0)
    count = 0
    for piece in source.pieces():
        so_far[piece.text[0]] += len(piece.text)
        count += 1
        total = sum(so_far.values())
        assert piece.position == total
        for name, share in shares.items():
            assert so_far[name] - share * total <= LONGEST
            assert share * total - so_far[name] <= share * LONGEST * (len(shares) - 1) + 1e-6
    assert count > 300


def test_documents_stay_whole_and_in_order() -> None:
    source, _ = mixture({"a": 40, "b": 40}, {"a": 0.6, "b": 0.4})
    expected = {name: iter(Documents(name, 40).lengths) for name in "ab"}
    document = ""
    for piece in source.pieces():
        document += piece.text
        if piece.last:
            assert len(set(document)) == 1, "a document has text of two sources"
            assert len(document) == next(expected[document[0]])
            document = ""


def test_a_mixture_ends_where_a_source_whose_turn_it_is_has_no_more() -> None:
    source, heard = mixture({"a": 50, "b": 200}, {"a": 0.5, "b": 0.5})
    pieces = list(source.pieces())
    assert given(pieces)["a"] == sum(Documents("a", 50).lengths), "something of what ended it was left unread"
    (note,) = heard.notes
    assert "ends where a is used up" in note
    documents_of_b = sum(piece.last for piece in pieces if piece.text[0] == "b")
    assert f"{1 - documents_of_b / 200:.0%} of b" in note
    assert list(source.pieces()) == pieces
    assert len(heard.notes) == 1, "said twice"


def test_repeating_goes_on_until_every_source_was_read_once() -> None:
    source, heard = mixture({"a": 10, "b": 200}, {"a": 0.5, "b": 0.5}, "repeat")
    pieces = list(source.pieces())
    assert given(pieces)["b"] == sum(Documents("b", 200).lengths)
    passes, rest = divmod(given(pieces)["a"], sum(Documents("a", 10).lengths))
    assert passes > 5
    account = {one["source"]: one for one in source.account(pieces[-1].cursor)}
    assert account["a"]["repeats"] == passes - (rest == 0)
    assert account["b"]["repeats"] == 0
    assert f"a {account['a']['repeats']} more times" in heard.notes[0]


def test_without_shares_all_of_each_source_one_after_the_other() -> None:
    source, heard = mixture({"b": 30, "a": 20}, None)
    text = "".join(piece.text for piece in source.pieces())
    assert text == "b" * sum(Documents("b", 30).lengths) + "a" * sum(Documents("a", 20).lengths)
    assert not heard.notes
    sampled = given(list(source.sample_pieces()))
    assert sampled == {"a": text.count("a"), "b": text.count("b")}


@pytest.mark.parametrize("shares", [None, {"a": 0.5, "b": 0.5}])
def test_any_beginning_of_the_sample_is_of_all_sources_and_all_their_parts(shares: dict[str, float] | None) -> None:
    """Also of sources whose own beginning is no fair sample, and with no more of them than their limits allow."""

    class Sorted(Documents):
        shuffled = False

        def pieces(self, after: Any = None) -> Iterator[Piece]:
            for number, length in enumerate(self.lengths):
                yield Piece(f"{self.name}{number} " + "x" * length, True, number + 1.0)

    members = [
        Member(name, Sorted(name, 400), shares[name] if shares else None, limit)
        for name, limit in (("a", None), ("b", 60))
    ]
    heard = Heard()
    source = Mixture(members, "stop", heard)
    assert source.shuffled
    first = [piece.text.split()[0] for _, piece in zip(range(12), source.sample_pieces(), strict=False)]
    numbers = {letter: [int(word[1:]) for word in first if word[0] == letter] for letter in "ab"}
    assert min(map(len, numbers.values())) > (2 if shares else 0)
    assert max(numbers["a"]) > 60, "only of the beginning of a"
    assert max(numbers["b"]) < 60, "more of b than is read"
    assert not heard.notes, "the end of a sample is no end of the mixture"


def test_limits_of_single_sources() -> None:
    source, _ = mixture({"a": 50, "b": 50}, {"a": 0.5, "b": 0.5}, "repeat", a=3, b=20)
    pieces = list(source.pieces())
    account = {one["source"]: one for one in source.account(pieces[-1].cursor)}
    assert account["b"]["documents"] == 20
    assert set(given(pieces)) == {"a", "b"}
    assert given(pieces)["b"] == sum(Documents("b", 50).lengths[:20])
    assert int(account["a"]["repeats"]) >= 4


@pytest.mark.parametrize("cursors", ["", "a", "ab"])
@pytest.mark.parametrize(("shares", "exhausted"), [({"a": 0.7, "b": 0.3}, "stop"), ({"a": 0.3, "b": 0.7}, "repeat")])
@pytest.mark.parametrize("in_turn", [False, True])
def test_goes_on_behind_any_document(shares: dict[str, float], exhausted: str, cursors: str, in_turn: bool) -> None:
    chosen = None if in_turn else shares
    sizes = {"a": 12, "b": 25}
    whole = list(mixture(sizes, chosen, exhausted, cursors)[0].pieces())
    for place, piece in enumerate(whole):
        assert (piece.cursor is not None) == piece.last
        if piece.last:
            again = mixture(sizes, chosen, exhausted, cursors)[0]
            assert list(again.pieces(json.loads(json.dumps(piece.cursor)))) == whole[place + 1 :]


def test_what_can_go_on_in_the_middle_is_not_read_again() -> None:
    whole = list(mixture({"a": 30, "b": 30}, {"a": 0.5, "b": 0.5}, cursors="b")[0].pieces())
    cursor = next(piece.cursor for piece in whole[30:] if piece.last)
    documents = {
        letter: sum(p.last for p in whole[: 1 + [p.cursor for p in whole].index(cursor)] if p.text[0] == letter)
        for letter in "ab"
    }
    again = mixture({"a": 30, "b": 30}, {"a": 0.5, "b": 0.5}, cursors="b")[0]
    list(again.pieces(cursor))
    assert [member.source.begun for member in again._members] == [[None], [documents["b"]]]  # type: ignore[attr-defined]


def test_the_account_adds_up_at_every_document() -> None:
    source, _ = mixture({"a": 30, "b": 30}, {"a": 0.6, "b": 0.4})
    so_far: list[Piece] = []
    for piece in source.pieces():
        so_far.append(piece)
        if not piece.last:
            continue
        account = source.account(piece.cursor)
        characters = given(so_far)
        assert [one["characters"] for one in account] == [characters.get(name, 0) for name in "ab"]
        assert sum(float(one["share"]) for one in account) == pytest.approx(1, abs=1e-5)
        assert sum(int(one["documents"]) for one in account) == sum(one.last for one in so_far)


def test_a_mixture_of_a_mixture() -> None:
    def nested() -> Mixture:
        inner = mixture({"a": 20, "b": 20}, {"a": 0.5, "b": 0.5}, "repeat", "a")[0]
        members = [Member("inner", inner, 0.6, None), Member("c", Documents("c", 30), 0.4, None)]
        return Mixture(members, "stop", Heard())

    whole = list(nested().pieces())
    characters = given(whole)
    assert characters["c"] / sum(characters.values()) == pytest.approx(0.4, abs=0.05)
    place = next(number for number, piece in enumerate(whole) if number > len(whole) // 2 and piece.last)
    assert list(nested().pieces(whole[place].cursor)) == whole[place + 1 :]


def test_sources_that_are_left_in_the_middle_are_closed() -> None:
    source, _ = mixture({"a": 20, "b": 20}, {"a": 0.5, "b": 0.5})
    reading = source.pieces()
    for _ in range(9):
        next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert [member.source.closed for member in source._members] == [1, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("shares", [None, {"a": 0.5, "b": 0.5}])
def test_a_source_without_text_is_refused(shares: dict[str, float] | None) -> None:
    for asked in (lambda source: list(source.pieces()), lambda source: source.glimpse(1000)):
        with pytest.raises(UserError, match=r"data.mix: b .* holds no text"):
            asked(mixture({"a": 3, "b": 0}, shares)[0])


def test_fingerprints_follow_what_decides_the_text() -> None:
    sizes, shares = {"a": 3, "b": 3}, {"a": 0.5, "b": 0.5}
    variants = [
        mixture(sizes, shares)[0],
        mixture(sizes, {"a": 0.4, "b": 0.6})[0],
        mixture(dict(reversed(sizes.items())), shares)[0],
        mixture(sizes, shares, "repeat")[0],
        mixture(sizes, shares, a=2)[0],
        mixture(sizes, None)[0],
    ]
    assert len({source.fingerprint for source in variants}) == len(variants)
    assert mixture(sizes, shares)[0].fingerprint == variants[0].fingerprint
    assert variants[0].inputs == [{"source": "a", "letter": "a"}, {"source": "b", "letter": "b"}]


@pytest.mark.parametrize(("exhausted", "shares"), [("stop", True), ("repeat", True), ("stop", False)])
def test_the_size_is_estimated(exhausted: str, shares: bool) -> None:
    source, _ = mixture({"a": 100, "b": 250}, {"a": 0.6, "b": 0.4} if shares else None, exhausted)
    assert source.total == pytest.approx(sum(len(piece.text) for piece in source.pieces()), rel=0.05)
    texts, raw = source.glimpse(10_000)
    assert raw == sum(map(len, texts)) == 10_000


CHILD = """
import sys
from pathlib import Path
import cramming.data
from cramming.data import tokenizing
from cramming.data.preparation import prepare
from cramming.data.sources.mixture import MixtureConfig
tokenizing.BLOCK_CHARACTERS = 4000
folder, data_dir = sys.argv[1:]
sources = {name: {"kind": "local", "path": f"{folder}/{name}.txt"} for name in ("large", "small")}
shares = {"large": 0.75, "small": 0.25}
config = MixtureConfig(mix=shares, sources=sources, exhausted="repeat", vocab_size=300, seq_length=32)
prepare(config, Path(data_dir), 0)
"""


def child(folder: Path, data_dir: Path, kill_at: str) -> int:
    """A process that prepares a mixture of ``large.txt`` and ``small.txt``, to be killed at a point: its status."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(data_dir)],
        capture_output=True, text=True, env={**os.environ, "CRAMMING_KILL_AT": kill_at}, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.fixture
def corpora(tmp_path: Path, english: str) -> Path:
    """``large.txt`` in lower case, ``small.txt`` the digits 0 to 9 as words: who gave a token can be seen."""
    (tmp_path / "large.txt").write_text(english)
    numbers = [" ".join(str(number * 7919 % 10**6)) for number in range(2400)]
    (tmp_path / "small.txt").write_text("\n\n".join(" , ".join(numbers[at : at + 12]) for at in range(0, 2400, 12)))
    return tmp_path


def config(corpora: Path, **options: Any) -> MixtureConfig:
    """Three quarters of ``large.txt``, one quarter of ``small.txt``."""
    sources = {name: {"kind": "local", "path": str(corpora / f"{name}.txt")} for name in ("large", "small")}
    options = {"mix": {"large": 0.75, "small": 0.25}, "vocab_size": 300, "seq_length": 32, **options}
    return MixtureConfig(sources=sources, **options)


def content(folder: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_killed_anywhere_the_store_has_the_same_bytes(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", 4000)
    expected = content(prepare(config(corpora, exhausted="repeat"), corpora / "whole", workers=0).folder)
    for point in ("block-written:3", "cursor-rename:5", "cursor-written:6", "tokenizer-trained:1", "store-rename:1"):
        data_dir = corpora / point
        status = child(corpora, data_dir, point)
        assert status == -signal.SIGKILL, f"{point} was never passed"
        assert content(prepare(config(corpora, exhausted="repeat"), data_dir, workers=0).folder) == expected, point


def test_the_manifest_says_what_each_source_gave(corpora: Path) -> None:
    store = prepare(config(corpora), corpora / "data", workers=0)
    large, small = store.manifest["gave"]
    assert (large["source"], small["source"]) == ("large", "small")
    assert small["share"] == pytest.approx(0.25, abs=0.03)
    assert large["documents"] + small["documents"] == store.manifest["documents"]
    assert {one["source"] for one in store.manifest["inputs"]} == {"large", "small"}
    digits = sum(character.isdigit() for character in decoded(store))
    assert 0.05 < digits / len(decoded(store)) < 0.25, "the store's text is not in the shares asked for"


def test_limits_of_the_whole_and_another_order_of_workers(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", 4000)
    stores = [
        prepare(config(corpora, max_tokens=6000), corpora / f"data{workers}", workers=workers) for workers in (0, 2)
    ]
    assert content(stores[0].folder) == content(stores[1].folder)
    assert stores[0].manifest["tokens"] == 6000
    assert sum(one["characters"] for one in stores[0].manifest["gave"]) < 60_000


def test_concatenated(corpora: Path) -> None:
    store = prepare(config(corpora, mix=["small", "large"]), corpora / "data", workers=0)
    text = decoded(store)
    last_digit = max(place for place, character in enumerate(text) if character.isdigit())
    assert not any(
        character in "bdfgklmnprst" for character in text[:last_digit].replace("[SEP]", "").replace("[CLS]", "")
    )
    assert [one["share"] for one in store.manifest["gave"]] != [0.25, 0.75]


def decoded(store: TokenStore) -> str:
    """All of a store, as text."""
    return "".join(store.tokenizer.decode(store.read(np.arange(store.rows))[0][row]) for row in range(store.rows))


def test_a_source_that_cannot_be_opened_is_named_by_its_place(tmp_path: Path) -> None:
    sources = {"far": {"kind": "local", "path": str(tmp_path / "absent.txt")}}
    with pytest.raises(UserError, match=r"^data\.sources\.far\.path=.*absent\.txt"):
        prepare(MixtureConfig(mix=["far"], sources=sources), tmp_path / "data", workers=0)
