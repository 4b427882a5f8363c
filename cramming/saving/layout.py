"""Which rank writes, and reads, which rows of which tensors: functions of shapes and of the number of ranks alone.

No tensor and no process is needed to ask them, so that a plan for 1,024 ranks is made and checked on one.

A tensor is cut along its first dimension into rows (a number without dimensions is one row). Tensors that the ranks of
a sharded engine share are written as they hold them, in ``torch.chunk``'s pieces: rank r has rows r c to (r + 1) c,
with c = ceil(rows / ranks). Every other tensor is the same on all ranks; those are laid end to end, the whole length is
cut into equal parts, and a row is written by the rank in whose part it begins. Small tensors are not cut.

The work of two ranks so differs by at most one row of each tensor that is shared, plus the longest row of the others
or ``SMALL``, whichever is more.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

SMALL = 64 * 1024  # bytes; below, a tensor is written by one rank, as the state of a random generator must be
# Bytes of one value, by the name that safetensors has for its type.
SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Outline:
    """A tensor without its values.

    Attributes:
        shape: of the whole.
        dtype: as safetensors names it, a key of ``SIZES``.
        sharded: whether ranks hold parts of it; else it is the same on all.
    """

    shape: tuple[int, ...]
    dtype: str = "F32"
    sharded: bool = False

    @property
    def rows(self) -> int:
        """What it is cut into."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape[1:]) * SIZES[self.dtype]

    @property
    def bytes(self) -> int:
        """Bytes of the whole."""
        return self.rows * self.row_bytes

    def part(self, length: int) -> tuple[int, ...]:
        """The shape of so many rows."""
        return (length, *self.shape[1:]) if self.shape else ()


@dataclass(frozen=True)
class Rows:
    """Rows ``start`` to ``start + length`` of a tensor."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first row behind them."""
        return self.start + self.length


@dataclass(frozen=True)
class Pieces:
    """Equal pieces of one tensor in the files of successive ranks: ``times`` pieces of ``length`` rows, from ``start``
    on, in the files of ``rank``, ``rank + 1``, ...: so that an index grows with tensors and not with ranks."""

    rank: int
    start: int
    length: int
    times: int = 1

    @property
    def end(self) -> int:
        """The first row behind them."""
        return self.start + self.length * self.times


@dataclass(frozen=True)
class Entry:
    """A tensor of a sharded checkpoint and where its rows lie."""

    outline: Outline
    runs: tuple[Pieces, ...]

    def check(self, world: int) -> None:
        """Raises:
        ValueError: its pieces are not all its rows, each once.
        """
        ends = [0, *(run.end for run in self.runs)]
        starts = [*(run.start for run in self.runs), self.outline.rows if self.outline.bytes else ends[-1]]
        if ends != starts or any(
            min(run.length, run.times) < 1 or run.rank < 0 or run.rank + run.times > world for run in self.runs
        ):
            raise ValueError(f"its pieces {self.runs} do not make up {self.outline}")


Index = Mapping[str, Entry]


@dataclass(frozen=True)
class Slice:
    """Rows to read: ``rows`` of the piece in the file of rank ``rank``, which are rows ``at`` on of what is wanted."""

    rank: int
    rows: Rows
    at: int


