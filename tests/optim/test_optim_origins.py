"""Why those that are written here are: what torch and pytorch-optimizer have breaks a law that ours keeps.

If one of these fails, the libraries have come further, and ours may go.
"""

import inspect

import pytest
import torch
from test_optim_laws import deviation
from torch import nn

from cramming.errors import UserError
from cramming.optim import build
from cramming.optim.library import Library


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("lamb", "lamb"), ("stableadamw", "stable_adamw"), ("soap", "soap"), ("muon", "muon"), ("radam", "radam")],
)
def test_libraries_count_steps_by_group(theirs: str, ours: str) -> None:
    """So a layer that is grown begins with means that are corrected as if it were old."""
    assert deviation("library", name=theirs) > 2e-5  # of steps of some 1e-3
    assert deviation(ours) < 1e-6


def test_torchs_adafactor_is_relative_to_the_weights_and_to_the_time() -> None:
    """The study switched both off."""

    def moved(size: float) -> float:
        parameter = nn.Parameter(torch.full((4, 4), size))
        optimizer = torch.optim.Adafactor([parameter], lr=0.01)
        parameter.grad = torch.ones(4, 4)
        optimizer.step()
        return float((parameter.detach() - size).abs().max())

    assert moved(2.0) == pytest.approx(2 * moved(1.0), rel=1e-3)
    assert "scale_parameter" not in inspect.signature(torch.optim.Adafactor.__init__).parameters


def test_torchs_muon_takes_no_block_diagonal_matrices() -> None:
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon([nn.Parameter(torch.ones(4, 8, 8))])


def test_the_librarys_lamb_decays_outside_of_the_ratio() -> None:
    """With nothing but decay the paper's step is as long as the weights; theirs does not feel the ratio."""
    moved = {}
    for name, options in {"lamb": {}, "library": {"name": "lamb"}}.items():
        parameter = nn.Parameter(torch.full((4, 4), 2.0))
        optimizer = build(name, [parameter], lr=0.1, weight_decay=0.01, **options)
        parameter.grad = torch.zeros(4, 4)
        optimizer.step()
        moved[name] = 2.0 - float(parameter.detach()[0, 0])
    assert moved["lamb"] == pytest.approx(0.1 * 2.0, rel=1e-4)
    assert moved["library"] == pytest.approx(0.1 * 0.01 * 2.0, rel=1e-2)


def test_the_librarys_prodigy_has_one_rate_for_all() -> None:
    for name, options, ratio in (("prodigy", {"d0": 0.01}, 0.0), ("library", {"name": "prodigy"}, 1.0)):
        fast, slow = (nn.Parameter(torch.zeros(3)) for _ in range(2))
        optimizer = build(name, [{"params": [fast]}, {"params": [slow], "lr": 0.0}], lr=1.0, **options)
        fast.grad, slow.grad = torch.ones(3), torch.ones(3)
        optimizer.step()
        assert float(slow.detach().norm() / fast.detach().norm()) == pytest.approx(ratio)


def test_the_librarys_schedule_free_rounds_on_the_way_to_the_average_and_back() -> None:
    from pytorch_optimizer import ScheduleFreeAdamW

    parameter = nn.Parameter(torch.randn(9999, generator=torch.Generator().manual_seed(0)))
    optimizer = ScheduleFreeAdamW([parameter], lr=0.01)
    for seed in range(3):
        parameter.grad = torch.randn(9999, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
    before = parameter.detach().clone()
    optimizer.eval()
    optimizer.train()
    assert not torch.equal(parameter, before)


def test_the_library_has_no_larc_and_no_shampoo_that_can_be_saved_and_grafted() -> None:
    assert "clip" not in inspect.signature(Library(name="lars")._class().__init__).parameters
    assert not any("graft" in key for key in inspect.signature(Library(name="shampoo")._class().__init__).parameters)
    with pytest.raises(UserError, match="a checkpoint cannot hold its state"):
        Library(name="scalableshampoo")
