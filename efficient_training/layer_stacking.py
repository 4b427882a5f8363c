"""Layer stacking: begin with few layers, add layers that are copies of the trained ones (Gong et al. 2019, "Efficient
Training of BERT by Progressively Stacking", https://proceedings.mlr.press/v97/gong19a.html).

As in No Train No Gain (https://arxiv.org/abs/2307.06440) a quarter of the layers trains for 12.5 % of the budget, half
of them until 30 %, all of them after that: 4 -> 8 -> 16 of 16. Layers are added between two steps, when the progress of
the run says so; which are active is part of every checkpoint, and validation, export and later use see these.

Costs what the active layers cost; at the study's prices a budget buys 1.465 times the steps.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cramming.batch import Batch
from cramming.errors import UserError
from cramming.method import Method, Step
from cramming.model import Model, require_separable_layers
from cramming.optim.state import copy_state, drop_state
from cramming.registry import register
from cramming.suggest import nearest

if TYPE_CHECKING:
    from cramming.train import Run

SCHEDULES = ("manual", "monomial", "cosine")
GROWTHS = ("shares", "double", "one")
ORDERS = ("stack", "interleave")
OPTIMIZER_STATES = ("fresh", "copy", "keep", "reset")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """From a share of the budget on, so many layers are active."""

    begins: float
    layers: int


@register("method", "layer_stacking")
@dataclass
class LayerStacking(Method):
    """Train a growing number of layers; one stage of all of them is the baseline.

    Where rounding gives two stages the same depth they are one, so that a plan fits a model of any depth.

    Attributes:
        shares: how much of the model's layers each stage has: max(1, round(share x layers)).
        at: ``schedule=manual``: when each stage but the first begins, as shares of the budget. With ``double`` or
            ``one`` those beyond the last growth have nothing to do.
        schedule: when: ``manual``; ``monomial``: the i-th of n growths at until x (i / n)^power; ``cosine``: at
            until x arccos(1 - 2 i / n) / pi, slow at both ends.
        growth: how far: ``shares``; ``double`` or ``one`` (layer at a time) from the first of ``shares`` to its last.
        until: ``monomial``, ``cosine``: when the last stage begins, a share of the budget.
        power: ``monomial``: above 1 the first growths come closer to each other and the last ones farther apart.
        order: layer i of the n that there are after a growth from k is a copy of layer i mod k (``stack``: A,B ->
            A,B,A,B), or of layer i k // n (``interleave``: A,B -> A,A,B,B; the first of each pair is the old layer,
            moved, the second is new).
        optimizer_state: what the optimizer knows of layers. ``fresh``: of a new one nothing, an old one's goes where it
            goes (the study's default). ``copy``: a new one takes its source's, step counts included. ``keep``: nothing
            is touched, so that a place keeps what was known of whatever stood there. ``reset``: everything is
            forgotten, that of embeddings and head too (the study's ``reset_optim``, which it never passed on).
        learning_rate_power: while k of L layers are active, learning rates are times (k / L)^power; 0: as scheduled.
        freeze_lower: after a growth, the layers that were there before get no gradient, decay or update for this share
            of the budget, or until the next growth; 1: until then in any case. They are paid for all the same.

    Raises:
        UserError: an option that does not exist; a plan that shrinks, or grows when the budget is over.
    """

    shares: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0])
    at: list[float] = field(default_factory=lambda: [0.125, 0.3])
    schedule: str = "manual"
    growth: str = "shares"
    until: float = 0.75
    power: float = 1.0
    order: str = "stack"
    optimizer_state: str = "fresh"
    learning_rate_power: float = 0.0
    freeze_lower: float = 0.0

    def __post_init__(self) -> None:
        for key, known in (
            ("schedule", SCHEDULES),
            ("growth", GROWTHS),
            ("order", ORDERS),
            ("optimizer_state", OPTIMIZER_STATES),
        ):
            value = getattr(self, key)
            if value not in known:
                raise _wrong(key, value, f"is unknown{nearest(value, known)}")
        self._check_shares()
        self._check_times()
        if not math.isfinite(self.learning_rate_power):
            raise _wrong("learning_rate_power", self.learning_rate_power, "is not a finite number; give 0, or 0.25")
        if not 0 <= self.freeze_lower <= 1:
            raise _wrong("freeze_lower", self.freeze_lower, "is a share of the budget; give 0 to 1")
        self._frozen: list[nn.Parameter] = []  # in the step under way
        self._step: int | None = None  # the step that a batch was passed for last

    def stages(self, layers: int) -> list[Stage]:
        """The plan for a model of so many layers: when, ascending, how many are active, ascending.

        Raises:
            UserError: fewer times than the growths take.
        """
        depths = self._depths(layers)
        growths = len(depths) - 1
        if self.schedule == "manual":
            if growths > len(self.at):
                raise UserError(
                    f"method.layer_stacking.at={list(self.at)} ends at {depths[len(self.at)]} of {depths[-1]} layers: "
                    f"growth={self.growth} needs {growths} times, or schedule=monomial"
                )
            begins = list(self.at[:growths])
        elif self.schedule == "monomial":
            begins = [self.until * (i / growths) ** self.power for i in range(1, growths + 1)]
        else:
            begins = [self.until * math.acos(1 - 2 * i / growths) / math.pi for i in range(1, growths + 1)]
        plan = [Stage(0.0, depths[0])]
        for begin, depth in zip(begins, depths[1:], strict=True):
            if depth > plan[-1].layers:
                plan.append(Stage(begin, depth))
        return plan

    def setup(self, run: "Run") -> None:
        model = run.model
        require_separable_layers(model, "layer_stacking")
        stages = self.stages(model.layers)
        for before, after in pairwise(stages):
            for layer, source in enumerate(self._sources(before.layers, after.layers)):
                _matched(model, layer, source)
        model.active_layers = tuple(range(stages[0].layers))

    def before_step(self, run: "Run") -> None:
        progress, model = run.clock.progress, run.model
        stages = self.stages(model.layers)
        if run.step != self._step:  # else another method has put the step off, and a step has one depth
            for stage in stages:
                if stage.begins <= progress and stage.layers > len(model.active_layers):
                    self._grow(run, stage.layers)
        self._step = run.step
        (now,) = (i for i, stage in enumerate(stages) if stage.layers == len(model.active_layers))
        self._frozen = []
        if now and progress < stages[now].begins + self.freeze_lower:
            old = _first_places(self._sources(stages[now - 1].layers, stages[now].layers))
            self._frozen = [parameter for layer in old for parameter in model.blocks[layer].parameters()]

    @contextmanager
    def thinned(self, run: "Run", group: Batch) -> Iterator[None]:
        yield
        # Here and not in ``update``: a method that passes the batch again there has its gradients thinned as well.
        for parameter in self._frozen:
            parameter.grad = None

    def update(self, run: "Run", batch: Batch, factor: float, step: Step) -> int:
        share = len(run.model.active_layers) / run.model.layers
        return step(factor * share**self.learning_rate_power)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]

    def _depths(self, layers: int) -> list[int]:
        """How many layers are active, stage by stage; neighbours may be equal."""
        depths = [max(1, round(share * layers)) for share in self.shares]
        if self.growth == "shares":
            return depths
        first, last = depths[0], depths[-1]
        if self.growth == "one":
            return list(range(first, last + 1))
        doubled = [first]
        while doubled[-1] < last:
            doubled.append(min(2 * doubled[-1], last))
        return doubled

    def _sources(self, before: int, after: int) -> list[int]:
        """The layer that each of ``after`` layers is a copy of, among ``before``."""
        if self.order == "stack":
            return [layer % before for layer in range(after)]
        return [layer * before // after for layer in range(after)]

    def _grow(self, run: "Run", layers: int) -> None:
        """Copy weights into their places, hand on the optimizer's state, and activate the layers."""
        model, optimizer, before = run.model, run.engine.optimizer, len(run.model.active_layers)
        sources = self._sources(before, layers)
        old = set(_first_places(sources))
        moved: dict[nn.Parameter, nn.Parameter] = {}
        new: dict[nn.Parameter, nn.Parameter] = {}
        for layer, source in enumerate(sources):
            if layer != source:
                (moved if layer in old else new).update(_matched(model, layer, source))
        with torch.no_grad():
            copies = {target: source.clone() for target, source in (moved | new).items()}  # a target may be a source
            for target, value in copies.items():
                target.copy_(value)
        if self.optimizer_state == "reset":
            optimizer.state.clear()
        elif self.optimizer_state == "copy":
            copy_state(optimizer, moved | new)
        elif self.optimizer_state == "fresh":
            copy_state(optimizer, moved)
            drop_state(optimizer, new)
        model.active_layers = tuple(range(layers))
        _log.info("step %d: from %d to %d of %d layers", run.step, before, layers, model.layers)

    def _check_shares(self) -> None:
        if not self.shares:
            raise _wrong("shares", [], "names no stage; give shares of the layers, such as [0.25,0.5,1.0]")
        if not all(0 < share <= 1 for share in self.shares):
            raise _wrong("shares", list(self.shares), "must be shares of the layers above 0, up to 1")
        if list(self.shares) != sorted(self.shares):
            raise _wrong("shares", list(self.shares), "shrinks: no stage may have fewer layers than the one before")

    def _check_times(self) -> None:
        if self.schedule != "manual":
            if not 0 < self.until < 1:
                raise _wrong("until", self.until, "is when the last growth comes: give a share of the budget below 1")
            if not 0 < self.power < math.inf:
                raise _wrong("power", self.power, "must be above 0 and finite")
            return
        times = list(self.at)
        if not all(0 < time < 1 for time in times):
            raise _wrong("at", times, "must be shares of the budget above 0 and below 1: at 1 it is over")
        if any(time >= later for time, later in pairwise(times)):
            raise _wrong("at", times, "must ascend: each stage begins after the one before")
        if self.growth == "shares" and len(times) != len(self.shares) - 1:
            raise _wrong(
                "at",
                times,
                f"must say when each stage but the first begins: shares={list(self.shares)} takes "
                f"{len(self.shares) - 1} times",
            )


def _wrong(key: str, value: object, reason: str) -> UserError:
    return UserError(f"method.layer_stacking.{key}={value} {reason}")


def _first_places(sources: list[int]) -> list[int]:
    """Where each source stands first: the old layers, of which the others are copies."""
    return [sources.index(source) for source in sorted(set(sources))]


def _matched(model: Model, layer: int, source: int) -> dict[nn.Parameter, nn.Parameter]:
    """A layer's parameters and those of the same name in another. A norm that the other lacks stays as it is.

    Raises:
        UserError: the layers are made up in different ways.
    """
    ours, theirs = (dict(model.blocks[place].named_parameters()) for place in (layer, source))
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(name), theirs.get(name)
        if here is not None and there is None and here.dim() < 2:
            continue
        if here is None or there is None or here.shape != there.shape:
            raise UserError(
                f"method=layer_stacking cannot copy layer {source} of {type(model).__name__} to layer {layer}: they "
                f"differ in {name!r}; choose shares or an order that copies like to like"
            )
    return {ours[name]: theirs[name] for name in ours if name in theirs}
