"""``block_diagonal_glu`` by Triton, interpreted where there is no GPU: the definition, at sizes that divide nothing."""
# ruff: noqa: E402 -- nothing of this is imported where there is no Triton

import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

triton = pytest.importorskip("triton")
import triton.language as tl

from cramming.kernels import backends, block_diagonal_glu, triton_glu
from cramming.kernels.operands import Glu
from cramming.kernels.torch_glu import FEW
from cramming.kernels.triton_glu_kernels import beyond, gelu
from tests.kernels import laws
from tests.kernels.kernel_cases import GluCase, error, hold_glu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = pytest.mark.skipif(DEVICE == "cuda", reason="decides by the GPU, which others stand for here")
# Tiles are 32 tokens and 16 of everything else: less than one, one, several, and a rest of each.
CASES = (
    GluCase(1, 3, 6, 5),
    GluCase(17, 16, 32, 16, blocks=2),
    GluCase(70, 24, 42, 20, strided=True),
    GluCase(33, 48, 17, 24, pairs=1, blocks=1, biased=False),
    GluCase(40, 5, 21, 33, pairs=3, blocks=3),
    GluCase(35, 17, 48, 3, pairs=1, blocks=2, strided=True),
)
# In 16 bits these have enough values to be worked out in 16 bits; the first has odd widths.
MANY = (GluCase(131, 23, 67, 21, pairs=2, blocks=2), GluCase(97, 40, 176, 20, pairs=1, blocks=1, biased=False))
KINDS = (torch.float32, torch.bfloat16, torch.float16)
GUARD = 64  # elements before and behind an output


