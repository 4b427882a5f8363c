"""What every backend must obey on every device: the sizes, and the checks that tests ask of a backend by its name.

``test_laws.py`` asks those that run on a processor; tests of GPUs ask the others with ``device="cuda"``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from cramming.differentiation import differentiating_twice
from cramming.kernels import block_diagonal_glu, gated_long_conv
from cramming.kernels.operands import Convolution
from cramming.kernels.torch_convolution import points_of, spectra_of
from tests.kernels.kernel_cases import (
    BOUNDS,
    CONVOLUTION_NAMES,
    GLU_NAMES,
    ConvolutionCase,
    GluCase,
    error,
    hold_convolution,
    hold_glu,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OPS = ("gated_long_conv", "block_diagonal_glu")

# Lengths of 1, odd ones and such around powers of two; filters longer and shorter than the sequence; widths that divide
# nothing; one sequence; one direction; no second filter; masks, the last of several sequences having no token at all.
CONVOLUTIONS = (
    ConvolutionCase(channels=1, sequences=1, length=1, taps=1),
    ConvolutionCase(channels=3, sequences=2, length=1, taps=5, masked=True),
    ConvolutionCase(channels=5, sequences=3, length=2, taps=2, masked=True),
    ConvolutionCase(channels=5, sequences=4, length=2, taps=1, directions=1),
    ConvolutionCase(channels=4, sequences=2, length=3, taps=7, residual=False),
    ConvolutionCase(channels=7, sequences=1, length=31, taps=31, strided=True),
    ConvolutionCase(channels=33, sequences=3, length=64, taps=64, masked=True, strided=True),
    ConvolutionCase(channels=9, sequences=2, length=127, taps=127, masked=True),
    ConvolutionCase(channels=12, sequences=5, length=128, taps=128),
    ConvolutionCase(channels=3, sequences=17, length=128, taps=200, directions=1, masked=True),
    ConvolutionCase(channels=6, sequences=3, length=129, taps=129, residual=False, masked=True),
    ConvolutionCase(channels=3, sequences=2, length=129, taps=20, strided=True),
    ConvolutionCase(channels=3, sequences=2, length=200, taps=128, directions=1, residual=False),
    ConvolutionCase(channels=3, sequences=3, length=500, taps=500, masked=True),
    ConvolutionCase(channels=2, sequences=1, length=500, taps=700),
)
LONG_CONVOLUTION = ConvolutionCase(channels=2, sequences=1, length=1025, taps=1025)

GLUS = (
    GluCase(tokens=1, inputs=1, width=2, outputs=1),
    GluCase(tokens=3, inputs=5, width=6, outputs=7, pairs=1, blocks=1),
    GluCase(tokens=7, inputs=192, width=96, outputs=5),
    GluCase(tokens=33, inputs=17, width=30, outputs=11, pairs=3, blocks=6, biased=False),
    GluCase(tokens=127, inputs=9, width=12, outputs=3, pairs=1, blocks=4, strided=True),
    GluCase(tokens=128, inputs=64, width=128, outputs=64),
    GluCase(tokens=129, inputs=48, width=40, outputs=24, pairs=2, blocks=2, strided=True),
    GluCase(tokens=500, inputs=24, width=96, outputs=24, biased=False),
    GluCase(tokens=300, inputs=32, width=160, outputs=20),
)

drawn_convolutions = st.builds(
    ConvolutionCase,
    channels=st.integers(1, 11),
    sequences=st.integers(1, 5),
    length=st.integers(1, 150),
    taps=st.integers(1, 170),
    directions=st.sampled_from((1, 2)),
    residual=st.booleans(),
    masked=st.booleans(),
    strided=st.booleans(),
)


@st.composite
def drawn_glus(draw: st.DrawFn) -> GluCase:
    """Sizes that fit one another."""
    pairs, each, inner = (draw(st.integers(1, high)) for high in (3, 3, 20))
    sizes = {name: draw(st.integers(1, high)) for name, high in (("tokens", 90), ("inputs", 40), ("outputs", 20))}
    flags = {name: draw(st.booleans()) for name in ("biased", "strided")}
    return GluCase(width=each * inner, pairs=pairs, blocks=pairs * each, **sizes, **flags)


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is allocated without a value is full of NaN, or of the largest number an integer can be."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.utils.deterministic.fill_uninitialized_memory
    try:
        assert torch.empty(3).isnan().all()
        assert torch.ones(2).new_empty(2).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def public(op: str) -> tuple[Any, tuple[str, ...]]:
    """A public operation and the names of its operands."""
    return (gated_long_conv, CONVOLUTION_NAMES) if op == OPS[0] else (block_diagonal_glu, GLU_NAMES)


def some(op: str, dtype: torch.dtype, device: str = "cpu", tiny: bool = False) -> list[Tensor | None]:
    """Operands of an operation with everything it can have."""
    if op == OPS[0]:
        size = (2, 2, 5, 4) if tiny else (5, 3, 40, 23)
        return ConvolutionCase(*size, masked=True).operands(dtype, device)
    return GluCase(*((3, 2, 4, 3) if tiny else (37, 20, 24, 9))).operands(dtype, device)


def hold(case: ConvolutionCase | GluCase, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """Output and gradients against the definition in float64."""
    (hold_convolution if isinstance(case, ConvolutionCase) else hold_glu)(case, dtype, backend, device)  # type: ignore[operator]


def writes_everything(case: ConvolutionCase | GluCase, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """The same where outputs are full of NaN before they are written."""
    with poisoned():
        hold(case, dtype, backend, device)


def slopes_of(op: str, operands: list[Tensor | None], backend: str, **more: Any) -> list[Tensor]:
    """The output, and the gradient of every operand that has one, for an incoming gradient drawn by a seed."""
    call, _ = public(op)
    made = call(*operands, backend=backend, **more)
    incoming = torch.randn(made.shape, generator=torch.Generator().manual_seed(3)).to(made)
    leaves = [part for part in operands if part is not None and part.requires_grad]
    return [made, *torch.autograd.grad(made, leaves, incoming)]


def does_the_same_twice(op: str, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """To the last bit."""
    operands = some(op, dtype, device)
    first, again = slopes_of(op, operands, backend), slopes_of(op, operands, backend)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def goes_back_twice(case: ConvolutionCase | GluCase, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """The same backward pass again gives the same: what was kept for it is only read."""
    call, _ = public(OPS[0] if isinstance(case, ConvolutionCase) else OPS[1])
    operands = case.operands(dtype, device)
    leaves = [part for part in operands if part is not None and part.requires_grad]
    total = call(*operands, backend=backend).sum()
    first, again = (torch.autograd.grad(total, leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def leaves_operands_alone(op: str, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """What is given is only read."""
    operands = some(op, dtype, device)
    before = [None if part is None else part.detach().clone() for part in operands]
    slopes_of(op, operands, backend)
    pairs = zip(operands, before, strict=True)
    assert all(part is None or torch.equal(part, kept) for part, kept in pairs)  # type: ignore[arg-type]


def can_be_compiled(op: str, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """As part of one whole graph, with its gradients."""
    call, _ = public(op)
    operands = some(op, dtype, device)

    def between(*parts: Tensor | None) -> Tensor:
        return call(*(None if part is None else part.clone() for part in parts), backend=backend) * 2  # type: ignore[no-any-return]

    leaves = [part for part in operands if part is not None and part.requires_grad]
    results = []
    for run in (between, torch.compile(between, fullgraph=True, backend="aot_eager")):
        made = run(*operands)
        results.append([made, *torch.autograd.grad(made.square().sum(), leaves)])
    torch._dynamo.reset()
    assert all(torch.equal(plain, compiled) for plain, compiled in zip(*results, strict=True))


def takes_autocasts_type(op: str, backend: str, device: str = "cpu") -> None:
    """Under autocast: the result of operands of its type; gradients of the types that were given."""
    call, _ = public(op)
    operands = some(op, torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        made = call(*operands, backend=backend)
    cast = range(2) if op == OPS[0] else range(5)  # z and u; filters stay as they are
    low = [
        part.detach().to(torch.bfloat16).requires_grad_() if n in cast and part is not None else part
        for n, part in enumerate(operands)
    ]
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, call(*low, backend=backend))
    leaves = [part for part in operands if part is not None and part.requires_grad]
    slopes = torch.autograd.grad(made.float().square().sum(), leaves)
    assert all(slope.dtype == leaf.dtype for slope, leaf in zip(slopes, leaves, strict=True))


def can_be_differentiated_twice(op: str, backend: str, device: str = "cpu") -> None:
    """A product with the Hessian is that of the definition, in float64."""
    call, _ = public(op)
    operands = some(op, torch.float64, device, tiny=True)
    leaves = [part for part in operands if part is not None and part.requires_grad]
    draw = torch.Generator().manual_seed(5)
    vectors = [torch.randn(leaf.shape, generator=draw, dtype=torch.float64).to(device) for leaf in leaves]
    products = []
    for name in ("reference", backend):
        with differentiating_twice():
            first = torch.autograd.grad(call(*operands, backend=name).square().sum(), leaves, create_graph=True)
            products.append(torch.autograd.grad(first, leaves, vectors))
    assert all(error(found, exact) < BOUNDS[torch.float64] for exact, found in zip(*products, strict=True))
    assert any(bool(product.any()) for product in products[0])


def takes_kept_spectra(dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """Filters' transforms that the caller has kept change nothing but rounding; taps still get their gradient."""
    operands = some(OPS[0], dtype, device)
    with torch.no_grad():
        wide = Convolution(*operands)  # type: ignore[arg-type]
        spectra = torch.view_as_real(spectra_of(wide, points_of(wide)))
    for plain, given in zip(
        slopes_of(OPS[0], operands, backend), slopes_of(OPS[0], operands, backend, spectra=spectra), strict=True
    ):
        assert given.dtype == plain.dtype
        assert error(given, plain.double()) < 2 * BOUNDS[dtype]


