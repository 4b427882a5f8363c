"""Differentiating twice: exact products of a loss's Hessian with a vector.

Kernels and functions of ours that are fast because their backward pass is written by hand cannot be differentiated
again. Those whose backward pass is made of torch's operations can; the others ask ``twice()`` and take their plain
form, and of torch's own attention only the plain form is allowed.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cramming.errors import UserError

_MESSAGES = re.compile(r"once_differentiable|derivative for .* is not implemented|does not .*support double backward")


class _Passes:
    """What passes are for now. Not a context variable: backward passes on a GPU run in threads of autograd's own."""

    twice = False


def twice() -> bool:
    """Whether what is computed now will be differentiated twice, so that nothing but torch's own operations will do."""
    return _Passes.twice


@contextmanager
def differentiating_twice() -> Iterator[None]:
    """Around a forward pass and everything that differentiates it: plain forms, nothing compiled."""
    before, _Passes.twice = _Passes.twice, True
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _Passes.twice = before


def hessian_product(loss: Tensor, parameters: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor | None]:
    """The Hessian times a vector by differentiating (gradient . vector) (Pearlmutter, Neural Computation 6, 1994).

    Args:
        loss: (), made under ``differentiating_twice``, where this is called too.
        parameters: what it is a function of.
        vectors: one of the shape and type of each parameter.

    Returns:
        A product for each parameter; None for one that the loss does not depend on.

    Raises:
        UserError: something in the model cannot be differentiated twice.
    """
    try:
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        used = [(g, p, v) for g, p, v in zip(gradients, parameters, vectors, strict=True) if g is not None]
        curved = [(g, p, v) for g, p, v in used if g.requires_grad]  # the others are constant: no second derivative
        slopes, points, directions = zip(*curved, strict=True)
        found = torch.autograd.grad(slopes, points, directions, allow_unused=True)
    except RuntimeError as error:
        if not _MESSAGES.search(str(error)):
            raise
        raise UserError(
            f"this model cannot be differentiated twice ({str(error).splitlines()[0]}); "
            "use an optimizer that needs no Hessian, such as train/optim=sophiag"
        ) from error
    products = {id(p): h for (_, p, _), h in zip(curved, found, strict=True) if h is not None}
    return [
        None if gradient is None else products.get(id(parameter), torch.zeros_like(parameter))
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]