def chunk(rows: int, world: int, rank: int) -> Rows:
    """The rows of a sharded tensor that a rank has, possibly none: ``torch.chunk``'s rule, which FSDP follows."""
    each = -(-rows // world)
    start = min(rank * each, rows)
    return Rows(start, min(each, rows - start))


def plan(tensors: Mapping[str, Outline], world: int) -> dict[str, Entry]:
    """Where every row goes: the index of a checkpoint.

    Args:
        tensors: by name.
        world: how many ranks write.
    """
    found: dict[str, Entry] = {}
    for name, (outline, runs) in _laid(tensors, world):
        found[name] = Entry(outline, tuple(runs))
    return found


def written_by(tensors: Mapping[str, Outline], world: int, rank: int) -> dict[str, Rows]:
    """What one rank writes of each tensor; those it writes nothing of are left out."""
    return {name: rows for name, (_, runs) in _laid(tensors, world) if (rows := _of_rank(runs, rank)) is not None}


def reading_plan(
    index: Index, world: int, rank: int, sharded: Iterable[str] | None = None
) -> dict[str, tuple[Rows, list[Slice]]]:
    """What one rank of a run that goes on reads: for each tensor the rows it needs, and the slices that hold them.

    Args:
        index: of the checkpoint, whatever number of ranks wrote it.
        world: how many ranks go on.
        rank: which of them.
        sharded: tensors that they share; None: those that the writers shared. Of the others each rank needs all rows.
    """
    shared = {name for name, entry in index.items() if entry.outline.sharded} if sharded is None else set(sharded)
    found = {}
    for name, entry in index.items():
        rows = entry.outline.rows
        wanted = chunk(rows, world, rank) if name in shared else Rows(0, rows)
        found[name] = wanted, list(slices(entry, wanted))
    return found


def slices(entry: Entry, wanted: Rows) -> Iterator[Slice]:
    """Where the rows that are wanted of a tensor lie, in order."""
    for run in entry.runs:
        first = max(0, (wanted.start - run.start) // run.length)
        for number in range(first, run.times):
            start = run.start + number * run.length
            begin, end = max(start, wanted.start), min(start + run.length, wanted.end)
            if start >= wanted.end:
                return
            if begin < end:
                yield Slice(run.rank + number, Rows(begin - start, end - begin), begin - wanted.start)


def to_json(index: Index, world: int) -> dict[str, Any]:
    """An index as JSON values."""
    tensors = {
        name: {
            "shape": list(entry.outline.shape),
            "dtype": entry.outline.dtype,
            "sharded": entry.outline.sharded,
            "pieces": [[run.rank, run.start, run.length, run.times] for run in entry.runs],
        }
        for name, entry in index.items()
    }
    return {"ranks": world, "tensors": tensors}


def from_json(value: Any) -> tuple[dict[str, Entry], int]:
    """An index, and how many ranks wrote it.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    world, index = int(value["ranks"]), {}
    for name, said in value["tensors"].items():
        shape = tuple(int(size) for size in said["shape"])
        if said["dtype"] not in SIZES or min(shape, default=0) < 0:
            raise ValueError(f"{name} is {said['dtype']} {shape}")
        runs = tuple(Pieces(*(int(number) for number in piece)) for piece in said["pieces"])
        index[name] = Entry(Outline(shape, said["dtype"], bool(said["sharded"])), runs)
        index[name].check(world)
    return index, world


def _laid(tensors: Mapping[str, Outline], world: int) -> Iterator[tuple[str, tuple[Outline, list[Pieces]]]]:
    total = sum(outline.bytes for outline in tensors.values() if not outline.sharded)
    position = 0  # of the tensor in the length of all that are the same everywhere, bytes
    for name in sorted(tensors):
        outline = tensors[name]
        if not outline.bytes:
            yield name, (outline, [])
        elif outline.sharded:
            yield name, (outline, _chunks(outline.rows, world))
        else:
            yield name, (outline, _cut(outline, position, total, world))
            position += outline.bytes


def _chunks(rows: int, world: int) -> list[Pieces]:
    each = -(-rows // world)
    whole, rest = divmod(rows, each)
    return [Pieces(0, 0, each, whole)] + ([Pieces(whole, whole * each, rest)] if rest else [])


def _cut(outline: Outline, position: int, total: int, world: int) -> list[Pieces]:
    first = position * world // total
    if outline.bytes < SMALL:
        return [Pieces(first, 0, outline.rows)]
    last = (position + outline.bytes - 1) * world // total
    row = outline.row_bytes
    # Rank r's part begins at byte ceil(r total / world); a row is of the rank in whose part its first byte lies.
    parts = [-(-rank * total // world) for rank in range(first + 1, last + 1)]
    starts = [0, *(min(outline.rows, -((position - begin) // row)) for begin in parts)]
    runs = []
    for rank, (start, end) in enumerate(pairwise([*starts, outline.rows]), start=first):
        if end > start:
            runs.append(Pieces(rank, start, end - start))
    return runs


def _of_rank(runs: list[Pieces], rank: int) -> Rows | None:
    for run in runs:
        if run.rank <= rank < run.rank + run.times:
            return Rows(run.start + (rank - run.rank) * run.length, run.length)
    return None
