"""Differentiating twice: exact products of a loss's Hessian with a vector.

Kernels and functions of ours that are fast because their backward pass is written by hand cannot be differentiated
again. Those whose backward pass is made of torch's operations can; the others ask ``twice()`` and take their plain
form, and of torch's own attention only the plain form is allowed.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cramming.errors import UserError

_NO_DERIVATIVE = re.compile(r"derivative for .* is not implemented|does not .*support double backward")
_END = "torch::autograd::Error"  # the node that once_differentiable leaves behind


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
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    given = zip(gradients, parameters, vectors, strict=True)
    curved = [(g, p, v) for g, p, v in given if g is not None and g.requires_grad]  # the others are constant
    _refuse_ends((slope for slope, _, _ in curved))
    found: tuple[Tensor | None, ...] = ()
    if curved:
        slopes, points, directions = zip(*curved, strict=True)
        try:
            found = torch.autograd.grad(slopes, points, directions, allow_unused=True)
        except RuntimeError as error:
            if not _NO_DERIVATIVE.search(str(error)):
                raise
            raise _impossible(str(error).splitlines()[0]) from error
    products = {id(p): h for (_, p, _), h in zip(curved, found, strict=True) if h is not None}
    return [
        None if gradient is None else products.get(id(parameter), torch.zeros_like(parameter))
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]


def _refuse_ends(slopes: Iterable[Tensor]) -> None:
    """Refuse gradients whose graph ends at a function that is differentiable once.

    Autograd puts a node there that raises an error if it is run; it never is, because behind it there is no parameter,
    and the products would lack what came through it without a word.
    """
    nodes = [slope.grad_fn for slope in slopes]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if node.name() == _END:
            raise _impossible("it has a function that is marked with @once_differentiable")
        following = {below for below, _ in node.next_functions} - seen
        seen |= following
        nodes.extend(following)


def _impossible(reason: str) -> UserError:
    return UserError(
        f"this model cannot be differentiated twice: {reason}; "
        "use an optimizer that needs no Hessian, such as train/optim=sophiag"
    )
