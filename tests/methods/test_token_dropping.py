"""Token dropping: which tokens are kept, what their words' losses come to, what a pass then costs."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from memory import LENGTH, VOCABULARY, batch_of, run_of, small_model, trained
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from whole_runs import run_with

from cramming.batch import Batch
from cramming.build import Parts
from cramming.cli import compose
from cramming.errors import UserError
from cramming.method import Method, Step
from cramming.priced import flops_of, target_of
from cramming.train import Run
from efficient_training.token_dropping import TokenDropping
from rst import CostTable, Provenance, Work
from tests.architectures.families import arch

SPECIAL = 5  # ids below it are special


def dropping(**options: object) -> TokenDropping:
    """Settings that act on two layers: the first one is thinned."""
    return TokenDropping(**{"from_depth": 0.0, **options})  # type: ignore[arg-type]


def set_up(method: TokenDropping) -> TokenDropping:
    run_of(method)
    return method


def by_hand(batch: Batch, losses: Tensor, kept: int) -> list[set[int]]:
    """Positions of the predicted, the special, the hardest, where no two words' losses are equal."""
    found = []
    for row in range(len(batch)):
        end = batch.length if batch.lengths is None else int(batch.lengths[row])
        predicted = {int(p) for p, w in zip(batch.positions[row], batch.weights[row], strict=True) if w}
        words = batch.inputs[row].tolist()
        order = sorted(
            range(end), key=lambda p: (p not in predicted, words[p] >= SPECIAL, -float(losses[words[p]]))
        )  # fmt: skip
        found.append(set(order[:kept]))
    return found


