"""What a source of text is: numbered nothing, just documents one after the other, in an order that never changes.

Documents come as *pieces* of bounded length, so that a document of a terabyte costs no more memory than a tweet.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

# A document longer than this is passed on in pieces of at most this many characters.
PIECE_CHARACTERS = 1 << 18
# Where a piece may end: before what every pre-tokenizer in use separates words at.
_SPACES = " \n\t"
# In text without spaces: before what follows a word in Chinese, Japanese, Tibetan, Khmer, Burmese or Thai.
_ENDS_OF_WORDS = "\u3000。、，．！？」』）…་།។၊။ฯ"


class Piece(NamedTuple):
    """A document or a part of one."""

    text: str
    last: bool  # the document ends here
    position: float  # how much of the source was read so far, in the units of ``Source.total``
    # Where to go on behind this document: a JSON value for ``Source.pieces``. Only with ``last``, and only from
    # sources that can go on there without reading all that came before.
    cursor: Any = None


class Source(Protocol):
    """Text to train on. ``cramming.data.sources`` has one file for each; the config of a source makes it.

    One whose order is no good for training a tokenizer on a part of it may also have
    ``sample_pieces() -> Iterator[Piece]``: its documents in an order that is.
    """

    name: str  # as a person would call it in a message
    fingerprint: str  # of everything that decides the text
    unit: str  # what ``total`` counts; ``B`` for bytes
    shuffled: bool  # any prefix is a fair sample
    sample_bytes: int  # of text, to train a tokenizer on

    @property
    def inputs(self) -> list[dict[str, str | int]]:
        """What it read, for the manifest of the store."""

    @property
    def total(self) -> float:
        """Size of the raw input in ``unit``, for progress and estimates; infinite where nobody knows."""

    def pieces(self, after: Any = None) -> Iterator[Piece]:
        """All documents that hold anything but white space.

        Args:
            after: the cursor of a piece this source gave before: only what comes behind it. A source whose pieces have
                no cursors is never given one.

        Raises:
            UserError: the input is not usable text.
        """

    def glimpse(self, characters: int) -> tuple[list[str], float]:
        """About ``characters`` of text and how much of ``total`` holds as much, for estimates."""


@runtime_checkable
class Accounting(Protocol):
    """A source made of several, which can say what each of them gave."""

    def account(self, cursor: Any) -> list[dict[str, str | int | float]]:
        """What was given up to a cursor, for the manifest of the store."""


class Assembler:
    """Joins fragments of text into pieces, and keeps blank documents out."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._begun = False  # an earlier piece of this document was passed on

    def add(self, fragment: str, position: float) -> Iterator[Piece]:
        """Continue the document."""
        if self._length and self._length + len(fragment) > PIECE_CHARACTERS:
            yield from self._flush(False, position)
        self._parts.append(fragment)
        self._length += len(fragment)

    def end(self, position: float) -> Iterator[Piece]:
        """End the document, if one was begun."""
        yield from self._flush(True, position)
        self._begun = False

    def _flush(self, last: bool, position: float) -> Iterator[Piece]:
        text = "".join(self._parts)
        self._parts, self._length = [], 0
        blank = not text or text.isspace()
        if not blank or (last and self._begun):
            self._begun = True
            yield Piece("" if blank else text, last, position)


def bounded(text: str) -> Iterator[str]:
    """Cut a long text into fragments of at most ``PIECE_CHARACTERS``, between words wherever possible.

    For BERT's kind of tokenizers and byte-level BPE the token ids do not change; Unigram, which marks where a word
    begins, has one mark more where a text without spaces is cut. Only a run of more than ``PIECE_CHARACTERS`` without
    white space or punctuation is cut inside. Where it is cut depends on the text alone.
    """
    while len(text) > PIECE_CHARACTERS:
        at = cut_point(text)
        yield text[:at]
        text = text[at:]
    yield text


def cut_point(text: str) -> int:
    """Where a text of more than ``PIECE_CHARACTERS`` is cut first."""
    at = max(text.rfind(space, 1, PIECE_CHARACTERS) for space in _SPACES)
    if at > 0:
        # Before all of the white space there is: some tokenizers take a run of it as one word.
        before = len(text[:at].rstrip())
        return before or at
    at = max(_after_a_letter(text, mark) for mark in _ENDS_OF_WORDS)
    return at if at > 0 else PIECE_CHARACTERS


def _after_a_letter(text: str, mark: str) -> int:
    """Where ``mark`` last follows a letter in what a piece can hold, or -1: signs may be one word together."""
    at = text.rfind(mark, 1, PIECE_CHARACTERS)
    while at > 0 and not text[at - 1].isalpha():
        at = text.rfind(mark, 1, at)
    return at


def documents_to_pieces(documents: Iterator[tuple[str, float]]) -> Iterator[Piece]:
    """Whole documents, each with its position in the source, as pieces."""
    assembler = Assembler()
    for text, position in documents:
        for fragment in bounded(text):
            yield from assembler.add(fragment, position)
        yield from assembler.end(position)


def beginning(pieces: Iterable[Piece], characters: int) -> tuple[list[str], float]:
    """About ``characters`` of text, and the position behind it: ``Source.glimpse`` where the beginning is typical."""
    texts: list[str] = []
    position = 0.0
    for piece in pieces:
        texts.append(piece.text)
        position = piece.position
        characters -= len(piece.text)
        if characters <= 0:
            break
    return texts, position
