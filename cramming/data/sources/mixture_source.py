"""The text of a mixture: whole documents of several sources, in an order that depends on nothing but the text.

With shares, the source furthest behind its share is next, at every document: the one that has given the fewest
characters for each of its shares (Demers, Keshav and Shenker, "Analysis and simulation of a fair queueing algorithm",
SIGCOMM 1989, with documents for packets). No source is ever ahead of its share by more than its longest document, nor
behind by more than its share of what the longest documents of the others hold together. Without shares, all of each
source, one after the other.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cramming.data.fingerprint import fingerprint
from cramming.data.sources.source import Piece, Source
from cramming.data.tokenizer_training import sample
from cramming.errors import UserError
from cramming.progress import ProgressSink, Silent

STOP, REPEAT = EXHAUSTED = ("stop", "repeat")
_REST = "rest"  # what is used up drops out, the others go on
_MEASURED_CHARACTERS = 400_000


@dataclass(frozen=True)
class Member:
    """One source of a mixture."""

    name: str
    source: Source
    share: float | None  # of the characters; None: all of it
    max_documents: int | None


class _First:
    """The first documents of a source, as a source to sample from."""

    shuffled = False

    def __init__(self, source: Source, max_documents: int | None) -> None:
        self._source, self._max_documents = source, max_documents
        self.name, self.unit, self.sample_bytes = source.name, source.unit, source.sample_bytes
        self.fingerprint, self.inputs, self.total = source.fingerprint, source.inputs, source.total
        self.glimpse = source.glimpse

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        """See ``Source.pieces``."""
        documents = 0
        for piece in self._source.pieces(after):
            if documents == self._max_documents:
                return
            yield piece
            documents += piece.last


@dataclass
class _Standing:
    """How far a member is: where it goes on, and what it has given."""

    cursor: Any = None  # its own, of the latest document that had one
    behind: int = 0  # documents read behind the cursor (behind the beginning, if there is none)
    of_pass: int = 0  # documents since it last began
    position: float = 0.0  # in its own units
    documents: int = 0
    characters: int = 0
    repeats: int = 0
    used_up: bool = False

    def facts(self) -> list[Any]:
        """All of it as JSON, in the order of the fields."""
        given = [self.documents, self.characters, self.repeats, self.used_up]
        return [self.cursor, self.behind, self.of_pass, self.position, *given]

    def took(self, piece: Piece) -> None:
        """Count a piece."""
        self.characters += len(piece.text)
        self.position = piece.position
        if piece.last:
            self.documents += 1
            self.of_pass += 1
            self.cursor, self.behind = (piece.cursor, 0) if piece.cursor is not None else (self.cursor, self.behind + 1)

    def begin_again(self) -> None:
        """Back to its first document; what it gave stays given."""
        self.cursor, self.behind, self.of_pass, self.position = None, 0, 0, 0.0
        self.repeats += 1


class Mixture:
    """Sources as one source; ``exhausted`` says what happens when one with a share is used up.

    Its unit is characters, whatever its members count. Every document has a cursor, with those of the members in it and
    what each has given; members without cursors are read again up to where they were.
    """

    unit = "characters"
    shuffled = True  # of ``sample_pieces``

    def __init__(self, members: Sequence[Member], exhausted: str, progress: ProgressSink) -> None:
        self.name = f"data.mix ({', '.join(member.name for member in members)})"
        self._members = members
        self._shares = [member.share for member in members if member.share is not None] or None
        self._exhausted = exhausted if self._shares else _REST
        self._progress = progress
        self._said = False
        self._total: float | None = None
        self.sample_bytes = max(member.source.sample_bytes for member in members)
        # What sources are called is no part of the text.
        read = [[member.source.fingerprint, member.share, member.max_documents] for member in members]
        self.fingerprint = fingerprint("mixture", 1, self._exhausted, read)

    @property
    def inputs(self) -> list[dict[str, str | int]]:
        """What each member read, with the member's name."""
        return [{"source": member.name, **one} for member in self._members for one in member.source.inputs]

    @property
    def total(self) -> float:
        """Characters of the whole mixture, estimated from a glimpse of each source."""
        if self._total is None:
            self.glimpse(_MEASURED_CHARACTERS)
        assert self._total is not None
        return self._total

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        """See ``Source.pieces``.

        Raises:
            UserError: a source that was given a share holds no text.
        """
        return self._read(
            self._shares, self._exhausted, lambda member, cursor: member.source.pieces(cursor), self._say_end, after
        )

    def sample_pieces(self) -> Iterator[Piece]:
        """Samples of the sources, side by side also where the sources follow one another."""
        samples: dict[str, list[str]] = {}

        def opened(member: Member, cursor: Any) -> Iterator[Piece]:
            source = member.source
            if source.shuffled:
                sampler = getattr(source, "sample_pieces", source.pieces)
                return iter(sampler())
            if member.name not in samples:
                samples[member.name] = sample(_First(source, member.max_documents), Silent())
            return (Piece(text, True, 0.0) for text in samples[member.name])

        if self._shares is not None:
            return self._read(self._shares, self._exhausted, opened)
        totals = [member.source.total for member in self._members]
        comparable = len({member.source.unit for member in self._members}) == 1 and all(map(math.isfinite, totals))
        return self._read([max(1.0, total) if comparable else 1.0 for total in totals], _REST, opened)

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        """See ``Source.glimpse``: of each source its share.

        Raises:
            UserError: a source holds no text.
        """
        shares = self._shares or [1 / len(self._members)] * len(self._members)
        shown: list[str] = []
        sizes: list[float] = []
        for member, share in zip(self._members, shares, strict=True):
            texts, raw = member.source.glimpse(round(characters * share))
            found = sum(map(len, texts))
            if not found:
                raise _no_text(member)
            size = found / max(1.0, raw) * max(member.source.total, raw)
            if member.max_documents is not None:
                size = min(size, member.max_documents * found / len(texts))
            sizes.append(size)
            shown += _first(texts, round(characters * share))
        if self._shares is None:
            self._total = sum(sizes)
        else:
            ends = min if self._exhausted == STOP else max
            self._total = ends(size / share for size, share in zip(sizes, shares, strict=True))
        return shown, float(sum(map(len, shown)))

    def account(self, cursor: Any) -> list[dict[str, str | int | float]]:
        """What each source gave up to a cursor, for the manifest: documents, characters, share, times repeated."""
        standings = [_Standing(*facts) for facts in cursor]
        whole = max(1, sum(standing.characters for standing in standings))
        return [
            {
                "source": member.name,
                "documents": standing.documents,
                "characters": standing.characters,
                "share": round(standing.characters / whole, 6),
                "repeats": standing.repeats,
            }
            for member, standing in zip(self._members, standings, strict=True)
        ]

    def _read(
        self,
        shares: Sequence[float] | None,
        exhausted: str,
        opened: Callable[[Member, Any], Iterator[Piece]],
        ended: Callable[[int, Sequence[_Standing]], None] | None = None,
        after: Any = None,
    ) -> Iterator[Piece]:
        """Documents in turn, behind the cursor ``after``; ``ended`` is told which member's end was that of all."""
        standings = [_Standing(*facts) for facts in after] if after else [_Standing() for _ in self._members]
        given = sum(standing.characters for standing in standings)
        readers: dict[int, Iterator[Piece]] = {}
        try:
            while (turn := _next(standings, shares)) is not None:
                member, standing = self._members[turn], standings[turn]
                if turn not in readers:
                    readers[turn] = opened(member, standing.cursor)
                    _skip(readers[turn], standing.behind)
                before = given
                if standing.of_pass != member.max_documents:
                    for piece in _document(readers[turn]):
                        standing.took(piece)
                        given += len(piece.text)
                        cursor = [one.facts() for one in standings] if piece.last else None
                        yield Piece(piece.text, piece.last, float(given), cursor)
                if given > before:
                    continue
                if not standing.documents:
                    raise _no_text(member)
                _close(readers.pop(turn))
                if exhausted == _REST:
                    standing.used_up = True
                elif exhausted == STOP or all(one.repeats for one in standings if one is not standing):
                    if ended is not None:
                        ended(turn, standings)
                    return
                else:
                    standing.begin_again()
        finally:
            for reader in readers.values():
                _close(reader)

    def _say_end(self, last: int, standings: Sequence[_Standing]) -> None:
        """One line about what the end of a mixture with shares means for each source."""
        if self._said:
            return
        self._said = True
        others = [number for number in range(len(standings)) if number != last]
        if self._exhausted == STOP:
            left = ", ".join(f"{self._unread(n, standings[n]):.0%} of {self._members[n].name}" for n in others)
            text = f"the mixture ends where {self._members[last].name} is used up"
            if left:
                text += f"; unread stay about {left}: data.exhausted=repeat would go on"
        else:
            again = ", ".join(f"{self._members[n].name} {standings[n].repeats} more times" for n in others)
            text = f"the mixture ends where {self._members[last].name} was read once; begun again: {again or 'none'}"
        self._progress.note(text)

    def _unread(self, number: int, standing: _Standing) -> float:
        member = self._members[number]
        read = standing.position / max(1.0, member.source.total)
        if member.max_documents is not None:
            read = max(read, standing.of_pass / member.max_documents)
        return max(0.0, 1 - read)


def _next(standings: Sequence[_Standing], shares: Sequence[float] | None) -> int | None:
    """The member whose turn it is: the first, or the one furthest behind its share; none where all are used up."""
    left = [number for number, standing in enumerate(standings) if not standing.used_up]
    if shares is None or not left:
        return left[0] if left else None
    return min(left, key=lambda number: standings[number].characters / shares[number])


def _document(reader: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces of the next document; none where there is no more."""
    for piece in reader:
        yield piece
        if piece.last:
            return


def _skip(reader: Iterator[Piece], documents: int) -> None:
    """Read over whole documents."""
    for _ in range(documents):
        for _ in _document(reader):
            pass


def _close(reader: Iterator[Piece]) -> None:
    """End a source that is a generator at once: it may hold files or processes."""
    close = getattr(reader, "close", None)
    if close is not None:
        close()


def _first(texts: Sequence[str], characters: int) -> list[str]:
    shown: list[str] = []
    for text in texts:
        if characters <= 0:
            break
        shown.append(text[:characters])
        characters -= len(text)
    return shown


def _no_text(member: Member) -> UserError:
    return UserError(f"data.mix: {member.name} ({member.source.name}) holds no text; leave it out, or give it some")
