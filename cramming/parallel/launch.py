"""``impl.devices=2``: as many processes on this machine, through torchrun's own agent, from one plain command.

The processes get the configuration as a file and hand back, as another, the line that one of them would have said: it
is said here, where a person or a sweep listens. Signals reach this process and are passed on; the run is saved first.
"""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cramming.cli import load_schemas, run_command
from cramming.config import PretrainConfig, typed
from cramming.errors import RankFailed, UserError
from cramming.interruption import Interrupted
from cramming.parallel.environment import RANKS, launched
from cramming.parallel.watch import LAST_WORDS
from cramming.resolve import jobs_at_once

ALL = "all"
_AGENT = "torch.distributed.elastic"  # its loggers speak to programmers
# What torch gives ranks to save in after a signal, before it kills them; its own half minute is short for large models.
_SAVING = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"}


def processes(asked: int | str) -> int:
    """How many processes are to be started here; 1: none, this one trains.

    Args:
        asked: ``impl.devices``.

    Raises:
        UserError: it is no number of devices, there are not so many, or torchrun started another number.
    """
    ranks, gpus = launched(), torch.cuda.device_count()
    number = (gpus or 1) if asked == ALL else asked
    assert isinstance(number, int), "checked with the configuration"
    if ranks.world > 1:
        if number not in (1, ranks.local_world):
            raise UserError(
                f"torchrun started {ranks.local_world} processes on this machine, and impl.devices={asked} asks for "
                f"{number}: leave impl.devices out"
            )
        return 1
    if gpus and number > gpus:
        raise UserError(
            f"impl.devices={asked}: this machine has {gpus} GPU{'s' * (gpus != 1)}; impl.devices={ALL} takes all"
        )
    if number > 1 and jobs_at_once() > 1:
        raise UserError(f"impl.devices={asked}: jobs of a sweep beside each other have one device each; leave it out")
    return number


def idle() -> str | None:
    """What a run on one device should be told about the others of this machine."""
    others = torch.cuda.device_count() - 1
    if launched().world > 1 or jobs_at_once() > 1 or others < 1:
        return None
    return f"{others} more GPU{'s stand' if others > 1 else ' stands'} idle: impl.devices={ALL} trains on all of them"


def launch(config: PretrainConfig, number: int) -> None:
    """Train a run with so many processes of this machine, and wait for it.

    Raises:
        UserError: what one of them found wrong.
        Interrupted: Ctrl-C or SIGTERM, after they saved.
        RankFailed: one of them died.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="cramming-") as name:
        folder = Path(name)
        words = folder / "last-words"
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
        command = (sys.executable, "-m", __name__, str(folder / "config.yaml"))
        with _quiet_agent(), _environment({LAST_WORDS: str(words), **RANKS, **_SAVING}):
            agent = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=number,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",  # a free port
                local_addr="localhost",
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
            )
            try:
                elastic_launch(agent, command[0])(*command[1:])
            except SignalException as asked:
                raise Interrupted(128 + asked.sigval) from None
            except ChildFailedError as failed:
                _report(failed, words.read_text() if words.exists() else "")


def _report(failed: Any, said: str) -> None:
    """Turn how ranks ended into what a command raises."""
    rank, failure = min(failed.failures.items(), key=lambda one: one[1].timestamp)
    if said.startswith("error: ") and failure.exitcode == 2:
        raise UserError(said.removeprefix("error: ")) from None
    if failure.exitcode > 128:
        raise Interrupted(failure.exitcode) from None
    code = failure.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    died = f"error: rank {rank} (process {failure.pid}) {how}; all ranks end"
    raise RankFailed(said or f"{died}, the same command goes on from the last checkpoint") from None


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """Without the agent's own reports; the signal handlers it leaves behind are replaced by those from before."""
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in handled}
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(_AGENT)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        try:
            for number, handler in before.items():
                signal.signal(number, handler)
        except ValueError:
            pass  # not the main thread, in which the agent has set none


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """What the processes are told."""
    before = dict(os.environ)
    os.environ.update({key: value for key, value in values.items() if key not in before})
    try:
        yield
    finally:
        for key in values.keys() - before.keys():
            del os.environ[key]


def _rank(file: str) -> None:
    """What each of the processes does."""
    from cramming.session import pretrain

    load_schemas()
    tree = OmegaConf.load(file)
    assert isinstance(tree, DictConfig)
    pretrain(typed(tree))


if __name__ == "__main__":
    run_command(lambda: _rank(sys.argv[1]), ranks=True)
