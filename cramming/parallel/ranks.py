"""The ranks of a run: as many processes as devices, started by torchrun, which tell each other sums, rows and JSON.

A process that was started alone is rank 0 of 1, and every operation here is then the identity. What is told between
ranks is tensors and JSON, never pickled objects.

Shape legend: R ranks, B rows of a rank.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from socket import gethostname
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore

from cramming.errors import UserError
from cramming.interruption import Interrupted
from cramming.parallel import agreement
from cramming.parallel.environment import Launched, launched
from cramming.parallel.meeting import Meeting
from cramming.parallel.watch import Watch, begin, patient

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
        if self._ranks.main:
            return
        if _MEETINGS:
            _MEETINGS[0].await_turn()
        else:
            self._ranks.wait()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if not self._ranks.main or kind is not None:
            return
        if _MEETINGS:
            _MEETINGS[0].pass_turn()
        else:
            self._ranks.wait()


_MEETINGS: list[Meeting] = []  # of this process with the other ranks
ALONE = Ranks()
_HERE = [ALONE]


def here() -> Ranks:
    """This process among those that train together."""
    return _HERE[0]


@contextmanager
def joined(said: Callable[[], dict[str, Any]] = dict) -> Iterator[Ranks]:
    """Meet the other ranks that torchrun started, for as long as the block runs; a process started alone is alone.

    Who leaves the block by an error has to call ``watch.end`` or to end its process: the others hear of it from there.

    Args:
        said: what must be the same on all ranks, JSON values by key; see ``agreement.py``.

    Raises:
        UserError: ranks that did not come, or that differ.
    """
    ranks = Ranks(**asdict(launched()))
    if ranks.world == 1 or dist.is_initialized():
        yield here()
        return
    backend = _device(ranks)
    meeting = Meeting(ranks)
    watch = begin(meeting)
    agreement.check(meeting, "command", said())
    meeting.gather()
    watch.met()
    store = PrefixStore("torch", meeting.store)
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world, timeout=_TIMEOUT)
    _MEETINGS[:] = [meeting]
    with patient(), standing_for(ranks):
        try:
            yield ranks
        except Interrupted:  # all of them are, after the same step
            _leave(ranks, watch)
            raise
        _leave(ranks, watch)


def agree(found: dict[str, Any]) -> None:
    """Go on when all ranks have found the same data, which may take some of them hours.

    Raises:
        UserError: the first difference, with both ranks.
    """
    for meeting in _MEETINGS:
        agreement.check(meeting, "data", found)
        meeting.together("data")


def _device(ranks: Ranks) -> str:
    """Take this rank's GPU, if there are any: -> torch's name of how ranks talk.

    Raises:
        UserError: there are too few.
    """
    if not torch.cuda.is_available():
        return "gloo"
    devices = torch.cuda.device_count()
    if ranks.local_world > devices:
        raise UserError(
            f"{ranks.local_world} processes were started on {gethostname()}, which has {devices} "
            f"GPU{'s' * (devices > 1)}: use --nproc-per-node={devices}"
        )
    torch.cuda.set_device(ranks.local_rank)
    return "cpu:gloo,cuda:nccl"


def _leave(ranks: Ranks, watch: Watch) -> None:
    watch.leave()
    for meeting in _MEETINGS:
        meeting.store.set(f"leaving/{ranks.rank}", "")
        meeting.together("leaving")  # the main rank may still be copying to a mirror, however long it takes
    ranks.wait()
    watch.stop()
    _MEETINGS.clear()
    dist.destroy_process_group()


@contextmanager
def standing_for(ranks: Ranks) -> Iterator[None]:
    """This process is that rank for as long as the block runs: one that met the others, or one that is simulated."""
    before, _HERE[0] = _HERE[0], ranks
    try:
        yield
    finally:
        _HERE[0] = before
