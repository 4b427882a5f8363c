"""Layers with a gradient of their own against plain autograd."""

import pytest
import torch
import torch.nn.functional as F

from cramming.architectures.layers import cross_entropy
from cramming.architectures.layers.cross_entropy import linear_cross_entropy
from cramming.architectures.layers.embedding import tied_lookup
from cramming.architectures.layers.unpadding import Layout


def test_cross_entropy_has_the_gradient_of_its_definition() -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(5, 3), (7, 3), (7,)])
    labels = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda *a: linear_cross_entropy(*a, labels), (x, weight, bias))


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
