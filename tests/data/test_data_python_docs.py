"""Prose out of documentation strings."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cramming.data import estimate, tokenizing
from cramming.data.preparation import prepare
from cramming.data.sources import prose, python_docs
from cramming.data.sources.python_docs import PythonDocs, PythonDocsConfig, deduplicated, harvest
from tests.conftest import REPOSITORY

MODULE = '''"""The module does what it is asked to do,
and not more than that.

.. code-block:: python

    the_code = is_not(a, prose)

======  ======
A is    or not
======  ======
the 1   of a 2
======  ======
"""
class Thing:
    """A thing that can be used by all of you.

    >>> Thing() is not a thing that we keep
    True

    Parameters
    ----------
    size : int, optional
        The size of the thing, in :class:`~units.Metre` as it was given.

    Example::

        this is in the example and not for us
    """
    def method(self, x):
        """Return the value of ``x`` when there is one to return.

        Args:
            x (int): The number that is to be **returned** by the method.

        ```
        this is the code that we do not want to have
        ```
        """
        if x:
            def inner():
                """Inner functions have them as well, and they are as good."""
    NOT_A_DOCSTRING = """This is a string, and it is not for the reader of it."""
'''

PROSE = [
    "The module does what it is asked to do, and not more than that.",
    "A thing that can be used by all of you.",
    "The size of the thing, in units.Metre as it was given.",
    "Return the value of x when there is one to return.",
    "The number that is to be returned by the method.",
    "Inner functions have them as well, and they are as good.",
]


def test_prose_is_kept_and_the_rest_is_not() -> None:
    strings = prose.docstrings(MODULE.encode(), "m.py")
    assert [text for string in strings for text in prose.paragraphs(string)] == PROSE


@pytest.mark.parametrize("source", [b"print '''old'''", b'"""\xff"""', b"'''" + b"(" * 300, b""])
def test_what_is_not_python_has_none(source: bytes) -> None:
    assert prose.docstrings(source, "m.py") == []


def test_repeated_paragraphs_go_and_doing_it_again_changes_nothing() -> None:
    one, two, short = "first " * 40, "second " * 40, "third"
    seen: set[bytes] = set()
    unique = deduplicated([[one, two, one], [short], ["FIRST " * 40, short], [short, one, "fourth " * 40]], seen)
    assert unique == [[one, two], [short, "fourth " * 40]]
    again: set[bytes] = set()
    assert deduplicated(unique, again) == unique
    assert again == seen


def test_the_distributions_are_this_projects_dependencies() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in project["dependencies"]}  # type: ignore[index]
    later = {"fsspec", "xxhash"}  # their text would change the corpus, and with it every result on it
    assert set(python_docs.DISTRIBUTIONS) == names - later


CHILD = """
import sys
from pathlib import Path
from cramming.data.sources.python_docs import PythonDocs
taken = 0
for piece in PythonDocs(Path(sys.argv[1]), 0, ()).pieces():
    taken += len(piece.text)
    if taken > 100_000:
        break
"""


def test_harvest_is_lazy_kept_and_survives_a_kill(tmp_path: Path) -> None:
    """Only what is asked for is read, once; a killed harvest ends with the chunks of one that was not."""
    source = PythonDocs(tmp_path / "whole", 2, ())  # the standard library alone
    taken: list[str] = []
    for piece in source.pieces():
        taken.append(piece.text)
        if sum(map(len, taken)) > 100_000:
            break
    chunks = sorted((tmp_path / "whole").glob("*/chunk-*.json"))
    assert 1 <= len(chunks) < len(source._chunks)
    assert all("\n\n".join(p.split("\n\n")) == p and ">>>" not in p for p in taken)
    for point in ("harvest-chunk:1", "harvest-fsync:1", "harvest-rename:1"):
        environment = {**os.environ, "CRAMMING_KILL_AT": point}
        done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "killed")], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL, point
    subprocess.run([sys.executable, "-c", CHILD, str(tmp_path / "killed")], check=True)
    names = [chunk.relative_to(tmp_path / "whole") for chunk in chunks]
    assert [(tmp_path / "killed" / name).read_bytes() for name in names] == [chunk.read_bytes() for chunk in chunks]
    # Again, from what was kept, without looking at a single file.
    again = PythonDocs(tmp_path / "whole", 0, ())
    assert next(again.pieces()).text == taken[0]
    assert harvest({"files": []}) == ({"documents": []}, b"")


def test_prepared(tmp_path: Path, letters: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_docs, "DISTRIBUTIONS", ())
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", 100_000)
    monkeypatch.setattr(estimate, "_GLIMPSED_CHARACTERS", 50_000)
    store = prepare(PythonDocsConfig(tokenizer=letters, max_tokens=20_000), tmp_path / "data", workers=2)
    assert store.manifest["tokens"] == 20_000
    assert store.rows == 20_000 // 127
    assert {"distribution", "version"} == set(store.manifest["inputs"][0])
