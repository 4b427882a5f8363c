"""Ranks in light processes that meet, and one of them does what a test wants to go wrong. No agent, no training."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Ended:
    """How a rank ended: -9 killed, None still there when the test gave up."""

    code: int | None
    said: str
    complained: str
    process: int


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(
    folder: Path,
    work: Callable[[int], None],
    *,
    ranks: Sequence[int] = (0, 1),
    world: int = 2,
    port: int = 0,
    waited_for: Sequence[int] | None = None,
    **environment: str,
) -> list[Ended]:
    """Start ranks that meet and do ``work(rank)``; how each ended, by its place in ``ranks``.

    Ranks that are not waited for are killed when the others have ended.
    """
    port = port or free_port()
    processes = []
    for rank in ranks:
        variables = {
            "RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CRAMMING_MEET_S": "60", **environment,
        }  # fmt: skip
        process = _CONTEXT.Process(target=_rank, args=(work, rank, folder, {k: str(v) for k, v in variables.items()}))
        process.start()
        processes.append(process)
    deadline = time.monotonic() + 100  # against hanging
    ended = []
    for rank, process in zip(ranks, processes, strict=True):
        if waited_for is None or rank in waited_for:
            process.join(max(0, deadline - time.monotonic()))
    for rank, process in zip(ranks, processes, strict=True):
        code = process.exitcode
        process.kill()
        process.join()
        out, err = ((folder / f"{name}-{rank}").read_text() for name in ("out", "err"))
        ended.append(Ended(code, out, err, process.pid or 0))
    return ended


def _rank(work: Callable[[int], None], rank: int, folder: Path, environment: Mapping[str, str]) -> None:
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.environ.update(environment)
    from cramming.cli import run_command

    run_command(lambda: work(rank), ranks=True)


def met(rank: int, then: Callable[[Any], None]) -> None:
    """Meet, and do something with the ranks."""
    from cramming.parallel.ranks import joined

    with joined() as ranks:
        then(ranks)


def wait_in_a_collective(ranks: Any) -> None:
    """For a sum that another rank has to contribute to."""
    import torch

    ranks.sum_(torch.ones(1))


def prints(rank: int) -> None:
    """All is well."""
    print(f"rank {rank} speaks")
    met(rank, wait_in_a_collective)


def mistaken_before(rank: int) -> None:
    """The second rank finds a mistake before it meets the others, who wait."""
    from cramming.errors import UserError

    if rank == 1:
        raise UserError("its option is wrong")
    met(rank, wait_in_a_collective)


def mistaken_all(rank: int) -> None:
    """All find the same mistake before they meet."""
    from cramming.errors import UserError

    raise UserError("the option is wrong")


def mistaken_in_step(rank: int) -> None:
    """The second rank finds a mistake while the others wait in a collective."""
    from cramming.errors import UserError

    def work(ranks: Any) -> None:
        if rank == 1:
            raise UserError("its folder is wrong")
        wait_in_a_collective(ranks)

    met(rank, work)


def mistaken_first(rank: int) -> None:
    """The main rank finds a mistake in what it does first, while the others wait for their turn."""
    from cramming.errors import UserError

    def work(ranks: Any) -> None:
        with ranks.main_first():
            raise UserError(f"the text is wrong, says {rank}")

    met(rank, work)


def mistaken_afar(rank: int) -> None:
    """The main rank finds a mistake while the second sits in native code and never asks anybody."""
    from cramming.errors import UserError

    def work(ranks: Any) -> None:
        if rank == 0:
            raise UserError("the disk is full")
        time.sleep(1000)

    met(rank, work)


def breaks(rank: int) -> None:
    """The second rank has a bug."""

    def work(ranks: Any) -> None:
        if rank == 1:
            raise ZeroDivisionError("a bug")
        wait_in_a_collective(ranks)

    met(rank, work)


def dies(rank: int) -> None:
    """The second rank is killed while the first waits in a collective."""

    def work(ranks: Any) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        wait_in_a_collective(ranks)

    met(rank, work)


def dies_afar(rank: int) -> None:
    """The main rank, where the store is another's, is killed while the second does not ask anybody."""

    def work(ranks: Any) -> None:
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)

    met(rank, work)


def freezes(rank: int) -> None:
    """The second rank stops, as a machine does that loses its power or network."""

    def work(ranks: Any) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(1000)

    met(rank, work)


def holds_the_interpreter(rank: int) -> None:
    """The second rank runs native code that lets no other thread run, for longer than the first expects to wait."""
    import ctypes

    def work(ranks: Any) -> None:
        if rank == 1:
            ctypes.PyDLL(None).sleep(4)
        wait_in_a_collective(ranks)

    met(rank, work)


def differs(rank: int) -> None:
    """Ranks that were started with other options."""
    from cramming.parallel.ranks import joined

    def said() -> dict[str, Any]:
        return {"options": {"seed": rank, "base_dir": f"/{rank}"}, "impl.microbatch_size": 4}

    with joined(said) as ranks:
        wait_in_a_collective(ranks)


def finds_other_data(rank: int) -> None:
    """Ranks that prepared different texts."""
    from cramming.parallel.ranks import agree

    def work(ranks: Any) -> None:
        agree({"data": f"fingerprint {rank}", "tokenizer": "same"})

    met(rank, work)