@pytest.fixture(params=["one pass", "two passes"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forward in either way."""
    if request.param == "two passes":
        monkeypatch.setattr(triton_glu, "one_pass", lambda given, keep: None)
    elif DEVICE == "cuda":
        monkeypatch.setattr(triton_glu, "one_pass", lambda given, keep: triton_glu.Tiles(64, 32, 0, 8, 1))
    return str(request.param)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_definition(case: GluCase, passes: str) -> None:
    hold_glu(case, torch.float32, "triton", DEVICE)


@pytest.mark.parametrize(("dtype", "case"), [(torch.bfloat16, MANY[0]), (torch.float16, MANY[1])], ids=str)
def test_it_is_the_definition_in_16_bits(
    dtype: torch.dtype, case: GluCase, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_glu, "FEW", 0)
    monkeypatch.setattr(triton_glu, "AS_INTERPRETED", triton_glu.Tiles(64, 32, 32, 1, 1))
    hold_glu(case, dtype, "triton", DEVICE)


@pytest.mark.parametrize("dtype", KINDS[1:])
def test_few_values_are_worked_out_in_float32(dtype: torch.dtype) -> None:
    case = CASES[0]
    assert case.tokens * case.pairs * case.width < FEW
    operands = case.operands(dtype, DEVICE)
    wide = [None if part is None else part.detach().float().requires_grad_() for part in operands]
    found, due = (laws.slopes_of(laws.OPS[1], parts, "triton") for parts in (operands, wide))
    assert torch.equal(found[0], due[0].to(dtype))
    assert all(error(one, other.double()) < laws.BOUNDS[dtype] for one, other in zip(found, due, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("tokens", [1, 17, 70])
@pytest.mark.parametrize("inputs", [3, 16, 24, 48])
@pytest.mark.parametrize("layout", [(2, 4), (2, 2), (1, 2), (1, 1), (3, 3)])
def test_it_is_the_definition_at_many_sizes(layout: tuple[int, int], inputs: int, tokens: int, passes: str) -> None:
    for inner, outputs in ((7, 5), (40, 32)):
        pairs, blocks = layout
        width = inner * blocks // pairs
        case = GluCase(tokens, inputs, width, outputs, pairs, blocks, biased=tokens != 17, strided=inputs == 24)
        hold_glu(case, torch.float32, "triton", DEVICE)


@INTERPRETED
@pytest.mark.parametrize("tiles", [(16, 64, 32, 1, 1), (64, 32, 64, 1, 1)])
def test_tiles_of_any_size_compute_the_same(
    tiles: tuple[int, ...], passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_glu, "AS_INTERPRETED", triton_glu.Tiles(*tiles))
    hold_glu(CASES[2], torch.float32, "triton")


def guarded(like: Tensor, shape: tuple[int, ...], made: list[tuple[Tensor, Tensor]]) -> Tensor:
    """A tensor of NaN between others that nobody may write to."""
    size = torch.Size(shape).numel()
    whole = torch.full((size + 2 * GUARD,), torch.nan, dtype=like.dtype, device=like.device)
    inside = whole[GUARD : GUARD + size].view(shape)
    made.append((whole, inside))
    return inside


def test_every_element_is_written_and_no_other(passes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[tuple[Tensor, Tensor]]()

    unpatched = torch.Tensor.new_empty

    def new_empty(like: Tensor, *shape: Any, **options: Any) -> Tensor:
        if options:  # the interpreter's own
            return unpatched(like, *shape, **options)
        return guarded(like, shape[0] if isinstance(shape[0], tuple) else shape, made)

    for case in CASES:
        *others, bias = (None if part is None else part.detach() for part in case.operands(torch.float32, DEVICE))
        # The operands lie between NaN, too: what is read beyond their ends shows.
        glu = Glu(*(None if part is None else guarded(part, part.shape, []).copy_(part) for part in (*others, bias)))
        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "new_empty", new_empty)
            patched.setattr(torch, "empty_like", lambda part: guarded(part, part.shape, made))
            out, kept = triton_glu.glu_forward(glu, True)
            found = triton_glu.glu_back(glu, kept, torch.ones_like(out))
        assert len(made) >= 7, "out, kept, their gradient, the middle, gradients of x and three weights"
        for whole, inside in made:
            assert not inside.isnan().any()
            assert whole[:GUARD].isnan().all()
            assert whole[-GUARD:].isnan().all()
        assert all(part is None or part.isfinite().all() for part in found)
        made.clear()


def test_a_block_depends_on_its_own_inputs_only(passes: str) -> None:
    operands = [part.detach() if part is not None else None for part in CASES[2].operands(torch.float32, DEVICE)]
    before = block_diagonal_glu(*operands, backend="triton")
    x, case = operands[0], CASES[2]
    assert x is not None
    x[:, 2 * case.inputs : 3 * case.inputs] = torch.nan  # of the values of the first pair
    after = block_diagonal_glu(*operands, backend="triton")
    outputs = case.outputs * case.blocks // case.pairs  # of a pair
    assert after[:, :outputs].isnan().all()
    assert torch.equal(after[:, outputs:], before[:, outputs:])


def test_the_same_bits_at_every_call_and_whether_kept_or_not(passes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_glu, "FEW", 0)
    operands = CASES[4].operands(torch.float16, DEVICE)
    glu = Glu(*(None if part is None else part.detach() for part in operands))
    (once, kept), (alone, nothing) = triton_glu.glu_forward(glu, True), triton_glu.glu_forward(glu, False)
    again, kept_again = triton_glu.glu_forward(glu, True)
    assert torch.equal(once, alone)
    assert torch.equal(once, again)
    assert torch.equal(kept, kept_again)
    assert nothing.shape == (0,)
    slope = torch.randn_like(once)
    pairs = zip(triton_glu.glu_back(glu, kept, slope), triton_glu.glu_back(glu, kept, slope), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_gates_and_values_are_kept_side_by_side(passes: str) -> None:
    case = CASES[2]
    glu = Glu(*(None if part is None else part.detach() for part in case.operands(torch.float32, DEVICE)))
    _, kept = triton_glu.glu_forward(glu, True)
    blocks = glu.x.unflatten(1, (2 * case.pairs, -1)).double()
    weights = torch.cat((glu.w_gate, glu.w_value)).double()
    assert error(kept, torch.einsum("tbi,boi->tbo", blocks, weights).flatten(1)) < 1e-6


def test_gradients_are_of_gates_rounded_as_they_were_kept() -> None:
    """What backward is given decides, not what forward had: zero values stop the gates' gradient."""
    glu = Glu(*(None if part is None else part.detach() for part in CASES[2].operands(torch.float32, DEVICE)))
    out, kept = triton_glu.glu_forward(glu, True)
    kept.chunk(2, dim=1)[1].zero_()
    found = triton_glu.glu_back(glu, kept, torch.ones_like(out))
    assert not found.w_gate.any()
    assert not found.w_out.any()
    assert found.w_value.any()


@triton.jit
def _spread(x, near, bent, exact: tl.constexpr, size: tl.constexpr):
    places = tl.arange(0, size)
    values = tl.load(x + places)
    tl.store(near + places, beyond(values, exact))
    tl.store(bent + places, gelu(values, exact))


@pytest.mark.parametrize(("exact", "tail", "absolute"), [(False, 1e-5, 1e-6), (True, None, 3e-7)])
def test_gelu_without_erf(exact: bool, tail: float | None, absolute: float) -> None:
    x = torch.cat((torch.linspace(-6.5, 6.5, 8192), torch.linspace(-3e4, 3e4, 8192))).sort().values.to(DEVICE)
    near, bent = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    _spread[(1,)](x, near, bent, exact, len(x))
    wide = x.double()
    due, inside = torch.special.ndtr(-wide.abs()), wide.abs() <= 6.5
    if tail is not None:
        assert ((near / due - 1)[inside]).abs().max() < tail
    assert (near[~inside] < 1e-10).all()
    assert (near[x > 0].diff() <= 0).all()
    assert (bent - wide * torch.special.ndtr(wide)).abs()[inside].max() < absolute
    assert (bent - x.relu())[~inside].abs().max() < 1e-9


def test_widths_are_cut_into_powers_of_two() -> None:
    for width in range(1, 257):
        first, second = triton_glu.cut(width)
        assert {first, second or 16} <= {16, 32, 64, 128, 256}
        assert max(16, width) <= first + second < max(33, 1.5 * width)
    assert triton_glu.cut(192) == (128, 64)
    assert triton_glu.cut(256) == (256, 0)


def test_float64_is_left_to_torch(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_said", set())
    with caplog.at_level(logging.WARNING):
        hold_glu(CASES[0], torch.float64, "triton", DEVICE)
    (line,) = {record.getMessage() for record in caplog.records}
    assert "triton cannot do this here (its products are summed in float32 at most)" in line


@INTERPRETED
def test_where_triton_has_no_device_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    glu = Glu(*CASES[0].operands(torch.float32))
    assert triton_glu.glu_lacks(glu) is None
    monkeypatch.setattr(triton_glu, "no_device", lambda device: f"{device} is none")
    assert triton_glu.glu_lacks(glu) == "cpu is none"


def test_it_obeys_what_every_backend_does() -> None:
    op = laws.OPS[1]
    laws.leaves_operands_alone(op, torch.bfloat16, "triton", DEVICE)
    laws.takes_autocasts_type(op, "triton", DEVICE)
    laws.can_be_differentiated_twice(op, "triton", DEVICE)
    laws.takes_nothing(op, "triton", DEVICE)


@pytest.mark.full
@settings(max_examples=60)
@given(case=laws.drawn_glus(), dtype=st.sampled_from(KINDS))
def test_drawn_sizes(case: GluCase, dtype: torch.dtype) -> None:
    laws.writes_everything(case, dtype, "triton", DEVICE)


@pytest.mark.full
@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("case", laws.GLUS, ids=str)
def test_sizes_that_every_backend_is_asked(case: GluCase, dtype: torch.dtype, passes: str) -> None:
    laws.writes_everything(case, dtype, "triton", DEVICE)


@pytest.mark.full
def test_torch_finds_it_in_order() -> None:
    laws.can_be_compiled(laws.OPS[1], torch.bfloat16, "triton", DEVICE)
    laws.torch_finds_it_in_order(laws.OPS[1], torch.float32, "triton", DEVICE)
