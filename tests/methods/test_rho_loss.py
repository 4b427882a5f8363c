"""RHO-loss: which sequences of a mega-batch train, under which masks, from which irreducible losses, at what price."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from irreducible_arrays import COST, MASK, array, held_out, refused, shared_array
from memory import CPU, LAYERS, MASK_RATE, MemoryStore, PassCost, run_of, same, store, stream, trained, weights
from safetensors.torch import load_file

from cramming.batch import Batch
from cramming.data.stream import Split, Stream, slots
from cramming.lengths import Lengths
from cramming.train import Run
from efficient_training.rho_loss import RhoLoss, best

STEP_PRICE = 3 * 8 * (1 + LAYERS) + 1  # of a batch of 8
SCORE_PRICE = 1 + LAYERS  # of a sequence


def method(**options: Any) -> RhoLoss:
    """With the irreducible losses that all tests share."""
    return RhoLoss(**{"irreducible": shared_array(), **options})


def batches(run: Run, steps: int = 1) -> list[Batch]:
    """What the run would train on; nothing is trained."""
    found = [run.next_batch() for _ in range(steps)]
    assert all(batch is not None for batch in found)
    return found  # type: ignore[return-value]


# ---- what is chosen ----


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, float("-inf")]), min_size=1, max_size=40), st.data())
def test_the_best_are_those_of_a_full_sort_and_of_equal_ones_the_first(
    scores: list[float], data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, len(scores)))
    ranked = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    assert best(torch.tensor(scores), n).tolist() == sorted(ranked[:n])


def test_a_step_by_hand() -> None:
    """20 sequences, each scored alone under the scoring mask; 8 train, in stream order, under the masks of the draw."""
    run = run_of(method(mega_batch_size=20))
    losses = np.load(Path(shared_array()) / "losses.npy")
    drawn = stream().draw(20)
    scores = []
    for row in drawn.ids.tolist():
        one = run.stream.masked(np.array([row]), np.array([0]), seed=MASK["seed"], rate=MASK["rate"], slots=6)
        predicted = one.weights[0] > 0
        with torch.no_grad():
            scores.append(float(run.model(one)[0][predicted].mean()) - float(losses[row]))
    chosen = sorted(sorted(range(20), key=lambda place: -scores[place])[:8])
    (batch,) = batches(run)
    assert same(batch, drawn.select(torch.tensor(chosen)))
    logged = run.method.columns()
    assert logged["kept_share"] == 0.4
    assert logged["reducible_loss"] == pytest.approx(np.mean(scores), abs=1e-5)
    assert logged["reducible_loss_kept"] == pytest.approx(np.mean([scores[place] for place in chosen]), abs=1e-5)


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_a_model_like_the_irreducible_one_has_nothing_to_learn(tmp_path: Path, layout: str) -> None:
    """Both losses see one mask, whatever the run's seed, epoch and mask rate: their difference is exactly zero."""

    def scores(mask: dict[str, Any]) -> torch.Tensor:
        other = run_of(layout=layout)
        rows = np.arange(store().rows)
        places = slots(store().seq_length, MASK["rate"])
        seen = other.stream.masked(rows, np.zeros_like(rows), seed=mask["seed"], rate=mask["rate"], slots=places)
        folder = array(tmp_path / str(mask["seed"]), other.engine.losses(seen, "selection").numpy()).folder
        run = run_of(RhoLoss(mega_batch_size=24, irreducible=str(folder)), seed=5, layout=layout)
        found = []
        for batch in batches(run, 6):  # more than an epoch
            assert run.method.columns()["kept_share"] == pytest.approx(1 / 3)
            found.append(
                torch.tensor([run.method.columns()[name] for name in ("reducible_loss", "reducible_loss_kept")])
            )
            assert len(batch) == 8
        return torch.cat(found)

    assert float(scores(MASK).abs().max()) < 1e-6
    assert float(scores({"seed": 8, "rate": MASK["rate"]}).abs().max()) > 1e-3


def test_the_chosen_train_under_the_masks_of_their_epoch() -> None:
    """108 rows train; the 120th sequence is of the second epoch."""
    run = run_of(method(mega_batch_size=40))
    for batch in batches(run, 4):
        expected = run.stream.masked(
            batch.ids.numpy(), batch.epochs.numpy(), seed=0, rate=MASK_RATE, slots=run.stream.slots
        )
        assert same(batch.inputs, expected.inputs)
        assert same(batch.weights, expected.weights)
    assert batch.epochs.max() == 1


