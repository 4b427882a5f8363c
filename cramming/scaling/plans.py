"""Who writes and reads what of a checkpoint, for very many ranks: the plans of ``cramming.saving.layout``, checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cramming.saving.layout import SMALL, Outline, Rows, chunk, plan, reading_plan, written_by
from cramming.scaling.simulation import holds

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Writing:
    """What a checkpoint is and what of it each rank writes.

    Attributes:
        bytes: of all.
        most: bytes of the rank that writes most.
        pieces: lines of the index, which grows with tensors.
    """

    bytes: int
    most: int
    pieces: int


def outlines(arch: str, seq_length: int, *, sharded: bool) -> dict[str, Outline]:
    """The tensors of a run with AdamW: weights, two moments each, and a step each, which every rank has.

    Args:
        arch: an option of ``arch=``; its model is never allocated.
        seq_length: of the model.
        sharded: whether ranks share weights and moments (``fsdp``), or all have all.
    """
    import torch

    from cramming.cli import compose

    config = compose([f"arch={arch}", f"data.seq_length={seq_length}", "data=local", "data.path=none"]).arch
    with torch.device("meta"):
        model = config.build(config.vocab_size, seq_length)
    found = {"random": Outline((5056,), "U8")}
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        for kind in ("model", *_MOMENTS):
            found[f"{kind}.{name}"] = Outline(shape, "F32", sharded and bool(shape))
        found[f"step.{name}"] = Outline(())
    return found


def check_writing(tensors: Mapping[str, Outline], world: int) -> Writing:
    """Every row of every tensor is written by one rank, none twice, and no rank has much more to do than another.

    Raises:
        LawBroken: it is not so.
    """
    index = plan(tensors, world)
    parts: dict[str, list[Rows]] = {name: [] for name in tensors}
    written = []
    for rank in range(world):
        own = written_by(tensors, world, rank)
        for name, rows in own.items():
            parts[name].append(rows)
        written.append(sum(rows.length * tensors[name].row_bytes for name, rows in own.items()))
    for name, outline in tensors.items():
        index[name].check(world)
        _cover(name, parts[name], outline.rows if outline.bytes else 0)
    total = sum(outline.bytes for outline in tensors.values())
    # What ``layout`` promises: a row of each shared tensor, and the longest row of the others or a small tensor.
    slack = sum(outline.row_bytes for outline in tensors.values() if outline.sharded)
    slack += max([SMALL, *(outline.row_bytes for outline in tensors.values() if not outline.sharded)])
    holds(sum(written) == total, f"{sum(written)} bytes are written of {total}")
    holds(max(written) <= total / world + slack, f"one of {world} ranks writes {max(written)} of {total} bytes")
    return Writing(total, max(written), sum(len(entry.runs) for entry in index.values()))


def check_reading(tensors: Mapping[str, Outline], writers: int, readers: int) -> int:
    """Other ranks find all they need in what was written, and together read every shared row once.

    Returns:
        The most files that one of them opens.

    Raises:
        LawBroken: it is not so.
    """
    index = plan(tensors, writers)
    shared: dict[str, list[Rows]] = {name: [] for name, outline in tensors.items() if outline.sharded}
    most = 0
    # What nobody shares is read alike by all.
    for rank in range(readers) if shared else sorted({0, readers // 2, readers - 1}):
        files = set()
        for name, (wanted, slices) in reading_plan(index, readers, rank).items():
            outline = tensors[name]
            due = chunk(outline.rows, readers, rank) if outline.sharded else Rows(0, outline.rows)
            holds(wanted == due, f"rank {rank} of {readers} wants other rows of {name} than it has")
            _cover(name, (Rows(one.at, one.rows.length) for one in slices), wanted.length if outline.bytes else 0)
            files |= {one.rank for one in slices}
            if name in shared and wanted.length:
                shared[name].append(wanted)
        most = max(most, len(files))
    for name, parts in shared.items():
        _cover(name, parts, tensors[name].rows)
    return most


def _cover(name: str, parts: Iterable[Rows], rows: int) -> None:
    """Parts, in order, are all rows, each once."""
    end = 0
    for part in parts:
        holds(part.start == end, f"rows {end} to {part.start} of {name} are left out, or there twice")
        end = part.end
    holds(end == rows, f"of {rows} rows of {name} there are {end}")
