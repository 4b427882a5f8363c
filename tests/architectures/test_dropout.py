"""Dropout from sixteen bits: as often, as large in the mean, and the same in backward, as torch's."""

import pytest
import torch
from torch import nn

from cramming.architectures.layers.dropout import Dropout, dropout, exchange


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_divided_by_how_often(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    count = 200_003  # no multiple of what is drawn at once
    x = torch.full((count,), 3.0, dtype=dtype, requires_grad=True)
    y = dropout(x, p)
    dropped = round(p * 65536) / 65536
    kept = y != 0
    assert torch.equal(y[kept], torch.full_like(y[kept], 3.0).mul(1 / (1 - dropped)))
    assert abs(1 - kept.float().mean().item() - p) < 5 * (p * (1 - p) / count) ** 0.5
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad != 0, kept)
    assert torch.equal(x.grad[kept], torch.ones_like(x.grad[kept]).mul(1 / (1 - dropped)))


def test_elements_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (dropout(torch.ones(400_000), 0.5) != 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8):
        assert abs((kept[distance:] * kept[:-distance]).mean().item()) < 5 * 0.25 / 400_000**0.5


def test_it_follows_the_seed_and_is_off_in_evaluation() -> None:
    layer, x = Dropout(0.3), torch.ones(3, 5, 7)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_it_takes_the_place_of_every_one_in_a_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.2))).eval()
    exchange(model)
    found = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert [(type(module), module.p, module.training) for module in found] == [
        (Dropout, 0.1, False),
        (Dropout, 0.2, False),
    ]
