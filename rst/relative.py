"""A table for another model, made from one that was measured on a machine that is not here.

What a model costs on the machine of a table is not known, but the table's own model (the base) can be run beside it on
any machine. The table's prices are scaled with the ratio of the two costs measured there, kind by kind, at the same
share of the depth: layer l of L pays the base's price at l/L of its depth, times what l layers cost here over what the
base costs here at that depth. Both are measured in one interleaved run, so that the machine's drift drops out. What
remains is an assumption, and the provenance says so: that the ratio is the same on the other machine.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median

from rst.calibration import CalibrationError, Timing, column_through
from rst.table import Column, CostTable
from rst.work import Kind, Work


def scale_table(
    table: CostTable, base: Mapping[Work, Timing], model: Mapping[Work, Timing], architecture: str, measured_on: str
) -> CostTable:
    """The table of a model by the costs of it and of ``table``'s own model on one machine.

    Args:
        table: prices of the base on the machine that is not here.
        base: timings of the base here, at one length of the table, at 0, 1 and all layers of it at least; with an
            update if the table charges for one.
        model: timings of the model, as ``build_table`` wants them; of the update only if ``base`` has it.
        architecture: the fingerprint of the model.
        measured_on: the machine here, in words, for the provenance.

    Raises:
        CalibrationError: timings that do not make up a table.
        TableError: the result cannot be right.
    """
    at = {work.length for work in base if work.kind != "update"}
    if len(at) != 1 or not at <= table.forward.keys():
        raise CalibrationError(f"the base must be measured at one length of {table.origin}; got {sorted(at)}")
    base_length = at.pop()
    layers = max(work.layers for work in model)
    columns: dict[Kind, dict[int, Column]] = {"forward": {}, "forward_backward": {}}
    notes = [f"scaled from {table.provenance.architecture} by ratios of cost measured on {measured_on}"]
    for kind, length in sorted({(work.kind, work.length) for work in model if work.kind != "update"}):
        here = _per_sequence(base, kind, base_length)
        if not {0, 1, table.layers} <= here.keys():
            raise CalibrationError(f"{kind}: the base is measured at {list(here)} layers, not at 0, 1 and all")
        there = (table.forward if kind == "forward" else table.forward_backward)[base_length]
        prices, ratios = {}, []
        for depth, seconds in _per_sequence(model, kind, length).items():
            place = depth * table.layers / layers
            ratios.append(seconds / _between(here, place))
            prices[depth] = ratios[-1] * _between(dict(enumerate(there)), place)
        columns[kind][length], straightened = column_through(prices)
        depths = ", ".join(map(str, prices))
        shown = ", ".join(f"{ratio:.4g}" for ratio in ratios)
        notes.append(f"{kind}, length {length}: at {depths} layers {shown} of the base's cost{straightened}")
    spread = median(timing.spread for timing in (*base.values(), *model.values()))
    rounds = min(timing.rounds for timing in (*base.values(), *model.values()))
    notes.append(f"ratios are medians over {rounds} interleaved rounds, timings scatter by {spread:.1%}")
    update = Work("update")
    update_s = 0.0
    if table.update_s:
        if not (update in base and update in model):
            raise CalibrationError(f"{table.origin} charges for updates, and those were not measured")
        update_s = table.update_s * model[update].seconds / base[update].seconds
        notes.append(f"update: {update_s / table.update_s:.4g} of the base's")
    origin = table.provenance
    return CostTable(
        sequences=table.sequences,
        forward=columns["forward"],
        forward_backward=columns["forward_backward"],
        update_s=update_s,
        provenance=replace(
            origin,
            architecture=architecture,
            date=datetime.now(UTC).date().isoformat(),
            source=f"{origin.source}; scaled to another architecture",
            notes=(*origin.notes, *notes),
        ),
    )


def _per_sequence(timings: Mapping[Work, Timing], kind: Kind, length: int) -> dict[int, float]:
    """Seconds of one sequence by depth, ascending."""
    found = {w.layers: t.seconds / w.sequences for w, t in timings.items() if (w.kind, w.length) == (kind, length)}
    return dict(sorted(found.items()))


def _between(points: Mapping[int, float], place: float) -> float:
    """The value at ``place`` of the straight pieces through ascending points."""
    for (low, less), (high, more) in pairwise(points.items()):
        if place <= high:
            return less + (more - less) * (place - low) / (high - low)
    raise AssertionError(f"{place} lies behind the last of {list(points)}")
