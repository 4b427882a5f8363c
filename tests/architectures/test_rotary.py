"""Rotation by position: its gradient, its bases, and that it is worked out once."""

import pytest
import torch

from cramming.architectures.layers import attention
from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.rotary import angles, rotate, turn
from cramming.architectures.layers.unpadding import Layout


def as_complex(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """The definition: the halves of a head are real and imaginary parts, each pair turned by its own angle."""
    half = x.shape[-1] // 2
    turns = positions[..., None].double() * base ** (-torch.arange(half, dtype=torch.float64) / half)
    turns = turns if positions.dim() == 1 else turns[:, None]
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(turns), turns)
    return torch.cat((turned.real, turned.imag), dim=-1)


@pytest.mark.parametrize("base", [10000.0, 160000.0])
@pytest.mark.parametrize("positions", [torch.arange(9), torch.tensor([[0, 7, 3], [8191, 2, 100]])])
def test_rotation_and_its_gradient_are_the_definitions(base: float, positions: torch.Tensor) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, positions.shape[-1], 8, dtype=torch.float64, requires_grad=True)
    found, expected = rotate(x, positions, base), as_complex(x, positions, base)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(found)
    (of_found,), (of_expected,) = (torch.autograd.grad((y * weights).sum(), x) for y in (found, expected))
    torch.testing.assert_close(of_found, of_expected, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_that_of_what_was_computed() -> None:
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    by = angles(torch.arange(5), 6, 100.0, torch.float64)
    assert torch.autograd.gradcheck(lambda x: turn(x, by), x)


def test_a_larger_base_turns_more_slowly() -> None:
    x = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 1, 1, 4)
    slow, fast = (rotate(x, torch.tensor([50]), base)[0, 0, 0] for base in (160000.0, 10000.0))
    assert slow[0] == fast[0]  # the first pair turns by the position itself
    assert slow[3] < fast[3] / 3


def test_layers_of_one_base_share_their_angles(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(*arguments: object) -> torch.Tensor:
        made.append(arguments[2])
        return angles(*arguments)

    monkeypatch.setattr(attention, "angles", counted)
    layout = Layout.of(torch.zeros(2, 7))
    for base in (10000.0, 160000.0, 10000.0, 160000.0):
        SelfAttention(16, 2, rotary=base)(torch.randn(14, 16), layout)
    assert made == [10000.0, 160000.0]


@pytest.mark.parametrize("starts", [False, True])
def test_positions_start_over_in_every_document(starts: bool) -> None:
    """The same tokens one after the other become the same where they are apart, and differ where they are not."""
    torch.manual_seed(0)
    layer = SelfAttention(16, 2, rotary=100.0).double()
    tokens = torch.randn(6, 16, dtype=torch.float64)
    beginnings = torch.zeros(1, 12, dtype=torch.bool)
    beginnings[0, [0, 6]] = True
    layout = Layout.of(torch.zeros(1, 12), starts=beginnings if starts else None)
    first, second = layer(tokens.repeat(2, 1), layout).chunk(2)
    assert torch.allclose(first, second) == starts
    alone = layer(tokens, Layout.of(torch.zeros(1, 6)))
    assert torch.allclose(first, alone) == starts