def takes_nothing(op: str, backend: str, device: str = "cpu") -> None:
    """No sequence, no token: empty outputs, gradients of zero for what is not empty."""
    if op == OPS[0]:
        operands = ConvolutionCase(3, 0, 7, 4).operands(torch.float32, device)
    else:
        operands = GluCase(0, 4, 6, 5).operands(torch.float32, device)
    made, *slopes = slopes_of(op, operands, backend)
    assert made.shape == ((3, 0, 7) if op == OPS[0] else (0, 20))
    leaves = [part for part in operands if part is not None and part.requires_grad]
    assert [slope.shape for slope in slopes] == [leaf.shape for leaf in leaves]
    assert not any(bool(slope.any()) for slope in slopes)


def torch_finds_it_in_order(op: str, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """Schema, autograd, fake tensors and tracing, by torch's own checker, of an operation and of its backward."""
    operands = some(op, dtype, device)
    call, _ = public(op)
    made = call(*operands, backend=backend)
    incoming = torch.ones_like(made)
    bare = [None if part is None else part.detach() for part in operands]
    namespace = torch.ops.cramming
    if op == OPS[0]:
        torch.library.opcheck(namespace.gated_long_conv.default, (*operands, None, backend))
        torch.library.opcheck(namespace.gated_long_conv_backward.default, (incoming, *bare, None, backend))
    else:
        torch.library.opcheck(namespace.block_diagonal_glu.default, (*operands, True, backend))
        torch.library.opcheck(namespace.block_diagonal_glu.default, (*bare, False, backend))
        kept = namespace.block_diagonal_glu(*bare, True, backend)[1]
        torch.library.opcheck(namespace.block_diagonal_glu_backward.default, (incoming, *bare, kept, backend))
