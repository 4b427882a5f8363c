"""The kernels of ``block_diagonal_glu``, compiled for a processor, by way of the public function.

The whole of the cuda backend runs but torch's binding: what stands in its place calls the launchers.
"""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cramming.kernels import backends, block_diagonal_glu, cuda, cuda_glu, torch_glu
from cramming.kernels.operands import Glu
from tests.kernels import laws
from tests.kernels.emulation import fenced, flag, library, pointer, run, seeded, size
from tests.kernels.kernel_cases import BOUNDS, GluCase, hold_glu

OP = laws.OPS[1]
WHOLE = 227 * 1024  # bytes of shared memory that an emulated thread block may have


class Emulated:
    """In the place of ``torch.ops.cramming_kernels``: the same operations on tensors of a processor.

    What kernels read and write ends at a page which may not be touched, where ``edged``.
    """

    def __init__(self) -> None:
        self.made = library(("glu_forward", "glu_backward"))
        self.edged = False
        self.calls = 0

    def glu_forward(self, x: Tensor, w_gate: Tensor, w_value: Tensor, middle: Tensor, kept: Tensor | None) -> None:
        pairs, width, inputs = w_gate.shape
        assert x.shape == (len(x), 2 * pairs * inputs)
        assert w_value.shape == w_gate.shape
        assert middle.shape == (len(x), pairs * width)
        assert kept is None or kept.shape == (len(x), 2 * pairs * width)
        self._run("glu_forward", (x, w_gate, w_value), (middle, kept), (len(x), pairs, inputs, width))

    def glu_backward(self, gradient: Tensor, w_out: Tensor, kept: Tensor, of_kept: Tensor, middle: Tensor) -> None:
        blocks, inner, outputs = w_out.shape
        tokens = len(gradient)
        assert gradient.shape == (tokens, blocks * outputs)
        assert kept.shape == of_kept.shape == (tokens, 2 * blocks * inner)
        assert middle.shape == (tokens, blocks * inner)
        self._run("glu_backward", (gradient, w_out, kept), (of_kept, middle), (tokens, blocks, outputs, inner))

    def _run(self, name: str, read: tuple[Tensor, ...], written: tuple[Tensor | None, ...], sizes: Any) -> None:
        assert all(part is None or part.is_contiguous() for part in (*read, *written))
        self.calls += 1
        copies = written
        if self.edged:
            read = tuple(fenced(self.made, part.detach()) for part in read)
            copies = tuple(None if part is None else fenced(self.made, part) for part in written)
        half = flag(read[0].dtype == torch.float16)
        run(getattr(self.made, name), *map(pointer, (*read, *copies)), *map(size, sizes), half, None)
        for part, copy in zip(written, copies, strict=True):
            if part is not None and copy is not part:
                part.copy_(copy)  # type: ignore[arg-type]

    @contextmanager
    def shared_memory(self, limit: int) -> Iterator[None]:
        """So many bytes of it for a thread block."""
        self.made.simt_shared_limit(ctypes.c_uint64(limit))
        try:
            yield
        finally:
            self.made.simt_shared_limit(ctypes.c_uint64(WHOLE))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """The cuda backend on a processor: its operations are emulated, and no device lacks anything."""
    ops = Emulated()
    monkeypatch.setattr(cuda, "ops", lambda: ops)
    monkeypatch.setattr(cuda, "lacks", lambda device: None)
    monkeypatch.setattr(cuda_glu, "few", lambda given: False)  # sizes are small here, and are the kernels' all the same
    return ops


@pytest.fixture
def nothing_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """As if no backend had been refused before; torch follows cuda."""
    monkeypatch.setattr(backends, "_said", set())
    monkeypatch.setitem(backends.FALLBACKS, "cuda", ("torch",))
    caplog.set_level(logging.WARNING)
    return caplog


