"""Methods with each other, with every optimizer, every family of encoders, other precisions and layouts.

Each combination trains some steps, is killed at one of them with its checkpoint on disk, and goes on to the same bits.
What cannot be combined is refused by name. A seeded sample runs always, every pair in the full grid.
"""

import random
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import LAYERS, PassCost, same, weights
from omegaconf import OmegaConf
from settings import ACTIVE
from torch import Tensor
from whole_runs import (
    BRINGS,
    METHODS,
    OPTIMIZERS,
    SEQUENCES,
    active,
    comparable,
    compatible,
    observed,
    optimizer_for,
    resumed,
    run_with,
)

from cramming import registry
from cramming.batch import Batch
from cramming.cli import compose
from cramming.config import typed
from cramming.errors import UserError
from cramming.method import Chain, Forward, Method
from cramming.registry import lookup
from cramming.train import Run
from tests.architectures.families import TINY

NAMES = sorted(ACTIVE)
KINDS: dict[str, type[Method]] = {name: lookup("method", name) for name in METHODS}
WORDS = {"distillation": ["method.distillation.checkpoint=x"]}  # of a command line: what a method has no default for
STEP_PRICE = 3 * SEQUENCES * (1 + LAYERS) + 1
# Other than a run of packed rows in float32 that counts steps; priced by passes, what a method costs moves the others.
WORLDS: dict[str, dict[str, Any]] = {
    "bfloat16": {"precision": "bfloat16"},
    "documents": {"layout": "document"},
    "bfloat16 documents": {"precision": "bfloat16", "layout": "document"},
    "priced": {"budget": 6 * STEP_PRICE, "costs": PassCost()},
}
# What an encoder's layers do not allow, by method, and what is said of it.
REFUSED: dict[str, dict[str, str]] = {
    family: {"token_dropping": "whose layers need every token"} for family in ("albert_tiny", "deberta_tiny", "m2_tiny")
}
REFUSED["albert_tiny"] |= dict.fromkeys(("layer_dropping", "layer_stacking"), "layers that are each their own")
Pairs = list[tuple[str, str]]


def reason(first: str, second: str) -> str | None:
    """Why two methods cannot be combined, as they declare it and as it is said; None if they can."""
    one, two = KINDS[first], KINDS[second]
    if one.selects and two.selects:
        return "each of these chooses the sequences to train on"
    for mine, other in ((one, second), (two, first)):
        if other in mine.excludes:
            return mine.excludes[other]
    if Method.objective not in (one.objective, two.objective):
        return "each of these defines the loss"
    return None


def combine(*names: str) -> bool:
    """Whether these methods can be in one run."""
    return compatible(*names) and all(reason(*pair) is None for pair in combinations(names, 2))


def sample(pairs: Pairs) -> Pairs:
    """Pairs, by a fixed seed, such that everything in any of them is in one of the sample."""
    shuffled = sorted(pairs)
    random.Random(0).shuffle(shuffled)
    seen: set[str] = set()
    chosen = []
    for pair in shuffled:
        if not seen.issuperset(pair):
            chosen.append(pair)
            seen.update(pair)
    return chosen


def grid(pairs: Pairs) -> list[Any]:
    """The sample, and every other pair as part of the full grid."""
    always = sample(pairs)
    return [pytest.param(*pair, id="+".join(pair)) for pair in always] + [
        pytest.param(*pair, id="+".join(pair), marks=pytest.mark.full) for pair in pairs if pair not in always
    ]


def with_optimizer(optimizer: str, name: str) -> bool:
    """Whether a run of this optimizer can have this method."""
    brought = BRINGS.get(optimizer)
    if brought is not None:
        return brought == name or combine(brought, name)
    return name not in BRINGS.values()


METHOD_PAIRS = [pair for pair in combinations(NAMES, 2) if combine(*pair)]
IMPOSSIBLE = [pair for pair in combinations(METHODS, 2) if reason(*pair) is not None]
OPTIMIZER_PAIRS = [pair for pair in product(OPTIMIZERS, NAMES) if with_optimizer(*pair)]
FAMILY_PAIRS = [pair for pair in product(TINY, NAMES) if pair[1] not in REFUSED.get(pair[0], {})]
WORLD_PAIRS = list(product(WORLDS, NAMES))


def goes_on_to_the_same_bits(folder: Path, *names: str, **options: Any) -> None:
    """Kill a run after a number of steps drawn for the case; resumed in fresh objects it ends as if never killed."""

    def fresh() -> Run:
        return run_with(active(names), **options)

    whole = fresh()
    rounds = len(observed(whole))
    assert rounds > 1
    observed(fresh(), random.Random(repr((names, sorted(options)))).randrange(1, rounds), folder)
    again = resumed(fresh(), folder)
    observed(again)
    assert same(again.notes["seen"], whole.notes["seen"])
    assert torch.equal(weights(again.model), weights(whole.model))
    assert same(comparable(again), comparable(whole))