# ---- which tokens ----


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_predicted_and_special_tokens_and_the_hardest_words_are_kept(layout: str) -> None:
    method, batch = set_up(dropping()), batch_of(40, layout)
    method.losses = torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(1)) * 8
    chosen = method.choose(batch, seed=0)
    assert chosen.shape == (40, LENGTH // 2)
    assert (chosen.diff(dim=1) > 0).all(), "ascending, none twice"
    for row, expected in enumerate(by_hand(batch, method.losses, LENGTH // 2)):
        got = chosen[row].tolist()
        tokens = got if batch.lengths is None else [p for p in got if p < batch.lengths[row]]
        words = {p: max(int(batch.inputs[row, p]), SPECIAL - 1) for p in range(LENGTH)}
        missed = expected - set(tokens)  # of several of one word, or several special ones, any will do
        assert sorted(words[p] for p in missed) == sorted(words[p] for p in set(tokens) - expected)
        assert len(tokens) == len(expected)


def test_words_of_equal_loss_are_kept_equally_often_wherever_they_stand() -> None:
    """At first all words are equal; keeping the first positions would be no choice by chance."""
    for method in (set_up(dropping()), set_up(dropping(by="random"))):
        method.losses = method.losses if method.by == "loss" else torch.arange(float(VOCABULARY))
        batch = batch_of(2000)
        plain = (batch.inputs >= SPECIAL) & ~torch.zeros_like(batch.inputs).scatter_(1, batch.positions, 1).bool()
        kept = torch.zeros_like(plain).scatter_(1, method.choose(batch, seed=0), True)
        shares = (kept & plain).sum(0) / plain.sum(0)
        mean = (kept & plain).sum() / plain.sum()
        spread = 5 * math.sqrt(float(mean * (1 - mean)) / int(plain.sum(0)[1:].min()))
        assert (shares[1:] - mean).abs().max() < spread
        assert not torch.equal(method.choose(batch, seed=0), method.choose(batch, seed=1))


def test_a_choice_depends_on_the_sequence_alone() -> None:
    """And so not on what else is in the batch, or how it is cut."""
    method, batch = set_up(dropping()), batch_of(12)
    whole = method.choose(batch, seed=0)
    parts = [method.choose(part, seed=0) for part in batch.split(5)]
    assert torch.equal(torch.cat(parts), whole)


def test_kept_positions_travel_with_their_sequences() -> None:
    method = dropping()
    run = run_of(method)
    batch = method.next_batch(run, run.draw, 8)
    assert batch is not None
    assert batch.kept is not None
    rows = torch.tensor([5, 1])
    part = batch.select(rows)
    again = Batch.concatenate([part, batch.select(torch.tensor([0]))])
    assert again.kept is not None
    assert torch.equal(again.kept, batch.kept[[5, 1, 0]])
    assert again.kept_depth == (0.0, 1.0)


# ---- running losses ----


class Known(TokenDropping):
    """Sees losses that are known: a hundredth of the label plus the batch's number."""

    number = 0.0

    def of(self, batch: Batch) -> Tensor:
        return batch.labels / 100 + self.number

    def pass_over(self, run: Run, batch: Batch) -> None:
        self.before_step(run)
        for group in batch.groups(None):
            with self.thinned(run, group):
                for part in group.split(3):
                    self.objective(lambda batch, logits=False: self.of(batch), part)
            with self.thinned(run, group):  # a second pass over the same group
                self.number += 100
                self.objective(lambda batch, logits=False: self.of(batch), group)
                self.number -= 100
        self.after_step(run)


def test_running_losses_are_means_of_means() -> None:
    """id by id: m x before + (1 - m) x the mean over the batch's predictions of it; others stay at the initial loss."""
    method = Known(from_depth=0.0, momentum=0.75, initial_loss=9.0)
    run = run_of(method)
    expected = torch.full((VOCABULARY,), 9.0, dtype=torch.float64)
    for number in (1.0, 4.0):
        method.number = number
        batch = run.draw(10)
        for word in set(batch.labels[batch.weights > 0].tolist()):
            expected[word] = 0.75 * expected[word] + 0.25 * (word / 100 + number)
        method.pass_over(run, batch)
    torch.testing.assert_close(method.losses.double(), expected, rtol=0, atol=2e-6)
    assert (method.losses == 9.0).sum() > SPECIAL


def test_empty_slots_and_losses_that_are_not_finite_are_not_noted() -> None:
    method = Known(from_depth=0.0, momentum=0.0, initial_loss=9.0)
    run = run_of(method)
    batch = run.draw(4)
    method.number = math.nan
    method.pass_over(run, batch)
    method.number = 1.0
    method.pass_over(run, replace(batch, weights=torch.zeros_like(batch.weights)))
    assert (method.losses == 9.0).all()


def test_the_real_loop_notes_each_prediction_once() -> None:
    """Under a method that passes over every group again, and at any microbatch size."""

    class Twice(Method):
        accounts = ("again",)

        def update(self, run: Run, batch: Batch, factor: float, step: Step) -> int:
            for group in batch.groups(run.method.sequences_per_draw):
                with run.method.thinned(run, group):
                    for part in run.microbatches(group):
                        run.engine.backward(part, run.method.objective, "again")
            return step(factor)

    counts: list[int] = []

    class Counting(TokenDropping):
        def after_step(self, run: Run) -> None:
            counts.append(int(self._counts.sum()))
            super().after_step(run)

    trained(run_with({"token_dropping": Counting(from_depth=0.0), "twice": Twice()}, budget=3))
    assert counts == [8 * 6] * 3  # a quarter of 24 tokens


# ---- a pass, and its price ----


def table() -> CostTable:
    """Prices of a sequence of 24 and of 12 tokens; a layer of 24 costs 10, one of 12 only 4, the last one 3 less."""
    both = {LENGTH: (5.0, 12.0, 22.0), 12: (2.0, 3.0, 7.0)}
    forward = {length: tuple(seconds / 4 for seconds in column) for length, column in both.items()}
    return CostTable(1, forward, both, 0.5, Provenance("", "", (), {}, "", ""))


def test_a_thinned_pass_costs_its_short_layers() -> None:
    """One layer of two on 12 tokens: 12 for the last layer and all around, and 7 - 3 for one of 12 tokens."""
    price = 8 * (12.0 + (7.0 - 3.0)) + 0.5
    run = trained(run_with({"token_dropping": dropping()}, budget=3 * price, costs=table()))
    assert run.step == 3
    assert run.clock.ledger == {"train": 3 * (price - 0.5), "optimizer": 1.5}
    whole = trained(run_with({"token_dropping": dropping(share=0.0)}, budget=3 * (8 * 22 + 0.5), costs=table()))
    assert whole.step == 3


def test_a_table_prices_short_layers_as_the_layers_between_the_first_and_the_last() -> None:
    prices = table()
    assert prices.seconds(Work("forward", 8, LENGTH, 2, short_length=12, short_layers=1)) == 8 * 4.0
    assert prices.seconds(Work("forward", 8, LENGTH, 2)) == 8 * 5.5
    for wrong in (
        {"short_layers": 2, "short_length": 12},
        {"short_layers": 1},
        {"short_layers": 1, "short_length": 25},
    ):
        with pytest.raises(ValueError, match="short layers"):
            Work("forward", 8, LENGTH, 2, **wrong)


def test_nothing_is_dropped_where_the_model_is_validated() -> None:
    seen: list[bool] = []

    class Watching(TokenDropping):
        @contextmanager
        def evaluating(self, run: Run) -> Iterator[None]:
            for batch in run.stream.heldout(4, mask_rate=0.15, mask_seed=0, limit=4):
                seen.append(batch.kept is None)
            yield

    run = run_of(Watching(from_depth=0.0))
    with run.method.evaluating(run):
        pass
    assert seen == [True]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"share": 1.0}, "share=1.0 is a share"),
        ({"share": -0.1}, "share=-0.1"),
        ({"share": math.nan}, "share=nan"),
        ({"momentum": 1.5}, r"momentum=1\.5"),
        ({"from_depth": 0.5, "to_depth": 0.5}, "must lie below to_depth"),
        ({"initial_loss": math.inf}, "initial_loss=inf"),
        ({"by": "los"}, "by=los is unknown.*loss"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        TokenDropping(**options)  # type: ignore[arg-type]


def test_what_a_run_cannot_do_is_refused_before_it_begins() -> None:
    with pytest.raises(UserError, match="leave no layer of 2"):
        run_of(TokenDropping())
    with pytest.raises(UserError, match=r"share=0\.75 keeps 6 of 24 tokens, and 12 of them are predicted"):
        run_of(dropping(share=0.75))


@pytest.mark.parametrize("family", ["m2_tiny", "albert_tiny", "deberta_tiny"])
def test_families_whose_layers_need_every_token_are_refused_by_name(family: str) -> None:
    run = run_of()
    run.model = arch(family).build(VOCABULARY, LENGTH)  # type: ignore[assignment]
    with pytest.raises(UserError, match=f"does not work with {type(run.model).__name__}"):
        dropping().setup(run)
    run.model = small_model()  # type: ignore[assignment]
    dropping().setup(run)


# ---- built from a command line ----


WORDS = ["data=local", "data.path=x", "arch=bert_tiny", "arch.layers=4", "data.seq_length=24", "method=token_dropping"]


def test_every_length_that_a_layer_sees_has_a_price() -> None:
    for words, lengths in (
        ([], (24, 12)),
        (["method.token_dropping.share=0"], (24,)),
        (["train.lengths=[12,16]", "train.lengths_until=[0.1,0.2]"], (24, 6, 8, 12, 16)),
    ):
        config = compose([*WORDS, *words])
        assert target_of(Parts(config, VOCABULARY, torch.device("cpu")), "float32").lengths == lengths


@pytest.mark.parametrize("family", ["bert_tiny", "crammed_tiny", "mosaic_tiny"])
def test_operations_are_those_that_a_thinned_pass_takes(family: str) -> None:
    config = compose([*WORDS, f"arch={family}", "arch.layers=4", "train.mask_rate=0.25"])
    parts = Parts(config, VOCABULARY, torch.device("cpu"))
    model = parts.model().eval()
    method = TokenDropping()
    batch = replace(batch_of(3), kept=torch.arange(0, LENGTH, 2).repeat(3, 1), kept_depth=(0.5, 1.0))
    batch = replace(batch, positions=batch.positions[:, :6], labels=batch.labels[:, :6], weights=batch.weights[:, :6])
    with FlopCounterMode(display=False) as counter:
        model(batch)
    work = model.work("forward", batch)
    assert (work.short_layers, work.short_length) == (1, method.kept(LENGTH))
    assert flops_of(parts, model)(work) == pytest.approx(counter.get_total_flops(), rel=1e-6)
