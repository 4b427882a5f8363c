"""What is timed against one another computes the same; every side of every piece is in the result."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import fused_pieces
from benchmarks.presentation import OURS
from cramming.errors import UserError

SMALL: dict[str, Any] = {"tokens": 24, "hidden": 16, "intermediate": 40, "vocabulary": 37, "predicted": 0.5}


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes long, and is torch's."""
    monkeypatch.setattr(fused_pieces, "_compiled", lambda function: function)


def options(**more: Any) -> fused_pieces.Options:
    return fused_pieces.Options(**{**SMALL, "device": "cpu", "precision": "float32", "pairs": 3, **more})


@pytest.mark.parametrize("piece", fused_pieces.PIECES)
def test_sides_compute_the_same(piece: str) -> None:
    sides = fused_pieces.BUILDERS[piece](options())
    eager, *others = (side for side in sides.values() if isinstance(side, fused_pieces.Passes))
    out, of_x, *weights = eager.passed()
    assert len(others) >= 2
    for other in others:
        found, slope, *rest = other.passed()
        torch.testing.assert_close(found, out)
        torch.testing.assert_close(slope, of_x)
        # The gated layer's first matrix is one or two.
        ours, theirs = (torch.cat([part.flatten() for part in parts]) for parts in (rest, weights))
        torch.testing.assert_close(ours, theirs)


def test_the_floor_of_products_does_all_of_them() -> None:
    of_bias = 2 * 12 * SMALL["vocabulary"]  # summed as a product
    for piece, besides in (("cross_entropy", of_bias), ("gated", 0)):
        sides = fused_pieces.BUILDERS[piece](options())
        floor: Any = sides[fused_pieces.FLOOR]
        done = sum(2 * left.numel() * right.shape[1] for left, right, _ in floor.products)
        ours: Any = sides[OURS]
        with FlopCounterMode(display=False) as counted:
            out = ours.function(*ours.operands)
            torch.autograd.backward(out, ours.slope)
        assert done + besides == counted.get_total_flops()


def test_a_result_has_every_side() -> None:
    rows = [fused_pieces.row(options(cell_s=0.01), piece) for piece in fused_pieces.PIECES]
    assert [found["unfit"] for found in rows] == [{}] * 3
    shown = {(cells[0], cells[1]) for cells in fused_pieces.page(rows).rows}
    for piece in fused_pieces.PIECES:
        for side in (OURS, fused_pieces.EAGER, fused_pieces.COMPILED, fused_pieces.FLOOR):
            assert (piece, side) in shown


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r"pieces=gatd is unknown; did you mean 'gated'"):
        options(pieces=["gatd"])
    with pytest.raises(UserError, match="something to compute"):
        options(vocabulary=0)
