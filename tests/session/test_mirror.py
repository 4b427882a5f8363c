"""Copies of a run elsewhere: whole at every moment, pruned as here, taken up on an empty machine, and their trouble."""

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cramming import checkpoint, faults
from cramming.checkpoint import checkpoints
from cramming.errors import UserError
from cramming.saving.copies import Copies
from cramming.saving.fetching import fetched
from cramming.saving.mirror import Mirror, address_of

from ..core.memory import same
from ..data import s3_server
from . import runs

POINTS = ("mirror-file", "mirror-drop", "mirror-records", "mirror-manifest", "mirror-pruned")


@pytest.fixture(scope="module")
def server() -> Iterator[s3_server.S3]:
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with pytest.MonkeyPatch.context() as patch:
        started = s3_server.start(patch.setenv)
        yield started
        started.close()


@pytest.fixture
def s3(server: s3_server.S3) -> Iterator[s3_server.S3]:
    """One server for all tests here, empty for each."""
    server.empty()
    server.put("bucket/there", b"")
    yield server
    server.mend()


@pytest.fixture(params=["s3", "folder"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a mirror is."""
    if request.param == "folder":
        return str(tmp_path / "far" / "x")
    request.getfixturevalue("s3")
    return "s3://bucket/runs/x"


def state_at(step: int) -> dict[str, Any]:
    return {"model": {"word": torch.full((40, 30), float(step))}, "engine": {"m": torch.arange(5) + step}, "step": step}


def save_at(run_dir: Path, step: int, keep: int = 2, hours: list[float] | None = None) -> None:
    """A checkpoint and the records of a run that has come so far."""
    (run_dir / "tokenizer").mkdir(parents=True, exist_ok=True)
    (run_dir / "tokenizer" / "tokenizer.json").write_text("{}")
    (run_dir / "config.yaml").write_text(f"name: {run_dir.name}\n")
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps({"step": i}) + "\n" for i in range(1, step + 1)))
    (run_dir / ".lock").write_text("")
    checkpoint.save(run_dir / "checkpoints", step, state_at(step), {}, keep=keep, kept_at_h=hours or [])


def mirrored(address: str, run_dir: Path, keep: int = 2) -> Mirror:
    """All of it copied."""
    mirror = Mirror(address, run_dir, keep)
    mirror.reach()
    mirror.finish()
    return mirror


def fetch(address: str, run_dir: Path) -> int | None:
    """On another machine: the step that is fetched, complete."""
    run_dir.mkdir(parents=True, exist_ok=True)
    found = Mirror(address, run_dir, 2).fetch()
    if found is None:
        return None
    assert same(found.read(), state_at(found.step))
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) >= found.step
    assert (run_dir / "tokenizer" / "tokenizer.json").read_text() == "{}"
    assert not list(run_dir.glob(".*.part"))
    return found.step


def steps_at(address: str) -> list[int]:
    return [copy.step for copy in Copies(address).checkpoints()[0]]


def test_the_newest_whole_state_is_fetched_by_an_empty_machine(address: str, tmp_path: Path) -> None:
    here = tmp_path / "x"
    assert fetch(address, tmp_path / "none" / "x") is None
    for step in (1, 2, 3):
        save_at(here, step)
        assert mirrored(address, here).failure is None
        assert fetch(address, tmp_path / str(step) / "x") == step
    assert steps_at(address) == [2, 3], "pruned there as here"
    assert not list(here.glob(".mirroring*"))
    assert not (tmp_path / "3" / "x" / ".lock").exists()


def test_an_older_folder_is_brought_up_to_date_and_a_newer_one_left(address: str, tmp_path: Path) -> None:
    save_at(tmp_path / "x", 3)
    mirrored(address, tmp_path / "x")
    for step, expected in ((2, 3), (3, None), (4, None)):
        other = tmp_path / f"at{step}" / "x"
        save_at(other, step)
        assert fetch(address, other) == expected


def test_hour_marks_stay_there_too(address: str, tmp_path: Path) -> None:
    for step in range(1, 6):
        save_at(tmp_path / "x", step, hours=[6.0] if step == 2 else None)
        mirrored(address, tmp_path / "x")
    assert steps_at(address) == [2, 4, 5]
    again = tmp_path / "again" / "x"
    fetch(address, again)
    save_at(again, 6)
    mirrored(address, again)
    assert steps_at(address) == [2, 5, 6]


def test_a_step_saved_again_replaces_its_copy(address: str, tmp_path: Path) -> None:
    save_at(tmp_path / "x", 1)
    save_at(tmp_path / "x", 2)
    mirrored(address, tmp_path / "x")
    checkpoint.save(tmp_path / "x" / "checkpoints", 2, {**state_at(2), "notes": 1}, {}, keep=2, kept_at_h=[6.0])
    mirrored(address, tmp_path / "x")
    assert steps_at(address) == [1, 2]
    folder = Path(address) / "checkpoints"
    assert not folder.is_dir() or len(list(folder.iterdir())) == 2, "no empty folder is left"
    found = Mirror(address, tmp_path / "y", 2).fetch()
    assert found is not None
    assert found.read()["notes"] == 1


def test_starting_over_clears_the_mirror(address: str, tmp_path: Path) -> None:
    save_at(tmp_path / "x", 1)
    mirrored(address, tmp_path / "x").clear()
    assert fetch(address, tmp_path / "y" / "x") is None
    assert Copies(address).records() == []


def test_a_damaged_copy_is_passed_over_and_all_damaged_refused(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_at(tmp_path / "x", step)
    mirrored(address, tmp_path / "x")
    for copy, expected in zip(reversed(Copies(address).checkpoints()[0]), (1, None), strict=True):
        Copies(address).storage.write(f"{copy.folder}/state.json", b"{}")
        if expected:
            assert fetch(address, tmp_path / "a" / "x") == expected
            assert "step=00000002" in caplog.text
            assert "using the one before it" in caplog.text
        else:
            with pytest.raises(UserError, match=r"every checkpoint at .*/x is damaged; resume=false"):
                fetch(address, tmp_path / "b" / "x")
            assert checkpoints(tmp_path / "b" / "x" / "checkpoints") == []


def killed(work: Callable[[str, Path], Any], address: str, run_dir: Path, kill_at: str) -> int | None:
    """Do something in a process of its own that is killed at a named point; its exit code."""
    process = runs._CONTEXT.Process(target=_killed, args=(work, address, run_dir, kill_at, dict(os.environ)))
    process.start()
    process.join(60)
    return process.exitcode


def _killed(
    work: Callable[[str, Path], Any], address: str, run_dir: Path, kill_at: str, environment: dict[str, str]
) -> None:
    os.environ.update(environment)  # where the server is, which the forkserver does not know
    faults.arm(kill_at)
    work(address, run_dir)


@pytest.mark.parametrize("point", [POINTS[0], *(pytest.param(p, marks=pytest.mark.full) for p in POINTS[1:])])
def test_a_kill_during_upload_leaves_a_state_to_go_on_from(address: str, tmp_path: Path, point: str) -> None:
    """Killed at several passages in turn; the state before, or the new one, is fetched; in the end all is copied."""
    here = tmp_path / "x"
    save_at(here, 1)
    save_at(here, 2)
    mirrored(address, here)
    save_at(here, 3)
    for nth in (1, 3, 4, 99):
        code = killed(mirrored, address, here, f"{point}:{nth}")
        assert fetch(address, tmp_path / f"{nth}" / "x") in (2, 3)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert nth > 1, "the point is passed"
    mirrored(address, here)
    assert fetch(address, tmp_path / "end" / "x") == 3
    assert steps_at(address) == [2, 3]
    assert Copies(address).checkpoints()[1] == []
    assert len(Copies(address).storage.files("checkpoints")) == 8, "nothing is left lying about"


def test_a_kill_during_download_leaves_nothing_half(s3: s3_server.S3, tmp_path: Path) -> None:
    save_at(tmp_path / "x", 1)
    mirrored("s3://bucket/x", tmp_path / "x")
    assert killed(fetch, "s3://bucket/x", tmp_path / "y" / "x", "fetched-rename:1") == -signal.SIGKILL
    assert checkpoints(tmp_path / "y" / "x" / "checkpoints") == []
    assert fetch("s3://bucket/x", tmp_path / "y" / "x") == 1


def test_trouble_while_training_is_a_warning_and_the_next_time_it_is_made_good(
    s3: s3_server.S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_at(tmp_path / "x", 1)
    mirror = mirrored("s3://bucket/x", tmp_path / "x")
    s3.refuse("state.safetensors", times=10_000, how=s3_server.DENIED)
    save_at(tmp_path / "x", 2)
    mirror.finish()
    assert "refuses access" in str(mirror.failure)
    assert "trying again with the next checkpoint" in caplog.text
    assert "the mirror is behind" in caplog.text
    s3.mend()
    assert fetch("s3://bucket/x", tmp_path / "y" / "x") == 1
    save_at(tmp_path / "x", 3)
    mirror.finish()
    assert mirror.failure is None
    assert fetch("s3://bucket/x", tmp_path / "z" / "x") == 3


def test_a_checkpoint_that_training_deletes_meanwhile_is_still_copied(s3: s3_server.S3, tmp_path: Path) -> None:
    save_at(tmp_path / "x", 1)
    mirror = Mirror("s3://bucket/x", tmp_path / "x", 1)
    gate = s3.hold("model.safetensors")
    mirror.copy_soon()
    while not s3.count("model.safetensors", "PUT"):
        pass
    save_at(tmp_path / "x", 2, keep=1)
    assert [c.step for c in checkpoints(tmp_path / "x" / "checkpoints")] == [2]
    s3.release()
    assert gate.is_set()
    mirror.finish()
    assert fetch("s3://bucket/x", tmp_path / "y" / "x") == 2
    assert s3.count("00000001-", "PUT") == 4


def test_a_mirror_that_cannot_be_reached_is_refused_in_one_line(s3: s3_server.S3, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="s3://nowhere/x is not there: the bucket does not exist") as raised:
        Mirror("s3://nowhere/x", tmp_path / "x", 2).reach()
    assert "\n" not in str(raised.value)
    s3.refuse("bucket", times=10_000, how=s3_server.EXPIRED)
    with pytest.raises(UserError, match="the credentials have expired"):
        Mirror("s3://bucket/x", tmp_path / "x", 2).reach()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be"):
        Mirror(str(tmp_path / "file" / "x"), tmp_path / "x", 2).reach()


def test_the_name_of_the_run_stands_in_the_address() -> None:
    assert address_of("s3://bucket/{name}/", "first") == "s3://bucket/first"
    assert address_of("/far/x", "first") == "/far/x"


# ---- addresses of runs ----


def test_a_run_at_an_address_is_fetched_once_and_checked(address: str, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_at(tmp_path / "x", step, hours=[6.0] if step == 1 else None)
    mirrored(address, tmp_path / "x")
    base_dir = str(tmp_path / "outputs")
    for which, step in (("", 3), ("@last", 3), ("@step=2", 2), ("@6h", 1)):
        folder, chosen = fetched(address + which, base_dir)
        assert chosen == f"step={step}"
        assert folder.name == "x"
        found = checkpoint.select(folder / "checkpoints", chosen)
        assert same(found.read(), state_at(step))
    for which, message in (("@step=9", "there are: step=1, step=2, step=3"), ("@new", "is not understood")):
        with pytest.raises(UserError, match=message):
            fetched(address + which, base_dir)


def test_what_is_here_is_not_fetched_again(s3: s3_server.S3, tmp_path: Path) -> None:
    save_at(tmp_path / "x", 1)
    mirrored("s3://bucket/x", tmp_path / "x")
    for _ in range(2):
        fetched("s3://bucket/x", str(tmp_path / "outputs"))
    assert s3.count("model.safetensors") == 1


def test_a_plain_copy_of_a_folder_is_read_too(s3: s3_server.S3, tmp_path: Path) -> None:
    save_at(tmp_path / "x", 1)
    s3.put_folder("bucket/copied", tmp_path / "x")
    folder, chosen = fetched("s3://bucket/copied", str(tmp_path / "outputs"))
    assert chosen == "step=1"
    assert same(checkpoint.select(folder / "checkpoints", chosen).read(), state_at(1))


def test_an_address_that_holds_nothing_says_so(s3: s3_server.S3, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="s3://bucket/none is not there"):
        fetched("s3://bucket/none", str(tmp_path))
    with pytest.raises(UserError, match="s3://nowhere/x is not there: the bucket does not exist"):
        fetched("s3://nowhere/x", str(tmp_path))


def test_a_name_that_leaves_the_folder_is_not_fetched(s3: s3_server.S3, tmp_path: Path) -> None:
    save_at(tmp_path / "x", 1)
    shutil.rmtree(tmp_path / "x" / "tokenizer")
    s3.put_folder("bucket/evil", tmp_path / "x")
    s3.put("bucket/evil/..%2Fescaped", b"")
    s3.put("bucket/evil/checkpoints/step=00000001/..%2F..%2Fescaped", b"")
    fetched("s3://bucket/evil", str(tmp_path / "outputs"))
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if "escaped" in name]


def test_damage_at_an_address_is_named(address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    save_at(tmp_path / "x", 1)
    mirrored(address, tmp_path / "x")
    copy = Copies(address).checkpoints()[0][0]
    Copies(address).storage.write(f"{copy.folder}/model.safetensors", b"damaged")
    with pytest.raises(UserError, match=r"x/checkpoints/step=00000001-.* is damaged: model.safetensors does not match"):
        fetched(address, str(tmp_path / "outputs"))
