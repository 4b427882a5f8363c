"""Whatever makes a step fast, against the plain way to compute the same: loss curves of 50 steps.

What is only summed in another order agrees, in float32, within ``EXACT``: what is seen is a unit or two in the last
place of a loss, and a learning rate that is a thousandth higher is ten times further away. In bfloat16 such a
difference is rounded to one of 2^-8 in some activation or gradient, and losses are means over all of these: the curves
agree within ``ROUNDED`` (up to 7e-4 is seen), where a tenth of the learning rate is told. Where the arithmetic is the
same, so is every bit.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from curves import BATCH, FAMILIES, LR, curve, distance, engine, fast, losses, ways
from memory import same, weights

from cramming import allocator, resolve
from cramming.architectures.layers import attention
from cramming.config import ImplConfig
from cramming.plain import ALL, WAYS, chosen, described

EXACT, ROUNDED = 5e-6, 2e-3
LAYOUTS, PRECISIONS = ("packed", "document"), ("float32", "bfloat16")
# What each family has; ``test_every_family_has_what_it_is_listed_with`` holds the list to it.
OURS = {"predicted_positions", "cross_entropy", "word_gradient", "unpadding", "fused_optimizer"}
HAS: dict[str, set[str]] = {
    **dict.fromkeys(FAMILIES, OURS),
    "modern": OURS | {"local_attention"},
    "m2": OURS | {"convolution", "kept_filters", "block_diagonal"},
    "albert": {"predicted_positions", "cross_entropy", "fused_optimizer"},
    "deberta": {"predicted_positions", "cross_entropy", "fused_optimizer"},
}
BETWEEN_MICROBATCHES = ("cast_once", "kept_filters")  # nothing to them where a batch is one
OF_OURS = [family for family, names in HAS.items() if "word_gradient" in names]  # others are transformers' own
Case = tuple[str, str, str, str]  # family, way, layout, precision


def cases(family: str) -> list[Case]:
    """Every way, and all at once, on full rows and on padded ones, in both precisions."""
    found = []
    for precision in PRECISIONS:
        there = HAS[family] | ({"cast_once"} if precision == "bfloat16" else set())
        for layout in LAYOUTS:
            # Nothing is left out of rows that are full.
            names = there - ({"unpadding"} if layout == "packed" else set())
            found += [(family, name, layout, precision) for name in (*sorted(names), ALL)]
    return found


GRID = [case for family in FAMILIES for case in cases(family)]
BERT = [case for case in cases("bert") if case[3] == "float32" and (case[1] == ALL or case[2] == "document")]


def sampled() -> list[Case]:
    """All ways at once in four families, somewhere; and those that BERT does not have, where that takes least time."""
    draw = random.Random(0)
    post, others = draw.choice(("crammed", "mosaic")), []
    for family in (post, "modern", "m2"):
        others.append([c for c in GRID if c[0] == family and c[1] == ALL])
    for name in ("local_attention", "block_diagonal", "convolution", "kept_filters"):
        others.append([c for c in GRID if c[1:] == (name, "packed", "float32")])
    return [draw.choice(of_one) for of_one in others] + [("bert", ALL, "document", "bfloat16")]


def agree(case: Case) -> None:
    """The law."""
    family, name, layout, precision = case
    size = BATCH // 2 if name in BETWEEN_MICROBATCHES else BATCH
    learned = fast(family, layout, precision, size)
    plain = curve(family, chosen([name]), layout, precision=precision, microbatch_size=size)
    if name == "cast_once":
        assert plain == learned
    assert distance(plain, learned) < (EXACT if precision == "float32" else ROUNDED)


@pytest.mark.parametrize("case", BERT, ids=" ".join)
def test_every_way_of_bert_is_the_plain_one(case: Case) -> None:
    agree(case)


@pytest.mark.parametrize("case", sampled(), ids=" ".join)
def test_a_sample_of_the_others_is_too(case: Case) -> None:
    agree(case)


@pytest.mark.full
@pytest.mark.parametrize("case", GRID, ids=" ".join)
def test_every_way_of_every_family_is_the_plain_one(case: Case) -> None:
    agree(case)


@pytest.mark.parametrize("family", [f if f in OF_OURS else pytest.param(f, marks=pytest.mark.full) for f in FAMILIES])
def test_every_family_has_what_it_is_listed_with(family: str) -> None:
    assert ways(family) == HAS[family]
    assert ways(family, "bfloat16") == HAS[family] | {"cast_once"}
    assert HAS[family] <= WAYS.keys()


def test_a_curve_tells_a_small_mistake() -> None:
    """A learning rate a thousandth higher is no rounding; in bfloat16 a tenth is not. And the loss falls."""
    learned = fast("bert", "document")
    assert learned[-1] < learned[0] - 0.1
    assert distance(curve("bert", layout="document", lr=1.001 * LR), learned) > 4 * EXACT
    low = curve("bert", layout="document", lr=1.1 * LR, precision="bfloat16")
    assert distance(low, fast("bert", "document", "bfloat16")) > ROUNDED


def test_every_way_is_taken_by_somebody() -> None:
    """One that no family takes would be held to nothing; ``dropout`` has a test of its own."""
    assert {name for names in HAS.values() for name in names} | {"cast_once", "dropout"} == WAYS.keys()


# ---- ways that change what is drawn ----


def test_the_draws_of_dropout_are_torchs_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other numbers are drawn, so that the curves differ; their means agree as those of two seeds do."""
    how: dict[str, Any] = {"attention_dropout": 0.2}
    ours, plain = curve("bert", **how), curve("bert", ["dropout"], **how)
    assert ours != plain
    assert distance([sum(ours)], [sum(plain)]) < 2e-3
    monkeypatch.setattr(attention, "drop", F.dropout)
    assert curve("bert", **how) == plain
    assert "dropout" in engine("bert", **how).model.all_ways


