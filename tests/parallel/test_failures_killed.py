"""SIGKILL of any rank of a real run ends the others with a message; ``--max-restarts`` goes on to the same weights."""

import json
import os
import random
import re
import signal
from pathlib import Path

import pytest

from tests.parallel import commands
from tests.parallel.commands import TORCHRUN, finish, ranks_under, started, steps, wait_for_steps, words
from tests.session import runs

TWO = (*TORCHRUN, "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> Path:
    """The folder of a run of two ranks that nobody disturbed."""
    place = tmp_path_factory.mktemp("undisturbed")
    (place / "text.txt").write_text(corpus)
    assert finish(*TWO, *words(place, "whole"), log=place / "log") == 0, (place / "log").read_text()
    return place


def killed(undisturbed: Path, folder: Path, kills: list[tuple[int, int]]) -> None:
    """Kill ranks after so many steps each, under ``--max-restarts``, and hold the end against the whole run."""
    log = folder / "log"
    command = (*TWO, f"--max-restarts={len(kills)}", *words(folder, "whole"))
    named = []
    with started(*command, log=log) as process:
        for rank, after in kills:

            def far_enough(after: int = after, rank: int = rank) -> bool:
                assert process.poll() is None, log.read_text()
                there = ranks_under(process.pid)
                return steps(folder, "whole") >= after and len(there) == 2 and there[rank] not in named

            runs.wait_for(far_enough)
            named.append(ranks_under(process.pid)[rank])
            os.kill(named[-1], signal.SIGKILL)
        assert process.wait(600) == 0, log.read_text()
    assert runs.same(runs.weights(folder, "whole"), runs.weights(undisturbed, "whole"))
    said = log.read_text()
    assert said.count("curves: ") == 1
    accused = re.findall(r"error: rank (\d) \(process (\d+) on \S+\) has died: killed, or out of memory", said)
    assert set(accused) <= {(str(rank), str(process)) for (rank, _), process in zip(kills, named, strict=True)}
    summary = json.loads((folder / "outputs" / "whole" / "summary.json").read_text())
    assert (summary["ranks"], summary["fast_paths"]["ranks"], summary["fast_paths"]["parallel"]) == (2, 2, "ddp")


def test_one_kill(undisturbed: Path, folder: Path) -> None:
    killed(undisturbed, folder, [(1, 10)])


@pytest.mark.scale
def test_ten_random_kills(undisturbed: Path, folder: Path) -> None:
    draw = random.Random(0)
    killed(undisturbed, folder, [(draw.randrange(2), after) for after in sorted(draw.sample(range(1, 100), 10))])


@pytest.mark.scale
@pytest.mark.parametrize("rank", [0, 1])
def test_without_restarts_the_other_rank_ends_and_names_it(folder: Path, rank: int) -> None:
    log = folder / "log"
    with started(*TWO, *words(folder, "whole", "budget=100000"), log=log) as process:
        wait_for_steps(process, folder, "whole")
        victim = ranks_under(process.pid)[rank]
        os.kill(victim, signal.SIGKILL)
        assert process.wait(120) == 1, log.read_text()
    assert log.read_text().count(f"error: rank {rank} (process {victim} on ") == 1


@pytest.mark.scale
@pytest.mark.parametrize("to", ["torchrun", "rank 0", "rank 1"])
def test_sigterm_saves_on_all_at_one_step(undisturbed: Path, folder: Path, to: str) -> None:
    log = folder / "log"
    command = (*TWO, *words(folder, "whole", "impl.save_every_steps=null"))
    with started(*command, log=log) as process:
        wait_for_steps(process, folder, "whole")
        found = ranks_under(process.pid)
        os.kill(process.pid if to == "torchrun" else found[int(to[-1])], signal.SIGTERM)
        assert process.wait(120) != 0
    saved = int(re.findall(r"saved at step (\d+); the same command again goes on from there", log.read_text())[0])
    assert 5 <= saved < commands.STEPS
    assert runs.checkpoints(folder / "outputs" / "whole" / "checkpoints")[-1].step == saved
    assert finish(*TWO, *words(folder, "whole"), log=log) == 0
    assert runs.same(runs.weights(folder, "whole"), runs.weights(undisturbed, "whole"))
