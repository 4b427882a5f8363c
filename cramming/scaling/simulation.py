"""A run of very many ranks without their processes and without text: what each of them draws and pays.

Nothing here is a model of the code. The stream with its slices, the orders, the batch that is cut into draw groups and
microbatches, the growing batch, the lengths and the clock are those that train; pretended are the token store, of which
nothing is read, and which rank this process is.

Shape legend: R ranks, n sequences of a step.
"""

import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cramming.batch import Batch
from cramming.data.stream import Rows, Split, Stream, shuffled
from cramming.data.streaming.order import Interleaved, WindowOrder
from cramming.lengths import BatchSize, Lengths
from cramming.parallel import dividing
from cramming.parallel.ranks import Ranks, standing_for
from rst.clock import Clock, CostModel
from rst.work import Work

ORDERS = ("shuffled", "shards")
_WINDOW, _AHEAD = 32, 4  # shards whose rows are mixed, and that are fetched before
_MEMORY_STEPS = 100  # that a rank's memory is watched for
State = dict[str, Any]


class LawBroken(Exception):  # noqa: N818 (it says which)
    """Something that has to hold on any number of ranks does not."""


def holds(fact: object, law: str) -> None:
    """Raises:
    LawBroken: ``fact`` is false.
    """
    if not fact:
        raise LawBroken(law)


@dataclass(frozen=True)
class Setting:
    """A run that is simulated.

    Attributes:
        costs: what puts a price on passes.
        sequences: of the corpus that train.
        batch: what a step has, whatever the number of ranks.
        epochs: of the corpus that the budget pays for, on ``ranks`` ranks.
        ranks: R of the run that is never disturbed.
        layers: of the model that is paid for.
        lengths: of sequences, by progress.
        microbatch: sequences of a pass.
        group: sequences that share a random draw, of all ranks; None: all of a step.
        order: ``shuffled``, or of ``shards``.
        shards: of two streams that are mixed, three to one.
        seed: of the order.

    Raises:
        UserError: ranks that do not divide a step.
    """

    costs: CostModel
    sequences: int
    batch: BatchSize
    epochs: float = 1.0
    ranks: int = 8
    layers: int = 12
    lengths: Lengths = field(default_factory=lambda: Lengths(128))
    microbatch: int = 64
    group: int | None = None
    order: str = "shuffled"
    shards: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        self.check(self.ranks)

    def check(self, world: int) -> None:
        """Refuse a number of ranks as a run does."""
        smallest = min(self.batch.start, self.batch.end)
        for rows in {self.batch.start, self.batch.end}:
            dividing.check(rows, min(self.group or smallest, smallest), world)

    @property
    def budget_s(self) -> float:
        """Of each device, for the epochs that are asked for, in passes of the full length."""
        one = self.costs.seconds(Work("forward_backward", 1, self.lengths.full, self.layers))
        return self.epochs * self.sequences / self.ranks * one

    def rank(self, state: State | None = None) -> "Simulated":
        """The rank that ``here()`` says, at the beginning or where a state has it."""
        split = Split(self.sequences) if self.order == "shuffled" else Split(self.sequences, order=lambda rows: rows)
        stream = Stream(
            SimpleNamespace(seq_length=self.lengths.full, layout="packed", tokenizer=_TOKENIZER),  # type: ignore[arg-type]
            split,
            seed=self.seed,
            mask_rate=lambda: 0.15,
            max_mask_rate=0.15,
            device=torch.device("cpu"),
            lengths=self.lengths,
            order=shuffled(split, self.seed) if self.order == "shuffled" else self.of_shards,
        )
        simulated = Simulated(self, stream, Clock({"main": self.costs}, self.budget_s))
        if state is not None:
            stream.load_state_dict(state["stream"])
            simulated.clock.load_state_dict(state["clock"])
        return simulated

    def of_shards(self, epoch: int) -> Rows:
        """The order of a streamed corpus; asking for places holds few shards at a time, as its store does."""

        def rows(places: NDArray[np.int64]) -> NDArray[np.int64]:
            now, soon = self._mixed.needs(epoch, int(places.min()), int(places.max()), _AHEAD)
            step = max(self.batch.start, self.batch.end) * len(self._mixed.streams) * self.shards // self.sequences
            most = step + len(self._mixed.streams) * (2 * _WINDOW + _AHEAD + 2)
            holds(len(now) + len(soon) <= most, f"{len(now)} and {len(soon)} shards are needed at one time")
            return self._mixed.ids(epoch, places)

        return rows

    @cached_property
    def _mixed(self) -> Interleaved:
        edges = np.linspace(0, self.sequences, self.shards + 1).astype(np.int64)  # (shards + 1,)
        cut = self.shards * 3 // 4
        parts = [np.arange(cut), np.arange(cut, self.shards)] if cut else [np.arange(self.shards)]
        streams = [
            WindowOrder(own, edges[own], np.diff(edges)[own], _WINDOW, self.seed, "stream", number)
            for number, own in enumerate(parts)
        ]
        return Interleaved(streams, [3.0, 1.0][: len(streams)], self.sequences)


