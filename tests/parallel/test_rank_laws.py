"""Ranks do not change results: two of them train the run that one trains, for every method.

What is compared, with what bound: losses of 30 steps and norms of gradients to 1e-5, relative; weights to 1e-5, for
some optimizers to 1e-3 (``comparing.py``); sequences, layers, steps, counters and parameters without a gradient
exactly. Ranks of one run are equal to the last bit, and so is a run that is repeated.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from cramming import checkpoint
from tests.parallel.cases import CASES
from tests.parallel.comparing import assert_equal, assert_same_run, is_rough
from tests.parallel.laws import Job, Outcome, together

# Methods that keep sequences, gradients or sums between steps, and one that keeps nothing.
RESUMED = ("baseline", "chain", "waiting", "token_dropping", "hessian")
# Of two ranks a step costs 30 for the scores of 20 sequences and 37 for training: amid the sixth step's scores.
STOP_AT = 5 * 67.0 + 20
UNPRICED = [name for name, case in CASES.items() if not case.priced]
AGAIN = ("baseline", "growing_chain")


@dataclass(frozen=True)
class Told:
    """What one rank alone saw, what each of two did, and where their weights are."""

    alone: dict[str, Outcome]
    ranks: list[dict[str, Outcome]]
    folder: Path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """All runs of this file: two processes, started once."""
    folder = tmp_path_factory.mktemp("laws")
    saved = {world: {name: folder / f"saved-{world}" / name for name in RESUMED} for world in (1, 2)}
    stopped = folder / "saved-2" / "stopped"
    jobs = [Job(name, name, save=saved[1].get(name)) for name in UNPRICED]
    (alone,) = together(1, jobs, folder / "1")
    jobs = [Job(name, name, save=saved[2].get(name)) for name in CASES if name != "stopped"]
    jobs += [Job(name, f"again {name}") for name in AGAIN]
    jobs += [Job(name, f"from {world} {name}", resume=saved[world][name]) for world in saved for name in RESUMED]
    jobs += [Job("stopped", "stopped", save=stopped, stop_at=STOP_AT)]
    jobs += [Job("stopped", "from 2 stopped", resume=stopped)]
    ranks = together(2, jobs, folder / "2")
    jobs = [Job(name, f"from 2 {name}", resume=saved[2][name]) for name in RESUMED]
    jobs += [Job("stopped", "from 2 stopped", resume=stopped)]
    (on,) = together(1, jobs, folder / "1")
    return Told(alone | on, ranks, folder)


@pytest.mark.parametrize("name", UNPRICED)
def test_two_ranks_train_the_run_that_one_trains(told: Told, name: str) -> None:
    assert_equal(name, told.alone[name], told.ranks[0][name], told.folder / "1", told.folder / "2")


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_equal_to_the_last_bit_and_work_as_much(told: Told, name: str) -> None:
    """Losses, columns, counters, the clock, layers drawn and grown; and at the end weights, optimizer and method."""
    first, second = (rank[name] for rank in told.ranks)
    assert first == second
    assert first["of_each"]["work"] == second["of_each"]["work"]


@pytest.mark.parametrize("name", CASES)
def test_what_has_no_gradient_on_any_rank_stays_as_it_is(told: Told, name: str) -> None:
    """Weights and what the optimizer knows of them."""
    assert all(rank[name]["untouched"] for rank in told.ranks)


def test_some_parameters_have_no_gradient_or_that_tests_nothing(told: Told) -> None:
    for name in ("layer_dropping", "layer_stacking"):
        counts = {len(none) for none in told.ranks[0][name]["none"]}
        assert len(counts) > 1
    layers = [tuple(map(len, row["layers"])) for row in told.ranks[0]["layer_dropping"]["steps"]]
    assert len(set(layers)) > 2
    assert all(len(groups) == 2 for groups in layers), "a batch of 8 is two draws, however many ranks share them"


@pytest.mark.parametrize(
    ("name", "times"),
    [("baseline", {1}), ("growing", {1}), ("layer_dropping", {1}), ("sharpness", {2}), ("hessian", {1, 2})],
)
def test_gradients_are_averaged_once_for_each_batch_that_is_passed(told: Told, name: str, times: set[int]) -> None:
    """However many microbatches; sharpness and an estimate of curvature pass a batch of their own."""
    assert set(told.ranks[0][name]["of_each"]["reductions"]) == times


@pytest.mark.parametrize("name", AGAIN)
def test_the_same_ranks_do_the_same_again(told: Told, name: str) -> None:
    for rank in told.ranks:
        assert rank[name]["of_each"]["digest"] == rank[f"again {name}"]["of_each"]["digest"]
        assert rank[name] == rank[f"again {name}"] | {"saved_after": rank[name]["saved_after"]}


# ---- resumed ----


@pytest.mark.parametrize("name", RESUMED)
def test_as_many_ranks_go_on_to_the_last_bit(told: Told, name: str) -> None:
    for rank in told.ranks:
        straight, resumed = rank[name], rank[f"from 2 {name}"]
        assert resumed["steps"] == straight["steps"][straight["saved_after"] :]
        assert resumed["of_each"]["digest"] == straight["of_each"]["digest"]


@pytest.mark.parametrize("name", RESUMED)
def test_more_or_fewer_ranks_go_on_with_the_same_run(told: Told, name: str) -> None:
    rough, alone, two = is_rough(name), told.alone, told.ranks[0]
    assert_same_run(alone[name], two[f"from 1 {name}"], rough=rough, begins=alone[name]["saved_after"])
    assert_same_run(two[name], alone[f"from 2 {name}"], rough=rough, begins=two[name]["saved_after"])


def test_what_was_scored_when_the_budget_stopped_is_everybodys(told: Told) -> None:
    """The step that goes on has the sequences it would have had, on as many ranks and on one."""
    found = checkpoint.newest(told.folder / "saved-2" / "stopped")
    assert found is not None
    assert found[1]["method"]["parts"], "or this tests nothing"
    straight = told.ranks[0]["stopped"]
    first = straight["steps"][straight["saved_after"]]
    assert told.ranks[0]["from 2 stopped"]["steps"][0] == first
    alone = told.alone["from 2 stopped"]["steps"][0]
    assert alone["ids"] == first["ids"]
    assert alone["loss"] == pytest.approx(first["loss"], rel=1e-5)


# ---- priced ----


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.priced])
def test_under_prices_every_rank_stops_at_the_same_step(told: Told, name: str) -> None:
    """A pass costs what it costs one device, so two come farther than one; sequences that fill up are paid too."""
    first, second = (rank[name] for rank in told.ranks)
    assert first["spent"] == second["spent"]
    assert first["ledger"] == second["ledger"]
    assert first["step"] == second["step"] > 0
    assert first["of_each"]["work"] == second["of_each"]["work"]
