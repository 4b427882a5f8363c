"""Hutchinson's estimate of the Hessian's diagonal, for AdaHessian (https://arxiv.org/abs/2006.00719).

Before every k-th step, with z of +1 and -1 by chance, z H z on the step's own batch: its expectation is the diagonal of
H (Bekas et al., "An estimator for the diagonal of a matrix", 2007). H z is exact, by differentiating twice.

Cost: three forward and backward passes of the batch every k steps, account ``hessian``: a step with an estimate costs
four times that of AdamW. (The paper counts two: its gradient comes out of the same passes.) A microbatch keeps what its
gradient needs and what differentiating that needs, so it may have to be smaller than another optimizer's.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from cramming.batch import Batch
from cramming.errors import UserError
from cramming.hashing import generator
from cramming.method import Method, Step
from cramming.parallel.ranks import here
from cramming.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cramming.train import Run


@register("method", "hutchinson")
@dataclass
class Hutchinson(Method):
    """Give an optimizer that has ``update_diagonal`` the estimate z H z of every parameter that a batch used.

    Attributes:
        hessian_every_steps: k, optimizer steps from one estimate to the next; the first step has one.
    """

    hessian_every_steps: int = 1

    accounts: ClassVar[tuple[str, ...]] = ("hessian",)

    def __post_init__(self) -> None:
        if self.hessian_every_steps < 1:
            raise UserError(
                f"method.hutchinson.hessian_every_steps={self.hessian_every_steps} must be a whole number from 1"
            )

    def setup(self, run: "Run") -> None:
        if not hasattr(run.engine.optimizer, "update_diagonal"):
            raise UserError(
                f"method=hutchinson: {type(run.engine.optimizer).__name__} has no use for the Hessian's diagonal; "
                "use train/optim=adahessian, or leave the method out"
            )

    def update(self, run: "Run", batch: Batch, factor: float, step: Step) -> int:
        if run.step % self.hessian_every_steps == 0:
            products = self._products(run, batch)
            finite = bool(torch.isfinite(torch.nn.utils.get_total_norm(products.values())))
            if finite:  # else: float16 without enough room; the optimizer goes on with what it knows
                optimizer: Any = run.engine.optimizer
                optimizer.update_diagonal(products)
        return step(factor)

    def _products(self, run: "Run", batch: Batch) -> "dict[nn.Parameter, Tensor]":
        """z H z, with the layers that the gradients' passes had."""
        random = generator(run.config.seed, "hutchinson", run.step, device=run.engine.device)
        signs = {
            p: torch.randint(0, 2, p.shape, generator=random, device=p.device).to(p.dtype).mul_(2).sub_(1)
            for p in run.model.parameters()
        }
        sums: dict[nn.Parameter, Tensor] = {}
        for group in batch.groups(run.method.sequences_per_draw):
            with run.method.thinned(run, group):  # a pure function of (seed, step, group): the same layers again
                for microbatch in run.microbatches(group):
                    found = run.engine.hessian_product(microbatch, run.method.objective, signs, "hessian")
                    for parameter, product in found.items():
                        sums[parameter] = sums[parameter].add_(product) if parameter in sums else product
        return {parameter: here().sum_(total).mul_(signs[parameter]) for parameter, total in sums.items()}
