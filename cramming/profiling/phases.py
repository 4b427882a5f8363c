"""What a step is doing at any moment: reading data, a pass forward, its way back, the optimizer's step, something else.

The loop and the engine say it to the run's ``Phases``, which in a run that nobody watches listens to nothing. A
``Timeline`` adds up the time of each phase. A phase inside another interrupts it: the seconds of all phases add up to
those of the step.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch

from cramming.batch import Batch

DATA, FORWARD, BACKWARD, OPTIMIZER, OTHER = "data", "forward", "backward", "optimizer", "other"
TRAINING = "train"  # the clock's account whose passes are forward and backward; those of others bear its name
PREFIX = "phase: "  # of a phase's name in a trace
_NOTHING = nullcontext()


class Phases:
    """Listens to nothing."""

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Around what a phase does."""
        return _NOTHING

    def forward(self, account: str, batch: Batch, gradients: bool) -> AbstractContextManager[None]:
        """Around a pass of the trained model over sequences, with a way back or without, that ``account`` pays."""
        return _NOTHING

    def backward(self, account: str) -> AbstractContextManager[None]:
        """Around the way back of the pass before."""
        return _NOTHING


UNWATCHED = Phases()


@dataclass(frozen=True)
class Pass:
    """One pass of a step, enough to do it again.

    Attributes:
        account: what pays.
        batch: its sequences.
        gradients: whether there is a way back.
        active_layers: the model's at that moment.
    """

    account: str
    batch: Batch
    gradients: bool
    active_layers: tuple[int, ...]


class Marker(Protocol):
    """Notes moments on a device's own time line."""

    def mark(self) -> Any:
        """The present moment."""
        ...

    def runs(self) -> bool:
        """Whether the device works now, rather than being told what to do later (the capture of a graph)."""
        ...

    def seconds(self, marks: list[Any]) -> list[float]:
        """Seconds between each mark and the next."""
        ...


class HostMarker:
    """The processor's clock.

    Args:
        now: seconds on any steady clock.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.mark = now

    def runs(self) -> bool:
        """Always."""
        return True

    def seconds(self, marks: list[float]) -> list[float]:
        """Seconds between each mark and the next."""
        return [after - before for before, after in pairwise(marks)]


class DeviceMarker:
    """The clock of the GPU: what is between two marks is the device's work, and its waiting for the host."""

    def mark(self) -> "torch.cuda.Event":
        """The present moment on the device's queue."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def runs(self) -> bool:
        """Unless a graph is captured."""
        return not torch.cuda.is_current_stream_capturing()

    def seconds(self, marks: list["torch.cuda.Event"]) -> list[float]:
        """Seconds between each mark and the next; waits for the last one."""
        if marks:
            marks[-1].synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def marker(device: torch.device) -> Marker:
    """The clock of a device."""
    return DeviceMarker() if device.type == "cuda" else HostMarker()


class Timeline(Phases):
    """Adds up the time of a step's phases, and notes its passes.

    Args:
        clock: of the device.
        active_layers: tells the model's, when a pass begins.
        on_pass: told the number of a pass of the step, from 1, as it begins.
    """

    def __init__(
        self,
        clock: Marker,
        active_layers: Callable[[], tuple[int, ...]],
        on_pass: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._clock, self._active_layers, self._on_pass = clock, active_layers, on_pass
        self._stack: list[str] = []  # phases that are under way; empty: no step is
        self._marks: list[tuple[str | None, Any]] = []  # what begins at a moment; None: nothing of a step
        self._passes: list[Pass] = []
        self.passes: list[Pass] = []  # of the latest step
        self.annotated = False  # phases bear their names in a trace

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """Around what a phase does; between steps nothing is noted."""
        return self._inside(name) if self._listens else _NOTHING

    def forward(self, account: str, batch: Batch, gradients: bool) -> AbstractContextManager[None]:
        """Around a pass; see ``Phases``."""
        if not self._listens:
            return _NOTHING
        self._passes.append(Pass(account, batch, gradients, self._active_layers()))
        self._on_pass(len(self._passes))
        return self._inside(FORWARD if account == TRAINING and gradients else account)

    def backward(self, account: str) -> AbstractContextManager[None]:
        """Around the way back of the pass before."""
        return self(BACKWARD if account == TRAINING else account)

    def begin(self) -> None:
        """The loop begins a step, or goes on with one that was deferred."""
        self._stack = [OTHER]
        self._note(OTHER)

    def pause(self) -> None:
        """What follows is no part of a step."""
        self._stack = []
        self._note(None)

    def end(self) -> dict[str, float]:
        """The step is done, and nothing more happens to it: seconds of each of its phases."""
        if self._stack:
            self.pause()
        names = [name for name, _ in self._marks]
        sums: dict[str, float] = {}
        for name, seconds in zip(names, self._clock.seconds([at for _, at in self._marks]), strict=False):
            if name is not None:
                sums[name] = sums.get(name, 0.0) + seconds
        self.passes, self._passes, self._marks = self._passes, [], []
        return sums

    @property
    def _listens(self) -> bool:
        return bool(self._stack) and self._clock.runs()

    @contextmanager
    def _inside(self, name: str) -> Iterator[None]:
        self._stack.append(name)
        self._note(name)
        label = torch.profiler.record_function(f"{PREFIX}{name}") if self.annotated else _NOTHING
        try:
            with label:
                yield
        finally:
            if self._stack:
                self._stack.pop()
            self._note(self._stack[-1] if self._stack else None)

    def _note(self, name: str | None) -> None:
        self._marks.append((name, self._clock.mark()))
