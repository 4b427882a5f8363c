"""Three methods in miniature, one of each kind the loop must be able to carry; they read as examples of the contract.

Each has a neutral setting at which it must not change a single bit: ``KeepHardest(share=1)``, ``RandomDepth(keep=1)``,
``SecondPass(rho=0)``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from cramming.batch import Batch
from cramming.method import Draw, Method, Step
from cramming.train import Run


@dataclass
class KeepHardest(Method):
    """A selector: scores n sequences at a time and trains on the share with the highest loss.

    What is kept beyond n waits for the next step, so it is part of the state.
    """

    share: float = 0.75
    selects: ClassVar[bool] = True
    accounts: ClassVar[tuple[str, ...]] = ("selection",)

    def __post_init__(self) -> None:
        self.carried: list[Batch] = []

    def next_batch(self, run: Run, draw: Draw, n: int) -> Batch | None:
        kept, self.carried = self.carried, []
        while sum(map(len, kept)) < n:
            batch = None if run.clock.exhausted else draw(n)
            if batch is None:
                return None
            losses = run.engine.losses(batch, "selection")
            hardest = losses.topk(round(self.share * len(batch))).indices
            kept = [*kept, batch.select(hardest.sort().values)]  # in stream order
        pool = Batch.concatenate(kept)
        if len(pool) > n:
            self.carried = [pool.select(torch.arange(n, len(pool)))]
        return pool.select(torch.arange(n))

    def columns(self) -> dict[str, float]:
        return {"carried": float(sum(map(len, self.carried)))}

    def state_dict(self) -> dict[str, Any]:
        return {"carried": [dict(vars(batch)) for batch in self.carried]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.carried = [Batch(**fields) for fields in state["carried"]]


@dataclass
class RandomDepth(Method):
    """Every draw group runs through its own random selection of layers, none of them being one."""

    keep: float = 0.5
    sequences_per_draw: int | None = 4

    @contextmanager
    def thinned(self, run: Run, group: Batch) -> Iterator[None]:
        before: tuple[int, ...] = run.model.active_layers  # type: ignore[assignment]
        chance = torch.rand(len(before), generator=run.generator("random_depth", run.step, group.index)).tolist()
        run.model.active_layers = tuple(layer for layer, p in zip(before, chance, strict=True) if p < self.keep)  # type: ignore[assignment]
        try:
            yield
        finally:
            run.model.active_layers = before  # type: ignore[assignment]


@dataclass
class SecondPass(Method):
    """Sharpness-aware: the step uses the gradient at a point ``rho`` up the slope (https://arxiv.org/abs/2010.01412)."""

    rho: float = 0.05
    accounts: ClassVar[tuple[str, ...]] = ("second_pass",)

    def update(self, run: Run, batch: Batch, factor: float, step: Step) -> int:
        parameters = [p for p in run.model.parameters() if p.grad is not None]
        slopes = [p.grad for p in parameters if p.grad is not None]
        here = [p.detach().clone() for p in parameters]
        norm = float(torch.nn.utils.get_total_norm(slopes))
        with torch.no_grad():
            torch._foreach_add_(parameters, slopes, alpha=self.rho / norm)
        run.engine.optimizer.zero_grad(set_to_none=True)
        for group in batch.groups(run.method.sequences_per_draw):
            with run.method.thinned(run, group):  # a pure function of (seed, step, group): the same layers again
                for microbatch in group.split(run.engine.microbatch_size):
                    run.engine.backward(microbatch, run.method.objective, "second_pass")
        with torch.no_grad():
            torch._foreach_copy_(parameters, here)
        return step(factor)
