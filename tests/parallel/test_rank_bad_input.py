"""What cannot work with several ranks is refused in one line, and nothing hangs."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cramming.cli import run_command
from cramming.config import ImplConfig
from cramming.errors import UserError
from cramming.folder import held
from cramming.parallel import dividing, launch
from cramming.parallel.environment import Launched, meeting_place, seconds
from cramming.parallel.ranks import Ranks, _device
from cramming.resolve import JOBS_AT_ONCE, resolve
from tests.parallel import meeting_ranks as ranks

ROOT = Path(__file__).resolve().parents[2]


def test_an_address_where_nobody_listens_is_named_in_time(tmp_path: Path) -> None:
    port = ranks.free_port()
    (ended,) = ranks.start(tmp_path, ranks.prints, ranks=(1,), port=port, LOCAL_RANK="0", CRAMMING_MEET_S="1")
    assert ended.code == 2
    assert f"cannot reach the ranks' meeting place 127.0.0.1:{port} within 1 s (Connection refused)" in ended.complained
    assert ended.complained.count("\n") == 1


def test_a_host_that_is_unknown_is_named_in_time(tmp_path: Path) -> None:
    (ended,) = ranks.start(
        tmp_path,
        ranks.prints,
        ranks=(1,),
        port=4000,
        MASTER_ADDR="no.such.host.invalid",
        LOCAL_RANK="0",
        CRAMMING_MEET_S="1",
    )
    assert ended.code == 2
    assert "cannot reach the ranks' meeting place no.such.host.invalid:4000 within 1 s" in ended.complained


def test_ranks_that_do_not_come_are_named(tmp_path: Path) -> None:
    first, third = ranks.start(tmp_path, ranks.prints, ranks=(0, 2), world=4, CRAMMING_MEET_S="3")
    assert (first.code, third.code) == (2, 2)
    said = first.complained + third.complained
    assert re.fullmatch(r"error: 2 of 4 ranks came to 127.0.0.1:\d+ within 3 s; missing: 1, 3\. Were all .*\n", said)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (ended,) = ranks.start(tmp_path, ranks.prints, ranks=(0,), port=port, CRAMMING_MEET_S="2")
    assert ended.code == 2
    assert f"127.0.0.1:{port} cannot be used as the meeting place of ranks" in ended.complained
    assert ended.complained.count("\n") == 1


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "RANK, MASTER_ADDR, MASTER_PORT is not"),
        ({"RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "x"}, "MASTER_PORT=x is no port"),
        ({"RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=2 of WORLD_SIZE=2"),
    ],
)
def test_an_environment_that_torchrun_did_not_make(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        meeting_place(Launched(int(environment.get("RANK", 0)), 2))


def test_a_time_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAMMING_MEET_S", "soon")
    with pytest.raises(UserError, match="CRAMMING_MEET_S=soon is no number of seconds"):
        seconds("CRAMMING_MEET_S", 3.0)


@pytest.mark.parametrize(
    ("batch", "group", "world", "said"),
    [
        (10, 10, 4, r"train.batch_size=10 .* over 4 ranks: use train.batch_size=8, or 5 ranks"),
        (3, 3, 4, r"use train.batch_size=4, or 3 ranks"),
        (7, 7, 2, r"use train.batch_size=6, or 1 rank$"),
        (24, 3, 2, r"the 3 sequences that share one random draw .* 2 ranks: use 1 rank, or"),
    ],
)
def test_a_batch_that_ranks_do_not_divide(batch: int, group: int, world: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        dividing.check(batch, group, world)


def test_one_process_alone_is_asked_for_among_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"impl.parallel=none, but 2 ranks were started"):
        resolve(ImplConfig(parallel="none"), None)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"4 processes were started on .*, which has 2 GPUs: use --nproc-per-node=2"):
        _device(Ranks(0, 4, 0, 4))
    with pytest.raises(UserError, match=r"impl.devices=3: this machine has 2 GPUs"):
        launch.processes(3)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run" / ".lock").mkdir(parents=True)  # root may write anywhere else
    with (
        pytest.raises(UserError, match=r"the run's folder .*run cannot be written .*: set base_dir"),
        held(tmp_path / "run"),
    ):
        pass


def test_devices_among_ranks_and_beside_other_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOBS_AT_ONCE, "2")
    with pytest.raises(UserError, match="jobs of a sweep beside each other have one device each"):
        launch.processes(2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert launch.processes(1) == launch.processes(2) == 1, "torchrun has started them already"
    with pytest.raises(UserError, match=r"torchrun started 2 processes on this machine, and impl.devices=4 asks for 4"):
        launch.processes(4)


def test_idle_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.processes("all") == 1, "a processor is one device"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert launch.idle() == "3 more GPUs stand idle: impl.devices=all trains on all of them"
    assert launch.processes("all") == 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert launch.idle() is None


def sweeps(rank: int) -> None:
    """``-m`` among ranks."""
    from cramming.cli import pretraining

    pretraining(lambda config: None, ["-m", "seed=0,1", "name=s"])


def alone(rank: int) -> None:
    """A command that is one process."""
    run_command(lambda: print("trained"))


@pytest.mark.parametrize(
    ("work", "said"), [(sweeps, "-m starts runs of its own"), (alone, "this command is one process")]
)
def test_what_is_one_process_is_refused_by_one_rank(tmp_path: Path, work: object, said: str) -> None:
    ended = ranks.start(tmp_path, work)  # type: ignore[arg-type]
    assert [one.code for one in ended] == [2, 2]
    both = "".join(one.complained for one in ended)
    assert both.startswith(f"error: {said}")
    assert both.count("\n") == 1
    assert not any(one.said for one in ended)


@pytest.mark.scale
def test_torchrun_with_eval(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "eval.py", "name=x"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1, "torchrun's own"
    assert said.count("error: this command is one process") == 1
