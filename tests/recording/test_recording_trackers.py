"""W&B and TensorBoard, for real where no network is needed."""

import logging
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from cramming.errors import UserError
from cramming.recording import trackers
from cramming.recording.config import WandbConfig
from cramming.recording.trackers import build_trackers

needs_wandb = pytest.mark.skipif(util.find_spec("wandb") is None, reason="needs wandb")
needs_tensorboard = pytest.mark.skipif(util.find_spec("tensorboard") is None, reason="needs tensorboard")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home folder, no W&B settings from outside."""
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    folder = tmp_path / "home"
    folder.mkdir()
    for key in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(key, str(folder))
    monkeypatch.delenv("NETRC", raising=False)
    yield folder
    assert not list(folder.rglob("*"))  # nothing of a run lies outside its folder
    assert not [key for key in os.environ if key.startswith("WANDB_") and key not in ("WANDB_MODE", "WANDB_API_KEY")]


def chunks(path: Path) -> Iterator[bytes]:
    """The records of a ``.wandb`` file: a header of 7 bytes, then LevelDB's log format (github.com/google/leveldb,
    doc/log_format.md): blocks of 32 KiB, each piece with checksum (4), length (2) and kind (1) before it."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield record
            record = b""


def recorded(run_dir: Path) -> list[dict[str, str]]:
    """What W&B will upload, oldest file first: every history row and the head of every run."""
    from wandb.proto import wandb_internal_pb2

    found: list[dict[str, str]] = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for data in chunks(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                found.append({"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item})
            elif record.HasField("run"):
                found.append({"run_id": record.run.run_id, "project": record.run.project})
    return found


def test_nothing_is_built_or_imported_by_default(tmp_path: Path) -> None:
    assert build_trackers(WandbConfig(), False, tmp_path, "first", {}) == []
    code = (
        "import sys, pathlib; from cramming.recording.trackers import *;"
        "from cramming.recording import panel, summary, plot, metrics, logfile, environment, pace;"
        "build_trackers(WandbConfig(), False, pathlib.Path('.'), 'first', {});"
        "print([m for m in ('wandb', 'torch', 'tensorboard', 'matplotlib') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not list(tmp_path.iterdir())


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match=r"wandb\.mode=onlin .*did you mean 'online'"):
        WandbConfig(mode="onlin")


@needs_wandb
def test_offline_records_everything_and_a_resumed_run_keeps_its_id(tmp_path: Path, home: Path) -> None:
    run_dir = tmp_path / "first"
    config = WandbConfig(mode="offline", project="study", tags=["a", "b"], group="seeds")
    for steps in ((1, 2), (2, 3)):  # killed after 2, resumed from 1
        (tracker,) = build_trackers(config, False, run_dir, "first", {"train": {"lr": float("nan")}})
        for step in steps:
            tracker.log({"step": step, "loss": 5.0 - step, "lr": None})
        tracker.finish({"validation_loss": 4.5, "ledger": {"train": 3.0}})
    found = recorded(run_dir)
    ids = {row["run_id"] for row in found if "run_id" in row}
    assert ids == {(run_dir / "wandb" / "run_id").read_text()}
    assert {row["project"] for row in found if "project" in row} == {"study"}
    losses = [(row["step"], row["loss"]) for row in found if "loss" in row]
    assert losses == [("1", "4"), ("2", "3"), ("2", "3"), ("3", "2")]


@needs_wandb
def test_online_without_a_key_goes_offline_with_one_line_and_asks_nothing(
    tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tracker,) = build_trackers(WandbConfig(mode="online"), False, tmp_path / "first", "first", {})
    tracker.log({"step": 1, "loss": 4.0})
    tracker.finish(None)
    (message,) = [record.getMessage() for record in caplog.records if record.name == trackers.__name__]
    assert message.startswith("W&B: no API key (wandb login); recording offline")
    assert f"wandb sync {tmp_path}/first/wandb/offline-run-*" in message
    assert [row["loss"] for row in recorded(tmp_path / "first") if "loss" in row] == ["4"]


@needs_wandb
def test_a_server_that_does_not_answer_ends_in_offline_too(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens on the discard port
    monkeypatch.setattr(trackers, "INIT_TIMEOUT_S", 2.0)
    (tracker,) = build_trackers(WandbConfig(mode="online"), False, tmp_path / "first", "first", {})
    tracker.log({"step": 1, "loss": 4.0})
    tracker.finish(None)
    monkeypatch.delenv("WANDB_BASE_URL")
    (message,) = [record.getMessage() for record in caplog.records if record.name == trackers.__name__]
    assert "the server does not answer; recording offline" in message
    assert [row["loss"] for row in recorded(tmp_path / "first") if "loss" in row] == ["4"]


def test_the_environment_can_hold_online_back_but_not_switch_it_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert build_trackers(WandbConfig(mode="online"), False, tmp_path, "first", {}) == []
    monkeypatch.setenv("WANDB_MODE", "online")
    assert build_trackers(WandbConfig(), False, tmp_path, "first", {}) == []


@pytest.mark.parametrize(("package", "way_out"), [("wandb", "wandb=none"), ("tensorboard", "impl.tensorboard=false")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, way_out: str
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == package else object())
    mode = "offline" if package == "wandb" else "disabled"
    with pytest.raises(UserError, match=rf"pip install {package}, .*{way_out}"):
        build_trackers(WandbConfig(mode=mode), True, tmp_path, "first", {})


@needs_tensorboard
def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((1, 2, 3), (2, 3, 4)):  # killed after 3, resumed from 1
        (tracker,) = build_trackers(WandbConfig(), True, tmp_path, "first", {})
        for step in steps:
            tracker.log({"step": step, "loss": 5.0 - step, "lr": None, "tokens_per_s": float("nan")})
        tracker.finish(None)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]


def test_a_tracker_that_breaks_is_dropped_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        calls = 0

        def __init__(self, folder: Path) -> None: ...

        def log(self, row: Mapping[str, Any]) -> None:
            Broken.calls += 1
            raise RuntimeError("no route to host")

        def finish(self, summary: Mapping[str, Any] | None) -> None:
            Broken.calls += 1

    monkeypatch.setattr(trackers, "TensorBoardTracker", Broken)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    (tracker,) = build_trackers(WandbConfig(), True, tmp_path, "first", {})
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            tracker.log({"step": step})
        tracker.finish({})
    assert Broken.calls == 1
    assert [r.getMessage() for r in caplog.records] == [
        "TensorBoard failed and is left out from here on: RuntimeError: no route to host"
    ]
