"""metrics.jsonl: strict lines, nothing lost to a kill or a full disk, cut back exactly on resume."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from cramming import durable
from cramming.errors import UserError
from cramming.recording import metrics


def row(step: int, **more: float | None) -> dict[str, float | None]:
    return {"step": step, "progress": step / 10, "loss": 9.0 - step, "spent_s": float(step)} | more


def write(path: Path, steps: range) -> None:
    with metrics.MetricsLog(path) as log:
        for step in steps:
            log.append(row(step))


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_what_is_written_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with metrics.MetricsLog(path) as log:
        log.append(row(1, loss=0.1 + 0.2))
        assert metrics.read(path)[0]["loss"] == 0.1 + 0.2  # already visible: a killed process loses nothing


def test_every_line_has_the_promised_keys_and_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with metrics.MetricsLog(path) as log:
        log.append({"step": np.int64(3), "loss": float("nan"), "lr": np.float32(0.5), "validation_loss": float("inf")})
    (line,) = path.read_text().splitlines()
    values = json.loads(line, parse_constant=refuse_constant)
    assert set(values) == {*metrics.FIELDS, "validation_loss"}
    assert (values["step"], values["loss"], values["lr"], values["validation_loss"]) == (3, None, 0.5, None)


def test_a_value_json_cannot_hold_is_named(tmp_path: Path) -> None:
    with metrics.MetricsLog(tmp_path / "metrics.jsonl") as log, pytest.raises(TypeError, match=r"extra\[1\].*set"):
        log.append(row(1) | {"extra": [1, {2}]})
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("step", [None, 0, 3, 4.5, 7, 100])
def test_truncation_keeps_exactly_the_lines_up_to_the_step(tmp_path: Path, step: float | None) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 8))
    lines = path.read_bytes().splitlines(keepends=True)
    metrics.truncate_after(path, step)  # type: ignore[arg-type]
    kept = [] if step is None else [line for number, line in enumerate(lines, start=1) if number <= step]
    assert path.read_bytes() == b"".join(kept)
    write(path, range(8, 9))
    assert [r["step"] for r in metrics.read(path)] == [*range(1, len(kept) + 1), 8]


def test_truncating_what_is_not_there_creates_nothing(tmp_path: Path) -> None:
    metrics.truncate_after(tmp_path / "metrics.jsonl", 5)
    assert not list(tmp_path.iterdir())


def test_a_torn_last_line_disappears_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 4))
    whole = path.read_bytes()
    second = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for end in range(second + 1, len(whole)):
        path.write_bytes(whole[:end])
        assert [r["step"] for r in metrics.read(path)] == [1, 2]
        metrics.MetricsLog(path).close()
        assert path.read_bytes() == whole[:second]
        path.write_bytes(whole[:end])
        metrics.truncate_after(path, 100)
        assert path.read_bytes() == whole[:second]


def test_a_damaged_line_is_named_and_the_others_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": NaN}\n\x00\x00\n[3]\n{"step": 4}\n')
    assert metrics.read(path) == [{"step": 1, "loss": None}, {"step": 4}]
    assert [record.args[1] for record in caplog.records] == [2, 3]  # type: ignore[index]


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(1, 3))
    before = path.read_bytes()
    really, room = os.write, 25

    def until_full(descriptor: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = really(descriptor, bytes(data[:room]))  # as the system does it: what fits, then the error
        room -= written
        return written

    monkeypatch.setattr(durable.os, "write", until_full)
    with metrics.MetricsLog(path) as log, pytest.raises(UserError, match=r"no space left.*metrics\.jsonl") as caught:
        log.append(row(3))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    room = 25
    with pytest.raises(UserError, match="no space left"):
        metrics.truncate_after(path, 1)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_another_write_error_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, data: bytes) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with metrics.MetricsLog(tmp_path / "metrics.jsonl") as log:
        monkeypatch.setattr(durable.os, "write", broken)
        with pytest.raises(OSError, match="Input/output") as caught:
            log.append(row(1))
    assert not isinstance(caught.value, UserError)
