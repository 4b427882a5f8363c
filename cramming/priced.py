"""What of a run has a price: what a cost table must be for, the work to measure for one, and its operations."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from cramming import resolve
from cramming.calibration import Target
from cramming.config import ImplConfig, TrainConfig
from cramming.data.config import DataConfig
from cramming.model import Model
from rst.calibration import probe_works
from rst.work import Work

if TYPE_CHECKING:
    from cramming.build import Parts

_REFERENCE_TOKENS = {"cpu": 4096, "cuda": 16384}


def target_of(parts: "Parts", precision: str) -> Target:
    """What a cost table must be for to price a run."""
    full, *others = parts.config.lengths.all
    thinned = {n for method in parts.config.method.values() for length in (full, *others) for n in method.thins(length)}
    shorter = tuple(sorted({*others, *thinned} - {full}))
    arch, optimizer = parts.config.arch, parts.config.train.optim.priced_as
    return Target(parts.architecture(), arch.layers, full, precision, optimizer, shorter)


def calibrate_command(parts: "Parts") -> str:
    """What a person types to measure a table for a run; options of ``arch`` that were changed one by one are theirs."""
    config = parts.config
    words = [f"arch={config.arch.name}" if config.init_from is None else f"init_from={config.init_from}"]
    if parts.seq_length != DataConfig.seq_length:
        words.append(f"data.seq_length={parts.seq_length}")
    if parts.vocab_size != config.arch.vocab_size:
        words.append(f"data.vocab_size={parts.vocab_size}")
    if parts.max_mask_rate != TrainConfig.mask_rate:
        words.append(f"train.mask_rate={parts.max_mask_rate}")
    return " ".join(["python -m cramming.calibrate", *words])


def probes(
    parts: "Parts", precision: str, lengths: Collection[int], tokens: int | None = None
) -> dict[Work, Callable[[], None]]:
    """Work to measure for a cost table, on a model and an optimizer of its own: ``tokens`` in a pass at every length.

    But for the precision nothing of ``impl`` has a part in it: if prices depended on ``impl``, it would change results.
    """
    reference = resolve.resolve(ImplConfig(precision=precision), None)
    engine = parts.spare_engine(reference)
    found: dict[Work, Callable[[], None]] = {}
    for length in lengths:
        sequences = max(1, (tokens or _REFERENCE_TOKENS[parts.device.type]) // length)
        batch = parts.synthetic_batch(sequences, length)
        for work in probe_works(parts.config.arch.layers, length, sequences):
            found[work] = engine.probe(work.kind, batch, tuple(range(work.layers)))
    return found


def flops_of(parts: "Parts", model: Model) -> Callable[[Work], float]:
    """Floating-point operations of work; a backward pass counts as two forward ones."""

    def flops(work: Work) -> float:
        if work.kind == "update":
            return 0.0
        passes = 3 if work.kind == "forward_backward" else 1
        predicted, short = parts.slots_of(work.length), work.short_layers
        total = model.flops(work.length, predicted, work.layers - short)
        if short:  # layers between the first and the last, as ``CostTable.seconds`` has it
            total += model.flops(work.short_length, predicted, 1 + short) - model.flops(work.short_length, predicted, 1)
        return passes * work.sequences * total

    return flops
