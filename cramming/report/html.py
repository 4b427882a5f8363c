"""One page that needs nothing else: style, figures and a few lines of script are inside."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import count
from pathlib import Path

from cramming.report.document import (
    Block,
    Cell,
    Code,
    Document,
    Figure,
    Figures,
    Folded,
    Heading,
    Notices,
    Table,
    Text,
)

_HERE = Path(__file__).parent
_LONG = 12  # letters; a longer name may break at its joints
# A browser that honours this cannot fetch anything, whatever a run's name or configuration says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(document: Document, colours: Mapping[str, str]) -> str:
    """The document as HTML.

    Args:
        document: what to show.
        colours: arm -> colour, to mark it in tables as in figures.
    """
    ids = (f"s{number}" for number in count())
    body = "\n".join(_block(block, colours, ids=next(ids)) for block in document.blocks)
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "sort.js"))
    title = escape(document.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""


def _block(block: Block, colours: Mapping[str, str], ids: str) -> str:
    match block:
        case Heading():
            return f'<h{block.level} id="{ids}">{_words(block.text)}</h{block.level}>'
        case Text():
            return f"<p>{_words(block.text)}</p>"
        case Notices():
            lines = "".join(f"<li>{_words(line)}</li>" for line in block.lines)
            return f'<div class="notice" role="note"><strong>{_words(block.title)}</strong><ul>{lines}</ul></div>'
        case Code():
            return f"<pre>{escape(block.text)}</pre>"
        case Figures():
            return f'<div class="figures">{"".join(map(_figure, block.figures))}</div>'
        case Table():
            return _table(block, colours)
        case Folded():
            inside = "\n".join(_block(inner, colours, f"{ids}-{i}") for i, inner in enumerate(block.blocks))
            return f"<details><summary>{_words(block.summary)}</summary>\n{inside}\n</details>"


def _figure(figure: Figure) -> str:
    drawing = figure.svg.replace("<svg", f'<svg role="img" aria-label="{escape(figure.alt)}"', 1)
    return f'<figure id="{escape(figure.name)}" tabindex="0">{drawing}</figure>\n'


def _table(table: Table, colours: Mapping[str, str]) -> str:
    heads = "".join(
        f'<th scope="col"{_class(column.numeric)}><button type="button">{_words(column.title)}</button></th>'
        for column in table.columns
    )
    rows = "\n".join(f"<tr>{_row(row, table, colours)}</tr>" for row in table.rows)
    caption = f"<caption>{_words(table.caption)}</caption>" if table.caption else ""
    label = escape(re.sub(r"`", "", table.caption or "table"))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>{caption}'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _row(row: Sequence[Cell], table: Table, colours: Mapping[str, str]) -> str:
    cells = []
    for place, (cell, column) in enumerate(zip(row, table.columns, strict=True)):
        chip = (
            f'<span class="chip" style="background:{colours[cell.arm]}"></span>'
            if cell.arm is not None and cell.arm in colours
            else ""
        )
        text = f"<code>{escape(cell.text)}</code>" if cell.code else _words(cell.text)
        if len(cell.text) > _LONG and not cell.code and not column.numeric:
            text = re.sub(r"([+_,])(?=[^<>]*(<|$))", r"\1<wbr>", text)  # may break there
        sort = "" if cell.sort is None else f' data-sort="{escape(str(cell.sort))}"'
        tag, scope = ("th", ' scope="row"') if place == 0 else ("td", "")
        cells.append(f"<{tag}{scope}{_class(column.numeric, cell.tone)}{sort}>{chip}{text}</{tag}>")
    return "".join(cells)


def _class(numeric: bool, tone: str = "") -> str:
    names = " ".join(name for name in ("number" if numeric else "", tone) if name)
    return f' class="{names}"' if names else ""


def _words(text: str) -> str:
    """Text for HTML; what stands between backticks is code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