# ---- options of their own ----


@pytest.mark.parametrize(("form", "layout"), [("blocks", "packed"), ("blocks", "document"), ("sdpa", "document")])
def test_attention_is_the_same_in_every_form_of_a_processor(form: str, layout: str) -> None:
    """As written out, which is what ``auto`` means at this length."""
    assert engine("bert").model.fast_paths()["attention"] == "math"
    assert distance(curve("bert", layout=layout, attention=form), fast("bert", layout)) < EXACT


@pytest.mark.parametrize("size", [2, 4])
def test_the_size_of_a_microbatch_is_no_matter(size: int) -> None:
    assert distance(curve("bert", layout="document", microbatch_size=size), fast("bert", "document")) < EXACT


def test_computing_layers_again_changes_no_bit() -> None:
    """Not of what is dropped either."""
    how: dict[str, Any] = {"dropout": 0.2, "attention_dropout": 0.2}
    kept, again = engine("bert", **how), engine("bert", checkpointing=True, **how)
    assert losses(again) == losses(kept)
    assert torch.equal(weights(again.model), weights(kept.model))


def test_casting_once_a_step_changes_no_bit_of_the_weights() -> None:
    how: dict[str, Any] = {"precision": "bfloat16", "microbatch_size": 4, "layers": 1}
    once, often = engine("m2", **how), engine("m2", ["cast_once"], **how)
    assert losses(often) == losses(once)
    assert same(often.state_dict(), once.state_dict())
    assert torch.equal(weights(often.model), weights(once.model))


def test_where_freed_memory_goes_changes_no_bit() -> None:
    """Tensors of 200 kB and more are what the C library would give back at once."""
    before, found = allocator.in_use(), []
    try:
        for where in ("system", "keep"):
            allocator.use(where)
            made = engine("bert", hidden=64, intermediate=512, layers=1)
            found.append((losses(made), weights(made.model)))
    finally:
        allocator.use(before)
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


# ---- names ----


def test_all_is_every_name_and_what_is_done_is_said() -> None:
    assert chosen([ALL]) == chosen(WAYS) == sorted(WAYS)
    assert chosen([]) == []
    assert chosen(["unpadding", "cast_once", "unpadding"]) == ["cast_once", "unpadding"]
    said = described({"unpadding", "dropout"}, ["unpadding"])
    assert said == {"unpadding": f"plain: {WAYS['unpadding'].plain}", "dropout": WAYS["dropout"].fast}


def test_a_run_keeps_what_is_plain_and_a_change_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = ImplConfig(precision="float32", threads=1, plain=["unpadding", "cast_once"])
    stored = resolve.resolve(asked, None)
    assert stored.plain == ["cast_once", "unpadding"]
    resolve.write(tmp_path, stored)
    assert resolve.resolve(asked, resolve.read(tmp_path)) == stored
    assert caplog.text == ""
    asked.plain = []
    assert resolve.resolve(asked, resolve.read(tmp_path)).plain == []
    assert "now computes with another plain ['cast_once', 'unpadding'] -> []" in caplog.text
