"""The report as Markdown, for repositories and pull requests; and the main table for a terminal."""

import io
import re
import shutil
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as Screen

from cramming.report.document import Block, Code, Document, Figures, Folded, Heading, Notices, Table, Text

_ASCII = str.maketrans({"±": "+-", "\N{NO-BREAK SPACE}": " ", "\N{DAGGER}": "^", "\N{DOUBLE DAGGER}": "*"})


def markdown(document: Document) -> str:
    """The document as Markdown; figures are links to the PNG files beside it."""
    return "\n\n".join([f"# {_plain(document.title)}", *_blocks(document.blocks)]) + "\n"


def terminal(table: Table, width: int | None = None) -> str:
    """A table as lines of at most ``width`` characters (None: the terminal's), ready to print.

    Where it is too wide the last numbers are left out, which the page has; then what remains is folded.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    console = Console(file=io.StringIO(), width=width, no_color=True, highlight=False, markup=False, emoji=False)
    console.print(screen(table, _fitting(table, width), plain))
    assert isinstance(console.file, io.StringIO)
    said = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
    return said.translate(_ASCII) if plain else said


def screen(table: Table, shown: Sequence[int] | None = None, plain: bool = False) -> Screen:
    """A table as rich draws it.

    Args:
        table: with its caption above it.
        shown: the columns, by number; None: all.
        plain: lines of ASCII characters.
    """
    shown = range(len(table.columns)) if shown is None else shown
    drawn = Screen(title=table.caption, title_justify="left", title_style="", box=box.ASCII if plain else box.ROUNDED)
    for place in shown:
        column = table.columns[place]
        drawn.add_column(column.title, justify="right" if column.numeric else "left", overflow="fold",
                         ratio=None if place else 1)  # fmt: skip
    for row in table.rows:
        drawn.add_row(*(row[place].text for place in shown))
    return drawn


def _fitting(table: Table, width: int) -> list[int]:
    """The columns that fit, by number: without the last numeric ones, as many as must go; three stay in any case."""
    wide = [max(len(c.title), *(len(row[i].text) for row in table.rows)) + 3 for i, c in enumerate(table.columns)]
    shown = list(range(len(wide)))
    for place in reversed(shown):
        if sum(wide[i] for i in shown) + 1 > width and table.columns[place].numeric and len(shown) > 3:
            shown = [i for i in shown if i != place]
    return shown


def _blocks(blocks: Sequence[Block]) -> list[str]:
    found = []
    for block in blocks:
        match block:
            case Heading():
                found.append(f"{'#' * block.level} {_plain(block.text)}")
            case Text():
                found.append(_plain(block.text))
            case Notices():
                lines = "\n".join(f"* {_plain(line)}" for line in block.lines)
                found.append(f"**{_plain(block.title)}**\n\n{lines}")
            case Code():
                found.append(f"```\n{block.text}\n```")
            case Figures():
                found += [f"![{_plain(figure.alt)}]({figure.name}.png)" for figure in block.figures]
            case Table():
                found.append(_table(block))
            case Folded():
                found += [f"### {_plain(block.summary)}", *_blocks(block.blocks)]
    return found


def _table(table: Table) -> str:
    lines = [f"{_plain(table.caption)}\n"] if table.caption else []
    lines.append(f"| {' | '.join(_cell(column.title) for column in table.columns)} |")
    lines.append(f"| {' | '.join('---:' if column.numeric else '---' for column in table.columns)} |")
    for row in table.rows:
        lines.append(f"| {' | '.join(f'`{_cell(c.text)}`' if c.code else _cell(c.text) for c in row)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, but for code between backticks."""
    parts = text.replace("\n", " ").split("`")
    outside = [re.sub(r"([\[\]*<])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts)]
    return "`".join(outside)
