"""Checkpoints on disk: whole or not there, damaged ones named and passed over, the last good one never lost."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import same
from safetensors import SafetensorError

from cramming import checkpoint
from cramming.checkpoint import Checkpoint, checkpoints, newest, save, select
from cramming.errors import UserError

FILES = ["model.safetensors", "state.safetensors", "state.json", "manifest.json"]


def state_at(step: int) -> dict[str, Any]:
    """A state that differs from step to step."""
    return {
        "model": {"word.weight": torch.full((4, 3), float(step)), "bias": torch.tensor(step)},
        "engine": {"optimizer": {"state": {0: {"m": torch.arange(5) + step}}, "lr": 0.1}, "scale": float("inf")},
        "step": step,
    }


def save_at(folder: Path, *steps: int, keep: int = 10, hours: list[float] | None = None) -> None:
    """A checkpoint at each of these steps."""
    for step in steps:
        save(folder, step, state_at(step), {"spent_s": step / 3}, keep=keep, kept_at_h=hours or [])


def steps(folder: Path) -> list[int]:
    return [found.step for found in checkpoints(folder)]


def read_newest(folder: Path) -> dict[str, Any]:
    """The state of the newest that is whole."""
    found = newest(folder)
    assert found is not None
    assert same(found[1], state_at(found[0].step)), "what is read is what was saved at that step, or nothing"
    return found[1]


# ---- what is there ----


def test_a_checkpoint_is_tensors_and_json_with_checksums(tmp_path: Path) -> None:
    where = save(tmp_path, 123, state_at(123), {"spent_s": 1.5}, keep=2, kept_at_h=[6.0])
    assert where == tmp_path / "step=00000123"
    assert sorted(file.name for file in where.iterdir()) == sorted(FILES)
    assert same(Checkpoint(where).read(), {**read_newest(tmp_path)})
    manifest = Checkpoint(where).manifest()
    assert (manifest["step"], manifest["spent_s"], manifest["kept_at_h"]) == (123, 1.5, [6.0])


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "missing") is None


def test_the_newest_is_that_of_the_highest_step_not_of_the_latest_write(tmp_path: Path) -> None:
    save_at(tmp_path, 100, 9, 20)
    assert steps(tmp_path) == [9, 20, 100]
    assert read_newest(tmp_path)["step"] == 100


def test_a_person_selects_one_by_name(tmp_path: Path) -> None:
    save_at(tmp_path, 10)
    save_at(tmp_path, 20, hours=[6.0])
    save_at(tmp_path, 30)
    chosen = {which: select(tmp_path, which).step for which in ("last", "step=10", "step=00000020", "6h", "6.0h")}
    assert chosen == {"last": 30, "step=10": 10, "step=00000020": 20, "6h": 20, "6.0h": 20}


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("step=11", r"no checkpoint @step=11 .* there are: step=10, step=30"),
        ("12h", r"no checkpoint @12h .* there are: step=10, step=30"),
        ("newest", "@newest is not understood: give @last, @step=4000 or @12h"),
        ("1.2.3h", "@1.2.3h is not understood"),
    ],
)
def test_a_name_that_fits_none_is_answered_with_those_there_are(tmp_path: Path, which: str, message: str) -> None:
    save_at(tmp_path, 10, 30)
    with pytest.raises(UserError, match=message):
        select(tmp_path, which)


def test_selecting_where_nothing_was_saved_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not saved one yet"):
        select(tmp_path, "last")


# ---- what is kept ----


def test_the_oldest_go_and_those_of_hour_marks_stay(tmp_path: Path) -> None:
    save_at(tmp_path, 1, 2, keep=2)
    save_at(tmp_path, 3, keep=2, hours=[6.0])
    save_at(tmp_path, 4, 5, 6, keep=2)
    assert steps(tmp_path) == [3, 5, 6]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step=00000003", "step=00000005", "step=00000006"]


def test_a_step_saved_again_replaces_itself_and_keeps_its_hour_mark(tmp_path: Path) -> None:
    """As at the end of a run whose last step crossed the mark."""
    save_at(tmp_path, 5, hours=[6.0])
    save(tmp_path, 5, {**state_at(5), "notes": "final"}, {}, keep=1, kept_at_h=[])
    assert [entry.name for entry in tmp_path.iterdir()] == ["step=00000005"]
    assert select(tmp_path, "6h").read()["notes"] == "final"


def test_what_a_killed_write_left_is_cleared_away(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    shutil.copytree(tmp_path / "step=00000001", tmp_path / ".writing-step=00000002")
    shutil.copytree(tmp_path / "step=00000001", tmp_path / ".old-step=00000000")
    assert steps(tmp_path) == [1], "neither is taken for a checkpoint"
    save_at(tmp_path, 3)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step=00000001", "step=00000003"]


# ---- damage ----


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


DAMAGE: list[Callable[[Path], None]] = [truncate, empty, lengthen, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    save_at(tmp_path, 1, 2)
    damage(tmp_path / "step=00000002" / name)
    with pytest.raises(UserError, match=rf"step=00000002 is damaged: .*{name}"):
        Checkpoint(tmp_path / "step=00000002").read()
    assert read_newest(tmp_path)["step"] == 1
    (message,) = caplog.messages
    assert f"checkpoint {tmp_path / 'step=00000002'} is damaged" in message
    assert "using the one before it" in message


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, name: str) -> None:
    """Anywhere in any file. Where one is harmless, as in the white space of the manifest, what is read is the same."""
    save_at(tmp_path, 1, 2)
    file = tmp_path / "step=00000002" / name
    whole = file.read_bytes()
    about = Checkpoint(file.parent).manifest()
    noticed = 0
    for place in range(0, len(whole), 1 if name == "manifest.json" else 7):
        for bit in (1, 32):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            state = read_newest(tmp_path)
            if state["step"] == 2:
                assert Checkpoint(file.parent).manifest() == about
            noticed += state["step"] == 1
    assert noticed > 0.8 * len(range(0, len(whole), 1 if name == "manifest.json" else 7)) * 2


def test_when_all_are_damaged_the_way_out_is_named(tmp_path: Path) -> None:
    save_at(tmp_path, 1, 2)
    for found in checkpoints(tmp_path):
        truncate(found.folder / "state.json")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged; resume=false starts the run over"):
        newest(tmp_path)


def test_damaged_checkpoints_are_left_for_a_person_to_look_at(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    truncate(tmp_path / "step=00000001" / "manifest.json")
    save_at(tmp_path, 2, 3, 4, keep=1)
    assert steps(tmp_path) == [1, 4]


def test_a_later_format_is_not_called_damaged(tmp_path: Path) -> None:
    save_at(tmp_path, 1)
    file = tmp_path / "step=00000001" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(UserError, match="has format 99; this version reads 1"):
        Checkpoint(file.parent).read()


# ---- pickles ----


def bomb(trace: Path) -> bytes:
    """A pickle, written by hand: unpickling it would leave a trace."""
    return f"cos\nsystem\n(S'touch {trace}'\ntR.".encode()


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_ever_unpickled(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a file in a checkpoint, even where every checksum is right."""
    trace = tmp_path / "exploded"
    folder = tmp_path / "checkpoints"
    save_at(folder, 1)
    file = folder / "step=00000001" / name
    sums = Checkpoint(file.parent).manifest()["sha256"]
    file.write_bytes(bomb(trace))
    monkeypatch.setattr(checkpoint, "_sha256", lambda path: sums[path.name])
    with pytest.raises(UserError, match=r"step=00000001 is damaged"):
        Checkpoint(file.parent).read()
    assert not trace.exists()


