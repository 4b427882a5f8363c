"""A table scaled to another model: ratios decide, the speed of the machine that measured them does not."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rst import CalibrationError, CostTable, TableError, Timing, Work, probe_depths, probe_works, scale_table

INHERITED = CostTable.load(Path(__file__).parents[2] / "rst" / "tables" / "rtx3090.json")
BASE = probe_works(16, 128, 8)
UPDATE = Work("update")
unhurried = settings(deadline=None, derandomize=True, max_examples=60)


def timings(price: Callable[[Work], float], works: list[Work]) -> dict[Work, Timing]:
    return {work: Timing(price(work), 0.01, 9) for work in works}


def here(work: Work) -> float:
    """What the base takes on the machine that measures: 7 times slower, and another shape than the table's."""
    per_layer = {"forward": 0.3, "forward_backward": 1.0, "update": 0.05}[work.kind]
    return (0.1 + work.layers) * per_layer * work.sequences / 128 if work.sequences else per_layer


def scaled(
    model: Callable[[Work], float], works: list[Work], table: CostTable = INHERITED, base: Any = None
) -> CostTable:
    return scale_table(table, base or timings(here, BASE), timings(model, works), "model", "a machine")


def test_the_base_itself_keeps_its_prices() -> None:
    table = scaled(here, BASE)
    for kind in ("forward", "forward_backward"):
        for depth in range(17):
            work = Work(kind, 128, 128, depth)  # type: ignore[arg-type]
            exact = depth in probe_depths(16)
            assert table.seconds(work) == pytest.approx(INHERITED.seconds(work), rel=1e-9 if exact else 0.02)


@unhurried
@given(ratio=st.floats(0.01, 20), layers=st.integers(2, 48), sequences=st.integers(1, 64))
def test_a_model_pays_its_ratio_at_the_same_share_of_the_depth(ratio: float, layers: int, sequences: int) -> None:
    """Of any number of layers, however many of its sequences were measured at a time."""

    def model(work: Work) -> float:
        if work.kind == "update":
            return 1.0
        return ratio * here(replace(work, layers=0)) + ratio * work.layers * 16 / layers * (
            here(replace(work, layers=1)) - here(replace(work, layers=0))
        )

    table = scaled(model, probe_works(layers, 128, sequences))
    assert table.layers == layers
    for depth in {0, layers, *probe_depths(layers)}:
        place = depth * 16 / layers
        low, share = math.floor(place), place - math.floor(place)
        for kind, columns in (("forward", INHERITED.forward), ("forward_backward", INHERITED.forward_backward)):
            there = columns[128][low] + (share and share * (columns[128][low + 1] - columns[128][low]))
            price = table.seconds(Work(kind, 128, 128, depth))  # type: ignore[arg-type]
            assert price == pytest.approx(ratio * there, rel=1e-9)


@unhurried
@given(speed=st.floats(1e-3, 1e3))
def test_the_speed_of_the_machine_that_measures_does_not_matter(speed: float) -> None:
    def model(work: Work) -> float:
        return here(work) * (1 + work.layers) / (0.1 + work.layers)

    works = probe_works(4, 128, 32)
    table = scaled(model, works)
    faster = scaled(lambda work: speed * model(work), works, base=timings(lambda work: speed * here(work), BASE))
    for work in works:
        assert faster.seconds(work) == pytest.approx(table.seconds(work), rel=1e-9)


@unhurried
@given(st.data())
def test_noise_makes_a_valid_table_or_none(data: st.DataObject) -> None:
    """Positive, growing with depth, forward below both ways: a ``CostTable`` is checked when it is made."""
    layers = data.draw(st.integers(1, 24))
    noise = st.floats(0.5, 2.0)
    base = {work: Timing(here(work) * data.draw(noise), 0.5, 5) for work in BASE}
    works = probe_works(layers, 128, 16)
    model = {work: Timing(here(work) * data.draw(noise), 0.5, 5) for work in works}
    try:
        table = scale_table(INHERITED, base, model, "model", "a machine")
    except (CalibrationError, TableError):
        return
    prices = [table.seconds(Work("forward_backward", 1, 128, depth)) for depth in range(layers + 1)]
    assert prices == sorted(prices)
    assert table.seconds(Work("forward", 1, 128, layers)) < prices[-1]


def test_several_lengths_are_scaled_each_against_the_base() -> None:
    works = list(dict.fromkeys([*probe_works(4, 128, 16), *probe_works(4, 32, 64)]))
    table = scaled(lambda work: here(work) * (work.length or 128) / 128, works)
    short, full = Work("forward", 1, 32, 4), Work("forward", 1, 128, 4)
    assert table.seconds(short) == pytest.approx(table.seconds(full) / 4)


def test_updates_are_scaled_where_the_table_charges_for_them() -> None:
    assert scaled(here, BASE).seconds(UPDATE) == 0.0, "the inherited table does not"
    paying = replace(INHERITED, update_s=0.4)
    works = probe_works(4, 128, 16)
    table = scaled(lambda work: 0.1 if work == UPDATE else here(work), works, paying)
    assert table.seconds(UPDATE) == pytest.approx(0.4 * 0.1 / 0.05)
    with pytest.raises(CalibrationError, match="charges for updates"):
        scaled(here, [work for work in works if work != UPDATE], paying)


@pytest.mark.parametrize(
    ("base", "says"),
    [
        (probe_works(16, 64, 8), "at one length"),
        ([*probe_works(16, 128, 8), *probe_works(16, 64, 8)], "at one length"),
        (probe_works(12, 128, 8), "not at 0, 1 and all"),
    ],
)
def test_a_base_that_cannot_be_compared_is_refused(base: list[Work], says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        scaled(here, probe_works(4, 128, 16), base=timings(here, base))


def test_the_provenance_keeps_where_the_prices_come_from_and_says_how_they_were_scaled() -> None:
    provenance = scaled(lambda work: 0.25 * here(work), BASE).provenance
    origin = INHERITED.provenance
    assert (provenance.device, provenance.precisions, provenance.software) == (
        origin.device, origin.precisions, origin.software
    )  # fmt: skip
    assert provenance.architecture == "model"
    assert provenance.source.startswith(origin.source)
    assert provenance.notes[: len(origin.notes)] == origin.notes
    added = provenance.notes[len(origin.notes) :]
    assert f"scaled from {origin.architecture} by ratios of cost measured on a machine" in added
    assert "forward, length 128: at 0, 1, 6, 11, 16 layers 0.25, 0.25, 0.25, 0.25, 0.25 of the base's cost" in added
    assert any("9 interleaved rounds" in note for note in added)
