"""What ``kernels.py`` times: our operations by a backend, and what they replace, on operands of the same values.

Shape legends: ``cramming/kernels/operands.py``; N positions.

``published`` is what the published PyTorch code of Monarch Mixer's sequence mixer does between its projections, written
anew from its description: a depthwise convolution of a copy with channels first, gates, Fourier transforms in float32
of the signal and, in every call, of the taps, and again for the second filter, all by autograd. ``batched products`` is
what the state mixer's two block-diagonal layers do: a batched product, a gate, a batched product.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cramming.kernels import block_diagonal_glu, gated_long_conv
from cramming.kernels.operands import Convolution, Glu
from cramming.kernels.torch_convolution import convolution_flops, points_of, spectra_of

CONVOLUTION, GLU = "gated_long_conv", "block_diagonal_glu"
BASELINES = {CONVOLUTION: "published", GLU: "batched products"}
FORWARD, BOTH = "forward", "forward and backward"
PASSES = (FORWARD, BOTH)
KEPT = ", filters kept"  # a backend that is given the filters' transforms, as the model does while its weights stay
BLOCKS = 4  # of the state mixer's layers, and its width over its channels
Operands = tuple[Tensor, ...]
Shape = tuple[tuple[int, ...], float, torch.dtype]


@dataclass(frozen=True)
class Work:
    """One row: an operation on sequences of one length."""

    op: str
    passes: str
    length: int
    sequences: int
    channels: int
    dtype: torch.dtype
    device: torch.device

    @property
    def tokens(self) -> int:
        """B N."""
        return self.sequences * self.length

    def shapes(self) -> list[Shape]:
        """Of our operation's operands, in its order: shape, deviation, type."""
        c, n, b = self.channels, self.length, self.sequences
        narrow, wide = self.dtype, torch.promote_types(self.dtype, torch.float32)
        if self.op == GLU:
            pairs, inputs = BLOCKS // 2, c // BLOCKS
            width = BLOCKS * c // pairs
            matrix: Shape = ((pairs, width, inputs), inputs**-0.5, narrow)
            outer: Shape = ((BLOCKS, inputs, c), c**-0.5, narrow)
            return [((self.tokens, c), 1.0, narrow), matrix, matrix, outer, ((c,), 1.0, narrow)]
        taps: Shape = ((2, c, n), 0.3, wide)
        signals: list[Shape] = [((3 * c, b, n), 1.0, narrow), ((c, b, n), 1.0, narrow)]
        return [*signals, taps, taps, *[((c,), 1.0, wide)] * 2, ((3 * c, 3), 0.5, wide), ((3 * c,), 0.5, wide)]

    def operands(self, seed: int) -> tuple[Operands, Tensor]:
        """Random operands, with gradients wanted where the backward pass is timed, and the incoming gradient.

        Filters are as long as the sequences and decay as generated ones do.
        """
        draw = torch.Generator(self.device).manual_seed(seed)

        def normal(shape: tuple[int, ...], deviation: float, dtype: torch.dtype) -> Tensor:
            made = torch.randn(shape, generator=draw, device=self.device)
            if shape[0] == 2 and self.op == CONVOLUTION:
                made *= torch.exp(-3 * torch.arange(self.length, device=self.device) / self.length)
            return made.mul_(deviation).to(dtype).requires_grad_(self.passes == BOTH)

        made = tuple(normal(*shape) for shape in self.shapes())
        return made, normal(self._output(), 1.0, self.dtype).detach()

    def _output(self) -> tuple[int, ...]:
        glu = self.op == GLU
        return (self.tokens, self.channels) if glu else (self.channels, self.sequences, self.length)

    def outline(self) -> Convolution | Glu:
        """Operands as backends are given them, of no value."""
        return self.given(
            tuple(torch.empty(shape, dtype=dtype, device=self.device) for shape, _, dtype in self.shapes())
        )

    def given(self, operands: Operands) -> Convolution | Glu:
        """As backends are given them."""
        return Glu(*operands) if self.op == GLU else Convolution(*operands, None)

    def operand_bytes(self) -> int:
        """Of all operands."""
        return sum(math.prod(shape) * dtype.itemsize for shape, _, dtype in self.shapes())

    def floor_bytes(self) -> float:
        """Every input read and every output written once; backward reads the inputs and the incoming gradient."""
        inputs, output = self.operand_bytes(), math.prod(self._output()) * self.dtype.itemsize
        return float(inputs + output if self.passes == FORWARD else 3 * inputs + 2 * output)

    def floor_operations(self) -> float:
        """Of products and transforms, a multiply-add as 2; backward twice forward."""
        c = self.channels
        if self.op == GLU:  # three layers of weights: gates, values, outputs
            forward = 3 * 2.0 * self.tokens * c * c
        else:
            forward = 2.0 * c * self.sequences * convolution_flops(self.length, self.length)
        return forward if self.passes == FORWARD else 3 * forward


