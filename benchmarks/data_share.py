"""What share of a training step is reading the token store and masking, in pairs.

    python -m benchmarks.data_share data=python_docs arch=bert_small
    python -m benchmarks.data_share pairs=40 data=local data.path=... arch=bert_small

Each pair draws a batch and then trains on it, both timed; the result is the median of draw over draw plus step, with
its quartiles. README.md has the protocol.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles

import torch

from cramming import resolve
from cramming.build import build_run
from cramming.cli import compose, run_command
from cramming.data.preparation import prepare
from cramming.errors import UserError
from cramming.progress import progress_for

WARMUP = 5


def main(words: list[str]) -> None:
    """Print the share."""
    counts = [word.removeprefix("pairs=") for word in words if word.startswith("pairs=")] or ["40"]
    if not counts[-1].isdecimal() or int(counts[-1]) < 2:
        raise UserError(f"pairs={counts[-1]} must be a whole number from 2")
    config = compose(["rst=steps", "budget=1000000", *(word for word in words if not word.startswith("pairs="))])
    store = prepare(config.data, Path(config.data_dir), progress=progress_for())
    with tempfile.TemporaryDirectory() as folder:
        run, resolved = build_run(config, store, resolve.resolve(config.impl, None), Path(folder))
    shares = []
    for pair in range(WARMUP + int(counts[-1])):
        began = time.perf_counter()
        batch = run.draw(config.train.batch_size)
        run.engine.synchronize()
        drawn = time.perf_counter()
        for microbatch in batch.split(run.engine.microbatch_size):
            run.engine.backward(microbatch, run.method.objective)
        run.engine.step(1.0)
        ended = time.perf_counter()
        if pair >= WARMUP:
            shares.append((drawn - began) / (ended - began))
    low, middle, high = quantiles(shares, n=4)
    print(
        f"reading and masking take {middle:.2%} of a step (quartiles {low:.2%} to {high:.2%}, {len(shares)} pairs; "
        f"{config.arch.name}, batch {config.train.batch_size}, {resolved.precision}, {torch.get_num_threads()} threads)"
    )


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
