"""What torchrun tells a process about itself, in its environment. Nothing here imports torch."""

import os
from dataclasses import dataclass


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
