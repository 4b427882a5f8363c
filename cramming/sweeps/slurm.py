"""``hydra/launcher=slurm``: jobs on a Slurm cluster, or, to try a command out, in processes of this machine.

submitit writes the batch scripts, asks Slurm how jobs stand, and requeues a job that is preempted or runs out of time:
its signal reaches ``CommandLine.checkpoint``, the run saves, and the requeued job is the same command line again.
"""

import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.suggest import nearest
from cramming.sweeps.cluster import Cluster, Work
from cramming.sweeps.command_line import CommandLine

CLUSTERS = ("slurm", "local")
_OF_SLURM = ("partition", "account", "qos", "constraint", "exclude", "comment")


@dataclass
class Slurm(Cluster):
    """Fields of ``config/hydra/launcher/slurm.yaml``."""

    cluster: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    timeout_min: int = 1440
    max_num_timeout: int = 100
    signal_delay_s: int = 180
    gpus_per_node: int | None = None
    cpus_per_task: int = 4
    mem_gb: float | None = None
    array_parallelism: int = 64
    shares: int = 8
    comment: str | None = None
    setup: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def cores(self) -> int:
        """Of a job."""
        return self.cpus_per_task

    @property
    def room(self) -> int | None:
        """Slurm has a queue; here only as many jobs begin as there are cores for."""
        if self.cluster != "local":
            return None
        return max(1, min(self.array_parallelism, len(os.sched_getaffinity(0)) // self.cpus_per_task))

    @property
    def beside(self) -> int:
        """Under Slurm a job has its cores for itself."""
        return self.room or 1

    def check(self) -> None:
        """Refuse what cannot work from here.

        Raises:
            UserError: submitit or Slurm is missing, or a field is impossible.
        """
        if self.cluster not in CLUSTERS:
            raise UserError(f"hydra.launcher.cluster={self.cluster} is unknown{nearest(self.cluster, CLUSTERS)}")
        for key in ("timeout_min", "cpus_per_task", "array_parallelism", "shares"):
            if getattr(self, key) < 1:
                raise UserError(f"hydra.launcher.{key}={getattr(self, key)} must be 1 or more")
        if find_spec("submitit") is None:
            raise UserError("hydra/launcher=slurm needs submitit: pip install 'budget-bert[cluster]'")
        missing = [program for program in ("sbatch", "srun", "sacct") if shutil.which(program) is None]
        if self.cluster == "slurm" and missing:
            raise UserError(
                f"hydra/launcher=slurm: there is no {missing[0]} on this machine; go to one that submits jobs, "
                "or try the command out here with hydra.launcher.cluster=local"
            )

    def __exit__(self, *error: object) -> None:
        """Slurm needs no goodbye."""

    def start(self, lines: Sequence[CommandLine], title: str) -> list[Work]:
        """Hand over jobs, as one array.

        Raises:
            UserError: Slurm does not take them, in its words.
        """
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        folder = Path(lines[0].folder) / "submitit"
        options = {"slurm_max_num_timeout": self.max_num_timeout} if self.cluster == "slurm" else {}
        executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster, **options)
        executor.update_parameters(**self._parameters(title))
        try:
            with executor.batch():
                jobs = [executor.submit(line) for line in lines]
        except (FailedJobError, FailedSubmissionError) as error:
            said = [line for line in str(error).splitlines() if line.strip()]
            raise UserError(f"sbatch refused: {said[-1] if said else error}") from error
        return [_Submitted(job, self.cluster) for job in jobs]

    def _parameters(self, title: str) -> dict[str, Any]:
        given: dict[str, Any] = {
            "name": title,
            "timeout_min": self.timeout_min,
            "cpus_per_task": self.cpus_per_task,
            "gpus_per_node": self.gpus_per_node,
            "mem_gb": self.mem_gb,
            "slurm_array_parallelism": self.array_parallelism,
            "slurm_signal_delay_s": self.signal_delay_s,
            "slurm_setup": self.setup or None,
            # A machine that goes down is Slurm's to notice: it begins the job again on another one.
            "slurm_additional_parameters": {"requeue": True, **self.additional_parameters},
            **{f"slurm_{key}": getattr(self, key) for key in _OF_SLURM},
        }
        return {key: value for key, value in given.items() if value is not None}


class _Submitted(Work):
    """A job of submitit's."""

    def __init__(self, job: Any, cluster: str) -> None:
        self._job, self._cluster = job, cluster

    def over(self) -> bool:
        """Its result is there; or Slurm says that it is gone, which submitit asks more and more rarely."""
        return bool(self._job.done())

    def stop(self) -> None:
        """Slurm sends SIGTERM, and half a minute later, as clusters are set up, SIGKILL."""
        if self._cluster == "slurm":
            self._job.cancel(check=False)
        else:  # its ``cancel`` leaves a second
            os.kill(int(self._job.job_id), signal.SIGTERM)

    def state(self) -> str:
        """Slurm's word for it."""
        return f"job {self._job.job_id}, {str(self._job.state).lower()}"

    def late(self) -> bool:
        """A result of submitit's means that ours was written before."""
        return bool(self._job.paths.result_pickle.exists())