_TOKENIZER = SimpleNamespace(vocab_size=8, mask_id=0, special_ids=[0])


@dataclass(frozen=True)
class Drawn:
    """What one rank took in one step.

    Attributes:
        sequences: n of all ranks.
        length: tokens in each.
        named: (n / R, 3) int64: epoch, row, piece of each sequence of this rank, in the order of its passes.
        groups: draw groups, as (sequences of all ranks, of this rank).
        passes: sequences of each pass.
    """

    sequences: int
    length: int
    named: NDArray[np.int64]
    groups: list[tuple[int, int]]
    passes: list[int]

    @property
    def work(self) -> tuple[Any, ...]:
        """What must be the same on every rank."""
        return self.sequences, self.length, self.groups, self.passes


class Simulated:
    """One rank of a run."""

    def __init__(self, setting: Setting, stream: Stream, clock: Clock) -> None:
        self.setting, self.stream, self.clock = setting, stream, clock

    def state(self) -> State:
        """As a checkpoint has it."""
        found: State = json.loads(json.dumps({"stream": self.stream.state_dict(), "clock": self.clock.state_dict()}))
        return found

    def step(self, sequences: int | None = None, progress: float | None = None) -> Drawn:
        """Draw a step, go through its passes and pay for them, as ``train`` does.

        Args:
            sequences: how many of all ranks; None: as many as the progress says.
            progress: where the step begins; None: by the clock.
        """
        setting, stream = self.setting, self.stream
        progress = self.clock.progress if progress is None else progress
        stream.begin_step(progress)
        n = sequences or setting.batch(progress) * setting.lengths.pieces(stream.length)
        rows, epochs, pieces = stream.next_rows(n)
        batch = _batch(rows, epochs, pieces, stream.length).as_share(n)
        groups, passes, named = [], [], []
        for group in batch.groups(setting.group):
            groups.append((group.sequences, len(group)))
            for part in group.split(setting.microbatch * (setting.lengths.full // group.length)):
                self.clock.charge(Work("forward_backward", len(part), part.length, setting.layers))
                passes.append(len(part))
                named.append(torch.stack([part.epochs, part.ids, part.positions[:, 0]], dim=1))
        self.clock.charge(Work("update"), "optimizer")
        return Drawn(n, stream.length, torch.cat(named).numpy(), groups, passes)


def _batch(rows: NDArray[np.int64], epochs: NDArray[np.int64], pieces: NDArray[np.int64], length: int) -> Batch:
    """A batch of sequences without tokens, (B, 1) in memory; the pieces stand where predicted positions do."""
    size = len(rows)
    one = torch.ones(size, 1)
    nothing = torch.zeros(size, 1, dtype=torch.int64)
    return Batch(
        ids=torch.from_numpy(rows),
        epochs=torch.from_numpy(epochs),
        inputs=nothing.expand(size, length),
        positions=torch.from_numpy(pieces)[:, None],
        labels=nothing,
        weights=one,
        lengths=None,
        normalizer=one.sum(),
    )


@dataclass(frozen=True)
class Mark:
    """A step of the run that is never disturbed: its state before and behind it, and where it began."""

    step: int
    progress: float
    before: State
    behind: State


@dataclass(frozen=True)
class Journey:
    """A whole run, as one of its ranks sees it.

    Attributes:
        steps: until the budget was spent.
        drawn: sequences of all ranks.
        marks: steps to look at.
    """

    steps: int
    drawn: int
    marks: list[Mark]


def journey(setting: Setting, marks: int, rank: int = 0) -> Journey:
    """Go through the whole run as one rank, and note steps: the first, the last, those where an epoch ends, others.

    Args:
        setting: of the run.
        marks: how many beside the first, the last and the ends of epochs, at even distances.
        rank: which.
    """
    found: list[Mark] = []
    due = [number / (marks + 1) for number in range(marks + 1)]
    with standing_for(Ranks(rank=rank, world=setting.ranks)):
        simulated = setting.rank()
        steps = drawn = 0
        while not simulated.clock.exhausted:
            before = {"stream": simulated.stream.state_dict(), "clock": simulated.clock.state_dict()}
            progress = simulated.clock.progress
            drawn += simulated.step().sequences
            ends = simulated.stream.epoch > before["stream"]["epoch"] or simulated.clock.exhausted
            if ends or (due and progress >= due[0]):
                due = [share for share in due if share > progress]
                found.append(Mark(steps, progress, before, simulated.state()))
            steps += 1
    return Journey(steps, drawn, found)


def peak_bytes(setting: Setting, mark: Mark) -> int:
    """Memory that a rank takes at most to make its order, take the run up at a mark and go on."""
    tracemalloc.start()
    try:
        with standing_for(Ranks(world=setting.ranks)):
            simulated = replace(setting).rank(mark.before)
            for _ in range(_MEMORY_STEPS):
                simulated.step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def check_steps(setting: Setting, mark: Mark, worlds: Sequence[int]) -> list[float]:
    """Take up the run at a mark and go on, each step on another number of ranks; all must be as if undisturbed.

    Args:
        setting: of the undisturbed run.
        mark: where it is taken up.
        worlds: ranks that take each step; all of them load what was saved before it.

    Returns:
        Device-seconds of each step, of all ranks together.

    Raises:
        LawBroken: slices that overlap or are not the batch, unequal work, clocks that differ.
    """
    paid = []
    alone = setting.rank(mark.before)
    state = mark.before
    for number, world in enumerate(worlds):
        wanted = alone.step(progress=mark.progress)
        behind, own = _together(setting, state, mark.progress, world, wanted)
        holds(behind["stream"] == alone.state()["stream"], f"the stream of {world} ranks is elsewhere than that of one")
        if world == setting.ranks and not number:
            holds(behind == mark.behind, "a run that was taken up is elsewhere than one that was not")
        _check_groups(setting, own, world)
        paid.append(world * (behind["clock"]["spent_s"] - state["clock"]["spent_s"]))
        state = behind
    return paid


def _together(setting: Setting, state: State, progress: float, world: int, wanted: Drawn) -> tuple[State, Drawn]:
    """A step of all ranks from one state: the state behind it and the work of each, which are the same for all."""
    n = wanted.sequences
    slices = np.full((-(-n // world), world, 3), -1, np.int64)  # place i of rank r is place i R + r of the batch
    first: tuple[State, Drawn] | None = None
    for rank in range(world):
        with standing_for(Ranks(rank=rank, world=world)):
            simulated = setting.rank(json.loads(json.dumps(state)))
            drawn = simulated.step(n, progress)
            behind = simulated.state()
        slices[:, rank] = drawn.named
        first = first or (behind, drawn)
        holds(behind == first[0], f"clock and stream of rank {rank} of {world} are not those of rank 0")
        holds(drawn.work == first[1].work, f"rank {rank} of {world} has other passes or draw groups than rank 0")
    together = slices.reshape(-1, 3)
    holds((together[:n] == wanted.named).all(), f"{world} ranks together do not have the batch that one has")
    holds(len(np.unique(_keys(together[:n]))) == n, f"two of {world} ranks have the same sequence")
    assert first is not None
    return first


def _keys(named: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each (epoch, row, piece), (n, 3) -> (n,)."""
    found = np.zeros(len(named), np.int64)
    for column in named.T:
        found = found * (column.max() - column.min() + 1) + column - column.min()
    return found


def _check_groups(setting: Setting, drawn: Drawn, world: int) -> None:
    """Draw groups of all ranks are consecutive parts of the batch, each evenly shared; passes are a rank's share."""
    everywhere, own = zip(*drawn.groups, strict=True)
    holds(sum(everywhere) == drawn.sequences, "draw groups are not the batch")
    holds(own == tuple(-(-size // world) for size in everywhere), "a draw group is not shared evenly")
    holds(set(everywhere[:-1]) <= {setting.group}, "a draw group of another size")
    holds(sum(drawn.passes) == -(-drawn.sequences // world), "passes are not the rank's share")
