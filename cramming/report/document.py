"""What a report is made of, before it is a page, a Markdown file or lines in a terminal.

Texts are plain; words between backticks are code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Tone = Literal["", "better", "worse", "muted"]


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what it says.
        sort: what it is sorted by; None: last, in whatever direction.
        tone: how it is set; the text says the same in words.
        arm: the arm whose colour stands beside it.
        code: set in a fixed width.
    """

    text: str
    sort: float | str | None = None
    tone: Tone = ""
    arm: str | None = None
    code: bool = False


@dataclass(frozen=True)
class Column:
    """A column's title, and whether it holds numbers."""

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Heading:
    """A heading; level 2 begins a part, level 3 a section of it."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Notices:
    """Lines that must be read before the numbers."""

    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
        name: of its file, without the ending.
        alt: what it shows, for those who do not see it.
        svg: for the page.
        png: the same as a file.
    """

    name: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Figures:
    """Figures that may stand side by side."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True)
class Folded:
    """Blocks that are opened by who wants them."""

    summary: str
    blocks: "Sequence[Block]"


Block = Heading | Text | Notices | Table | Figures | Code | Folded


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    blocks: Sequence[Block]


def figures_of(blocks: Sequence[Block]) -> list[Figure]:
    """Every figure, in order."""
    found: list[Figure] = []
    for block in blocks:
        if isinstance(block, Figures):
            found += block.figures
        elif isinstance(block, Folded):
            found += figures_of(block.blocks)
    return found
