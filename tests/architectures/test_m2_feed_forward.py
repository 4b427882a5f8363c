"""The block-diagonal layers and the gated feed-forward part against their definitions."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from cramming.architectures.layers.block_diagonal import BlockDiagonalGatedFeedForward, BlockDiagonalLinear


def test_block_diagonal_layers_are_the_references(shared: Path) -> None:
    tensors = load_file(shared / "golden" / "m2_blockdiag_linear.safetensors")
    described = json.loads((shared / "golden" / "m2_blockdiag_linear.json").read_text())
    for variant in described["variants"]:
        name = variant["prefix"]
        layer = BlockDiagonalLinear(
            variant["in_features"], variant["out_features"], variant["nblocks"], bias=variant["bias"]
        )
        state = {k.removeprefix(f"{name}state_dict."): t for k, t in tensors.items() if f"{name}state_dict." in k}
        layer.load_state_dict(state)
        x = tensors[f"{name}input.x"].requires_grad_()
        y = layer(x)
        torch.testing.assert_close(y, tensors[f"{name}expected.y"], rtol=0, atol=1e-5)
        y.backward(tensors[f"{name}input.cotangent"])
        gradients = {"x": x.grad, "weight": layer.weight.grad}
        if layer.bias is not None:
            gradients["bias"] = layer.bias.grad
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, tensors[f"{name}grad.{key}"], rtol=0, atol=1e-5)


def test_fresh_block_diagonal_weights() -> None:
    torch.manual_seed(0)
    layer = BlockDiagonalLinear(256, 512, 4)
    assert 0.99 < float(layer.weight.detach().abs().max()) * math.sqrt(256 / 4) <= 1
    assert 0.97 < float(layer.bias.detach().abs().max()) * math.sqrt(512) <= 1, "the bias' bound is by outputs"


SIZES = [(16, 24, 4), (16, 24, 2), (12, 18, 6), (16, 24, 1), (15, 9, 3)]  # hidden, width, blocks


def by_matrices(part: BlockDiagonalGatedFeedForward, x: Tensor, mask: Tensor | float = 1.0) -> Tensor:
    """With whole matrices, zero outside of their blocks; what is between the layers times a mask."""
    inner, outer = (torch.block_diag(*layer.weight.unbind()) for layer in (part.expand, part.contract))
    gates, values = (x @ inner.T).chunk(2, dim=1)
    return (F.gelu(gates) * values * mask) @ outer.T + part.contract.bias


@pytest.mark.parametrize("how", ["reference", "torch", "plain"])
@pytest.mark.parametrize(("hidden", "width", "blocks"), SIZES)
def test_the_feed_forward_part_is_what_its_matrices_say(hidden: int, width: int, blocks: int, how: str) -> None:
    torch.manual_seed(0)
    part = BlockDiagonalGatedFeedForward(hidden, width, blocks, dropout=0.5).double().eval()
    if how == "plain":
        part.plain = frozenset({"block_diagonal"})
    else:
        part.kernels = how
    x = torch.randn(5, hidden, dtype=torch.float64, requires_grad=True)
    expected, found = by_matrices(part, x), part(x)
    torch.testing.assert_close(found, expected)
    incoming = torch.randn_like(found)
    leaves = [x, *part.parameters()]
    wanted = torch.autograd.grad(expected, leaves, incoming)
    for ours, theirs in zip(torch.autograd.grad(found, leaves, incoming), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


class Recorded(nn.Dropout):
    """Dropout that remembers which values it left alone."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.factors: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.factors.append(super().forward(torch.ones_like(x)))
        return x * self.factors[-1]


@pytest.mark.parametrize(("hidden", "width", "blocks"), SIZES)
def test_what_is_dropped_lies_between_the_layers(hidden: int, width: int, blocks: int) -> None:
    torch.manual_seed(0)
    part = BlockDiagonalGatedFeedForward(hidden, width, blocks, dropout=0.5).double()
    part.dropout = Recorded(0.5)
    x = torch.randn(5, hidden, dtype=torch.float64)
    found, factors = part(x), torch.cat(part.dropout.factors, dim=1)
    assert set(factors.unique().tolist()) == {0.0, 2.0}
    assert factors.shape == (5, width)
    torch.testing.assert_close(found, by_matrices(part, x, factors))
    assert torch.equal(part.eval()(x), part(x))


def test_which_quarters_meet() -> None:
    """Gates of blocks 0 and 1 stand beside values of blocks 2 and 3."""
    torch.manual_seed(0)
    part = BlockDiagonalGatedFeedForward(16, 32, 4)
    x = torch.randn(16)
    for quarter in range(4):
        changed = x.clone()
        changed[4 * quarter : 4 * quarter + 4] += 1
        moved = (part(x[None]) != part(changed[None])).view(4, 4).any(1).tolist()
        assert moved == ([True, True, False, False] if quarter in (0, 2) else [False, False, True, True])