# Tokens on both sides of a thread block's 32, 64, 96, 128; a part, one and several chunks of 32 terms, halves of one;
# tiles of 64 hidden channels likewise.
CASES = (
    GluCase(1, 8, 16, 8),
    GluCase(17, 24, 72, 24, pairs=1, blocks=1),
    GluCase(64, 48, 40, 8, pairs=3, blocks=3, biased=False),
    GluCase(70, 8, 208, 24, pairs=1, blocks=2, strided=True),
    GluCase(130, 72, 16, 40, pairs=1, blocks=1),
)
LONG_CASES = (
    GluCase(97, 32, 64, 32, pairs=2, blocks=2),
    GluCase(300, 40, 208, 88, pairs=1, blocks=2, strided=True),
    GluCase(520, 96, 144, 64),
    GluCase(129, 192, 128, 192, biased=False),
    GluCase(33, 448, 64, 448, pairs=1, blocks=1),
    GluCase(5, 192, 1536, 192),
)


def operands_of(case: GluCase, dtype: torch.dtype) -> Glu:
    """Without gradients."""
    return Glu(*(None if part is None else part.detach() for part in case.operands(dtype)))  # type: ignore[arg-type]


def everything(operands: Glu) -> list[Tensor]:
    """All that both kernels make of these operands: the output, what is kept, gradients."""
    out, kept = cuda_glu.glu_forward(operands, True)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    return [out, kept, *(part for part in cuda_glu.glu_back(operands, kept, slope) if part is not None)]


def same(ones: list[Tensor], others: list[Tensor]) -> bool:
    """To the last bit."""
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_definition_and_nothing_unwritten(emulated: Emulated, case: GluCase) -> None:
    laws.writes_everything(case, torch.bfloat16, "cuda")
    assert emulated.calls == 2


@pytest.mark.parametrize("case", [CASES[1], CASES[3]], ids=str)
def test_half_precision(emulated: Emulated, case: GluCase) -> None:
    hold_glu(case, torch.float16, "cuda")
    assert emulated.calls == 2


def test_the_same_bits_kept_or_not_and_whoever_is_first(emulated: Emulated) -> None:
    given = operands_of(CASES[3], torch.bfloat16)
    first = everything(given)
    alone, nothing = cuda_glu.glu_forward(given, False)
    assert torch.equal(alone, first[0])
    assert nothing.shape == (0,)
    with seeded(emulated.made, 77):
        assert same(everything(given), first)


def test_the_same_bits_however_tokens_and_tiles_are_shared_out(emulated: Emulated) -> None:
    """The least shared memory makes thread blocks of 32 tokens, which go through several tiles each."""
    given = operands_of(GluCase(150, 40, 240, 16, pairs=1, blocks=1), torch.float16)
    expected = everything(given)
    rows, stages, products = 32 * 64 * 2, 64 * 64, 2  # bytes of 40 inputs, of a product's weights
    for tokens, count in ((1, 2), (1, 3), (2, 2)):
        with emulated.shared_memory(products * (tokens * rows + count * stages) + 1024):
            assert same(everything(given), expected)
    with emulated.shared_memory(products * (rows + 2 * stages) - 1), pytest.raises(AssertionError, match="32 tokens"):
        everything(given)


def test_nothing_is_touched_outside_of_operands(emulated: Emulated) -> None:
    emulated.edged = True
    for case in (CASES[1], CASES[0]):
        given = operands_of(case, torch.bfloat16)
        before = [None if part is None else part.clone() for part in given]
        everything(given)
        pairs = zip(given, before, strict=True)
        assert all(part is None or torch.equal(part, was) for part, was in pairs)  # type: ignore[arg-type]


def test_gates_and_values_are_kept_side_by_side(emulated: Emulated) -> None:
    given = operands_of(CASES[2], torch.float16)
    kept = cuda_glu.glu_forward(given, True)[1].double()
    signals = given.x.unflatten(1, (2 * len(given.w_gate), -1)).double()
    exact = torch.einsum("tbi,boi->tbo", signals, torch.cat((given.w_gate, given.w_value)).double()).flatten(1)
    assert ((kept - exact).abs() <= 2**-11 * 1.01 * exact.abs() + 2e-6).all(), "rounded once"


def test_gradients_are_of_gates_and_values_as_they_were_kept(emulated: Emulated) -> None:
    """What backward is given decides, not what forward had: zero values stop the gates' gradient."""
    given = operands_of(CASES[1], torch.bfloat16)
    out, kept = cuda_glu.glu_forward(given, True)
    kept.chunk(2, dim=1)[1].zero_()
    found = cuda_glu.glu_back(given, kept, torch.ones_like(out))
    assert not found.w_gate.any()
    assert not found.w_out.any()
    assert found.w_value.any()


