"""DDP and FSDP2 on two ranks against one: curves, gradients that are None, what is communicated and when."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.architectures.families import TINY
from tests.parallel import engines
from tests.parallel.engines import Case, together

FLOAT32 = 1e-5  # of the loss, over 30 steps
# Rounding in 16 bits differs with the order of sums; measured: 3e-4 of the loss.
BFLOAT16 = 2e-3
SHARDS = ("adamw", "lion", "sophiag", "muon")
OTHERS = ("adam", "radam", "sgd", "adamw_scale", "agd", "lamb", "lars", "larc", "prodigy", "schedule_free")
OTHERS = (*OTHERS, "sam", "stable_adamw")
METHODS = (
    *("distillation", "layer_dropping", "layer_stacking", "length_warmup", "progressive_batching", "rho_loss"),
    *("selective_backprop", "sharpness", "token_dropping", "weight_averaging"),
)
# M2's first gradients are so small that Adam's sign of them is chance where eps is 1e-12.
FAMILIES = [(name, "adam" if name.startswith("m2") else "adamw") for name in TINY]
QUICK = [
    *(Case("fsdp", optimizer=name) for name in SHARDS),
    Case("fsdp", methods=("layer_dropping",), steps=12),
    Case("fsdp", layout="document", checkpointing=True, steps=12),
    Case("fsdp", precision="bfloat16", steps=12),
    Case("ddp", precision="bfloat16", steps=12),
    Case("ddp", precision="bfloat16", checkpointing=True, steps=12),
]
GRID = [
    *(Case("fsdp", optimizer=name) for name in OTHERS),
    *(Case("fsdp", methods=(name,)) for name in METHODS),
    *(Case(parallel, name, optimizer=kind) for name, kind in FAMILIES for parallel in ("ddp", "fsdp")),
    *(
        Case(parallel, name, optimizer=kind, precision="bfloat16")
        for name, kind in FAMILIES
        for parallel in ("ddp", "fsdp")
    ),
]


BOTH = ("ddp", "fsdp")
LOOKS = (("fsdp", "float32", None), ("fsdp", "bfloat16", "mosaic_tiny"), ("fsdp", "float32", "m2_tiny"))
FILTERS = (("ddp", "bfloat16"), ("fsdp", "bfloat16"), ("fsdp", "float32"))
TAKEN_UP = [*(Case("fsdp", optimizer=name) for name in SHARDS), Case("fsdp", methods=("progressive_batching",))]
REDUCTIONS = (("ddp", (), None), ("fsdp", (), None), ("fsdp", ("layer_dropping",), None))
CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (engines.all_of, (QUICK,)),
    *((engines.one_overflow, (parallel,)) for parallel in BOTH),
    *((engines.looked_at, look) for look in LOOKS),
    (engines.resumed, (TAKEN_UP,)),
    *((engines.reductions, asked) for asked in REDUCTIONS),
    *((engines.made_filters, made) for made in FILTERS),
]
Seen = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What each of two ranks saw in a call: they are started once for all of them."""
    found = together(2, tmp_path_factory.mktemp("ranks"), engines.each, CALLS)
    return lambda work, *args: [of_rank[CALLS.index((work, args))] for of_rank in found]


def compare(cases: Sequence[Case], found: Sequence[Any]) -> None:
    """Every case on two ranks is what it is on one."""
    alone = engines.all_of(cases)
    first, second = found
    for case, one, here, there in zip(cases, alone, first, second, strict=True):
        assert here == there, f"{case}: ranks differ"
        assert here["none"] == one["none"], case
        assert len(here["rows"]) == len(one["rows"]) >= case.steps
        bound = FLOAT32 if case.precision == "float32" else BFLOAT16
        for row, expected in zip(here["rows"], one["rows"], strict=True):
            assert row["step"] == expected["step"]
            if not math.isnan(expected["loss"]):  # no step was taken yet
                assert row["loss"] == pytest.approx(expected["loss"], rel=bound), (case, row["step"])
        if case.parallel == "fsdp" and case.optimizer != "agd":  # which has no state
            assert here["shared"], f"{case}: the optimizer's state is not spread"


