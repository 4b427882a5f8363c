"""The contract of a method, and what a chain of several makes of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import LAYERS, PassCost, batch_of, run_of, same, trained, weights
from small_methods import KeepHardest, RandomDepth, SecondPass
from torch import Tensor

from cramming import checkpoint
from cramming.batch import Batch
from cramming.errors import UserError
from cramming.method import Chain, Draw, Forward, Method, Step
from cramming.train import Run, train
from cramming.validation import validate

Log = list[str]


class Traced(Method):
    """Writes down when each of its hooks is entered and left."""

    def __init__(self, name: str, log: Log) -> None:
        self.name, self.log = name, log

    @contextmanager
    def during(self, hook: str) -> Iterator[None]:
        self.log.append(f"{hook} {self.name} (")
        yield
        self.log.append(f"{hook} {self.name} )")

    def setup(self, run: Run) -> None:
        self.log.append(f"setup {self.name}")

    def next_batch(self, run: Run, draw: Draw, n: int) -> Batch | None:
        with self.during("next_batch"):
            return draw(n)

    def before_step(self, run: Run) -> None:
        self.log.append(f"before_step {self.name}")

    @contextmanager
    def thinned(self, run: Run, group: Batch) -> Iterator[None]:
        with self.during(f"thinned[{group.index}]"):
            yield

    def update(self, run: Run, batch: Batch, factor: float, step: Step) -> int:
        with self.during("update"):
            return step(factor)

    def after_step(self, run: Run) -> None:
        self.log.append(f"after_step {self.name}")

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        with self.during("evaluating"):
            yield

    def columns(self) -> dict[str, float]:
        return {f"column_{self.name}": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.log.append(f"load {self.name} {state['name']}")


class Doubled(Method):
    """Another objective."""

    def objective(self, forward: Forward, batch: Batch) -> Tensor:
        return 2 * super().objective(forward, batch)


# ---- the contract ----


def test_a_step_calls_every_hook_in_the_order_of_the_loop() -> None:
    """``next_batch`` nests so that the last of the list asks the one before it, down to the stream; ``update`` so that
    the first of the list encloses the others and the optimizer; contexts are entered in list order."""
    log: Log = []
    run = run_of(Chain({"a": Traced("a", log), "b": Traced("b", log)}), budget=1)
    trained(run)
    validate(run)
    assert log == [
        *("setup a", "setup b"),
        *("next_batch b (", "next_batch a (", "next_batch a )", "next_batch b )"),
        *("before_step a", "before_step b"),
        *("thinned[0] a (", "thinned[0] b (", "thinned[0] b )", "thinned[0] a )"),
        *("update a (", "update b (", "update b )", "update a )"),
        *("after_step a", "after_step b"),
        *("evaluating a (", "evaluating b (", "evaluating b )", "evaluating a )"),
    ]


def test_a_chain_keeps_each_methods_state_under_its_name() -> None:
    log: Log = []
    chain = Chain({"a": Traced("a", log), "b": Traced("b", log)})
    assert chain.state_dict() == {"a": {"name": "a"}, "b": {"name": "b"}}
    chain.load_state_dict({"b": {"name": "old b"}, "a": {"name": "old a"}})
    assert log == ["load a old a", "load b old b"]
    assert chain.columns() == {"column_a": 1.0, "column_b": 1.0}


def test_the_draws_of_a_group_enclose_its_passes_only() -> None:
    log: Log = []

    class Grouped(Traced):
        sequences_per_draw = 4

        def objective(self, forward: Forward, batch: Batch) -> Tensor:
            log.append(f"pass of {len(batch)}")
            return super().objective(forward, batch)

        def update(self, run: Run, batch: Batch, factor: float, step: Step) -> int:
            return step(factor)

    trained(run_of(Grouped("g", log), budget=1, microbatch_size=2))
    assert log[log.index("before_step g") + 1 : log.index("after_step g")] == [
        *("thinned[0] g (", "pass of 2", "pass of 2", "thinned[0] g )"),
        *("thinned[1] g (", "pass of 2", "pass of 2", "thinned[1] g )"),
    ]


def test_a_method_may_defer_the_step_and_gradients_add_up() -> None:
    """``update`` returns 0 where no step was taken; ``run.step`` counts steps."""

    class EverySecond(Method):
        calls = 0

        def update(self, run: Run, batch: Batch, factor: float, step: Step) -> int:
            self.calls += 1
            return step(factor) if self.calls % 2 == 0 else 0

    run = run_of(EverySecond(), budget=3)
    seen: list[int] = []
    trained(run, lambda r: seen.append(r.step))
    assert seen == [0, 1, 1, 2, 2, 3]
    assert run.stream.state_dict() == {"epoch": 0, "offset": 6 * 8}


def test_evaluation_may_see_other_weights_and_training_does_not() -> None:
    class Lends(Method):
        @contextmanager
        def evaluating(self, run: Run) -> Iterator[None]:
            before = [p.detach().clone() for p in run.model.parameters()]
            with torch.no_grad():
                torch._foreach_mul_(list(run.model.parameters()), 0.0)
            yield
            with torch.no_grad():
                torch._foreach_copy_(list(run.model.parameters()), before)

    for precision in ("float32", "bfloat16"):
        plain, lending = (trained(run_of(method, budget=2, precision=precision)) for method in (None, Lends()))
        own, lent = validate(plain), validate(lending)
        assert own is not None
        assert lent is not None
        assert lent.loss == pytest.approx(torch.tensor(64.0).log().item(), abs=1e-3), "no weights: every token alike"
        assert own.loss != lent.loss
        batch = batch_of(4)
        assert torch.equal(plain.engine.losses(batch, "check"), lending.engine.losses(batch, "check"))


def test_the_objective_of_a_chain_is_that_of_the_one_method_that_has_its_own() -> None:
    found = [run_of(m, budget=1) for m in (Method(), Doubled(), Chain({"depth": RandomDepth(1.0), "d": Doubled()}))]
    losses = [trained(run).engine.loss for run in found]
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)
    assert losses[2] == losses[1]


# ---- what excludes each other ----


class AnotherSelector(KeepHardest):
    """A second one."""


class OtherGroups(RandomDepth):
    """Draws for another number of sequences."""


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"hard": KeepHardest(), "depth": RandomDepth(), "rare": AnotherSelector()}, "method=hard,rare: .* keep one"),
        ({"one": Doubled(), "two": Doubled()}, "method=one,two: each of these defines the loss"),
        ({"one": RandomDepth(), "two": OtherGroups(sequences_per_draw=8)}, "'one': 4, 'two': 8"),
    ],
)
def test_methods_that_exclude_each_other_are_refused_by_name(methods: dict[str, Method], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Chain(methods)


def test_methods_that_draw_for_the_same_number_share_their_groups() -> None:
    chain = Chain({"one": RandomDepth(), "two": OtherGroups(), "three": SecondPass(), "four": KeepHardest()})
    assert chain.sequences_per_draw == 4
    assert chain.accounts == ("second_pass", "selection")
    assert Chain({}).sequences_per_draw is None


# ---- neutral settings ----

NEUTRAL: dict[str, Callable[[], Method]] = {
    "selector": lambda: KeepHardest(share=1.0),
    "depth": lambda: RandomDepth(keep=1.0),
    "second_pass": lambda: SecondPass(rho=0.0),
    "all": lambda: Chain({"s": KeepHardest(share=1.0), "d": RandomDepth(keep=1.0), "p": SecondPass(rho=0.0)}),
}


class Growing(Method):
    """One layer at first, all of them after two steps: a depth that lasts is the model's, not the method's to keep."""

    def setup(self, run: Run) -> None:
        run.model.active_layers = (0,)  # type: ignore[assignment]

    def before_step(self, run: Run) -> None:
        if run.step == 2:
            run.model.active_layers = tuple(range(LAYERS))  # type: ignore[assignment]


LIVELY: dict[str, Callable[[], Method]] = {
    "none": Method,
    "growing": Growing,
    "selector": KeepHardest,
    "depth": RandomDepth,
    "second_pass": SecondPass,
    "all": lambda: Chain({"s": KeepHardest(), "d": RandomDepth(), "p": SecondPass()}),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_method_is_the_baseline_bit_for_bit(name: str, precision: str) -> None:
    """With its accounts free, or where only steps cost: the same weights after 12 steps, the same optimizer state."""
    step_price = 8 * 3 * (1 + LAYERS) + 1
    for pricing in (
        {"budget": 12},
        {"budget": 12 * step_price, "costs": PassCost(), "free": ["selection", "second_pass"]},
    ):
        baseline = trained(run_of(precision=precision, **pricing))  # type: ignore[arg-type]
        neutral = trained(run_of(NEUTRAL[name](), precision=precision, **pricing))  # type: ignore[arg-type]
        assert neutral.step == baseline.step == 12
        assert torch.equal(weights(neutral.model), weights(baseline.model))
        assert same(neutral.engine.state_dict(), baseline.engine.state_dict())
        assert neutral.engine.loss == baseline.engine.loss
        assert neutral.clock.spent_s == baseline.clock.spent_s


@pytest.mark.parametrize("name", [name for name in LIVELY if name != "none"])
def test_the_lively_settings_do_change_the_run(name: str) -> None:
    """Or the law above would hold for nothing."""
    assert not torch.equal(weights(trained(run_of(LIVELY[name]())).model), weights(trained(run_of()).model))


def test_what_a_method_does_is_paid_unless_it_is_free() -> None:
    """The same budget gives fewer steps; the ledger has the account either way."""
    runs = {
        free: trained(run_of(KeepHardest(0.5), budget=1000, costs=PassCost(), free=free))
        for free in ((), ("selection",))
    }
    assert runs[()].step < runs["selection",].step == trained(run_of(budget=1000, costs=PassCost())).step
    for run in runs.values():
        # A step of 8 needs 16 scored: 16 x (1 + 2 layers).
        assert run.clock.ledger["selection"] == 48 * run.step


# ---- resume ----


class Killed(Exception):  # noqa: N818
    """The run ends here."""


def note(run: Run) -> None:
    """What a session counts beside the trajectory."""
    run.notes.setdefault("losses", []).append(run.engine.loss)


def killed_after(steps: int, folder: Path, run: Run) -> None:
    """Train, write a checkpoint after so many steps, and stop dead."""

    def observe(run: Run) -> None:
        note(run)
        if run.step == steps:
            checkpoint.save(folder, run.step, run.state_dict(), {}, keep=2, kept_at_h=[])
            raise Killed

    with pytest.raises(Killed):
        train(run, observe)


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        *((each, "float32") for each in ("adamw", "adam", "sgd", "lion")),
        ("adamw", "bfloat16"),
        *(pytest.param(each, "bfloat16", marks=pytest.mark.full) for each in ("adam", "sgd", "lion")),
    ],
)
@pytest.mark.parametrize("name", LIVELY)
def test_a_killed_run_goes_on_to_the_same_bits(name: str, optimizer: str, precision: str, tmp_path: Path) -> None:
    """From the checkpoint on disk, in objects that have seen nothing: everything a run is ends equal."""

    def fresh() -> Run:
        layout = "document" if optimizer == "adam" else "packed"
        return run_of(LIVELY[name](), budget=6, optimizer=optimizer, precision=precision, layout=layout)

    whole = trained(fresh(), note)
    killed_after(3, tmp_path, fresh())
    torch.manual_seed(12345)
    resumed = fresh()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    resumed.load_state_dict(found[1])
    assert resumed.step == 3
    trained(resumed, note)
    assert whole.notes["losses"] == resumed.notes["losses"]
    assert same(weights(resumed.model), weights(whole.model))
    assert same(comparable(resumed), comparable(whole))


def comparable(run: Run) -> dict[str, Any]:
    """Everything a run is but the global generators, which other tests turn too."""
    return {key: value for key, value in run.state_dict().items() if key != "random"}


def test_what_a_selector_carries_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    """The sequences that wait: 16 drawn, 12 kept, 8 trained on, so 4 of the stream's are in no weight yet."""
    run = run_of(KeepHardest(0.75), budget=6)
    killed_after(1, tmp_path, run)
    (carried,) = run.method.state_dict()["carried"]
    other = run_of(KeepHardest(0.75), budget=6)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    other.load_state_dict(found[1])
    assert same(dict(vars(other.method.carried[0])), carried)  # type: ignore[attr-defined]
    assert len(carried["ids"]) == 4
    assert other.method.columns() == {"carried": 4.0}
