"""Whole runs under selective backprop: what is scored, trained on, paid, carried over, and how a run ends."""

import math
from typing import Any

import pytest
import torch
from memory import LENGTH, PassCost, run_of, same, store, trained, weights

from cramming.batch import Batch
from cramming.checkpoint import flatten, unflatten
from cramming.errors import UserError
from cramming.lengths import BatchSize, Lengths
from cramming.train import Run
from efficient_training.selective_backprop import SelectiveBackprop


def ids_of(run: Run) -> list[list[int]]:
    """Train, and return the numbers of the sequences each step trained on."""
    found: list[list[int]] = []
    update = run.method.update

    def noted(run: Run, batch: Batch, factor: float, step: Any) -> int:
        found.append(batch.ids.tolist())
        return update(run, batch, factor, step)

    run.method.update = noted  # type: ignore[method-assign]
    trained(run)
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_selections_depend_on_the_seed_and_not_on_the_microbatch(precision: str) -> None:
    def chosen(seed: int = 0, microbatch_size: int = 4) -> list[list[int]]:
        options: dict[str, Any] = {"seed": seed, "microbatch_size": microbatch_size, "precision": precision}
        return ids_of(run_of(SelectiveBackprop(beta=2.0, candidates_per_pass=6), budget=5, **options))

    first = chosen()
    assert chosen() == first
    assert chosen(seed=1) != first
    assert precision == "bfloat16" or all(chosen(microbatch_size=size) == first for size in (1, 2, 8))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_scores_are_the_models_own_losses_without_a_trace(precision: str) -> None:
    """Half of what is drawn is kept, no gradient is left, and every candidate pays one forward pass."""
    run = run_of(SelectiveBackprop(), budget=3e3, costs=PassCost(), precision=precision)
    batch = run.next_batch()
    assert batch is not None
    assert all(p.grad is None for p in run.model.parameters())
    again = run_of(precision=precision)
    history = run.method.state_dict()["history"]
    candidates = int(run.method.columns()["candidates"])
    drawn = again.stream.draw(candidates)
    expected = again.engine.losses(drawn, "check")
    assert history.dtype == torch.float32
    assert history.numpy() == pytest.approx(
        expected[-len(history) :].numpy(), rel=1e-2 if precision != "float32" else 1e-5
    )
    assert set(batch.ids.tolist()) < set(drawn.ids.tolist())
    assert run.clock.ledger == {"selection": 3.0 * candidates}
    trained(run)
    selected = run.clock.counts["selection"]["forward"]["sequences"]
    assert run.clock.counts["train"]["forward_backward"]["sequences"] / selected == pytest.approx(0.5, abs=0.08)


def test_training_on_what_is_kept_is_training_on_those_sequences() -> None:
    """What was scored is what the stream gives of those rows, and a step's gradient that of the plain loss over it."""

    class Handed(SelectiveBackprop):
        """Selects as it does, and hands on a copy made by the stream from the rows' numbers."""

        def next_batch(self, run: Run, draw: Any, n: int) -> Batch | None:
            batch = super().next_batch(run, draw, n)
            assert batch is not None
            rows, epochs = batch.ids.numpy(), batch.epochs.numpy()
            return run.stream.masked(rows, epochs, seed=0, rate=0.25, slots=run.stream.slots)

    whole, handed = (trained(run_of(method, budget=6)) for method in (SelectiveBackprop(), Handed()))
    assert torch.equal(weights(whole.model), weights(handed.model))


def test_the_budget_ends_while_candidates_are_scored() -> None:
    """No step is taken with what was found, no gradient is left, and less than one more pass is overspent."""
    pass_price, step_price = 8 * 3, 8 * 3 * 3 + 1
    whole = run_of(SelectiveBackprop(), budget=600, costs=PassCost())
    spent: list[tuple[float, float]] = []
    trained(whole, lambda r: spent.append((r.clock.spent_s, r.clock.ledger["selection"])))
    (before, selection), (after, more) = spent[2], spent[3]
    assert after - before == more - selection + step_price
    assert more - selection >= 2 * pass_price, "the fourth step needs more passes than one"
    for budget in (before + 1, before + pass_price, before + pass_price + 1, before + (more - selection)):
        run = trained(run_of(SelectiveBackprop(), budget=budget, costs=PassCost()))
        assert run.step == 3, budget
        assert budget <= run.clock.spent_s < budget + pass_price
        assert all(p.grad is None for p in run.model.parameters())
        assert run.clock.ledger["train"] + run.clock.ledger["optimizer"] == 3 * step_price
    assert trained(run_of(SelectiveBackprop(), budget=before + (more - selection) + 1, costs=PassCost())).step == 4


@pytest.mark.parametrize("stop_at", [60, 77, 111, 145, 196, 247])
def test_a_run_that_stops_anywhere_goes_on_to_the_same_bits(stop_at: float) -> None:
    """Also where it stopped between two passes of one selection: what was kept until then waits, and the batch that is
    being chosen stays as large as it was to be, though the run is further on."""

    def fresh(stop: float | None = None) -> Run:
        method = SelectiveBackprop(candidates_per_pass=3)
        growing = BatchSize(4, 12, 0.9)
        return run_of(method, budget=600, costs=PassCost(), stop_at=stop, batch_size=growing)

    whole, stopped, resumed = trained(fresh()), trained(fresh(stop_at)), fresh()
    tree, tensors = flatten(stopped.state_dict())
    resumed.load_state_dict(unflatten(tree, tensors))
    trained(resumed)
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert same(whole.method.state_dict(), resumed.method.state_dict())
    assert same(whole.clock.state_dict(), resumed.clock.state_dict())
    assert same(whole.method.columns(), resumed.method.columns())


def test_documents_of_any_length_wait_with_their_padding() -> None:
    corpus = store("document")
    parts: list[dict[str, Any]] = []
    run = run_of(SelectiveBackprop(candidates_per_pass=7), budget=6, layout="document")
    trained(run, lambda r: parts.extend(r.method.state_dict()["waiting"]))
    assert parts, "or this shows nothing"
    for part in parts:
        assert part["lengths"].tolist() == corpus.read(part["ids"].numpy())[1].tolist()  # type: ignore[union-attr]
        assert part["normalizer"] == part["weights"].sum()


def test_what_waits_is_dropped_and_counted_when_the_length_changes() -> None:
    """A batch has one length; the run goes on with sequences of the new one."""
    run = run_of(SelectiveBackprop(candidates_per_pass=7), budget=12)
    run.stream.lengths = Lengths(LENGTH, (12,), (0.5,))
    seen: list[tuple[int, int]] = []

    def note(run: Run) -> None:
        seen.append((run.stream.length, sum(len(part["ids"]) for part in run.method.state_dict()["waiting"])))

    trained(run, note)
    assert [length for length, _ in seen] == [12] * 6 + [24] * 6
    waiting_at_the_change = seen[5][1]
    assert waiting_at_the_change > 0, "or this shows nothing"
    assert run.method.columns()["dropped_waiting"] == waiting_at_the_change


def test_a_model_whose_losses_are_no_numbers_ends_the_run() -> None:
    """Nothing would be kept ever again; where scoring is free, the search would have no end."""
    run = run_of(SelectiveBackprop(), budget=6)
    with torch.no_grad():
        next(run.model.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match="not finite for 32 candidates in a row"):
        trained(run)
    assert run.step == 0
