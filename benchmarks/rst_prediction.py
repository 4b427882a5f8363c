"""Does the price of work predict the time it takes? Probes interleaved with a training run, on this machine.

    python -m benchmarks.rst_prediction data=python_docs arch=bert_small
    python -m benchmarks.rst_prediction segments=9 segment_s=20 data=local data.path=... arch=bert_small

Each segment first measures a cost table, then trains until work worth ``segment_s`` seconds of that table is done, and
divides the wall time of the training by its price. The result is the median of these ratios with its quartiles: 1 means
that the table predicts the run; a single segment may be off where the machine's speed changes between probes and run.
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles

import torch

from cramming import resolve
from cramming.build import Parts, build_run
from cramming.calibration import this_machine
from cramming.cli import compose
from cramming.data.preparation import prepare
from cramming.errors import UserError
from cramming.priced import probes
from cramming.progress import progress_for
from cramming.train import train
from rst.calibration import CalibrationError, build_table, measure
from rst.table import Provenance

OWN = {"segments": 9, "segment_s": 20.0}
PROBE_ROUNDS = 5


def main(words: list[str]) -> None:
    """Print one line a segment, then the result as JSON."""
    own = dict(OWN)
    for word in words:
        key, _, value = word.partition("=")
        if key in OWN:
            own[key] = type(OWN[key])(value)
    overrides = [word for word in words if word.partition("=")[0] not in OWN]
    config = compose(["rst=steps", "budget=1000000", "train/schedule=constant", *overrides])
    resolved = resolve.resolve(config.impl, None)
    torch.set_num_threads(resolved.threads)
    store = prepare(config.data, Path(config.data_dir), progress=progress_for())
    with tempfile.TemporaryDirectory() as folder:
        run, resolved = build_run(config, store, resolved, Path(folder))
    parts = Parts(config, store.tokenizer.vocab_size, torch.device(resolved.device))
    callables = probes(parts, resolved.precision)
    machine = this_machine()
    provenance = Provenance(machine.device, parts.architecture(), (resolved.precision,), machine.software, "", "")

    run.clock.stop_at_s = 3.0  # steps, to warm up
    train(run, lambda _: None)
    ratios = []
    run.clock.budget_s = 1e9  # from here on the clock counts seconds of the tables
    for segment in range(int(own["segments"])):
        timings = measure(callables, rounds=PROBE_ROUNDS, seed=segment, synchronize=run.engine.synchronize)
        try:
            table = build_table(timings, provenance)
        except CalibrationError as error:
            print(f"no table, no ratio: {error}", flush=True)
            continue
        run.clock.costs["main"] = table
        before_s, before_steps = run.clock.spent_s, run.step
        run.clock.stop_at_s = before_s + own["segment_s"]
        run.engine.synchronize()
        began_s = time.perf_counter()
        train(run, lambda _: None)
        run.engine.synchronize()
        wall_s, priced_s = time.perf_counter() - began_s, run.clock.spent_s - before_s
        ratios.append(wall_s / priced_s)
        steps = run.step - before_steps
        print(f"{steps} steps: wall {wall_s:.2f} s, priced {priced_s:.2f} s, ratio {ratios[-1]:.3f}", flush=True)
    if not ratios:
        raise UserError("the machine was too busy for every cost table; try again when it is quieter")
    result = {
        "wall_over_priced": median(ratios),
        "quartiles": quantiles(ratios, n=4) if len(ratios) > 1 else ratios,
        "segments": len(ratios),
        "architecture": parts.architecture(),
        "resolved": asdict(resolved),
        "machine": asdict(machine),
        "last_table": {
            "forward_backward": table.forward_backward,
            "forward": table.forward,
            "update_s": table.update_s,
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
