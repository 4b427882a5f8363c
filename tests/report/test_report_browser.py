"""The page in a browser: it renders without complaints, figures have marks, tables sort, a phone and paper can show it.

Needs Chromium or Chrome; a copy of the page gets a script that looks at it and writes down what it sees.
"""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from fabricate import Written

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
PHONE = 390  # CSS pixels

LISTEN = """<script>
const complaints = [];
addEventListener("error", event => complaints.push(String(event.message)));
addEventListener("securitypolicyviolation", event => complaints.push("refused: " + event.violatedDirective));
for (const level of ["error", "warn"]) console[level] = (...words) => complaints.push(words.join(" "));
</script>"""

LOOK = """<pre id="seen"></pre><script>
addEventListener("load", () => {
  const figures = [...document.querySelectorAll("figure")].map(figure => {
    const box = figure.querySelector("svg").getBoundingClientRect();
    const marks = [...figure.querySelectorAll("path[clip-path], g[clip-path] use, g[clip-path] path")];
    const drawn = marks.filter(mark => { const b = mark.getBoundingClientRect(); return b.width + b.height > 1; });
    const words = [...figure.querySelectorAll("text")].filter(text => text.getBoundingClientRect().width > 0);
    return {name: figure.id, width: box.width, height: box.height, marks: drawn.length, words: words.length};
  });
  const tables = [...document.querySelectorAll("table")].map(table =>
    [...table.tHead.rows[0].cells].map((header, column) => {
      const read = () => [...table.tBodies[0].rows].map(row => row.cells[column].dataset.sort ?? null);
      const before = read(), press = () => { header.querySelector("button").click(); return header.ariaSort; };
      const said = press(), up = read(), then = press();
      return {title: header.textContent, before, up, down: read(), said, then};
    })
  );
  dispatchEvent(new Event("beforeprint"));
  const folds = [...document.querySelectorAll("details")];
  const root = document.documentElement;
  document.querySelector("#seen").textContent = JSON.stringify({
    complaints, figures, tables, open: folds.map(fold => fold.open), title: document.title,
    wide: root.scrollWidth - root.clientWidth, letters: parseFloat(getComputedStyle(document.body).fontSize),
  });
});
</script>"""

PHONES_VIEW = """<!DOCTYPE html><pre id="seen"></pre>
<iframe style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  const inside = document.querySelector("iframe").contentDocument, root = inside.documentElement;
  const wide = [...inside.querySelectorAll("main > *, .scroll, figure, p, pre, .notice")]
    .filter(block => block.getBoundingClientRect().right > {width} + 1).map(block => block.outerHTML.slice(0, 80));
  const scrolled = [...inside.querySelectorAll("table")].every(table =>
    table.scrollWidth <= table.parentElement.clientWidth
    || getComputedStyle(table.parentElement).overflowX === "auto");
  const labels = [...inside.querySelectorAll("figure svg text")].map(text => text.getBoundingClientRect().height);
  document.querySelector("#seen").textContent = JSON.stringify({{
    width: root.clientWidth, wide: root.scrollWidth, blocks: wide, scrolled, smallest: Math.min(...labels),
    letters: parseFloat(inside.defaultView.getComputedStyle(inside.body).fontSize),
  }});
}});
</script>"""


@pytest.fixture(scope="session")
def browser() -> str:
    """A browser on the path, or one that playwright brought."""
    kept = sorted(Path.home().glob(".cache/ms-playwright/chromium*/chrome-linux*/chrome"))
    found = next((place for name in NAMES if (place := shutil.which(name))), str(kept[-1]) if kept else None)
    if found is None:
        pytest.skip(f"no browser is here to look at the page with: none of {', '.join(NAMES)}")
    return found