@pytest.mark.parametrize("case", [0, 1])
def test_the_references_choice(shared: Path, tmp_path: Path, case: int) -> None:
    """NoTrainNoGain's sequences, which come by their place; in stream order where it has the order of the scores."""
    golden = json.loads((shared / "golden" / "rho_loss.json").read_text())["runs"][case]
    tensors = load_file(shared / "golden" / "rho_loss.safetensors")
    losses = tensors[f"r{case}.input.losses"].flatten()
    irreducible = tensors[f"r{case}.input.il_losses"]
    corpus = MemoryStore(len(irreducible))
    folder = array(tmp_path / "irreducible", irreducible.numpy(), corpus, **held_out(0)).folder
    a_time = golden["forward_batch"]
    mega = -(-golden["mega_batch_size"] // a_time) * a_time  # it scores whole batches until they are enough
    rho = RhoLoss(mega_batch_size=mega, irreducible=str(folder))
    run = run_of(batch_size=lambda progress: golden["train_batch_size"])
    run.stream = Stream(
        corpus, Split(corpus.rows, 0.0), seed=0, mask_rate=lambda: MASK_RATE, max_mask_rate=0.5, device=CPU  # type: ignore[arg-type]
    )  # fmt: skip
    rho.setup(run)
    run.engine.losses = lambda batch, account: losses[batch.ids]  # type: ignore[method-assign]
    place = 0

    def draw(n: int) -> Batch:
        nonlocal place
        rows = np.arange(place, place + n)
        place += n
        return run.stream.masked(rows, np.zeros_like(rows), seed=0, rate=MASK_RATE, slots=6)

    for step in filter(None, golden["microbatches_of_example_ids_per_step"]):
        batch = rho.next_batch(run, draw, golden["train_batch_size"])
        assert batch is not None
        assert batch.ids.tolist() == sorted(i for microbatch in step for i in microbatch)
    assert place == len(irreducible) // mega * mega


def test_without_a_finite_loss_or_a_mask_a_sequence_comes_last(tmp_path: Path) -> None:
    run = run_of(method(mega_batch_size=24))
    drawn = stream().draw(24)
    odd = [float("nan"), float("inf"), -float("inf")] * 4  # of the first 12 sequences
    told = dict(zip(drawn.ids.tolist(), [*odd, *range(12)], strict=True))
    run.engine.losses = lambda batch, account: torch.tensor([float(told[row]) for row in batch.ids.tolist()])  # type: ignore[method-assign]
    (batch,) = batches(run)
    losses = np.load(Path(shared_array()) / "losses.npy")  # below 1: the order is that of what was told
    assert losses.max() < 1
    assert batch.ids.tolist() == drawn.ids[16:].tolist()
    assert np.isfinite(run.method.columns()["reducible_loss"])

    corpus = MemoryStore(120, layout="document")
    assert corpus._lengths is not None
    empty = corpus._lengths < 10  # a twentieth of so few tokens is none
    low = array(tmp_path / "low", np.where(empty, -100, 0).astype(np.float32), mask={"seed": 1, "rate": 0.05}).folder
    run = run_of(RhoLoss(mega_batch_size=96, irreducible=str(low)), layout="document")
    (batch,) = batches(run)
    assert not empty[batch.ids.numpy()].any()
    assert empty[stream(store("document")).draw(96).ids.numpy()].any(), "or this tests nothing"


def test_half_precision_is_enough_for_an_array(tmp_path: Path) -> None:
    losses = np.load(Path(shared_array()) / "losses.npy").astype(np.float16)
    run = run_of(RhoLoss(irreducible=str(array(tmp_path / "a", losses).folder)))
    wide = run_of(RhoLoss(irreducible=str(array(tmp_path / "b", losses.astype(np.float32)).folder)))
    assert same(batches(run, 3)[-1], batches(wide, 3)[-1])


# ---- how many are scored, and who pays ----


def test_the_default_mega_batch_is_twice_the_batch_and_grows_with_it() -> None:
    run = run_of(method(), batch_size=lambda progress: 4 if progress < 0.5 else 8, budget=4)
    trained(run)
    assert run.clock.counts["selection"]["forward"]["sequences"] == 2 * (4 + 4 + 8 + 8)
    run = run_of(method(mega_batch_size=20), batch_size=lambda progress: 4 if progress < 0.5 else 8, budget=4)
    trained(run)
    assert run.clock.counts["selection"]["forward"]["sequences"] == 10 + 10 + 20 + 20


def test_every_sequence_scored_is_paid_for() -> None:
    run = trained(run_of(method(mega_batch_size=20), costs=PassCost(), budget=3 * (STEP_PRICE + 20 * SCORE_PRICE)))
    assert run.step == 3
    assert run.clock.ledger == {"selection": 3 * 20 * SCORE_PRICE, "train": 3 * (STEP_PRICE - 1), "optimizer": 3}


def test_the_budget_ends_while_scoring() -> None:
    """No step without its whole mega-batch; less than a batch of scoring is overspent."""
    for left in (1, 8 * SCORE_PRICE, 8 * SCORE_PRICE + 1, 20 * SCORE_PRICE):
        run = run_of(method(mega_batch_size=20), costs=PassCost(), budget=STEP_PRICE + 20 * SCORE_PRICE + left)
        trained(run)
        assert run.step == 1
        assert run.clock.budget_s <= run.clock.spent_s < run.clock.budget_s + 8 * SCORE_PRICE


@pytest.mark.parametrize("stop_at", [10, STEP_PRICE + 70, STEP_PRICE + 60 + 10, 2 * STEP_PRICE + 61])
def test_stopping_while_scoring_loses_nothing(stop_at: int) -> None:
    """Going on, it is the run that never stopped."""
    options: dict[str, Any] = {"costs": PassCost(), "budget": 5 * (STEP_PRICE + 60)}
    straight = trained(run_of(method(mega_batch_size=20), **options))
    stopped = trained(run_of(method(mega_batch_size=20), stop_at=stop_at, **options))
    on = run_of(method(mega_batch_size=20), **options)
    on.load_state_dict(stopped.state_dict())
    trained(on)
    assert on.step == straight.step == 5
    assert torch.equal(weights(on.model), weights(straight.model))
    assert on.clock.ledger == straight.clock.ledger


def test_the_irreducible_losses_are_written_down_once_and_free() -> None:
    run = trained(run_of(method()))
    assert run.step == 12
    assert run.clock.ledger["irreducible"] == COST["total"]
    again = run_of(method(), budget=14)
    again.load_state_dict(run.state_dict())
    trained(again)
    assert again.clock.ledger["irreducible"] == COST["total"]
    assert again.method.about()["irreducible_losses"]["cost"] == COST
    assert not again.method.about()["irreducible_losses"]["charged"]


def test_the_irreducible_losses_can_be_paid_from_the_budget() -> None:
    rho = method(charge_irreducible=True)
    assert rho.free == ()
    run = trained(run_of(rho))
    assert (run.step, run.clock.spent_s, run.clock.ledger["irreducible"]) == (10, 12, 2)
    refused(lambda: run_of(method(charge_irreducible=True), budget=2), "cost 2 steps", "whole budget is 2")
    refused(
        lambda: run_of(method(charge_irreducible=True), costs=PassCost()), "cost 2 steps", "this run's budget counts s"
    )
    assert "irreducible" not in trained(run_of(method(), costs=PassCost(), budget=200)).clock.ledger


# ---- what cannot be ----


def test_impossible_options_are_refused() -> None:
    refused(
        lambda: run_of(method(mega_batch_size=7)), "mega_batch_size=7 is smaller than train.batch_size=8", "such as 16"
    )
    refused(lambda: method(mega_batch_size=0), "mega_batch_size=0")
    refused(lambda: method(irreducible=" "), "irreducible is empty")
    run = run_of()
    run.stream.lengths = Lengths(run.stream.store.seq_length, (12,), (0.5,))
    refused(lambda: method().setup(run), "train.lengths", "a part of a row is another sequence")


def test_a_run_that_is_only_looked_at_needs_no_array() -> None:
    run = trained(run_of(method(), budget=3))
    looked_at = run_of()
    looked_at.method = RhoLoss(irreducible="nowhere")
    looked_at.load_state_dict(run.state_dict())
    assert looked_at.method.about() == {}
    with looked_at.method.evaluating(looked_at):
        assert torch.equal(weights(looked_at.model), weights(run.model))
