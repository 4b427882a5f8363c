"""English prose out of documentation strings: code, tables, signatures and markup thinned out, paragraphs kept."""

import ast
import inspect
import re

# Prose is recognised by its small words: code, tables and lists of names have few of them.
_SMALL_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by can do does for from has have how if in into is it its may more "
        "must no not of on only or other over should so such than that the their them then there these they "
        "this to up used using was we when where which while will with would you your",
    )
)
_SMALL_SHARE = 0.17
_LETTER_SHARE = 0.78
_SHORTEST_WORDS = 6

_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_RULE = re.compile(r"^\s*[-=~^*#+_`.:|<>/\\]{3,}\s*$")  # underlines, borders
_TABLE = re.compile(r"[|+].*[|+]|\S\s{3,}\S.*\S\s{3,}\S|[-=]{4,}")
_DIRECTIVE = re.compile(r"^\s*\.\. [\w-]+::.*$|^\s*:[\w ]+:\s*$|^\s*@\w+.*$")
_DROPPED_BLOCK = re.compile(
    r"^\s*\.\. (code|code-block|sourcecode|math|plot|testcode|doctest|ipython|csv-table|image|figure)::"
)
_PARAMETER = re.compile(r"^\s*[*`\w.,\[\] ]{1,60}\s:\s\S.*$")  # numpydoc: "axis : int, optional"
_FIELD = re.compile(r"^\s*:(?:param|type|arg|keyword|raises?|returns?|rtype|var|ivar|cvar)\b[^:]*:\s*")
# "size (int): The size", the description perhaps on the next line
_GOOGLE = re.compile(r"^\s*[*`\w./]{1,50}\s*(?:\(.{1,120}?\)\s*:(?:\s+|\s*$)|:\s+(?=[A-Z\"`]))")
_HEADER = re.compile(
    r"^\s*(?:Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?|References|Attributes):?\s*$"
)
_ROLE = re.compile(r":[a-z][\w:+-]*:`~?!?([^`<]+?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)|`([^`<]+?)\s*<[^`>]*>`_+")
_TICKS = re.compile(r"`+([^`]*)`+_*")
_BOLD = re.compile(r"\*\*([^*]+)\*\*|(?<!\w)\*([^*\s][^*]*)\*(?!\w)")
_NOT_PROSE = (_DIRECTIVE, _RULE, _TABLE, _PARAMETER, _HEADER)
_FENCE = re.compile(r"^\s*(```|~~~)")


def docstrings(source: bytes, path: str) -> list[str]:
    """Documentation strings of a module, its classes and functions, in the order of the file.

    Text that is not Python of this version holds none.
    """
    if b'"""' not in source and b"'''" not in source:
        return []
    try:
        tree = ast.parse(source, path)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: list[str] = []
    # Statements only: documentation strings are never inside expressions, which are most of a tree.
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        body = getattr(node, "body", [])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                found.append(inspect.cleandoc(text))
        for block in (getattr(node, "orelse", []), body):
            if isinstance(block, list):
                waiting.extend(reversed([child for child in block if isinstance(child, ast.stmt)]))
    return found


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of a documentation string that are prose, each on one line."""
    kept: list[str] = []
    lines: list[str] = []
    for line in [*_without_code(docstring), ""]:
        stripped = line.strip()
        begins_item = bool(_FIELD.match(line) or _GOOGLE.match(line) or stripped.startswith(("- ", "* ", "• ")))
        if lines and (not stripped or begins_item):
            text = _plain(lines)
            if _is_prose(text):
                kept.append(text)
            lines = []
        if stripped:
            lines.append(line)
    return kept


def _without_code(docstring: str) -> list[str]:
    """Lines that are not code, rules, tables, directives or parameter names."""
    kept: list[str] = []
    fenced = False
    block_indent: int | None = None  # lines deeper than this belong to a code block
    doctest = False
    for line in docstring.expandtabs().splitlines():
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if _FENCE.match(line):
            fenced = not fenced
            continue
        doctest = stripped.startswith((">>>", "In [", "$ ")) or (doctest and bool(stripped))
        if block_indent is not None and stripped and indent <= block_indent:
            block_indent = None
        if fenced or doctest or (block_indent is not None and stripped):
            continue
        if _DROPPED_BLOCK.match(line) or stripped == "::":
            block_indent = indent
            continue
        if any(pattern.search(line) for pattern in _NOT_PROSE):
            kept.append("")
            continue
        if stripped.endswith("::"):  # reStructuredText: an indented code block follows
            block_indent = indent
            line = line.rstrip()[:-1]  # noqa: PLW2901
        kept.append(line)
    return kept


def _plain(lines: list[str]) -> str:
    """One line of text without markup."""
    lines = [lines[0].strip().removeprefix("- ").removeprefix("* ").removeprefix("• "), *(x.strip() for x in lines[1:])]
    text = " ".join(lines)
    text = _FIELD.sub("", text)
    text = _GOOGLE.sub("", text)
    text = _ROLE.sub(r"\1", text)
    text = _LINK.sub(lambda match: match[1] or match[2], text)
    text = _TICKS.sub(r"\1", text)
    text = _BOLD.sub(lambda match: match[1] or match[2], text)
    return " ".join(text.split())


def _is_prose(text: str) -> bool:
    """Whether a paragraph reads like sentences."""
    words = _WORD.findall(text)
    if len(words) < _SHORTEST_WORDS:
        return False
    letters = sum(map(len, words)) + text.count(" ")
    small = sum(word.lower() in _SMALL_WORDS for word in words)
    return letters >= _LETTER_SHARE * len(text) and small >= _SMALL_SHARE * len(words)