def test_two_ranks_train_as_one(seen: Seen) -> None:
    compare(QUICK, seen(engines.all_of, QUICK))


@pytest.mark.scale
@pytest.mark.parametrize("case", GRID, ids=str)
def test_every_family_optimizer_and_method(case: Case, tmp_path: Path) -> None:
    compare([case], together(2, tmp_path, engines.all_of, [case]))


@pytest.mark.full
@pytest.mark.parametrize(("parallel", "precision"), FILTERS)
def test_blocks_may_be_compiled(parallel: str, precision: str, tmp_path: Path) -> None:
    cases = [Case(parallel, precision=precision, compile=True, steps=4)]
    compare(cases, together(2, tmp_path, engines.all_of, cases))


@pytest.mark.parametrize("parallel", BOTH)
def test_a_step_that_overflows_on_one_rank_is_skipped_on_all(seen: Seen, parallel: str) -> None:
    for found in seen(engines.one_overflow, parallel):
        assert found == {"unmoved": True, "halved": True, "skipped": 1, "moved": True}


@pytest.mark.parametrize(("parallel", "precision", "family"), LOOKS)
def test_passes_without_gradients(seen: Seen, parallel: str, precision: str, family: str | None) -> None:
    expected = engines.looked_at("none", precision, family)
    for found in seen(engines.looked_at, parallel, precision, family):
        assert found["spread"], "whoever looks at the model finds its parameters"
        for when in ("first", "then"):
            for what, values in expected[when].items():
                close(found[when][what], values, 1e-5 if precision == "float32" else 2e-2)


def close(found: Any, expected: Any, bound: float) -> None:
    """Within a share of the largest."""
    a, b = torch.tensor(found), torch.tensor(expected)
    assert float((a - b).abs().max()) <= bound * float(b.abs().max())


def test_a_state_that_is_spread_is_taken_up(seen: Seen) -> None:
    for found in seen(engines.resumed, TAKEN_UP):
        assert found == [True] * len(TAKEN_UP)


def steps_of(events: list[str]) -> list[list[list[str]]]:
    """What happened in each pass of each step."""
    steps: list[list[list[str]]] = [[]]
    for event in events:
        if event == "step":
            steps.append([])
        elif event == "pass":
            steps[-1].append([])
        else:
            steps[-1][-1].append(event)
    return steps[:-1]


def test_ddp_averages_once_for_a_step_while_its_last_pass_goes_back(seen: Seen) -> None:
    for found in seen(engines.reductions, "ddp", (), None):
        for step in steps_of(found["events"])[1:]:  # buckets are put in the order of gradients after the first
            *before, last = step
            assert len(before) == 1
            assert not [event for one in before for event in one if event == "reduced"]
            assert last.count("reduced") > 1
            assert last.index("reduced") < last.index("last gradient"), "communication waits for all gradients"


@pytest.mark.parametrize(("methods", "groups"), [((), 1), (("layer_dropping",), 2)])
def test_fsdp_averages_once_for_a_draw_group(seen: Seen, methods: tuple[str, ...], groups: int) -> None:
    for found in seen(engines.reductions, "fsdp", methods, None):
        for step in steps_of(found["events"]):
            reduced = [one.count("reduced") for one in step if "reduced" in one]
            assert len(step) == 2
            assert len(reduced) == groups
            assert max(reduced) <= found["units"], "each unit once"
            if not methods:
                assert reduced == [found["units"]]


@pytest.mark.parametrize(("parallel", "precision"), FILTERS)
def test_filters_are_made_once_for_a_step(seen: Seen, parallel: str, precision: str) -> None:
    for found in seen(engines.made_filters, parallel, precision):
        assert found == [1, 1, 1]
