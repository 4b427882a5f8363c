"""What torchrun tells a process about itself, in its environment. Nothing here imports torch."""

import os
from dataclasses import dataclass

from cramming.errors import UserError

MEET_S = "CRAMMING_MEET_S"  # how long a rank waits for the others to come, in seconds
SILENT_S = "CRAMMING_SILENT_S"  # after how long a rank of another machine that gives no sign is taken for dead

RANKS = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # for ranks; read when torch is imported


class NotMetError(UserError):
    """The other ranks cannot be met, and so cannot be told either."""


@dataclass(frozen=True)
class Launched:
    """A process among those that torchrun started; rank 0 of 1 where it was started alone.

    Attributes:
        rank: number of this process, 0 to world - 1.
        world: R, how many there are.
        local_rank: its number on this machine, which is that of its device.
        local_world: how many there are on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0


def launched() -> Launched:
    """What the environment says."""

    def said(name: str, default: int) -> int:
        word = os.environ.get(name, "")
        return int(word) if word.isdecimal() else default

    world = said("WORLD_SIZE", 1)
    return Launched(said("RANK", 0), world, said("LOCAL_RANK", 0), said("LOCAL_WORLD_SIZE", world))


def meeting_place(ranks: Launched) -> tuple[str, int]:
    """Host and port at which ranks meet.

    Raises:
        UserError: an environment that torchrun did not make, and that lacks something.
    """
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise NotMetError(
            f"WORLD_SIZE={ranks.world} is set, but {', '.join(missing)} is not: use torchrun, or unset WORLD_SIZE"
        )
    port = os.environ["MASTER_PORT"]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise NotMetError(f"MASTER_PORT={port} is no port: give a number from 1 to 65535")
    if ranks.rank >= ranks.world:
        raise NotMetError(f"RANK={ranks.rank} of WORLD_SIZE={ranks.world}: ranks are numbered from 0")
    return os.environ["MASTER_ADDR"], int(port)


def seconds(name: str, default: float) -> float:
    """A number of seconds that the environment may change.

    Raises:
        UserError: it is none.
    """
    word = os.environ.get(name, "")
    try:
        value = float(word or default)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{name}={word} is no number of seconds")
    return value


def one_speaks(ranks: Launched) -> None:
    """Only the main rank writes to standard output; torch's remarks on how it works are left out on all.

    What goes wrong is said on standard error, by whichever rank it goes wrong on.
    """
    for name, value in RANKS.items():
        os.environ.setdefault(name, value)
    if not ranks.main:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
