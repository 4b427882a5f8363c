"""The ranks of a run: as many processes as devices, started by torchrun, which tell each other sums, rows and JSON.

A process that was started alone is rank 0 of 1, and every operation here is then the identity. What is told between
ranks is tensors and JSON, never pickled objects.

Shape legend: R ranks, B rows of a rank.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cramming.parallel.environment import Launched, launched

_TIMEOUT = timedelta(minutes=30)  # of one operation; ranks that died are found much sooner (``watch.py``)


@dataclass(frozen=True)
class Ranks(Launched):
    """This process among those that train together, and what it can tell them."""

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place: the same on each to the last bit."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, number: int) -> int:
        """The largest of one number of each rank."""
        if self.world == 1:
            return number
        told = torch.tensor(number)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told)

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows of each rank, (B, ...), equally many -> (R B, ...): row i of rank r at place i R + r, as batches are."""
        if self.world == 1:
            return rows
        plain = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
        found = plain.new_empty((self.world, *plain.shape))
        dist.all_gather_into_tensor(found.flatten(0, 1), plain.contiguous())
        return found.transpose(0, 1).reshape(-1, *plain.shape[1:]).to(rows.dtype)

    def told(self, value: Any) -> Any:
        """The main rank's value, which JSON must hold, on every rank."""
        if self.world == 1:
            return value
        said = json.dumps(value).encode() if self.main else b""
        size = torch.tensor(len(said))
        dist.broadcast(size, 0)
        words = torch.frombuffer(bytearray(said or bytes(int(size))), dtype=torch.uint8)
        dist.broadcast(words, 0)
        return json.loads(words.numpy().tobytes())

    def said_by_each(self, value: Any) -> list[Any]:
        """Every rank's value, which JSON must hold, by rank."""
        if self.world == 1:
            return [value]
        said = json.dumps(value).encode()
        size = self.largest(len(said))
        words = torch.frombuffer(bytearray(said.ljust(size)), dtype=torch.uint8)
        found = [torch.empty_like(words) for _ in range(self.world)]
        dist.all_gather(found, words)
        return [json.loads(one.numpy().tobytes()) for one in found]

    def given(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The main rank's tensors, on the processor, on every rank; the others hand over none."""
        if self.world == 1:
            return dict(tensors)
        kinds = self.told([[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()])
        found = {}
        for name, dtype, shape in kinds:
            one = tensors[name].contiguous() if self.main else torch.empty(shape, dtype=getattr(torch, dtype))
            if one.numel():
                dist.broadcast(one.view(-1).view(torch.uint8), 0)
            found[name] = one
        return found

    def main_first(self) -> "_Turns":
        """A context that the main rank enters first, and the others when it has left it: the first one makes files."""
        return _Turns(self)

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            self.largest(0)


class _Turns:
    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def __enter__(self) -> None:
        if not self._ranks.main:
            self._ranks.wait()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if self._ranks.main and kind is None:
            self._ranks.wait()


ALONE = Ranks()
_HERE = [ALONE]


def here() -> Ranks:
    """This process among those that train together."""
    return _HERE[0]


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other ranks that torchrun started, for as long as the block runs; a process started alone is alone."""
    ranks = Ranks(**asdict(launched()))
    if ranks.world == 1 or dist.is_initialized():
        yield here()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    try:
        with standing_for(ranks):
            yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def standing_for(ranks: Ranks) -> Iterator[None]:
    """This process is that rank for as long as the block runs: one that met the others, or one that is simulated."""
    before, _HERE[0] = _HERE[0], ranks
    try:
        yield
    finally:
        _HERE[0] = before