# ---- alone ----


@pytest.mark.parametrize("name", NAMES)
def test_a_method(name: str, tmp_path: Path) -> None:
    goes_on_to_the_same_bits(tmp_path, name, optimizer=optimizer_for(name))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_with_what_it_needs(optimizer: str, tmp_path: Path) -> None:
    goes_on_to_the_same_bits(tmp_path, optimizer=optimizer)


# ---- in pairs ----


@pytest.mark.parametrize(("first", "second"), grid(METHOD_PAIRS))
def test_two_methods(first: str, second: str, tmp_path: Path) -> None:
    """In one order of the list or the other."""
    names = (first, second) if random.Random(first + second).random() < 0.5 else (second, first)
    goes_on_to_the_same_bits(tmp_path, *names, optimizer=optimizer_for(*names))


@pytest.mark.parametrize(("optimizer", "name"), grid(OPTIMIZER_PAIRS))
def test_an_optimizer_and_a_method(optimizer: str, name: str, tmp_path: Path) -> None:
    goes_on_to_the_same_bits(tmp_path, name, optimizer=optimizer)


@pytest.mark.parametrize(("family", "name"), grid(FAMILY_PAIRS))
def test_a_family_of_encoders_and_a_method(family: str, name: str, tmp_path: Path) -> None:
    goes_on_to_the_same_bits(tmp_path, name, family=family, optimizer=optimizer_for(name))


@pytest.mark.parametrize(("world", "name"), grid(WORLD_PAIRS))
def test_other_precisions_layouts_and_prices(world: str, name: str, tmp_path: Path) -> None:
    goes_on_to_the_same_bits(tmp_path, name, optimizer=optimizer_for(name), **WORLDS[world])


# ---- what cannot be ----


@pytest.mark.parametrize(("first", "second"), [pytest.param(*pair, id="+".join(pair)) for pair in IMPOSSIBLE])
def test_two_methods_that_exclude_each_other(first: str, second: str) -> None:
    """Refused by name and with the reason, by a chain of them and on a command line, in either order."""
    why = reason(first, second)
    assert why is not None
    for names in ((first, second), (second, first)):
        with pytest.raises(UserError) as refused:
            Chain(active(names))
        words = [
            "data=local",
            "data.path=x",
            f"method=[{','.join(names)}]",
            *WORDS.get(first, []),
            *WORDS.get(second, []),
        ]
        with pytest.raises(UserError) as composed:
            compose(words)
        for said in (str(refused.value), str(composed.value)):
            assert why in said
            assert first in said
            assert second in said


@dataclass
class Doubled(Method):
    """Another objective."""

    def objective(self, forward: Forward, batch: Batch) -> Tensor:
        return 2 * super().objective(forward, batch)


@dataclass
class Halved(Doubled):
    """And another."""


@dataclass
class Drawing(Method):
    """Draws once for so many sequences."""

    sequences_per_draw: int | None = 4


@dataclass
class DrawingOften(Drawing):
    """And for so many."""

    sequences_per_draw: int | None = 2


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (Doubled, Halved, "first,second: each of these defines the loss"),
        (Drawing, DrawingOften, "'first': 4, 'second': 2"),
    ],
)
def test_what_any_two_methods_cannot_both_do(
    first: type[Method], second: type[Method], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two losses, two sizes of draw groups: refused when the command line is read, not when the run is built."""
    tree = OmegaConf.create(asdict(compose(["data=local", "data.path=x"])))
    for name, kind in (("first", first), ("second", second)):
        monkeypatch.setitem(registry._classes, ("method", name), kind)
        tree.method[name] = {}
        if name == "first":
            typed(tree)
    with pytest.raises(UserError, match=says):
        typed(tree)
    with pytest.raises(UserError, match=says):
        Chain({"first": first(), "second": second()})


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in REFUSED.items() for name in names])
def test_a_method_that_an_encoder_does_not_allow(family: str, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}.*{REFUSED[family][name]}"):
        run_with(active([name]), family=family, optimizer=optimizer_for(name))


def test_the_sample_has_everything_in_it() -> None:
    for pairs in (METHOD_PAIRS, OPTIMIZER_PAIRS, FAMILY_PAIRS, WORLD_PAIRS):
        assert {word for pair in sample(pairs) for word in pair} == {word for pair in pairs for word in pair}
    assert {word for pair in OPTIMIZER_PAIRS for word in pair} == {*OPTIMIZERS, *NAMES}
