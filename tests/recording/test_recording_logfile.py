"""Log messages: once on the console, with times in run.log, and nothing left behind for the next job."""

import errno
import io
import logging
import os
import re
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from cramming.errors import UserError
from cramming.recording.logfile import FILE_ONLY, logging_to

ours = logging.getLogger("cramming.somewhere")
theirs = logging.getLogger("a_library")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), _environ={})


def shown(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_jobs_of_one_process_have_their_own_files_and_no_message_twice(tmp_path: Path, console: Console) -> None:
    handlers = list(logging.getLogger().handlers)
    for job in ("a", "b"):
        with logging_to(tmp_path / f"{job}.log", console):
            ours.info("hello from %s", job)
    ours.warning("after")
    assert shown(console) == ["hello from a", "hello from b"]
    for job in ("a", "b"):
        (line,) = (tmp_path / f"{job}.log").read_text().splitlines()
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d INFO    hello from {job}", line)
    assert logging.getLogger().handlers == handlers


def test_a_resumed_run_appends(tmp_path: Path, console: Console) -> None:
    for session in (1, 2):
        with logging_to(tmp_path / "run.log", console):
            ours.info("session %d", session)
    assert [line[-9:] for line in (tmp_path / "run.log").read_text().splitlines()] == ["session 1", "session 2"]


def test_a_block_inside_another_adds_a_file_and_no_second_console(tmp_path: Path, console: Console) -> None:
    with logging_to(None, console), logging_to(tmp_path / "run.log", console):
        ours.info("once")
    assert shown(console) == ["once"]
    assert (tmp_path / "run.log").read_text().count("once") == 1


def test_libraries_are_heard_from_warnings_up_and_briefly(tmp_path: Path, console: Console) -> None:
    with logging_to(tmp_path / "run.log", console):
        theirs.info("chatter")
        theirs.warning("trouble\nand ten lines about it")
        ours.error("this is [red]not[/red] markup and is longer than eighty columns, which a pipe does not have at all")
    assert shown(console) == [
        "warning: trouble",
        "error: this is [red]not[/red] markup and is longer than eighty columns, which a pipe does not have at all",
    ]
    assert "and ten lines about it" in (tmp_path / "run.log").read_text()


def test_python_warnings_and_file_only_messages_stay_off_the_console(tmp_path: Path, console: Console) -> None:
    with logging_to(tmp_path / "run.log", console), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("deprecated", stacklevel=1)
        ours.info("detail", extra=FILE_ONLY)
    assert shown(console) == []
    log = (tmp_path / "run.log").read_text()
    assert "deprecated" in log
    assert "detail" in log


def test_errors_that_end_a_run_are_in_its_log(tmp_path: Path, console: Console) -> None:
    with pytest.raises(ZeroDivisionError), logging_to(tmp_path / "bug.log", console):
        1 / 0  # noqa: B018
    with pytest.raises(UserError), logging_to(tmp_path / "input.log", console):
        raise UserError("budget=-1 must be above zero")
    assert shown(console) == []  # telling the person is the entry point's part
    assert "Traceback" in (tmp_path / "bug.log").read_text()
    assert (tmp_path / "input.log").read_text().endswith("ERROR   budget=-1 must be above zero\n")


def test_a_full_disk_is_said_once_and_the_run_goes_on(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with logging_to(tmp_path / "run.log", console):
        (file,) = [h for h in logging.getLogger().handlers if getattr(h, "baseFilename", "").endswith("run.log")]
        monkeypatch.setattr(file, "stream", Full())
        for step in range(3):
            ours.info("step %d", step)
    assert [line for line in shown(console) if line.startswith("step")] == ["step 0", "step 1", "step 2"]
    assert len([line for line in shown(console) if "no space left" in line]) == 1
