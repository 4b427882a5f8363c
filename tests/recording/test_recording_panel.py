"""What is on the screen: everything a row says, in any width, and plain lines where there is no terminal."""

import io
import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cramming.recording.logfile import logging_to
from cramming.recording.panel import Header, LivePanel, PlainLines, build_display

HEADER = Header("first", "bert_small", "layer_stacking", "cpu, 2 threads", 600.0)
ROW: dict[str, Any] = {
    "step": 1234,
    "progress": 0.423,
    "loss": 5.1234,
    "validation_loss": 5.2,
    "lr": 1e-3,
    "tokens_per_s": 12345.6,
    "mfu": 0.123,
    "spent_s": 254.0,
}
SHOWN = ("first", "bert_small", "layer_stacking", "42.3%", "4m 14s", "10m 00s", "1,234", "5.1234", "5.2000", "12,346")
CONTROL = re.compile(r"[^\x20-\x7e\n]")


def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, _environ={})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn(panel: LivePanel, width: int) -> list[str]:
    screen = Console(file=io.StringIO(), width=width, color_system=None, _environ={})
    screen.print(panel.render())
    return written(screen).splitlines()


def noon() -> datetime:
    return datetime(2026, 3, 4, 12, 0, 0)


@pytest.mark.parametrize("width", [140, 100, 80, 60])
def test_the_panel_says_everything_in_any_width(width: int) -> None:
    panel = LivePanel(HEADER, terminal(width), today=noon)
    panel.update(ROW, remaining_s=346.0)
    lines = drawn(panel, width)
    assert all(len(line) == width for line in lines)
    for text in (*SHOWN, "5m 46s left, ends 12:05", "1.00e-03", "MFU", "12.3%", "5.2000 @ 1,234"):
        assert text in "\n".join(lines), text


def test_an_end_on_another_day_says_which() -> None:
    panel = LivePanel(HEADER, terminal(), today=noon)
    panel.update(ROW, remaining_s=86_400.0)
    assert "ends Thu 05 Mar 12:00" in "\n".join(drawn(panel, 100))


def test_mfu_is_shown_only_where_known_and_under_its_own_name() -> None:
    without = LivePanel(HEADER, terminal())
    without.update(ROW | {"mfu": None})
    assert "MFU" not in "\n".join(drawn(without, 100))
    named = LivePanel(Header("x", "a", "m", "d", 10.0, mfu_label="share of measured peak"), terminal())
    named.update(ROW)
    assert re.search(r"share of measured peak\s+12\.3%", "\n".join(drawn(named, 100)))


def test_budgets_in_steps_and_early_stops_are_named() -> None:
    panel = LivePanel(Header("x", "a", "m", "d", 500.0, unit="steps", stop_at=250.0), terminal())
    panel.update(ROW | {"spent_s": 120.0})
    assert "120 steps of 500 steps (this run stops at 250 steps)" in "\n".join(drawn(panel, 100))


def test_a_validation_loss_stays_until_the_next_one() -> None:
    panel = LivePanel(HEADER, terminal())
    panel.update(ROW)
    panel.update({"step": 1300, "progress": 0.5, "loss": 5.0})
    assert "5.2000 @ 1,234" in "\n".join(drawn(panel, 100))
    panel.update({"step": 1400, "progress": 0.6, "validation_loss": 4.9})
    assert "4.9000 @ 1,400" in "\n".join(drawn(panel, 100))


@pytest.mark.parametrize("bad", [float("nan"), None])
def test_a_missing_loss_does_not_spoil_the_mean(bad: float | None) -> None:
    panel = LivePanel(HEADER, terminal())
    for loss in (5.0, bad, 5.0):
        panel.update(ROW | {"loss": loss})
    assert "5.0000" in "\n".join(drawn(panel, 100))


def test_a_panel_without_a_row_yet_can_be_drawn() -> None:
    assert "0.0%" in "\n".join(drawn(LivePanel(HEADER, terminal()), 80))


def test_steps_between_two_rows_redraw_at_most_every_fifth_of_a_second() -> None:
    time_s = [0.0]
    console = terminal()
    with LivePanel(HEADER, console, now=lambda: time_s[0]) as panel:
        seen = []
        for step in range(100):
            before = len(written(console))
            time_s[0] += 0.01
            panel.tick(step, step / 100)
            seen.append(len(written(console)) > before)
    assert 4 <= sum(seen) <= 6


def test_log_messages_appear_above_the_panel_which_stays_last(tmp_path: Path) -> None:
    console = terminal()
    with logging_to(tmp_path / "run.log", console), build_display(HEADER, console) as panel:
        assert isinstance(panel, LivePanel)
        panel.update(ROW, 346.0)
        logging.getLogger("cramming.checkpoint").info("checkpoint at step 1,234")
        panel.update(ROW | {"step": 1300}, 340.0)
    after_message = written(console).split("checkpoint at step 1,234")[1]
    assert "1,300" in after_message
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", after_message).rstrip().endswith("╯")
    log = (tmp_path / "run.log").read_text()
    assert "checkpoint at step 1,234" in log
    assert re.search(r"step +1,300  loss +5\.1234", log)
    assert not CONTROL.search(log)


def test_without_a_terminal_there_are_aligned_lines_and_no_control_characters(tmp_path: Path) -> None:
    pipe = Console(file=io.StringIO(), _environ={})
    with logging_to(tmp_path / "run.log", pipe), build_display(HEADER, pipe) as display:
        assert isinstance(display, PlainLines)
        display.tick(1, 0.0)
        display.update({"step": 10, "progress": 0.01, "loss": 9.1, "lr": 1e-5, "spent_s": 6.0})
        display.update(ROW, 346.0)
        display.update(ROW | {"step": 123456, "progress": 1.0, "tokens_per_s": 1234567.0, "spent_s": 600.0}, 0.0)
    text = written(pipe)
    assert not CONTROL.search(text)
    head, *lines = text.splitlines()
    assert all(word in head for word in ("first", "bert_small", "layer_stacking", "10m 00s", "cpu, 2 threads"))
    assert len(lines) == 3
    for word in ("step", "loss", "val", "lr", "tokens/s"):
        assert len({line.index(word) for line in lines}) == 1, word
    assert "left  5m 46s" in lines[1]
    assert [line.split(" ", 3)[3] for line in (tmp_path / "run.log").read_text().splitlines()] == [
        "   " + line for line in text.splitlines()
    ]


def test_a_dumb_terminal_gets_plain_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(build_display(HEADER, console), PlainLines)