def test_a_pickle_named_like_a_checkpoint_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "exploded"
    folder = tmp_path / "checkpoints"
    save_at(folder, 1)
    (folder / "step=00000002").write_bytes(bomb(trace))
    torch.save({"model": {}}, folder / "step=00000003")
    with pytest.raises(UserError, match="step=00000003 is damaged"):
        select(folder, "last").read()
    assert read_newest(folder)["step"] == 1
    assert not trace.exists()


# ---- a full disk, a kill ----


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_rust(*_: object, **__: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("target", "failure"),
    [
        ("cramming.checkpoint.save_file", full),
        ("cramming.checkpoint.save_file", full_in_rust),
        ("pathlib.Path.write_text", full),
        ("pathlib.Path.mkdir", full),
        ("cramming.checkpoint.sync", full),
        ("os.replace", full),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_a_full_disk_loses_nothing(
    tmp_path: Path, target: str, failure: Callable[..., None], again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the step is a new one or saved again; and once there is room, saving goes on."""
    save_at(tmp_path, 1, 2)
    step = 2 if again else 3
    with monkeypatch.context() as patch:
        patch.setattr(target, failure)
        with pytest.raises(
            UserError, match=r"cannot write a checkpoint to .*space left.* the last one saved is step=00000002"
        ):
            save_at(tmp_path, step)
    assert steps(tmp_path) == [1, 2]
    assert read_newest(tmp_path)["step"] == 2
    assert not list(tmp_path.glob(".writing-*")), "the part that was written does not fill the disk further"
    save_at(tmp_path, step)
    assert read_newest(tmp_path)["step"] == step


def test_the_first_checkpoint_on_a_full_disk_says_that_none_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"none is saved yet\. Free some space, then run the same command again"):
        save_at(tmp_path, 1)
    assert newest(tmp_path) is None


class Killed(BaseException):
    """What SIGKILL is to the code: no handler sees it."""


NOT_KILLED = 10_000


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_between_any_two_changes_of_the_disk_leaves_the_last_good_one(
    tmp_path: Path, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that creates, renames or removes something is the last one in turn; the step before, or (once it is
    complete) the step itself, is always there and whole, also where the same step is written again."""
    step = 2 if again else 3
    interruptions = 0
    for last in range(NOT_KILLED):
        folder = tmp_path / str(last)
        save_at(folder, 1, 2)
        calls = 0

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > last:  # noqa: B023 (called within this turn of the loop)
                    raise Killed
                return original(*args, **options)

            return call

        with monkeypatch.context() as patch:
            for owner, name in ((checkpoint, "save_file"), (Path, "write_text"), (Path, "rename"), (Path, "mkdir"),
                                (os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rmdir")):  # fmt: skip
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                save_at(folder, step, keep=2)
            except Killed:
                interruptions += 1
            else:
                break
        assert read_newest(folder)["step"] in (2, step)
        save_at(folder, step, keep=2)
        assert steps(folder) == ([1, 2] if again else [2, 3])
        assert read_newest(folder)["step"] == step
        assert not list(folder.glob(".*")), "nothing is left lying about"
    assert interruptions > 10
