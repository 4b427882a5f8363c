"""What a conversion is made of: samples one after the other, each with where to go on to get it again."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from cramming.data.sources.source import Source


class Step(NamedTuple):
    """One sample."""

    sample: Mapping[str, Any]
    state: Callable[[], Any]  # JSON with which ``Samples.steps`` begins with this sample; asked before the next one
    position: float  # in the units of ``Samples.total``


class Samples(Protocol):
    """All samples of a split, in an order that never changes."""

    name: str  # of where they come from, for messages
    identity: str  # of everything that decides them
    unit: str

    @property
    def total(self) -> float:
        """Size of what they are made of, in ``unit``; infinite where nobody knows."""

    def steps(self, state: Any) -> Iterator[Step]:
        """The samples from the one that had this state on; None: all of them."""


@dataclass
class Document:
    """A document of a source."""

    texts: list[str]  # it, in pieces
    number: int  # in the source
    place: list[Any]  # with which ``documents`` begins with it
    position: float


def documents(source: Source, place: list[Any] | None, limit: int | None) -> Iterator[Document]:
    """The first ``limit`` documents of a source, from a place on.

    A place is [cursor of the source or None, documents behind it that are passed over, number of the document].
    """
    cursor, passed, number = place or (None, 0, 0)
    number, behind = number - passed, 0
    texts: list[str] = []
    for piece in source.pieces(cursor):
        if number == limit:
            return
        texts.append(piece.text)
        if not piece.last:
            continue
        if passed:
            passed -= 1
        else:
            yield Document(texts, number, [cursor, behind, number], piece.position)
        texts = []
        number += 1
        cursor, behind = (cursor, behind + 1) if piece.cursor is None else (piece.cursor, 0)


def is_held_out(number: int, one_in: int) -> bool:
    """Whether a document is of the validation split that is made of a source without one.

    The first is, and of every ``one_in`` documents after the first as many one, drawn by its number alone: no corpus is
    too small, and a corpus whose sources take turns is drawn from fairly.
    """
    block, place = divmod(number, one_in)
    if block == 0:
        return place == 0
    return place == int.from_bytes(sha256(f"held out {block}".encode()).digest()[:8], "big") % one_in