def run(browser: str, profile: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The browser without a window; it must end by itself."""
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--hide-scrollbars", "--enable-logging=stderr", f"--user-data-dir={profile}",
             "--virtual-time-budget=20000"]  # fmt: skip
    return subprocess.run([browser, *flags, *words], capture_output=True, text=True, timeout=300, check=True)


def seen(browser: str, place: Path, page: str) -> tuple[dict[str, Any], str]:
    """What the script in a page wrote down, and what the browser logged."""
    file = place / "looked_at.html"
    file.write_text(page, encoding="utf-8")
    done = run(browser, place / "profile", "--window-size=1280,900", "--dump-dom", file.as_uri())
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found is not None
    assert found[1], done.stderr
    return json.loads(unescape(found[1])), done.stderr


@pytest.fixture(scope="session")
def looked(browser: str, written: Written, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The page on a desk."""
    page = written.html.replace("<head>", f"<head>{LISTEN}", 1).replace("</body>", f"{LOOK}</body>", 1)
    return seen(browser, tmp_path_factory.mktemp("browser"), page)


def test_it_renders_without_complaints(looked: tuple[dict[str, Any], str]) -> None:
    found, log = looked
    assert found["complaints"] == []
    assert [line for line in log.splitlines() if ":CONSOLE" in line] == []
    assert found["title"] == "A small study"
    assert found["wide"] <= 0
    assert found["letters"] >= 15


def test_every_figure_has_marks_and_words(looked: tuple[dict[str, Any], str]) -> None:
    figures = looked[0]["figures"]
    assert len(figures) >= 12
    for figure in figures:
        assert figure["width"] > 300, figure
        assert figure["height"] > 80, figure
        assert figure["marks"] >= 1, figure
        assert figure["words"] >= 5, figure


def test_a_figure_has_a_mark_for_every_arm(looked: tuple[dict[str, Any], str]) -> None:
    marks = {figure["name"]: figure["marks"] for figure in looked[0]["figures"]}
    assert marks["a_validation_loss_by_budget"] >= 4 + 4 + 1  # lines, bands, and the run that is unfinished
    assert marks["a_difference_validation_loss"] >= 3
    assert marks["a_accounts"] >= 7  # arms by accounts that are not empty


def test_every_table_sorts_both_ways_with_what_is_missing_at_the_end(looked: tuple[dict[str, Any], str]) -> None:
    tables = looked[0]["tables"]
    assert len(tables) >= 8
    gaps = moved = 0
    for column in (column for table in tables for column in table):
        present = [value for value in column["before"] if value is not None]
        missing = [None] * (len(column["before"]) - len(present))
        numbers = all(re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", value) for value in present)
        up, down = column["up"][: len(present)], column["down"][: len(present)]
        if numbers:
            assert list(map(float, up)) == sorted(map(float, present)), column
        assert sorted(up) == sorted(present)
        if len(set(present)) == len(present):
            assert down == up[::-1], column
        assert column["up"][len(present) :] == column["down"][len(present) :] == missing
        assert (column["said"], column["then"]) == ("ascending", "descending")
        gaps += bool(missing and present)
        moved += column["up"] != column["down"]
    assert gaps >= 3
    assert moved >= 20


def test_what_is_folded_is_opened_for_paper(looked: tuple[dict[str, Any], str]) -> None:
    assert len(looked[0]["open"]) >= 2
    assert all(looked[0]["open"])


def test_a_phone_can_show_it(browser: str, written: Written, tmp_path: Path) -> None:
    page = PHONES_VIEW.format(width=PHONE, page=escape(written.html))
    found, _ = seen(browser, tmp_path, page)
    assert found["width"] == PHONE
    assert found["wide"] == PHONE, found["blocks"]
    assert found["blocks"] == []
    assert found["scrolled"]
    assert found["letters"] >= 15
    assert found["smallest"] >= 7  # CSS pixels


def test_it_prints(browser: str, written: Written, tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    run(browser, tmp_path / "profile", f"--print-to-pdf={target}", "--no-pdf-header-footer", written.out.as_uri())
    pages = len(re.findall(rb"/Type\s*/Page\b", target.read_bytes()))
    assert 3 <= pages <= 15
