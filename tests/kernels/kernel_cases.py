"""Operands for tests of kernels, and how far from the definition in float64 a backend may be.

A backend is asked through the public functions; what it gives is compared with the definition on the same values, in
float64, by the norm of the difference over the norm: outputs and every gradient.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cramming.kernels import block_diagonal_glu, gated_long_conv

# Of a float64 definition, ||found - exact|| / ||exact||.
BOUNDS = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
CONVOLUTION_NAMES = (
    "z", "u", "taps", "taps_residual", "bias", "bias_residual", "short_weight", "short_bias"
)  # fmt: skip
GLU_NAMES = ("x", "w_gate", "w_value", "w_out", "bias")


class ConvolutionCase(NamedTuple):
    """Sizes of one test of ``gated_long_conv``."""

    channels: int
    sequences: int
    length: int
    taps: int
    directions: int = 2
    residual: bool = True
    masked: bool = False
    strided: bool = False  # z and u lie position by position in memory

    def operands(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> list[Tensor | None]:
        """Operands of ``gated_long_conv`` in its order, random, with gradients wanted of all but the mask."""
        c, b, s, r = self.channels, self.sequences, self.length, self.taps
        draw = torch.Generator().manual_seed(hash((*self, seed)) % 2**31)
        wide = torch.promote_types(dtype, torch.float32)

        def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = wide) -> Tensor:
            made = scale * torch.randn(shape, generator=draw, dtype=torch.float64)
            return made.to(device, dtype)

        decay = torch.exp(-3 * torch.arange(r) / r).to(device)  # as filters do: lags far away matter less
        taps = [(normal(self.directions, c, r, scale=0.3) * decay).to(wide) for _ in range(2)]
        signals = [normal(3 * c, b, s, dtype=dtype), normal(c, b, s, dtype=dtype)]
        if self.strided:
            signals = [signal.permute(1, 2, 0).contiguous().permute(2, 0, 1) for signal in signals]
        z, u = signals
        mask = None
        if self.masked:
            mask = torch.rand(b, s, generator=draw) < 0.8
            mask[-1] = b == 1  # a sequence without a token, where there are others
            mask = mask.to(device)
        parts = [z, u, *taps, normal(c), normal(c), normal(3 * c, 3, scale=0.5), normal(3 * c, scale=0.5)]
        if not self.residual:
            parts[1] = parts[3] = parts[5] = None  # type: ignore[call-overload]
        return [*(None if part is None else part.requires_grad_() for part in parts), mask]


class GluCase(NamedTuple):
    """Sizes of one test of ``block_diagonal_glu``."""

    tokens: int
    inputs: int  # i
    width: int  # o
    outputs: int  # m
    pairs: int = 2
    blocks: int = 4
    biased: bool = True
    strided: bool = False

    def operands(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> list[Tensor | None]:
        """Operands of ``block_diagonal_glu`` in its order, random, with gradients wanted."""
        draw = torch.Generator().manual_seed(hash((*self, seed)) % 2**31)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            made = scale * torch.randn(shape, generator=draw, dtype=torch.float64)
            return made.to(device, dtype)

        inner = self.pairs * self.width // self.blocks
        x = normal(self.tokens, 2 * self.pairs * self.inputs)
        if self.strided:
            x = x.t().contiguous().t()
        parts = [
            x,
            normal(self.pairs, self.width, self.inputs, scale=self.inputs**-0.5),
            normal(self.pairs, self.width, self.inputs, scale=self.inputs**-0.5),
            normal(self.blocks, self.outputs, inner, scale=inner**-0.5),
            normal(self.blocks * self.outputs) if self.biased else None,
        ]
        return [None if part is None else part.requires_grad_() for part in parts]


def hold_to_the_definition(op: Any, names: Sequence[str], operands: list[Tensor | None], backend: str) -> None:
    """Compare output and gradients of a public operation by ``backend`` with the definition in float64."""
    dtype = operands[0].dtype  # type: ignore[union-attr]
    exact_operands = [part if part is None or part.dtype == torch.bool else exactly(part) for part in operands]
    exact = op(*exact_operands, backend="reference")
    found = op(*operands, backend=backend)
    assert found.dtype == dtype
    assert found.shape == exact.shape
    bound = BOUNDS[dtype]
    assert error(found, exact) < bound, f"output: {error(found, exact):.2e}"
    incoming = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(found.device, dtype)
    wanted = [n for n, part in enumerate(operands[: len(names)]) if part is not None]
    theirs = torch.autograd.grad(exact, [exact_operands[n] for n in wanted], incoming.double())
    ours = torch.autograd.grad(found, [operands[n] for n in wanted], incoming)
    for place, slope, expected in zip(wanted, ours, theirs, strict=True):
        assert slope.dtype == operands[place].dtype  # type: ignore[union-attr]
        assert error(slope, expected) < bound, f"gradient of {names[place]}: {error(slope, expected):.2e}"


def hold_convolution(case: ConvolutionCase, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """``gated_long_conv`` by a backend against its definition."""
    hold_to_the_definition(gated_long_conv, CONVOLUTION_NAMES, case.operands(dtype, device), backend)


def hold_glu(case: GluCase, dtype: torch.dtype, backend: str, device: str = "cpu") -> None:
    """``block_diagonal_glu`` by a backend against its definition."""
    hold_to_the_definition(block_diagonal_glu, GLU_NAMES, case.operands(dtype, device), backend)


def exactly(part: Tensor) -> Tensor:
    """The same values in float64, a leaf of its own."""
    return part.detach().double().requires_grad_()


def error(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||; infinite for what is not finite, 0 where both are zero."""
    difference, size = float((found.detach().double() - exact.detach()).norm()), float(exact.detach().norm())
    if math.isnan(difference):
        return float("inf")
    return difference / size if size else (0.0 if difference == 0 else float("inf"))
