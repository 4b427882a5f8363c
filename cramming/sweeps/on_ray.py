"""``hydra/launcher=ray``: jobs on a Ray cluster, through Ray's public interface.

Hydra's own launcher for Ray hands over configurations and raises the first job's error, which loses what the others
were about to say. A job here is a task that runs one command line; Ray finds a machine with room for it, and begins it
again elsewhere if that machine goes away.
"""

import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from cramming.errors import UserError
from cramming.sweeps.cluster import Cluster, Work
from cramming.sweeps.command_line import CommandLine

LOCAL = "local"
_KNOCK_S = 20.0


@dataclass
class OnRay(Cluster):
    """Fields of ``config/hydra/launcher/ray.yaml``."""

    address: str = LOCAL
    num_cpus: int = 1
    num_gpus: float = 0
    memory_gb: float | None = None
    resources: dict[str, float] = field(default_factory=dict)
    max_retries: int = 10
    shares: int = 8

    @property
    def cores(self) -> int:
        """Of a job."""
        return self.num_cpus

    @property
    def beside(self) -> int:
        """Ray counts cores and gives none to a job alone: any number may share a machine."""
        return 2

    def check(self) -> None:
        """Refuse what cannot work from here.

        Raises:
            UserError: Ray is missing, or a field is impossible.
        """
        for key in ("num_cpus", "shares"):
            if getattr(self, key) < 1:
                raise UserError(f"hydra.launcher.{key}={getattr(self, key)} must be 1 or more")
        if find_spec("ray") is None:
            raise UserError("hydra/launcher=ray needs Ray: pip install 'budget-bert[cluster]'")

    def __enter__(self) -> "OnRay":
        import ray

        try:
            self._knock()
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"hydra.launcher.address={self.address}: no Ray answers there ({said[:150]}); start one with "
                "`ray start --head`, or leave address= out for one of this machine alone"
            ) from error
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        short = [key for key, amount in wanted.items() if amount > self._most(key)]
        if short and self.address == LOCAL:
            most = self._most(short[0])
            ray.shutdown()
            raise UserError(f"a job asks for {wanted[short[0]]:g} {short[0]}, and this machine has {most:g}")
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        ray.shutdown()

    def start(self, lines: Sequence[CommandLine], title: str) -> list[Work]:
        """Hand over jobs; Ray queues those for which there is no room."""
        import ray

        options: dict[str, Any] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "resources": self.resources}
        if self.memory_gb is not None:
            options["memory"] = int(self.memory_gb * 2**30)
        task = ray.remote(_run).options(max_retries=self.max_retries, **options)
        return [_Task(task.remote(line)) for line in lines]

    def _knock(self) -> None:
        """Ray itself tries for minutes before it says that nobody is there.

        Raises:
            OSError, ValueError: nobody is, or the address is none.
        """
        host, colon, port = self.address.removeprefix("ray://").rpartition(":")
        if colon:
            socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()

    @staticmethod
    def _most(resource: str) -> float:
        """What the machine that has most of it has."""
        import ray

        return max((float(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"]), default=0.0)


def _run(line: CommandLine) -> int:
    return line()


class _Task(Work):
    """A task of Ray's."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def over(self) -> bool:
        """It returned, raised, or its machine was lost too often."""
        import ray

        return bool(ray.wait([self._reference], timeout=0)[0])

    def stop(self) -> None:
        """Interrupt it, which it passes on; one that waits for room does not begin."""
        import ray

        ray.cancel(self._reference)

    def state(self) -> str:
        """What Ray raises in its place."""
        import ray

        try:
            return f"Ray says exit code {ray.get(self._reference)}"
        except ray.exceptions.RayError as error:
            return f"Ray says {type(error).__name__}"
