"""The least a step can take here: the seconds of its matrix products and Fourier transforms alone."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from cramming.batch import Batch
from cramming.model import Model
from cramming.out_of_memory import is_out_of_memory, largest_halving
from cramming.profiling.phases import Pass
from cramming.profiling.replay import Replay, recorded
from cramming.train import random_state, set_random_state

_REPEATS, _ENOUGH_S = 5, 1.0  # of the products of one kind of pass
_SCORES_BYTES = 2**31  # that attention written out may keep for backward
_KEPT_OF_SCORES = 3  # tensors of that size in a layer


def limit_s(
    passes: Sequence[Pass],
    build: Callable[[], Model],
    microbatch_size: int,
    now: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Seconds of what the passes of a step multiply, and nothing else; no trace is left of measuring it.

    Args:
        passes: of a step.
        build: makes a model like that of the passes, in their precision.
        microbatch_size: sequences that a pass without a way back takes at a time.
        now: seconds on a steady clock.

    Returns:
        Seconds; None if there is no memory for a second model.
    """
    state = random_state()
    try:
        return _Limit(build, microbatch_size, now).of(passes)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        set_random_state(state)


class _Limit:
    def __init__(self, build: Callable[[], Model], microbatch_size: int, now: Callable[[], float]) -> None:
        self._model = build()
        self._model.gradient_checkpointing = False  # layers computed again are no part of the limit
        self._device = next(self._model.parameters()).device
        self._microbatch_size, self._now = microbatch_size, now

    def of(self, passes: Sequence[Pass]) -> float | None:
        # Passes of one shape multiply the same; where sequences have lengths of their own, each is for itself.
        alike: dict[object, list[Pass]] = {}
        for number, one in enumerate(passes):
            batch = one.batch
            shape = (len(batch), batch.length, one.gradients, one.active_layers, batch.kept_depth)
            kept = None if batch.kept is None else batch.kept.shape
            key = (shape, kept) if batch.lengths is None and batch.starts is None else (shape, kept, number)
            alike.setdefault(key, []).append(one)
        seconds = 0.0
        for group in alike.values():
            each_s = self._seconds(group[0])
            if each_s is None:
                return None
            seconds += len(group) * each_s
        return seconds

    def _seconds(self, one: Pass) -> float | None:
        """Of one pass."""
        found: list[float] = []
        most = len(one.batch) if one.gradients else min(len(one.batch), self._microbatch_size)
        if not largest_halving(min(most, self._in_memory(one.batch)), lambda n: found.append(self._replayed(one, n))):
            return None
        return found[0]

    def _replayed(self, one: Pass, size: int) -> float:
        """Of one pass, ``size`` sequences at a time."""
        batch, times = one.batch, 1.0
        if batch.lengths is None and batch.starts is None:  # its parts are alike
            batch, times = next(batch.split(size)), len(batch) / size
        self._model.active_layers = one.active_layers
        calls = recorded(self._model, batch, size, one.gradients)
        self._model.zero_grad(set_to_none=True)
        replay, taken = Replay(calls, self._device), list[float]()
        replay.block()
        while len(taken) < 2 or (len(taken) < _REPEATS and sum(taken) < _ENOUGH_S):
            self._synchronize()
            began_s = self._now()
            replay.block()
            self._synchronize()
            taken.append(self._now() - began_s)
        return times * median(taken)

    def _in_memory(self, batch: Batch) -> int:
        """Sequences whose attention may be written out at once."""
        names = ("heads", "num_attention_heads")
        heads = [getattr(module, name, 0) for module in self._model.modules() for name in names]
        width = next(self._model.parameters()).element_size()
        scores = max([1, *heads]) * batch.length**2 * width * _KEPT_OF_SCORES * max(1, self._model.layers)
        return max(1, _SCORES_BYTES // scores)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
