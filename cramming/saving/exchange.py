"""What ranks tell each other while they save and resume, beside what they tell each other in training.

The messages go through a process group of their own, so that a thread may write a checkpoint while steps go on.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from cramming.errors import UserError


class Exchange:
    """All ranks of a run, or this process alone; every rank makes it, and calls it, at the same places.

    Attributes:
        rank: of this process.
        world: how many ranks there are.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world = dist.get_world_size() if together else 1
        self._group = dist.new_group(backend="gloo") if self.world > 1 else None

    @property
    def main(self) -> bool:
        """Whether this is the rank that does what is done once."""
        return self.rank == 0

    def each(self, value: Any) -> list[Any]:
        """What every rank says, by rank; JSON values."""
        if self._group is None:
            return [value]
        said = json.dumps(value).encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(said)]), group=self._group)
        width = max(int(size) for size in sizes)
        told = [torch.empty(width, dtype=torch.uint8) for _ in range(self.world)]
        dist.all_gather(told, torch.frombuffer(bytearray(said.ljust(width)), dtype=torch.uint8), group=self._group)
        return [json.loads(words.numpy().tobytes()) for words in told]

    def done(self, work: Callable[[], Any]) -> list[Any]:
        """Do something on every rank.

        Returns:
            What it returned on each, JSON values.

        Raises:
            OSError: it failed on one of them; the same error, which names the first such rank, on all.
        """
        try:
            said = {"done": work()}
        except (OSError, SafetensorError, UserError) as error:
            if self._group is None:
                raise
            said = {"failed": str(error)}
        told = self.each(said)
        failed = next((rank for rank, one in enumerate(told) if "failed" in one), None)
        if failed is not None:
            raise OSError(f"on rank {failed}: {told[failed]['failed']}")
        return [one["done"] for one in told]
