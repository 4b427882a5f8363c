"""A run and the one training loop.

The loop never asks which method, optimizer, architecture or clock it has: they are values of the run. The budget ends
after a whole step, so no partial gradient is ever left or applied.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cramming.batch import Batch
from cramming.config import PretrainConfig
from cramming.data.stream import Stream
from cramming.engine import Engine
from cramming.hashing import generator, key
from cramming.method import Method
from cramming.model import Model
from cramming.parallel.ranks import here
from cramming.profiling.phases import DATA, OPTIMIZER
from rst.clock import Clock


@dataclass
class Run:
    """Everything a run is, and exactly what a checkpoint holds."""

    config: PretrainConfig
    model: Model
    engine: Engine
    stream: Stream
    clock: Clock
    method: Method
    schedule: Callable[[float], float]  # progress -> learning-rate factor
    batch_size: Callable[[float], int]  # progress -> sequences in a step, of the length they have then
    step: int = 0
    notes: dict[str, Any] = field(default_factory=dict)  # counted beside the trajectory: wall seconds, early losses

    def draw(self, n: int) -> Batch:
        """``n`` sequences from the stream."""
        return self.stream.draw(n)

    def next_batch(self) -> Batch | None:
        """The sequences of the next step; how many and how long they are is decided by the progress at its start."""
        progress = self.clock.progress
        self.stream.begin_step(progress)
        with self.engine.phases(DATA):
            return self.method.next_batch(self, self.draw, self.batch_size(progress))

    def microbatches(self, group: Batch) -> Iterator[Batch]:
        """Parts of a draw group to pass through the model; of short sequences as many more as fit the same tokens."""
        return group.split(self.engine.microbatch_size * (self.stream.store.seq_length // group.length))

    def take_step(self, factor: float) -> int:
        """The optimizer's step with the gradients gathered; what the last of the methods is handed."""
        with self.engine.phases(OPTIMIZER):
            return self.engine.step(factor)

    def generator(self, *parts: int | str) -> torch.Generator:
        """A generator for one random draw, a pure function of the run's seed and what it is for.

        ``run.generator("layer_dropping", run.step, group.index)`` is the same after a resume, at any microbatch size
        and on any number of ranks.
        """
        return generator(self.config.seed, *parts)

    def state_dict(self) -> dict[str, Any]:
        """The whole trajectory: weights, optimizer, stream, clock, method, engine, step, random state."""
        return {
            "model": self.model.state_dict(),
            "active_layers": list(self.model.active_layers),
            "engine": self.engine.state_dict(),
            "stream": self.stream.state_dict(),
            "clock": self.clock.state_dict(),
            "method": self.method.state_dict(),
            "step": self.step,
            "notes": self.notes,
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the trajectory where it was saved."""
        self.model.load_state_dict(state["model"])
        self.model.active_layers = tuple(state["active_layers"])
        self.engine.load_state_dict(state["engine"])
        self.stream.load_state_dict(state["stream"])
        self.clock.load_state_dict(state["clock"])
        self.method.load_state_dict(state["method"])
        self.step = state["step"]
        self.notes = dict(state["notes"])
        set_random_state(state["random"], key(self.config.seed, "dropout", self.step))


def train(run: Run, observe: Callable[[Run], None]) -> None:
    """Train until the budget is spent, or ``observe`` raises."""
    while not run.clock.exhausted:
        batch = run.next_batch()
        if batch is None:  # the budget ended while sequences were being chosen
            break
        batch = batch.shared()
        run.method.before_step(run)
        factor = run.schedule(run.clock.progress)
        for group in batch.groups(run.method.sequences_per_draw):
            with run.method.thinned(run, group):
                for microbatch in run.microbatches(group):
                    run.engine.backward(microbatch, run.method.objective)
        run.step += run.method.update(run, batch, factor, run.take_step)
        run.method.after_step(run)
        observe(run)


def random_state() -> dict[str, Any]:
    """The global generators of torch, which only dropout uses: of several ranks, each has its own."""
    if here().world > 1:
        states = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state()} if _on_gpus() else {})
        return {"ranks": {kind: here().gathered(own[None]) for kind, own in states.items()}}
    devices = torch.cuda.get_rng_state_all() if _on_gpus() else []
    return {"cpu": torch.get_rng_state(), "cuda": list(devices)}


def set_random_state(state: Mapping[str, Any], seed: int = 0) -> None:
    """Set them; a state saved with another number of devices sets what both have.

    Of a run that goes on with another number of ranks nothing fits: they begin anew with ``seed``.
    """
    ranks, of_each = here(), state.get("ranks")
    if (ranks.world > 1 or of_each is not None) and (of_each is None or len(of_each["cpu"]) != ranks.world):
        torch.manual_seed(seed + ranks.rank)
    elif of_each is not None:
        torch.set_rng_state(of_each["cpu"][ranks.rank].clone())  # torch reads it as a struct, which must be aligned
        if _on_gpus() and "cuda" in of_each:
            torch.cuda.set_rng_state(of_each["cuda"][ranks.rank].clone())
    else:
        torch.set_rng_state(state["cpu"].clone())
        for index, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, index)


def _on_gpus() -> bool:
    return torch.cuda.is_available()
