"""Cost tables of a sweep, measured before its jobs run beside each other: a price is what a quiet machine takes."""

import json
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from cramming.config import PretrainConfig
from cramming.costs import OWN_TABLE, CalibrateConfig
from cramming.errors import UserError

# What a price does not depend on, but for the optimizer's kind.
_OF_ONE_RUN = ("name", "seed", "budget", "stop_at", "free", "wandb", "resume")


def measure_first(configs: Sequence[PretrainConfig]) -> None:
    """Measure every table that is missing, one after another, in a process of its own: it leaves no GPU memory behind.

    What cannot be built is left to the job itself, which says so.
    """
    chosen = kinds_of_prices(configs)
    if not chosen:
        return
    process = multiprocessing.get_context("spawn").Process(target=measure_all, args=(chosen,))
    process.start()
    process.join()


def kinds_of_prices(configs: Sequence[PretrainConfig]) -> list[PretrainConfig]:
    """One configuration for each table that the runs will ask for; a run that has begun has its own."""
    return list({_prices(config): config for config in configs if _is_measured(config)}.values())


def measure_all(configs: Sequence[PretrainConfig]) -> None:
    """Build each run as far as its prices, which leaves the tables where the runs find them."""
    import torch

    from cramming import resolve
    from cramming.build import build_run
    from cramming.cli import load_schemas
    from cramming.data.preparation import prepare
    from cramming.exchange import initializing
    from cramming.progress import progress_for, share_of
    from cramming.recording.logfile import logging_to

    load_schemas()
    for config in configs:
        run_dir = Path(config.base_dir) / str(config.name)
        with logging_to(None), tempfile.TemporaryDirectory() as nowhere:
            try:
                data = initializing.data_of(config, run_dir)
                store = prepare(data, Path(config.data_dir), progress=progress_for())
                resolved = replace(resolve.resolve(config.impl, resolve.read(run_dir)), microbatch_size=1)
                with share_of("measuring this machine's costs") as progress:
                    build_run(config, store, resolved, Path(nowhere), progress)
            except UserError:
                continue
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def command(argv: Sequence[str]) -> None:
    """``python -m cramming.sweeps.measuring FILE``, as a job of a cluster: the file lists the words of runs.

    Raises:
        UserError: words that cannot be used.
    """
    from cramming.cli import compose

    lines = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    measure_all([compose(words) for words in lines])


def _is_measured(config: PretrainConfig) -> bool:
    own = Path(config.base_dir) / str(config.name) / OWN_TABLE
    return isinstance(config.rst, CalibrateConfig) and not own.exists()


def _prices(config: PretrainConfig) -> str:
    """The same for runs that have the same prices."""
    parts = {key: value for key, value in asdict(config).items() if key not in _OF_ONE_RUN}
    parts["train"] = {**parts["train"], "optim": config.train.optim.kind}
    return json.dumps(parts, default=str, sort_keys=True)


if __name__ == "__main__":
    from cramming.cli import run_command

    run_command(lambda: command(sys.argv[1:]))
