"""``impl.devices=2``: one plain command that starts its ranks itself, and ends as any other command does."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.parallel.commands import TORCHRUN, finish, ranks_under, started, wait_for_steps, words
from tests.session import runs


def test_ctrl_c_saves(folder: Path) -> None:
    log = folder / "log"
    command = (sys.executable, *words(folder, "two", "impl.devices=2", "impl.save_every_steps=null"))
    with started(*command, log=log) as process:
        wait_for_steps(process, folder, "two")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does; torch's agent passes it on to the ranks
        assert process.wait(120) == 130, log.read_text()
    (saved,) = re.findall(r"saved at step (\d+); the same command again goes on from there", log.read_text())
    assert runs.checkpoints(folder / "outputs" / "two" / "checkpoints")[-1].step == int(saved)
    assert (folder / "outputs" / "two" / "run.log").read_text().count("two: arch bert_tiny") == 1
    assert "torch" not in log.read_text()


@pytest.mark.scale
def test_the_weights_are_those_of_torchrun(folder: Path) -> None:
    """Also where it was stopped at step 60, and the same command went on."""
    log = folder / "log"
    command = (sys.executable, *words(folder, "two", "impl.devices=2"))
    assert finish(*command, "stop_at=60", log=log) == 0
    assert finish(*command, log=log) == 0
    summary = json.loads((folder / "outputs" / "two" / "summary.json").read_text())
    assert (summary["ranks"], summary["fast_paths"]["parallel"]) == (2, "ddp")
    assert "torch" not in log.read_text()
    assert finish(*TORCHRUN, "--standalone", "--nproc-per-node=2", *words(folder, "other"), log=log) == 0
    assert runs.same(runs.weights(folder, "two"), runs.weights(folder, "other"))


def test_a_mistake_is_one_line_and_exit_code_2(folder: Path) -> None:
    log = folder / "log"
    wrong = words(folder, "two", "impl.devices=2", "train.batch_size=9", "impl.microbatch_size=1")
    assert finish(sys.executable, *wrong, log=log) == 2
    errors = [line for line in log.read_text().splitlines() if "done, " not in line and "expecting" not in line]
    assert "error: train.batch_size=9 cannot be spread evenly over 2 ranks" in log.read_text()
    assert len([line for line in errors if line.startswith("error")]) == 1
    assert "Traceback" not in log.read_text()


@pytest.mark.scale
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_one_line_and_exit_code_1(folder: Path, rank: int) -> None:
    log = folder / "log"
    with started(sys.executable, *words(folder, "two", "impl.devices=2", "budget=100000"), log=log) as process:
        wait_for_steps(process, folder, "two")
        os.kill(ranks_under(process.pid)[rank], signal.SIGKILL)
        assert process.wait(120) == 1, log.read_text()
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error")]
    assert f"rank {rank} (process " in line
    assert line.endswith("goes on from the last checkpoint")
    assert "Traceback" not in log.read_text()


@pytest.mark.scale
def test_ranks_of_a_command_that_was_killed_do_not_live_on(folder: Path) -> None:
    with started(
        sys.executable, *words(folder, "two", "impl.devices=2", "budget=100000"), log=folder / "log"
    ) as process:
        wait_for_steps(process, folder, "two")
        ranks = ranks_under(process.pid)
        process.kill()
        runs.wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in ranks.values()), 60)