def published(*operands: Tensor) -> Tensor:
    """Operands in our order, z as (B, N, 3C) and u as (B, N, C) -> (B, C, N): see the top of this file."""
    p, u, taps, taps_residual, bias, bias_residual, short_weight, short_bias = operands
    length = p.shape[1]
    thirds = F.conv1d(
        p.transpose(1, 2).contiguous(),
        short_weight[:, None].to(p.dtype),
        short_bias.to(p.dtype),
        padding=2,
        groups=p.shape[2],
    )
    first, second, values = thirds[..., :length].chunk(3, dim=1)
    mixed = _by_transforms(first * values, taps, bias) * second
    return mixed + _by_transforms(u.transpose(1, 2), taps_residual, bias_residual)


def _by_transforms(signal: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """(B, C, N), (2, C, N), (C,) -> (B, C, N): filters laid around a circle of 2N, the skip beside them."""
    length = signal.shape[-1]
    circle = F.pad(taps[0], (0, length)) + F.pad(taps[1].flip(-1), (length, 0))
    filters = torch.fft.rfft(circle, n=2 * length) / (2 * length)
    transformed = torch.fft.rfft(signal.to(taps.dtype), n=2 * length)
    mixed = torch.fft.irfft(transformed * filters, n=2 * length, norm="forward")[..., :length]
    return (mixed + signal * bias[:, None]).to(signal.dtype)


def batched_products(x: Tensor, inner: Tensor, outer: Tensor, bias: Tensor) -> Tensor:
    """(T, C), (b, 2W/b, C/b), (b, C/b, W/b), (C,) -> (T, C)."""
    blocks = inner.shape[0]
    middle = torch.bmm(x.unflatten(1, (blocks, -1)).transpose(0, 1), inner.transpose(1, 2)).transpose(0, 1).flatten(1)
    gates, values = middle.chunk(2, dim=1)
    gated = (F.gelu(gates) * values).unflatten(1, (blocks, -1)).transpose(0, 1)
    return torch.bmm(gated, outer.transpose(1, 2)).transpose(0, 1).flatten(1) + bias


class Timed:
    """A side: an operation, its operands, and what of it is timed."""

    flops = None

    def __init__(self, work: Work, name: str, calls: int, sets: int) -> None:
        self.work, self.name, self.calls = work, name, calls
        self.sets = [_prepared(work, name, *work.operands(seed)) for seed in range(sets)]
        self.events: list[tuple[Any, Any]] = []
        self._next = 0

    def block(self) -> None:
        """So many calls, each on the next set of operands."""
        if self.work.device.type == "cuda":
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(_AHEAD_CYCLES)  # meanwhile calls are queued: the gaps between them are not the kernels'
            began.record()
            self._calls()
            ended.record()
            self.events.append((began, ended))
        else:
            self._calls()

    def _calls(self) -> None:
        for _ in range(self.calls):
            self.call()

    def call(self) -> list[Tensor]:
        """Once: the output, and gradients if they are timed."""
        function, operands, incoming = self.sets[self._next]
        self._next = (self._next + 1) % len(self.sets)
        if self.work.passes == FORWARD:
            with torch.no_grad():
                return [function(*operands)]
        made = function(*operands)
        return [made, *torch.autograd.grad(made, operands, incoming)]

    @property
    def loss(self) -> float:
        """The root of the mean of squares of all that the first set leads to: all sides must agree."""
        self._next = 0
        parts = self.call()
        total = sum(float(part.detach().double().square().sum()) for part in parts)
        return float((total / sum(part.numel() for part in parts)) ** 0.5)

    def device_s(self, blocks: int) -> list[float]:
        """Seconds of the latest blocks by the device's own clock."""
        return [began.elapsed_time(ended) / 1e3 for began, ended in self.events[-blocks:]]

    def peak_mb(self) -> float:
        """The most that a call holds above its operands, its results among it."""
        self.call()
        device = self.work.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            self.call()
            torch.cuda.synchronize(device)
            return (torch.cuda.max_memory_allocated(device) - before) / 2**20
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # of the tracer, which says hello on the screen
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as watched:
            results = self.call()
        del results
        recorded: Any = watched.profiler
        held = most = 0
        events = (event for event in recorded.kineto_results.events() if event.name() == "[memory]")
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        return most / 2**20


_AHEAD_CYCLES = 20_000_000  # about 10 ms


def _prepared(
    work: Work, name: str, operands: Operands, incoming: Tensor
) -> tuple[Callable[..., Tensor], Operands, Tensor]:
    """The function of a side and its operands, laid out as they come to that function."""

    def fresh(part: Tensor) -> Tensor:
        return part.detach().contiguous().requires_grad_(work.passes == BOTH)

    if name.endswith(KEPT):
        with torch.no_grad():
            given = Convolution(*operands, None)
            spectra = torch.view_as_real(spectra_of(given, points_of(given)))
        return _ours(work.op, name.removesuffix(KEPT), spectra=spectra), operands, incoming
    if name != BASELINES[work.op]:
        return _ours(work.op, name), operands, incoming
    if work.op == GLU:
        x, w_gate, w_value, w_out, bias = operands
        return batched_products, (x, fresh(torch.cat((w_gate, w_value))), w_out, bias), incoming
    z, u, *rest = operands
    return published, (fresh(z.permute(1, 2, 0)), fresh(u.permute(1, 2, 0)), *rest), incoming.transpose(0, 1)


def _ours(op: str, backend: str, **more: Tensor) -> Callable[..., Tensor]:
    function: Any = block_diagonal_glu if op == GLU else gated_long_conv
    return partial(function, backend=backend, **more)
