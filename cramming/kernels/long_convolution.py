"""``gated_long_conv``: the sequence mixer of M2-BERT between its two projections, as one operation.

Shape legend: ``operands.py``.
"""

import torch
from torch import Tensor

from cramming.differentiation import twice
from cramming.kernels import backends, reference
from cramming.kernels.operands import Convolution, ConvolutionGradients
from cramming.kernels.torch_convolution import composed
from cramming.kernels.types import autocast_to, same_device, wide_of

OP = "gated_long_conv"


def gated_long_conv(
    z: Tensor,
    u: Tensor | None,
    taps: Tensor,
    taps_residual: Tensor | None,
    bias: Tensor,
    bias_residual: Tensor | None,
    short_weight: Tensor,
    short_bias: Tensor,
    mask: Tensor | None = None,
    *,
    spectra: Tensor | None = None,
    backend: str = backends.AUTO,
) -> Tensor:
    """Two gated convolutions as long as the sequence, channel by channel: -> (C, B, S), of z's type.

    Monarch Mixer's sequence mixer (https://arxiv.org/abs/2310.12109, as in its BERT): with x1, x2 and v the three
    thirds of z, each passed through a causal convolution of three taps,

        x[c, b, t] = short_bias[c] + sum_{k = 0..2} short_weight[c, k] z[c, b, t - 2 + k]
        y = x2 * long(mask * x1 * v; taps, bias) + long(mask * u; taps_residual, bias_residual)
        long(s; h, beta)[t] = sum_{d >= 0} h[0, d] s[t - d] + sum_{d >= 1} h[1, d - 1] s[t + d] + beta s[t]

    where positions before the first and behind the last hold zero, and lags beyond R have no tap. Under autocast z and
    u are taken in its type; sums are at least float32. Gradients of every floating-point operand, the same every time.

    Args:
        z: (3C, B, S), any strides: float32, bfloat16, float16 or float64. Channels of x1, then of x2, then of v.
        u: (C, B, S), of z's type; None: the second term is left out, and so are the two operands named residual.
        taps: (D, C, R): forward, and where D is 2 backward; R may be less than S, or more: the rest has no effect.
        taps_residual: (D', C, R').
        bias: (C,).
        bias_residual: (C,).
        short_weight: (3C, 3), the tap of the oldest position first.
        short_bias: (3C,).
        mask: (B, S) bool, true where a token is: others do not exist for the long convolutions. None: all are.
        spectra: the filters' transforms, (K, C, F, 2), where the caller has kept them
            (``torch_convolution.spectra_of``); taps still get the gradient.
        backend: of ``backends.NAMES``, or ``auto``.

    Raises:
        ValueError: shapes that do not fit one another.
        TypeError: types or devices that do not.
    """
    given = operands(z, u, taps, taps_residual, bias, bias_residual, short_weight, short_bias, mask, spectra)
    backends.check(backend)
    if backend == backends.REFERENCE:
        return reference.convolve(given)
    if twice():
        return composed(given)
    mixed: Tensor = _forward(*given, backend)
    return mixed


def operands(
    z: Tensor,
    u: Tensor | None,
    taps: Tensor,
    taps_residual: Tensor | None,
    bias: Tensor,
    bias_residual: Tensor | None,
    short_weight: Tensor,
    short_bias: Tensor,
    mask: Tensor | None = None,
    spectra: Tensor | None = None,
) -> Convolution:
    """What ``gated_long_conv`` is given, of the types that backends expect; raises what it raises."""
    z, u = autocast_to(z, u)  # type: ignore[assignment]
    wide = wide_of(z)
    given = Convolution(
        z,
        u,
        taps.to(wide),
        None if taps_residual is None else taps_residual.to(wide),
        bias.to(wide),
        None if bias_residual is None else bias_residual.to(wide),
        short_weight.to(wide),
        short_bias.to(wide),
        mask,
        spectra,
    )
    _check(given)
    return given


