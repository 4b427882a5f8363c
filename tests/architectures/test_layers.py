"""Layers against their definitions, and those with a gradient of their own against plain autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cramming.architectures.layers import cross_entropy
from cramming.architectures.layers.cross_entropy import linear_cross_entropy
from cramming.architectures.layers.embedding import Embeddings, tied_lookup
from cramming.architectures.layers.norm import make_norm
from cramming.architectures.layers.position import make_positions
from cramming.architectures.layers.rotary import rotate
from cramming.architectures.layers.unpadding import Layout


def test_cross_entropy_has_the_gradient_of_its_definition() -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(5, 3), (7, 3), (7,)])
    labels = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda *a: linear_cross_entropy(*a, labels), (x, weight, bias))


def test_cross_entropy_without_a_bias_is_that_with_a_zero_bias() -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(s, requires_grad=True) for s in [(5, 3), (7, 3)])
    labels = torch.tensor([0, 6, 3, 3, 1])
    outputs = {}
    for name, bias in {"none": None, "zero": torch.zeros(7)}.items():
        losses = linear_cross_entropy(x, weight, bias, labels)
        outputs[name] = (losses, *torch.autograd.grad(losses.sum(), (x, weight)))
    for one, other in zip(outputs["none"], outputs["zero"], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_cross_entropy_in_chunks_is_torchs(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_VALUES, "cpu", rows * 50)
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s, requires_grad=True) for s in [(10, 8), (50, 8), (50,)])
    labels, weights = torch.randint(50, (10,)), torch.rand(10)
    ours = linear_cross_entropy(x, weight, bias, labels)
    theirs = F.cross_entropy(x @ weight.T + bias, labels, reduction="none")
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad((ours * weights).sum(), (x, weight, bias)),
        torch.autograd.grad((theirs * weights).sum(), (x, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(x, weight, bias, labels), theirs)


def test_cross_entropy_of_bfloat16_logits_keeps_float32_precision() -> None:
    """Losses near zero: log-probabilities rounded to bfloat16 would be off by up to 0.4 %."""
    x = torch.tensor([[1.0], [8.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[1.0], [-0.5]], dtype=torch.bfloat16)
    losses = linear_cross_entropy(x, weight, torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(losses, torch.log1p(torch.exp(torch.tensor([-1.5, -12.0]))), rtol=1e-4, atol=1e-7)


def test_cross_entropy_works_nothing_out_for_a_gradient_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((6, 4), (9, 4), (9,)))
    labels = torch.tensor([0, 8, 3, 3, 1, 2])
    with_gradient = linear_cross_entropy(x, weight, bias, labels)
    monkeypatch.setattr(Tensor, "exp_", lambda self: pytest.fail("the slope was computed"))
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(x, weight, bias, labels), with_gradient)
    fixed = [tensor.detach() for tensor in (x, weight, bias)]
    assert torch.equal(linear_cross_entropy(*fixed, labels), with_gradient)


def test_cross_entropy_survives_extreme_logits() -> None:
    x = torch.tensor([[1e4]], requires_grad=True)
    losses = linear_cross_entropy(x, torch.tensor([[1.0], [-1.0]]), torch.zeros(2), torch.tensor([1]))
    losses.sum().backward()
    assert losses.item() == 2e4
    assert x.grad.item() == 2.0


def test_tied_lookup_has_the_gradient_of_both_uses() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([1, 3, 1, 5])

    def both(weight: torch.Tensor) -> torch.Tensor:
        rows, alias = tied_lookup(weight, ids)
        return torch.tanh(rows) @ alias.T

    assert torch.autograd.gradcheck(both, weight)
    assert torch.autograd.gradcheck(lambda w: tied_lookup(w, ids)[0].sin(), weight)
    assert torch.autograd.gradcheck(lambda w: tied_lookup(w, ids)[1].sin(), weight)


def test_tied_lookup_gives_padding_no_gradient() -> None:
    weight = torch.randn(6, 4, requires_grad=True)
    ids = torch.tensor([0, 3, 0])
    rows, alias = tied_lookup(weight, ids, padding_id=0)
    (rows.sum() + 2 * alias.sum()).backward()
    expected = torch.full((6, 4), 2.0)
    expected[3] += 1
    assert torch.equal(weight.grad, expected)


def test_tied_lookup_sums_frequent_tokens_in_float32() -> None:
    weight = torch.zeros(3, 2, dtype=torch.bfloat16, requires_grad=True)
    tied_lookup(weight, torch.ones(4096, dtype=torch.int64))[0].sum().backward()
    assert weight.grad[1].tolist() == [4096.0, 4096.0]


def test_tied_lookup_leaves_incoming_gradients_alone() -> None:
    weight = torch.randn(6, 4, requires_grad=True)
    rows, alias = tied_lookup(weight, torch.tensor([1, 1]))
    incoming = torch.ones(6, 4)
    torch.autograd.backward([rows, alias], [torch.ones(2, 4), incoming])
    assert torch.equal(incoming, torch.ones(6, 4))
    assert weight.grad[1].tolist() == [3.0] * 4


def test_layout_finds_the_rows_of_tokens() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]])
    grid = torch.arange(12).view(3, 4)
    layout = Layout.of(grid, mask)
    assert layout.unpad(grid).tolist() == [0, 1, 5, 7, 8]
    assert torch.equal(layout.pad(layout.unpad(grid)), grid * mask)
    assert layout.positions().tolist() == [0, 1, 1, 3, 0]
    positions = torch.tensor([[1, 0], [3, 1], [0, 0]])
    assert torch.equal(layout.unpad(grid)[layout.rows_of(positions)], grid.gather(1, positions))
    assert torch.equal(layout.positions_of(torch.tensor([[0, 1], [3, 4]])), torch.tensor([[0, 1], [3, 0]]))
    assert torch.equal(Layout.of(grid).positions_of(torch.tensor([0, 5, 11])), torch.tensor([0, 1, 3]))


def test_rotated_products_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q, k = (torch.randn(2, 3, 9, 8, dtype=torch.float64) for _ in range(2))
    q, k = q[:, :, :1].expand_as(q), k[:, :, :1].expand_as(k)  # the same vector everywhere
    places = torch.arange(9)
    scores = rotate(q, places) @ rotate(k, places).transpose(-2, -1)
    shifted = rotate(q, places + 100) @ rotate(k, places + 100).transpose(-2, -1)
    torch.testing.assert_close(scores, shifted)
    for distance in range(-8, 9):
        along = scores.diagonal(distance, -2, -1)
        torch.testing.assert_close(along, along[..., :1].expand_as(along))
    assert (scores[..., 0, :] - scores[..., 0, :1]).abs().max() > 0.1
    torch.testing.assert_close(rotate(q, places).norm(dim=-1), q.norm(dim=-1))


def test_rotation_turns_each_pair_by_its_own_angle() -> None:
    """Equation 34 of the paper, with the two halves of a head as the sides of the pairs."""
    x = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    as_complex = torch.complex(x[..., :2], x[..., 2:])
    angles = torch.arange(3)[:, None] * torch.tensor([1.0, 0.01])
    turned = as_complex * torch.polar(torch.ones_like(angles), angles).to(torch.complex128)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(rotate(x, torch.arange(3)), expected, rtol=1e-6, atol=1e-6)
    by_row = rotate(x.expand(2, 1, 3, 4), torch.tensor([[0, 1, 2], [2, 0, 1]]))
    torch.testing.assert_close(by_row[0], expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(by_row[1, 0, 1], x[0, 0, 1])


def test_rotation_in_bfloat16_keeps_far_positions_apart() -> None:
    x = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    far = rotate(x, torch.tensor([1000, 1001]))  # 1001 rounds to 1000 in bfloat16
    assert far.dtype == torch.bfloat16
    expected = torch.tensor([math.cos(n) - math.sin(n) for n in (1000, 1001)])
    torch.testing.assert_close(far[0, 0, :, 0].float(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "layernorm",
            lambda x, w: (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-6).sqrt() * w,
        ),
        ("rmsnorm", lambda x, w: x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * w),
        ("scalenorm", lambda x, w: x / x.square().sum(1, keepdim=True).sqrt() * w),
        ("unitnorm", lambda x, w: x / x.square().sum(1, keepdim=True).sqrt() * w),
    ],
)
def test_norms_are_their_definitions(kind: str, expected: object) -> None:
    torch.manual_seed(0)
    x, norm = torch.randn(5, 16) * 3 + 1, make_norm(kind, 16, 1e-6)
    if kind == "rmsnorm":
        theirs = torch.nn.RMSNorm(16, eps=1e-6)
        torch.testing.assert_close(norm(x), theirs(x))
        torch.testing.assert_close(norm(x).square().mean(1), torch.ones(5), rtol=1e-3, atol=1e-3)
    if kind == "scalenorm":
        assert norm.weight.item() == 16**-0.5
        assert norm.weight.shape == ()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    torch.testing.assert_close(norm(x), expected(x, norm.weight), rtol=1e-4, atol=1e-5)
    low = norm.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert low.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="'batchnorm' is not one of"):
        make_norm("batchnorm", 16, 1e-6)


def test_norms_do_not_overflow_in_float16() -> None:
    x = torch.full((1, 4096), 200.0, dtype=torch.float16)  # its sum of squares is 1.6e8
    for kind in ("rmsnorm", "scalenorm", "unitnorm"):
        assert make_norm(kind, 4096, 1e-12).to(torch.float16)(x).abs().sum() > 0, kind


def test_sinusoids_are_those_of_the_paper() -> None:
    plain, scaled = (make_positions(kind, 20, 8)(11) for kind in ("sinusoidal", "scaled_sinusoidal"))
    assert plain.shape == (11, 8)
    for position, i in ((0, 0), (3, 1), (10, 3)):
        angle = position / 10000 ** (2 * i / 8)
        assert plain[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert plain[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    torch.testing.assert_close(scaled, plain * 8**-0.5)
    assert make_positions("none", 20, 8) is None
    with pytest.raises(ValueError, match="'alibi' is not one of"):
        make_positions("alibi", 20, 8)


@pytest.mark.parametrize("position", ["learned", "none"])
def test_token_types_are_added_and_absent_ones_are_of_type_0(position: str) -> None:
    torch.manual_seed(0)
    embeddings = Embeddings(30, 6, 8, position=position, token_types=2, norm=None)
    inputs, types = torch.randint(30, (2, 5)), torch.randint(2, (2, 5))
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    for layout in (Layout.of(inputs), Layout.of(inputs, mask)):
        expected = embeddings.word(inputs) + embeddings.token_type(types)
        if position == "learned":
            expected = expected + embeddings.position.weight[:5]
        torch.testing.assert_close(embeddings(inputs, layout, types)[0], layout.unpad(expected))
        zero = torch.zeros_like(types)
        torch.testing.assert_close(embeddings(inputs, layout)[0], embeddings(inputs, layout, zero)[0])
