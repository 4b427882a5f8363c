"""The command: what it writes, what it prints, how it ends."""

import re
import runpy
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fabricate import Written, run

from cramming.errors import UserError
from cramming.report.command import command
from cramming.report.document import Cell, Column, Table
from cramming.report.html import page
from cramming.report.markdown import markdown, terminal

REPOSITORY = Path(__file__).resolve().parents[2]
VOID = {"meta", "link", "wbr", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Tags that are closed in order, and what tests ask of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_is_whole_and_needs_nothing_else(written: Written) -> None:
    text = written.html
    found = Page(text)
    assert found.open == []
    for tag, attributes in found.tags:
        for key in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:")), (tag, key, value)
    assert "default-src 'none'" in text
    assert re.findall(r"url\((?!#)[^)]*\)|@import", text) == []


def test_the_page_says_what_was_asked_of_it(written: Written) -> None:
    for words in (
        "Final loss and scores", "Budget to reach the baseline", "Validation loss against budget",
        "Validation loss against wall seconds", "Training loss against budget", "Training loss against wall seconds",
        "Budget by account", "Learning rate", "Depth", "Kept fraction", "Throughput", "What was run",
        "What is not comparable", "Every run", "irreducible (free)", "mean of tasks", "not reached", "pairs",
        "torch 2.13.0", "eadcd3969f6ea858bf33c1125be355adcf29c451", "e8f10e301b41fb4701e5", "python pretrain_bert.py",
        "some CPU, 2 threads, 2026-11-01", "Unfinished: crashed",
    ):  # fmt: skip
        assert words in written.html, words


def test_the_page_can_be_read_by_a_screen_reader(written: Written) -> None:
    found = Page(written.html)
    assert found.all("html")[0]["lang"] == "en"
    assert all(svg.get("role") == "img" and len(svg.get("aria-label") or "") > 30 for svg in found.all("svg"))
    assert {head.get("scope") for head in found.all("th")} == {"col", "row"}
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_everything_is_beside_the_page_too(written: Written) -> None:
    names = {path.name for path in written.files.iterdir()}
    figures = {figure["id"] for figure in Page(written.html).all("figure")}
    assert {f"{name}.png" for name in figures} | {"report.md"} == names
    for path in written.files.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    text = (written.files / "report.md").read_text()
    assert set(re.findall(r"\]\((.*?)\)", text)) == names - {"report.md"}
    rows = re.findall(r"^\| .*layer_stacking .*better \|$", text, flags=re.MULTILINE)
    assert len(rows) >= 2


def test_the_terminal_shows_the_table_and_where_the_page_is(written: Written) -> None:
    assert "layer_stacking" in written.printed
    assert "none (baseline)" in written.printed
    assert f"report: {written.out}" in written.printed


def test_a_page_of_thirty_runs_is_small(written: Written) -> None:
    runs = len({*re.findall(r"run-\d\d", written.html)})
    assert runs >= 12
    assert len(written.html) / runs < 3e6 / 30


def test_names_cannot_break_the_page() -> None:
    nasty = '</script><img src=x onerror="alert(1)">`&|*[x](y)'
    table = Table(nasty, [Column(nasty, False)], [[Cell(nasty, nasty, arm=nasty)]])
    from cramming.report.document import Document, Heading, Notices, Text

    document = Document(nasty, [Heading(2, nasty), Text(nasty), Notices(nasty, [nasty]), table])
    found = Page(page(document, {}))
    assert found.all("img") == []
    assert len(found.all("script")) == 1
    line = markdown(document).splitlines()[-1]
    assert line.count("|") - line.count("\\|") == 2  # still one cell


def test_a_terminal_without_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", open(sys.stdout.fileno(), "w", encoding="ascii", closefd=False))  # noqa: SIM115
    table = Table("c", [Column("a", False), Column("b")], [[Cell("x"), Cell("6.1\N{NO-BREAK SPACE}± 0.2")]])
    assert terminal(table).isascii()


def study(base: Path) -> None:
    for seed in range(2):
        run(base, f"a-{seed}", options={"seed": seed}, rows=8, validations=2)


def test_a_damaged_run_is_named_and_the_rest_reported_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study(tmp_path / "outputs")
    (tmp_path / "outputs" / "a-1" / "summary.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["report.py", f"{tmp_path}/outputs/*", f"out={tmp_path}/r.html", "title=A: b"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "report.py"), run_name="__main__")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "a-1" in error
    text = (tmp_path / "r.html").read_text()
    assert "Damaged, and left out: a-1" in text
    assert "<h1>A: b</h1>" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the runs"),
        (["{base}/none-*"], "names no folder"),
        (["{base}/broken"], "no run can be used: broken: it has no config.yaml"),
        (["{base}/a-*", "confidence=1.5"], "confidence=1.5 must lie between 0 and 1"),
        (["{base}/a-*", "out=page.txt"], r"ends in \.html"),
        (["{base}/a-*", "ouput=x.html"], "unknown option ouput"),
        (["{base}/a-*", "baseline=rho_los"], "baseline=rho_los is none of the arms"),
        (["{base}/a-*", "by=[lr]"], "by=lr is no option"),
        (["{base}/a-*", "by=3"], "by=3 is not understood"),
    ],
)
def test_what_cannot_be_done_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    study(tmp_path / "runs")
    (tmp_path / "runs" / "broken").mkdir()
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=said):
        command([word.format(base=tmp_path / "runs") for word in words])
    assert list(place.iterdir()) == []


def test_a_new_report_replaces_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_figures: Callable[[], Any]
) -> None:
    few_figures()
    study(tmp_path / "runs")
    files = tmp_path / "r_files"
    files.mkdir()
    (files / "c_lr.png").write_bytes(b"old")
    (files / "My notes.txt").write_text("mine")
    command([f"{tmp_path}/runs/*", f"out={tmp_path}/r.html"])
    names = {path.name for path in files.iterdir()}
    assert "c_lr.png" not in names
    assert {"My notes.txt", "report.md", "lr.png"} <= names