def test_the_activation_is_rounded_as_the_exact_one(emulated: Emulated) -> None:
    """By gates that are x itself and values of 1, of every fourth float16 up to 6.5 and some far away."""
    near = torch.arange(0, 0x4680, 4, dtype=torch.int16).view(torch.float16)
    x = torch.cat((near, -near, torch.tensor([8, 100, 3e4, 6e4, -8, -100, -3e4, -6e4], dtype=torch.float16)))
    x = x.view(-1, 8)
    eye, ones = torch.eye(8, dtype=torch.float16), torch.ones_like(x)
    given = Glu(torch.cat((x, ones), dim=1), eye[None], eye[None], eye[None], None)
    bent, kept = cuda_glu.glu_forward(given, True)
    assert torch.equal(kept, given.x)
    wide = x.double()
    share = torch.special.ndtr(wide)
    density = torch.exp(-wide.square() / 2) / (2 * torch.pi) ** 0.5
    of_kept, middle = torch.full_like(kept, torch.nan), torch.full_like(x, torch.nan)
    emulated.glu_backward(ones, eye[None], kept, of_kept, middle)
    slopes, of_values = of_kept.chunk(2, dim=1)
    for found, exact, noise in ((bent, wide * share, 3e-8), (slopes, share + wide * density, 2e-6)):
        assert ((found.double() - exact).abs() <= 2**-11 * 1.02 * exact.abs() + noise).all()
    assert torch.equal(of_values, bent), "the middle is the activation, where values are 1"
    assert torch.equal(middle, bent)


def test_operands_that_begin_anywhere(emulated: Emulated) -> None:
    given = operands_of(CASES[1], torch.bfloat16)
    shifted = [part.new_empty(part.numel() + 1)[1:].view(part.shape).copy_(part) for part in given if part is not None]
    assert shifted[0].data_ptr() % 16
    assert same(everything(Glu(*shifted)), everything(given))


@pytest.mark.parametrize(
    ("case", "dtype", "why"),
    [
        (CASES[0], torch.float32, "bfloat16 and float16, not float32"),
        (GluCase(3, 12, 16, 8), torch.bfloat16, "eight numbers at a time"),
        (GluCase(3, 8, 24, 8), torch.bfloat16, "eight numbers at a time"),
        (GluCase(3, 8, 16, 9), torch.bfloat16, "eight numbers at a time"),
        (GluCase(1, 648, 16, 8), torch.bfloat16, "wider than"),
        (GluCase(1, 8, 16, 1448), torch.bfloat16, "wider than"),
    ],
    ids=str,
)
def test_what_it_cannot_do_the_next_does(
    emulated: Emulated, nothing_said: pytest.LogCaptureFixture, case: GluCase, dtype: torch.dtype, why: str
) -> None:
    hold_glu(case, dtype, "cuda")
    (line,) = {record.getMessage() for record in nothing_said.records}
    assert "cuda cannot do this here" in line
    assert why in line
    assert not emulated.calls


def test_the_widest_it_takes_fit_into_the_least_shared_memory(emulated: Emulated) -> None:
    with emulated.shared_memory(99 * 1024):
        hold_glu(GluCase(1, cuda_glu.WIDEST_INPUTS, 16, cuda_glu.WIDEST_OUTPUTS, 1, 1), torch.float16, "cuda")
    assert emulated.calls == 2


def test_without_a_gpu_it_says_so() -> None:
    given = operands_of(CASES[0], torch.bfloat16)
    assert cuda_glu.glu_lacks(given) == "no GPU: cpu"


