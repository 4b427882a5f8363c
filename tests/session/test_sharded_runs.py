"""Runs that ranks share by FSDP: saved in parts, killed in mid-save, taken up by as many, by one, and by each other."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch

from cramming.checkpoint import checkpoints

from . import runs
from .test_kill import rows


def together(world: int, words: list[str], kill: dict[int, str] | None = None) -> list[int | None]:
    """The same command on so many ranks, as torchrun starts them; a rank may be killed at a named point."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        args = ({key: str(value) for key, value in environment.items()}, words, (kill or {}).get(rank, ""))
        processes.append(runs._CONTEXT.Process(target=_rank, args=args))
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _rank(environment: dict[str, str], words: list[str], kill_at: str) -> None:
    os.environ.update(environment)
    runs._run(words, kill_at)


def losses(folder: Path) -> dict[object, object]:
    """By step; weights may differ by more than losses, where Adam divides one rounding by another."""
    return {row["step"]: row["loss"] for row in rows(folder / "outputs" / "whole")}


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Of the last checkpoint, whatever form it has."""
    found: dict[str, torch.Tensor] = checkpoints(folder / "outputs" / name / "checkpoints")[-1].read()["model"]
    return found


def in_parts(folder: Path, name: str) -> list[bool]:
    return [c.in_parts for c in checkpoints(folder / "outputs" / name / "checkpoints")]


FSDP = "impl.parallel=fsdp"


def test_a_run_moves_between_forms_and_numbers_of_ranks(finished: Path, folder: Path) -> None:
    assert together(2, runs.command(folder, "name=whole", FSDP, "stop_at=4")) == [0, 0]
    assert in_parts(folder, "whole") == [True]
    assert runs.run(runs.command(folder, "name=whole", "stop_at=8")) == 0
    assert in_parts(folder, "whole") == [True, False]
    assert together(2, runs.command(folder, "name=whole", FSDP, "impl.save_async=true")) == [0, 0]
    assert in_parts(folder, "whole") == [False, True]
    assert losses(folder) == pytest.approx(losses(finished), abs=1e-5)


def test_a_whole_save_of_a_shared_model(finished: Path, folder: Path) -> None:
    assert together(2, runs.command(folder, "name=whole", FSDP, "impl.checkpoints=whole")) == [0, 0]
    assert in_parts(folder, "whole") == [False, False]
    assert losses(folder) == pytest.approx(losses(finished), abs=1e-5)


@pytest.mark.parametrize(
    ("rank", "point"), [(1, "checkpoint-rank:2"), pytest.param(0, "checkpoint-rename:2", marks=pytest.mark.full)]
)
@pytest.mark.parametrize(
    "more", ["impl.save_async=true", pytest.param("impl.save_async=false", marks=pytest.mark.full)]
)
def test_a_rank_killed_while_saving(folder: Path, rank: int, point: str, more: str) -> None:
    words = runs.command(folder, "name=whole", FSDP, more)
    assert together(2, words, kill={rank: point})[rank] == -signal.SIGKILL
    assert [c.step for c in checkpoints(folder / "outputs" / "whole" / "checkpoints")] == [4]
    assert together(2, words) == [0, 0]
    assert together(2, [*words, "name=straight"]) == [0, 0]
    assert runs.same(weights(folder, "whole"), weights(folder, "straight"))
