"""Selective backprop: train on the sequences that are hard now (Jiang et al. 2019, https://arxiv.org/abs/1910.00762).

Candidates are scored by their loss, without gradients, and kept with probability (percentile of the loss among the most
recent losses) ^ beta, which keeps 1 / (beta + 1) of them; batches are made of what was kept. As in No Train No Gain
(https://arxiv.org/abs/2307.06440) a candidate's percentile counts itself, what is kept trains in stream order under the
masks it was scored with, and what is kept beyond a batch waits for the next one.

Costs a forward pass for every candidate, on account ``selection``: beta + 1 of them for every sequence trained on.
``free=[selection]`` writes them down without paying, the study's ablation.

Shape legend: B candidates, N losses in the history.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from cramming.batch import Batch
from cramming.errors import UserError
from cramming.hashing import key, mix
from cramming.method import Draw, Method
from cramming.registry import register

if TYPE_CHECKING:
    from cramming.train import Run

_BITS = 53  # of a float64 between 0 and 1


@register("method", "selective_backprop")
@dataclass
class SelectiveBackprop(Method):
    """Keep a sequence with probability percentile ^ beta of its loss; with beta 0 every sequence, in its order.

    A loss that is not finite is neither kept nor entered in the history. Sequences that wait are dropped, and counted,
    when the length of sequences changes: a batch has one length. With beta 0 they are the baseline's batches; only what
    is fixed when a sequence is drawn (a changing mask rate or length) can then differ, and only where a batch is no
    multiple of ``candidates_per_pass``, since what waits was drawn a step earlier.

    Attributes:
        beta: 0 keeps everything, 1 half, 2 a third, 3 a quarter; the study's runs have 1.
        history_batches: losses remembered, in batches of the run's final size: round(history_batches x batch). The
            study remembers 5,000 at batch 1536; 3.25 batches are 4,992.
        candidates_per_pass: sequences scored before the next are drawn, at most a batch; the study's 128. It is part of
            the method because it changes results: the candidates of a pass are in the history of each of them, and the
            last pass of a batch decides how many wait.

    Raises:
        UserError: an option outside its range.
    """

    beta: float = 1.0
    history_batches: float = 3.25
    candidates_per_pass: int = 128

    selects: ClassVar[bool] = True
    accounts: ClassVar[tuple[str, ...]] = ("selection",)

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:  # also refuses NaN
            raise UserError(f"method.selective_backprop.beta={self.beta} must be a finite number from 0, such as 1")
        if not 0 < self.history_batches < math.inf:
            raise UserError(
                f"method.selective_backprop.history_batches={self.history_batches} must be above 0 and finite, "
                "such as 3.25"
            )
        if self.candidates_per_pass < 1:
            raise UserError(
                f"method.selective_backprop.candidates_per_pass={self.candidates_per_pass} must be at least 1, "
                "such as 128"
            )
        self._capacity = 0  # N at most; known when the run is
        self._history = torch.empty(0)  # (N,) float32: the most recent finite losses, oldest first
        self._asked = 0  # sequences of the batch being chosen; 0: none is
        self._waiting: list[Batch] = []  # kept, not yet trained on
        self._candidates = 0  # scored so far
        self._dropped = 0  # waiting sequences of another length
        self._scored = self._kept = 0  # candidates since the latest batch
        self._kept_share = math.nan  # of the candidates scored for the latest batch that needed any
        self._not_finite = 0  # candidates in a row

    def setup(self, run: "Run") -> None:
        """Find out how many losses to remember.

        Raises:
            UserError: fewer than are scored at a time.
        """
        batch = run.batch_size(1.0)
        self._capacity = round(self.history_batches * batch)
        at_a_time = min(self.candidates_per_pass, batch)
        if self._capacity < at_a_time:
            raise UserError(
                f"method.selective_backprop.history_batches={self.history_batches} remembers {self._capacity} losses, "
                f"fewer than the {at_a_time} that are scored at a time; give at least {at_a_time / batch:.4g}"
            )

    def next_batch(self, run: "Run", draw: Draw, n: int) -> Batch | None:
        """The next ``n`` sequences that were kept, in stream order; None if the budget ended while scoring.

        What was kept until then waits, so that a run that goes on (``stop_at``) loses nothing.

        Raises:
            UserError: as many losses in a row as the history holds were not finite.
        """
        self._drop_other_lengths(run.stream.length)
        self._asked = n = self._asked or n  # a selection that was stopped in the middle goes on as it began
        while not run.clock.exhausted:
            if sum(map(len, self._waiting)) >= n:
                if self._scored:
                    self._kept_share, self._scored, self._kept = self._kept / self._scored, 0, 0
                self._asked = 0
                return self._take(n, run.stream.device)
            candidates = draw(min(self.candidates_per_pass, n, self._capacity))
            if candidates is None:
                return None
            chosen = self._choose(run.engine.losses(candidates, "selection").cpu(), run.config.seed)
            self._waiting.append(candidates.select(chosen.to(candidates.ids.device)))
            self._scored += len(chosen)
            self._kept += int(chosen.sum())
        return None

    def columns(self) -> dict[str, float]:
        """The share of candidates kept for the latest batch, candidates and dropped sequences so far."""
        return {
            "kept_share": self._kept_share,
            "candidates": float(self._candidates),
            "dropped_waiting": float(self._dropped),
        }

    def state_dict(self) -> dict[str, Any]:
        """The history, the sequences that wait, and what was counted."""
        return {
            "history": self._history,
            "asked": self._asked,
            "waiting": [dict(vars(batch)) for batch in self._waiting],
            "candidates": self._candidates,
            "dropped": self._dropped,
            "scored": self._scored,
            "kept": self._kept,
            "kept_share": self._kept_share,
            "not_finite": self._not_finite,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._history, self._asked = state["history"], state["asked"]
        self._waiting = [Batch(**fields) for fields in state["waiting"]]
        self._candidates, self._dropped, self._not_finite = state["candidates"], state["dropped"], state["not_finite"]
        self._scored, self._kept, self._kept_share = state["scored"], state["kept"], state["kept_share"]

    def _choose(self, losses: Tensor, seed: int) -> Tensor:
        """Losses of candidates (B,) -> (B,) bool: which to keep."""
        finite = losses.isfinite()
        self._history = torch.cat([self._history, losses[finite]])[-self._capacity :]
        self._not_finite = 0 if finite.any() else self._not_finite + len(losses)
        if self._not_finite >= self._capacity:  # nothing would ever be kept, and where scoring is free, no end come
            raise UserError(
                f"the loss was not finite for {self._not_finite} candidates in a row of method=selective_backprop; "
                "the last good checkpoint is kept: lower train.optim.lr or train.clip_norm"
            )
        chances = percentiles(losses, self._history) ** self.beta
        draws = uniform(seed, self._candidates, len(losses))
        self._candidates += len(losses)
        return finite & (draws < chances)

    def _take(self, n: int, device: torch.device) -> Batch:
        """The first ``n`` sequences of those that wait."""
        pool = Batch.concatenate([part.to(device) for part in self._waiting])  # a checkpoint's are on the processor
        places = torch.arange(len(pool), device=device)
        self._waiting = [pool.select(places[n:])] if len(pool) > n else []
        return pool.select(places[:n])

    def _drop_other_lengths(self, length: int) -> None:
        fitting = [part for part in self._waiting if part.length == length]
        self._dropped += sum(map(len, self._waiting)) - sum(map(len, fitting))
        self._waiting = fitting


def percentiles(losses: Tensor, history: Tensor) -> Tensor:
    """The share of the history below each loss, ties counting half: (B,), (N,) -> (B,) float64 from 0 to 1.

    It is the average rank, as ``scipy.stats.percentileofscore(history, loss, kind="rank") / 100`` gives it: with b
    losses below and t equal to it, (b + (t + 1) / 2) / N, or b / N where none is equal.
    """
    ordered = history.sort().values
    below = torch.searchsorted(ordered, losses)
    until = torch.searchsorted(ordered, losses, right=True)
    return (below + until + (until > below)).double() / (2 * len(history))


def uniform(seed: int, first: int, n: int) -> Tensor:
    """The draws of candidates number ``first`` to ``first + n - 1`` of a run: (n,) float64 in [0, 1).

    Each is a function of the seed and the candidate's number alone, however many are scored at a time.
    """
    hashes = mix(mix(torch.arange(first, first + n)) + key("selective_backprop", seed))
    return (hashes & ((1 << _BITS) - 1)).double() / (1 << _BITS)