def test_launchers_refuse_what_they_cannot_do(emulated: Emulated) -> None:
    x = torch.zeros(64, dtype=torch.bfloat16)
    for sizes, why in (
        ((0, 1, 8, 8), "nothing to multiply"),
        ((1, 1, 12, 8), "no multiples of 8"),
        ((1, 1, 8, 12), "no multiples of 8"),
        ((1, 2**28, 8, 8), "beyond 32 bits"),
        ((2**40, 1, 8, 8), "more thread blocks"),
    ):
        for name in ("glu_forward", "glu_backward"):
            with pytest.raises(AssertionError, match=why):
                run(getattr(emulated.made, name), *[pointer(x)] * 5, *map(size, sizes), flag(0), None)
    for place in range(5):
        parts = [x] * 5
        parts[place] = x[1:]
        for name in ("glu_forward", "glu_backward"):
            with pytest.raises(AssertionError, match="16 bytes"):
                run(getattr(emulated.made, name), *map(pointer, parts), *map(size, (1, 1, 8, 8)), flag(0), None)


def test_it_obeys_what_every_backend_does(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws, "some", lambda op, dtype, device="cpu": CASES[1].operands(dtype, device))
    laws.leaves_operands_alone(OP, torch.bfloat16, "cuda")
    laws.takes_autocasts_type(OP, "cuda")
    assert emulated.calls == 5
    laws.takes_nothing(OP, "cuda")


@pytest.mark.full
@pytest.mark.parametrize("dtype", cuda_glu.DTYPES, ids=str)
@pytest.mark.parametrize("case", LONG_CASES, ids=str)
def test_the_definition_at_greater_sizes(emulated: Emulated, case: GluCase, dtype: torch.dtype) -> None:
    laws.writes_everything(case, dtype, "cuda")
    assert emulated.calls == 2


@pytest.mark.parametrize("dtype", cuda_glu.DTYPES, ids=str)
def test_few_values_are_worked_out_in_float32(
    emulated: Emulated, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token: gates, values and the middle rounded to bfloat16 would be 8e-3 off."""
    monkeypatch.setattr(cuda_glu, "few", torch_glu.few)
    for seed in range(3):
        case = GluCase(1, 8, 16 + 8 * seed, 8)
        hold_glu(case, dtype, "cuda")


@pytest.fixture
def few_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few 16-bit roundings most may go one way: of a small middle the bounds are twice as wide."""
    for dtype in cuda_glu.DTYPES:
        monkeypatch.setitem(BOUNDS, dtype, 2 * BOUNDS[dtype])


@pytest.mark.full
@pytest.mark.parametrize("layout", [(1, 1), (2, 4), (3, 3)], ids=str)
@pytest.mark.parametrize("tokens", [1, 17, 64, 70])
@pytest.mark.parametrize("inputs", [8, 24, 48])
def test_the_definition_at_many_sizes(
    emulated: Emulated, few_roundings: None, inputs: int, tokens: int, layout: tuple[int, int]
) -> None:
    pairs, blocks = layout
    for dtype in cuda_glu.DTYPES:
        for inner, outputs in ((8, 24), (40, 8), (72, 24)):
            width = inner * blocks // pairs
            hold_glu(GluCase(tokens, inputs, width, outputs, pairs, blocks, tokens != 17, inputs == 24), dtype, "cuda")


@pytest.mark.full
def test_drawn_sizes(emulated: Emulated, few_roundings: None) -> None:
    @settings(max_examples=40)
    @given(case=laws.drawn_glus(), dtype=st.sampled_from(cuda_glu.DTYPES), seed=st.integers(1, 99))
    def holds(case: GluCase, dtype: torch.dtype, seed: int) -> None:
        eights = case._replace(inputs=8 * case.inputs, width=8 * case.width, outputs=8 * case.outputs)
        with seeded(emulated.made, seed):
            laws.writes_everything(eights, dtype, "cuda")

    holds()


@pytest.mark.full
def test_torch_finds_it_in_order(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws, "some", lambda op, dtype, device="cpu": CASES[1].operands(dtype, device))
    laws.can_be_compiled(OP, torch.bfloat16, "cuda")
    laws.torch_finds_it_in_order(OP, torch.bfloat16, "cuda")
    assert emulated.calls


@pytest.mark.full
def test_public_operation_without_gradients(emulated: Emulated) -> None:
    with torch.no_grad():
        block_diagonal_glu(*operands_of(CASES[0], torch.bfloat16), backend="cuda")
    assert emulated.calls == 1
