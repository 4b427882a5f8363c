"""The laws of ``test_rank_laws.py`` on 1, 2 and 4 ranks, for every method in every layout and every optimizer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.parallel.cases import GRID
from tests.parallel.comparing import assert_equal, assert_same_run, is_rough
from tests.parallel.laws import Job, Outcome, together

pytestmark = pytest.mark.scale
UNPRICED = [name for name, case in GRID.items() if not case.priced]
# Where a gradient has no full rank, which eigenvectors SOAP takes is up to rounding: in one process, microbatches of
# another size change its losses by 1e-3 too. Its ranks are equal to the last bit all the same.
UNSTABLE = ("soap",)
# Losses, norms and weights of these differ over ranks by rounding alone: in float64 by next to nothing.
EXACT, WIDE = 1e-11, ("muon", "sophiag", "adafactor", "hessian")
RESUMED = ("baseline", "chain", "waiting", "growing_chain", "hutchinson")


@dataclass(frozen=True)
class Told:
    """By the number of ranks: what each saw, and where their weights are."""

    ranks: dict[int, list[dict[str, Outcome]]]
    folder: Path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """All runs: 2 and 4 processes, started once each; saved by 2, taken up by 4 and 1."""
    folder = tmp_path_factory.mktemp("laws")
    found: dict[int, list[dict[str, Outcome]]] = {}
    saved = {name: folder / "saved" / name for name in RESUMED}
    resumed = [Job(name, f"resumed {name}", resume=saved[name]) for name in RESUMED]
    for world in (2, 4, 1):
        names = UNPRICED if world == 1 else GRID
        jobs = [Job(name, name, save=saved.get(name) if world == 2 else None) for name in names]
        found[world] = together(world, jobs + (resumed if world != 2 else []), folder / str(world))
    return Told(found, folder)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", [name for name in UNPRICED if name not in UNSTABLE])
def test_ranks_train_the_run_that_one_trains(told: Told, name: str, world: int) -> None:
    alone, first = told.ranks[1][0], told.ranks[world][0]
    assert_equal(name, alone[name], first[name], told.folder / "1", told.folder / str(world))


@pytest.mark.parametrize("world", [2, 4])
def test_what_rounding_moves_most_is_the_same_run_in_float64(tmp_path: Path, world: int) -> None:
    jobs = [Job(name, name, wide=True) for name in WIDE]
    alone, several = (together(size, jobs, tmp_path / str(size))[0] for size in (1, world))
    for name in WIDE:
        for row, other in zip(alone[name]["steps"], several[name]["steps"], strict=True):
            for key in ("loss", "grad_norm"):
                assert other[key] == pytest.approx(row[key], rel=EXACT), f"{name}: {key} at step {row['step']}"
        weights, others = (np.load(tmp_path / str(size) / f"{name}.npy") for size in (1, world))
        assert weights.dtype == np.float64
        np.testing.assert_allclose(others, weights, rtol=0, atol=EXACT)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", GRID)
def test_ranks_are_equal_to_the_last_bit(told: Told, name: str, world: int) -> None:
    first, *others = (rank[name] for rank in told.ranks[world])
    assert all(other == first for other in others)
    assert first["untouched"]
    assert first["step"] > 0


@pytest.mark.parametrize("world", [1, 4])
@pytest.mark.parametrize("name", RESUMED)
def test_others_go_on_with_what_two_saved(told: Told, name: str, world: int) -> None:
    straight, resumed = told.ranks[2][0][name], told.ranks[world][0][f"resumed {name}"]
    assert_same_run(straight, resumed, rough=is_rough(name), begins=straight["saved_after"])