def forward(
    z: Tensor,
    u: Tensor | None,
    taps: Tensor,
    taps_residual: Tensor | None,
    bias: Tensor,
    bias_residual: Tensor | None,
    short_weight: Tensor,
    short_bias: Tensor,
    mask: Tensor | None,
    spectra: Tensor | None,
    backend: str,
) -> Tensor:
    given = Convolution(z, u, taps, taps_residual, bias, bias_residual, short_weight, short_bias, mask, spectra)
    if not z.numel():
        return z.new_empty(given.z.shape[0] // 3, *z.shape[1:])
    made: Tensor = backends.module(OP, backend, given).convolve(given)
    return made


_forward = torch.library.custom_op("cramming::gated_long_conv", forward, mutates_args=())


@_forward.register_fake
def _(z: Tensor, *_: object) -> Tensor:
    return z.new_empty(z.shape[0] // 3, z.shape[1], z.shape[2])


def backward(
    gradient: Tensor,
    z: Tensor,
    u: Tensor | None,
    taps: Tensor,
    taps_residual: Tensor | None,
    bias: Tensor,
    bias_residual: Tensor | None,
    short_weight: Tensor,
    short_bias: Tensor,
    mask: Tensor | None,
    spectra: Tensor | None,
    backend: str,
) -> list[Tensor]:
    """Gradients in the order of ``ConvolutionGradients``; an empty tensor for what was not given."""
    given = Convolution(z, u, taps, taps_residual, bias, bias_residual, short_weight, short_bias, mask, spectra)
    if z.numel():
        found = backends.module(OP, backend, given).convolve_back(given, gradient)
    else:
        slopes = (None if part is None else torch.zeros_like(part) for part in given[:8])
        found = ConvolutionGradients(*slopes)  # type: ignore[arg-type]
    # In the order in memory that was promised, whatever that of the operands is.
    return [z.new_empty(0) if part is None else part.contiguous() for part in found]


_backward = torch.library.custom_op("cramming::gated_long_conv_backward", backward, mutates_args=())


@_backward.register_fake
def _(gradient: Tensor, *given: Tensor | None) -> list[Tensor]:
    z = given[0]
    assert z is not None
    return [z.new_empty(0) if part is None else part.new_empty(part.shape) for part in given[:8]]


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    *given, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(*given)


def _differentiate(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    given = ctx.saved_tensors  # type: ignore[attr-defined]
    found = _backward(gradient, *given, ctx.backend)  # type: ignore[attr-defined]
    slopes = (None if part is None else slope for part, slope in zip(given[:8], found, strict=True))
    return *slopes, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _check(given: Convolution) -> None:
    """Shapes, types and devices.

    Raises:
        ValueError: shapes.
        TypeError: types or devices.
    """
    z = given.z
    if z.dim() != 3 or z.shape[0] % 3 or not z.shape[0]:
        raise ValueError(f"z has the shape {tuple(z.shape)}: it must be (3C, B, S), three channels for each of y's")
    channels, sequences, length = z.shape[0] // 3, z.shape[1], z.shape[2]
    absent = [name for name in ("u", "taps_residual", "bias_residual") if getattr(given, name) is None]
    if absent and len(absent) < 3:
        raise ValueError(f"u, taps_residual and bias_residual belong together: {' and '.join(absent)} is None")
    expected = {
        "u": (channels, sequences, length),
        "bias": (channels,),
        "bias_residual": (channels,),
        "short_weight": (3 * channels, reference.SHORT),
        "short_bias": (3 * channels,),
        "mask": (sequences, length),
    }
    for name, shape in expected.items():
        part = getattr(given, name)
        if part is not None and tuple(part.shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(part.shape)}: beside z {tuple(z.shape)} it must be {shape}")
    for name in ("taps", "taps_residual"):
        part = getattr(given, name)
        if part is not None and (
            part.dim() != 3 or part.shape[0] not in (1, 2) or part.shape[1] != channels or not part.shape[2]
        ):
            raise ValueError(
                f"{name} has the shape {tuple(part.shape)}: beside z {tuple(z.shape)} it must be (1 or 2, {channels}, "
                "R), R from 1"
            )
    if given.u is not None and given.u.dtype != z.dtype:
        raise TypeError(f"u is {given.u.dtype} and z {z.dtype}: both must be of one type")
    filters, spectra = 1 if given.u is None else 2, given.spectra
    if spectra is not None and (
        spectra.dim() != 4 or spectra.shape[:2] != (filters, channels) or spectra.shape[3] != 2
    ):
        raise ValueError(
            f"spectra has the shape {tuple(spectra.shape)}: beside z {tuple(z.shape)} it must be "
            f"({filters}, {channels}, F, 2)"
        )
    if spectra is not None and spectra.dtype != given.taps.dtype:
        raise TypeError(f"spectra is {spectra.dtype}: beside {z.dtype} it must be {given.taps.dtype}")
    if given.mask is not None and given.mask.dtype != torch.bool:
        raise TypeError(f"mask is {given.mask.dtype}: it must be torch.bool, true where a token is")
    same_device(given)
