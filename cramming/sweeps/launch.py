"""Hydra's part in a sweep: what a command line composes, and the launcher it names for the jobs.

``hydra/launcher=joblib hydra.launcher.n_jobs=4`` runs several at once on one machine, ``slurm`` and ``ray`` on others
(``cluster.py``); without one they run here, one after another.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import open_dict

from cramming.cli import CONFIG_DIR
from cramming.config import PretrainConfig, typed
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.exchange.initializing import is_adopted
from cramming.sweeps import cluster
from cramming.sweeps.beside import sharing
from cramming.sweeps.command_line import CommandLine
from cramming.sweeps.jobs import Job
from cramming.sweeps.measuring import kinds_of_prices, measure_first
from cramming.sweeps.outcomes import Outcome, attempt, finished, outcome_of

_PROGRAM = CONFIG_DIR.parent / "pretrain_bert.py"
_MEASURING = "measuring"  # name of the job that measures


class Launch:
    """A command line of a sweep, composed as far as it is the same for all jobs.

    Attributes:
        loader: finds the files of ``config/`` and of ``--config-dir``.
        words: the command line's, without those for Hydra itself.
        fixed: those of them that are no sweep.
        found_in: the word that names another folder with configuration files, if there is one.
        common: the tree of the fixed words.
        cluster: where jobs run; None: on this machine.

    Raises:
        UserError: a launcher whose fields cannot be used.
    """

    def __init__(self, words: Sequence[str], found_in: Sequence[str] = ()) -> None:
        parsed = OverridesParser.create().parse_overrides(list(words))
        last = {o.get_key_element(): (word, o) for word, o in zip(words, parsed, strict=True)}  # has the last say
        hydras = [word for key, (word, _) in last.items() if key.lstrip("+~").startswith(("hydra.", "hydra/"))]
        self.found_in = list(found_in)
        self.words = [word for word, _ in last.values() if word not in hydras]
        self.fixed = [word for word, o in last.values() if not o.is_sweep_override() and word not in hydras]
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        self.loader: ConfigLoader = hydra.config_loader
        self.common = hydra_compose("pretrain", [*self.fixed, *hydras, *found_in], return_hydra_config=True)
        self.cluster = cluster.cluster_of(self.common.hydra.launcher)
        self._launched = 0

    @property
    def at_once(self) -> int:
        """Jobs that a machine is to work on at the same time."""
        launcher = self.common.hydra.launcher
        if self.cluster is not None:
            return self.cluster.beside
        if "joblib" not in str(launcher._target_):
            return 1
        cores, n = os.cpu_count() or 1, int(launcher.n_jobs)
        return n if n > 0 else max(1, cores + 1 + n)

    def composed(self, name: str, words: Sequence[str]) -> Job:
        """One job, refused if its words make no run; words that Hydra cannot use raise."""
        tree = self.loader.load_sweep_config(self.common, list(words))
        with open_dict(tree):
            del tree["hydra"]
        try:
            return Job(name, tuple(words), typed(tree))
        except UserError as error:
            return Job(name, tuple(words), None, str(error))

    def beside(self, total: int) -> AbstractContextManager[object]:
        """Around all that a sweep of ``total`` jobs runs.

        Raises:
            UserError: a launcher that cannot be used from here; what it would cost can be said everywhere.
        """
        if self.cluster is not None:
            self.cluster.check()
            return self.cluster
        return sharing(min(self.at_once, max(1, total)))

    @property
    def folder(self) -> Path:
        """Where a cluster's jobs write their logs."""
        return Path(str(self.common.hydra.sweep.dir)) / str(self.common.name or "default")

    def measure(self, jobs: Sequence[Job]) -> None:
        """Measure the cost tables that are missing, once and before the jobs, on a machine like theirs."""
        configs = [job.config for job in jobs if job.config is not None]
        if self.cluster is None:
            measure_first(configs)
            return
        chosen = {config.name for config in kinds_of_prices(configs)}
        if not chosen:
            return
        file = self.folder / f"{_MEASURING}.words"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [self._words(job.words) for job in jobs if job.name in chosen]
        write_atomically(file, json.dumps(lines).encode())
        self.command(_MEASURING, "cramming.sweeps.measuring", [str(file)])

    def command(self, name: str, module: str, words: Sequence[str]) -> cluster.Ended:
        """Run ``python -m <module>`` as a job of the cluster."""
        assert self.cluster is not None
        return cluster.run(self.cluster, [self._line(name, ["-m", module, *words])], f"{self.folder.name}-{name}")[0]

    def run(self, jobs: Sequence[Job], job: Callable[[PretrainConfig], None], total: int) -> list[Outcome]:
        """Hand jobs to the launcher and wait for all of them. A job that fails does not end the others."""
        if self.cluster is not None:
            lines = [self._line(one.name, [str(_PROGRAM), *self._words(one.words)]) for one in jobs]
            ended = cluster.run(self.cluster, lines, self.folder.name)
            return [outcome_of(one) for one in ended]
        context = HydraContext(config_loader=self.loader, callbacks=Callbacks(self.common))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=partial(attempt, job, total), config=self.common
        )
        sys.stdout.flush()
        try:
            returned = launcher.launch([list(job.words) for job in jobs], initial_job_idx=self._launched)
            outcomes = [result.return_value for result in returned]
        except BrokenProcessPool:  # of one killed process the others learn by being ended too
            outcomes = [_after_a_kill(job) for job in jobs]
        self._launched += len(jobs)
        return outcomes

    def _words(self, words: Sequence[str]) -> list[str]:
        """What a person would type for one of the jobs; what ``init_from=`` stands for is found out there."""
        return [*(word for word in words if not is_adopted(word)), *self.found_in]

    def _line(self, name: str, words: Sequence[str]) -> CommandLine:
        assert self.cluster is not None
        python = (sys.executable, *words)
        return CommandLine(name, python, os.getcwd(), str(self.folder.absolute()), self.cluster.cores)


@contextmanager
def launching(words: Sequence[str], config_dir: str | None) -> Iterator[Launch]:
    """Hydra, ready for a sweep.

    Args:
        words: the command line's, without flags.
        config_dir: another folder with configuration files.
    """
    GlobalHydra.instance().clear()
    more = [] if config_dir is None else [f"hydra.searchpath=['file://{os.path.abspath(config_dir)}']"]
    with initialize_config_dir(str(CONFIG_DIR), job_name="pretrain_bert", version_base="1.3"):
        yield Launch(words, more)


def _after_a_kill(job: Job) -> Outcome:
    assert job.config is not None
    if finished(job.config) is not None:
        return Outcome("trained")
    return Outcome("failed", "a job's process was killed, out of memory perhaps; the same command goes on from there")
