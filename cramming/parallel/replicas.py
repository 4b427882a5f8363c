"""The model whole on every rank, by torch's DistributedDataParallel."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cramming.model import Model
from cramming.precision import WorkingCopy


class Replicas(WorkingCopy[Model]):
    """Float32 gradients are averaged over ranks where a batch ends, bucket by bucket while its last pass goes back.

    In 16 bits the low-precision copy is lent to the passes as a function of the float32 weights, so that gradients
    arrive there, which is where DistributedDataParallel adds up microbatches and averages ranks. Parameters that no
    rank used keep the gradient None.
    """

    def __init__(self, model: Model, precision: str, *, once: bool = True) -> None:
        super().__init__(model, precision, once=once)
        self._cast, self.pairs = self.pairs, [(p, p) for p in model.parameters()]
        called = model if self.is_model else _Lending(model, self.module)
        # With every step other layers may have no part in it; buffers are the same everywhere.
        self._replica = DistributedDataParallel(
            called, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
        )
        self._averages = False

    def __call__(self, batch: Any, logits: bool) -> Tensor:
        """A pass forward."""
        if not torch.is_grad_enabled():
            return super().__call__(batch, logits)
        with nullcontext() if self._averages else self._replica.no_sync():
            output: Tensor = self._replica(batch, logits=logits)
        self._averages = False  # a second pass before the next microbatch has no gradient of its own
        return output

    def begin(self, ends_group: bool, ends_batch: bool) -> None:
        """Before a pass with its way back: gradients are averaged with the last one of a batch."""
        self._averages = ends_batch

    def refresh(self) -> None:
        """Bring the copy up to date if any weight was written since."""
        self._bring_up_to_date(self._cast)

    def collect(self) -> None:
        """Gradients are where they belong."""
        if not self._once:
            self.written()


class _Lending(nn.Module):
    """A model whose passes run on a copy of its weights.

    Args:
        model: its parameters are this module's.
        copy: of the model, with these weights in 16 bits.
    """

    def __init__(self, model: Model, copy: Model) -> None:
        super().__init__()
        self.model = model
        # Not one of this module's own. Its weights want gradients, as what is lent does, so that a layer computed again
        # on the way back, when they are in their places again, keeps the same tensors.
        self._copy = (copy,)

    def forward(self, batch: Any, logits: bool = False) -> Tensor:
        """A pass."""
        (copy,) = self._copy
        weights = zip(self.model.named_parameters(), copy.parameters(), strict=True)
        lent = {name: _Lent.apply(parameter, twin) for (name, parameter), twin in weights}  # type: ignore[no-untyped-call]
        output: Tensor = torch.func.functional_call(copy, lent, (batch,), {"logits": logits})
        return output


class _Lent(torch.autograd.Function):
    """A copy in 16 bits as a function of the weights it is a copy of."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, twin: Tensor) -> Tensor:
        """The copy, in its own memory."""
        ctx.dtype = parameter.dtype
        return twin.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of the copy is that of the weights."""
        return gradient.to(ctx.dtype), None
