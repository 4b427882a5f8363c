"""How the ranks of a run train one model together: ``impl.parallel``.

* ``none``: one process; passes run on the model, or on its low-precision copy (``cramming/precision.py``).
* ``ddp``: the model whole on every rank. Torch's DistributedDataParallel averages the gradients once for each step,
  bucket by bucket while the last microbatch is still on its way back.

All have the interface of ``WorkingCopy``, and the engine knows nothing else of them. Gradients that the optimizer sees
are float32 and those of the whole batch: losses are normalized by all ranks' predicted tokens and multiplied by their
number, because torch averages.
"""

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cramming.model import Model
from cramming.precision import DTYPES, WorkingCopy

Pair = tuple[nn.Parameter, nn.Parameter]


def spread(
    model: Model, optimizer: torch.optim.Optimizer, precision: str, parallel: str, *, once: bool = True
) -> "WorkingCopy[Model] | Replicas":
    """What passes run on.

    Args:
        model: float32 weights, on its device.
        optimizer: over them.
        precision: of the passes.
        parallel: ``none``, ``ddp`` or ``fsdp``.
        once: of one process: cast the weights once for each step, not for each microbatch.
    """
    if parallel == "none":
        return WorkingCopy(model, precision, once=once)
    return Replicas(model, precision)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is spread over ranks, together on each of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Replicas:
    """The model whole on every rank; float32 gradients are averaged over them where a batch ends.

    In 16 bits weights are cast within autograd's graph, so that gradients arrive at the float32 weights, which is where
    DistributedDataParallel adds up microbatches and averages ranks. Layers that no rank used keep the gradient None.
    """

    def __init__(self, model: Model, precision: str) -> None:
        self.model = model
        self._called = model if precision == "float32" else Cast(model, precision)
        self.module: Model = model if precision == "float32" else self._called.twin  # type: ignore[assignment]
        self.pairs: list[Pair] = [(p, p) for p in model.parameters()]
        # With every step other layers may have no part in it; buffers are the same everywhere.
        self._replica = DistributedDataParallel(
            self._called, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
        )
        self._averages = False

    def __call__(self, batch: Any, logits: bool) -> Tensor:
        """A pass forward."""
        if not torch.is_grad_enabled():
            output: Tensor = self._called(batch, logits=logits)
            return output
        with nullcontext() if self._averages else self._replica.no_sync():
            output = self._replica(batch, logits=logits)
        self._averages = False  # a second pass before the next microbatch has no gradient of its own
        return output

    def hidden(self, batch: Any) -> Tensor:
        """Final hidden states."""
        return self._called.hidden(batch)

    def begin(self, ends_group: bool, ends_batch: bool) -> None:
        """Before a pass with its way back: gradients are averaged with the last one of a batch."""
        self._averages = ends_batch

    def refresh(self) -> None:
        """Nothing is kept between passes."""

    def written(self) -> None:
        """Nothing is kept between passes."""

    def collect(self) -> None:
        """Gradients are where they belong."""


class Cast(nn.Module):
    """A model whose weights are cast for every pass, in autograd's graph."""

    def __init__(self, model: Model, precision: str) -> None:
        super().__init__()
        self.model = model
        self._dtype = DTYPES[precision]
        twin: Any = copy.deepcopy(model).to(self._dtype)
        for name, parameter in list(twin.named_parameters()):  # weights are lent it; without them it must not run
            place, _, key = name.rpartition(".")
            setattr(twin.get_submodule(place), key, nn.Parameter(torch.empty_like(parameter, device="meta")))
        self._hidden = (_Asked(twin),)  # not one of this module's own: its parameters are those of the model

    @property
    def twin(self) -> nn.Module:
        """The module that is lent the weights: it has the buffers, the options and the compiled blocks."""
        return self._hidden[0].twin

    def forward(self, batch: Any, logits: bool = False) -> Tensor:
        """A pass."""
        return self._ask("__call__", batch, logits=logits)

    def hidden(self, batch: Any) -> Tensor:
        """Final hidden states."""
        return self._ask("hidden", batch)

    def _ask(self, what: str, *args: Any, **options: Any) -> Tensor:
        lent = {f"twin.{name}": p.to(self._dtype) for name, p in self.model.named_parameters()}
        output: Tensor = torch.func.functional_call(self._hidden[0], lent, (what, *args), options)
        return output


class _Asked(nn.Module):
    """Something a module can do besides ``forward``, as a module's forward."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, what: str, *args: Any, **options: Any) -> Any:
        """Do it."""
        return getattr(self.twin, what)(*args, **options)
