"""What a run's summary says of how it went, and how it was computed."""

from collections.abc import Mapping, Sequence
from typing import Any

from cramming import allocator, resolve
from cramming.build import fast_ways
from cramming.parallel.ranks import here
from cramming.plain import described
from cramming.resolve import Resolved
from cramming.text import Unit
from cramming.train import Run


def summary_of(
    run: Run, resolved: Resolved, rows: Sequence[Mapping[str, Any]], unit: Unit, reading: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """The part of ``summary.json`` that the run itself knows.

    Args:
        run: at its end.
        resolved: how it computed.
        rows: of its metrics.
        unit: of its budget.
        reading: of each rank, what its store says about reading (``about_reading``).
    """
    validation = run.notes["validations"].get(str(run.step)) or {}
    tokens, world = run.notes["tokens"], here().world
    return {
        "name": run.config.name,
        "steps": run.step,
        "unit": unit,
        "budget_s": run.clock.budget_s,
        "spent_s": run.clock.spent_s,
        "ranks": world,
        "device_hours": run.notes["device_s"] / 3600 if unit == "s" else None,
        "wall_s": run.notes["elapsed_s"],
        "train_wall_s": run.notes["train_wall_s"],
        "ledger": run.clock.ledger,
        "work": run.clock.counts,
        "sequences": run.notes["sequences"],
        "tokens": tokens,
        "tokens_per_s": tokens / run.notes["train_wall_s"] if run.notes["train_wall_s"] else None,
        "loss": next((row["loss"] for row in reversed(rows) if row.get("loss") is not None), None),
        "validation_loss": validation.get("loss"),
        "validation_accuracy": validation.get("accuracy"),
        "validation_sequences": validation.get("sequences"),
        "skipped_steps": run.engine.skipped_steps,
        "cost_table": run.config.rst.kind,
        "free": sorted(run.clock.free),
        **run.method.about(),
        # Of the rank that waited longest: the others waited for it.
        **({"data_stalls": max(reading, key=lambda one: one["stalled_s"])} if all(reading) else {}),
        "fast_paths": {
            **resolve.described(resolved, run.model),
            "cuda_graphs": run.engine.cuda_graphs,
            "allocator": allocator.in_use(),
            "gradient_checkpointing": run.model.gradient_checkpointing,
            **described(fast_ways(run.engine), resolved.plain),
            **run.model.fast_paths(run.stream.store.seq_length),
        },
    }
