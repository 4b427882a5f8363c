"""Backends that run on a processor obey every law, and the definition is what it says; what is refused, and how."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cramming.kernels import block_diagonal_glu, gated_long_conv
from tests.kernels import laws
from tests.kernels.kernel_cases import ConvolutionCase, GluCase, error

BACKENDS = ("reference", "torch")
LOW = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", laws.DTYPES, ids=str)
@pytest.mark.parametrize("case", laws.CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_convolutions(backend: str, case: ConvolutionCase, dtype: torch.dtype) -> None:
    laws.writes_everything(case, dtype, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_long_convolution(dtype: torch.dtype) -> None:
    laws.hold(laws.LONG_CONVOLUTION, dtype, "torch")


@pytest.mark.parametrize("dtype", laws.DTYPES, ids=str)
@pytest.mark.parametrize("case", laws.GLUS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gated_layers(backend: str, case: GluCase, dtype: torch.dtype) -> None:
    if backend == "reference" and dtype in LOW:
        pytest.skip("in 16 bits the definition rounds whatever torch rounds; it is asked in wide types")
    laws.writes_everything(case, dtype, backend)


@settings(max_examples=40)
@given(case=laws.drawn_convolutions, dtype=st.sampled_from(laws.DTYPES), backend=st.sampled_from(BACKENDS))
def test_drawn_convolutions(case: ConvolutionCase, dtype: torch.dtype, backend: str) -> None:
    laws.hold(case, dtype, backend)


@settings(max_examples=40)
@given(case=laws.drawn_glus(), dtype=st.sampled_from(laws.DTYPES))
def test_drawn_gated_layers(case: GluCase, dtype: torch.dtype) -> None:
    laws.hold(case, dtype, "torch")


@pytest.mark.parametrize("op", laws.OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_finite_differences(backend: str, op: str) -> None:
    call, _ = laws.public(op)
    assert torch.autograd.gradcheck(partial(call, backend=backend), laws.some(op, torch.float64, tiny=True))


@pytest.mark.parametrize("dtype", laws.DTYPES, ids=str)
@pytest.mark.parametrize("op", laws.OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_twice_and_operands_left_alone(backend: str, op: str, dtype: torch.dtype) -> None:
    laws.does_the_same_twice(op, dtype, backend)
    laws.leaves_operands_alone(op, dtype, backend)


@pytest.mark.parametrize("case", [*laws.GLUS[:2], laws.GLUS[5], *laws.CONVOLUTIONS[:3]], ids=str)
def test_what_is_kept_is_only_read(case: ConvolutionCase | GluCase) -> None:
    for dtype in laws.DTYPES:
        laws.goes_back_twice(case, dtype, "torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", laws.OPS)
def test_torch_finds_the_operations_in_order(op: str, dtype: torch.dtype) -> None:
    laws.torch_finds_it_in_order(op, dtype, "torch")


@pytest.mark.parametrize("op", laws.OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_autocast_and_twice(backend: str, op: str) -> None:
    laws.can_be_compiled(op, torch.float32, backend)
    laws.can_be_compiled(op, torch.bfloat16, backend)
    laws.takes_autocasts_type(op, backend)
    laws.can_be_differentiated_twice(op, backend)
    laws.takes_nothing(op, backend)


@pytest.mark.parametrize("dtype", laws.DTYPES, ids=str)
def test_kept_spectra(dtype: torch.dtype) -> None:
    laws.takes_kept_spectra(dtype, "torch")


def sums_over_positions(parts: list[Any]) -> Tensor:
    """``gated_long_conv`` entry by entry."""
    z, u, taps, taps_residual, bias, bias_residual, weight, short_bias, mask = parts
    channels, sequences, length = u.shape
    made = torch.zeros(channels, sequences, length, dtype=z.dtype)

    def short(channel: int, b: int, t: int) -> Tensor:
        lags = (k for k in range(3) if t - 2 + k >= 0)
        return short_bias[channel] + sum(weight[channel, k] * z[channel, b, t - 2 + k] for k in lags)  # type: ignore[no-any-return]

    def long(signal: Callable[[int], Tensor], h: Tensor, beta: Tensor, t: int) -> Tensor:
        total = beta * signal(t)
        for s in range(length):
            direction, place = (0, t - s) if s <= t else (1, s - t - 1)
            if direction < h.shape[0] and place < h.shape[1]:
                total = total + h[direction, place] * signal(s)
        return total

    for c in range(channels):
        for b in range(sequences):
            gated = [short(c, b, t) * short(2 * channels + c, b, t) * mask[b, t] for t in range(length)]
            beside = [u[c, b, t] * mask[b, t] for t in range(length)]
            for t in range(length):
                first = short(channels + c, b, t) * long(gated.__getitem__, taps[:, c], bias[c], t)
                second = long(beside.__getitem__, taps_residual[:, c], bias_residual[c], t)
                made[c, b, t] = first + second
    return made


@pytest.mark.parametrize(
    "case",
    [ConvolutionCase(2, 2, 7, 4, masked=True), ConvolutionCase(2, 1, 6, 9), ConvolutionCase(1, 2, 5, 5, directions=1)],
    ids=str,
)
def test_the_definition_is_the_sums_it_stands_for(case: ConvolutionCase) -> None:
    operands = case.operands(torch.float64)
    if operands[-1] is None:
        operands[-1] = torch.ones(case.sequences, case.length, dtype=torch.bool)
    exact = sums_over_positions([part.detach() for part in operands])  # type: ignore[union-attr]
    assert error(gated_long_conv(*operands, backend="reference"), exact) < 1e-14


def test_the_gated_layer_is_what_its_matrices_say() -> None:
    x, w_gate, w_value, w_out, bias = GluCase(5, 3, 8, 2).operands(torch.float64)
    inner, outer = (torch.block_diag(*weight.unbind()) for weight in (torch.cat((w_gate, w_value)), w_out))
    gates, values = (x @ inner.T).chunk(2, dim=1)
    exact = (F.gelu(gates) * values) @ outer.T + bias
    assert error(block_diagonal_glu(x, w_gate, w_value, w_out, bias, backend="reference"), exact) < 1e-14


def test_a_mask_hides_what_it_says() -> None:
    """What stands at a hidden position reaches no other, and its input of the residual convolution has no gradient."""
    operands = ConvolutionCase(3, 2, 9, 9).operands(torch.float32)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 6:] = False
    mask[1] = False
    u = operands[1]
    made, *slopes = laws.slopes_of("gated_long_conv", [*operands[:8], mask], "torch")
    assert not made[:, 1].any(), "a sequence without a token"
    assert not slopes[1][:, 0, 6:].any()
    moved = u.detach().clone()  # type: ignore[union-attr]
    moved[:, 0, 6:] += 1
    again = gated_long_conv(operands[0], moved, *operands[2:8], mask, backend="torch")
    assert torch.equal(made, again)


# What is changed of operands that fit, and what is said about it.
CONVOLUTION: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"z": torch.zeros(6, 5)}, ValueError, r"z has the shape \(6, 5\): it must be \(3C, B, S\)"),
    ({"z": torch.zeros(7, 2, 5)}, ValueError, r"z has the shape \(7, 2, 5\): it must be \(3C, B, S\)"),
    ({"z": torch.zeros(0, 2, 5)}, ValueError, r"z has the shape \(0, 2, 5\)"),
    ({"u": None}, ValueError, "u, taps_residual and bias_residual belong together: u is None"),
    ({"taps_residual": None, "u": None}, ValueError, "belong together: u and taps_residual is None"),
    (
        {"u": torch.zeros(2, 2, 6)},
        ValueError,
        r"u has the shape \(2, 2, 6\): beside z \(6, 2, 5\) it must be \(2, 2, 5\)",
    ),
    ({"bias": torch.zeros(3)}, ValueError, r"bias has the shape \(3,\): beside z \(6, 2, 5\) it must be \(2,\)"),
    ({"bias_residual": torch.zeros(2, 1)}, ValueError, r"bias_residual has the shape \(2, 1\): .* must be \(2,\)"),
    ({"short_weight": torch.zeros(6, 4)}, ValueError, r"short_weight has the shape \(6, 4\): .* must be \(6, 3\)"),
    ({"short_bias": torch.zeros(2)}, ValueError, r"short_bias has the shape \(2,\): .* must be \(6,\)"),
    ({"mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"mask has the shape \(2, 4\): .* must be \(2, 5\)"),
    ({"taps": torch.zeros(3, 2, 4)}, ValueError, r"taps has the shape \(3, 2, 4\): .* must be \(1 or 2, 2, R\)"),
    ({"taps": torch.zeros(1, 2, 0)}, ValueError, r"taps has the shape \(1, 2, 0\): .* R from 1"),
    ({"taps_residual": torch.zeros(2, 4)}, ValueError, r"taps_residual has the shape \(2, 4\)"),
    (
        {"u": torch.zeros(2, 2, 5).half()},
        TypeError,
        r"u is torch.float16 and z torch.float32: both must be of one type",
    ),
    ({"mask": torch.ones(2, 5)}, TypeError, "mask is torch.float32: it must be torch.bool"),
    (
        {"z": torch.zeros(6, 2, 5, dtype=torch.int64)},
        TypeError,
        "torch.int64 is no type to compute in here: choose from",
    ),
    ({"taps": torch.zeros(2, 2, 4, device="meta")}, TypeError, "one device: z on cpu, u on cpu, taps on meta"),
    ({"backend": "trition"}, ValueError, "backend=trition is unknown.*triton"),
]
GLU: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(8)}, ValueError, r"x has the shape \(8,\): it must have 2 dimensions"),
    ({"w_gate": torch.zeros(4, 2)}, ValueError, r"w_gate has the shape \(4, 2\): it must have 3 dimensions"),
    ({"w_value": torch.zeros(2, 0, 2)}, ValueError, r"w_value has the shape \(2, 0, 2\): .* none empty"),
    ({"w_value": torch.zeros(2, 5, 2)}, ValueError, r"w_value has the shape \(2, 5, 2\) and w_gate \(2, 4, 2\)"),
    ({"x": torch.zeros(3, 9)}, ValueError, r"x has the shape \(3, 9\): beside w_gate \(2, 4, 2\) it must be \(T, 8\)"),
    ({"w_out": torch.zeros(3, 3, 2)}, ValueError, r"w_out has the shape \(3, 3, 2\): .* multiple of 2, .* make 8"),
    ({"w_out": torch.zeros(4, 3, 3)}, ValueError, r"w_out has the shape \(4, 3, 3\): .* make 8"),
    ({"w_out": torch.zeros(4, 2)}, ValueError, r"w_out has the shape \(4, 2\): it must have 3 dimensions"),
    ({"bias": torch.zeros(11)}, ValueError, r"bias has the shape \(11,\): it must be \(12,\)"),
    ({"w_out": torch.zeros(4, 3, 2).bfloat16()}, TypeError, "w_out is torch.bfloat16 and x torch.float32: all must be"),
    ({"x": torch.zeros(3, 8, dtype=torch.int32)}, TypeError, "torch.int32 is no type to compute in here: choose from"),
    ({"w_gate": torch.zeros(2, 4, 2, device="meta")}, TypeError, "one device: x on cpu, w_gate on meta"),
    ({"backend": "cudda"}, ValueError, "backend=cudda is unknown.*cuda"),
]


@pytest.mark.parametrize(
    ("op", "changed", "kind", "said"),
    [("gated_long_conv", *row) for row in CONVOLUTION] + [("block_diagonal_glu", *row) for row in GLU],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(op: str, changed: dict[str, Any], kind: type[Exception], said: str) -> None:
    call, names = laws.public(op)
    operands = dict(zip((*names, "mask"), laws.some(op, torch.float32, tiny=True), strict=False))
    assert call(**operands).isfinite().all()
    with pytest.raises(kind, match=said):
        call(**(operands | changed))
