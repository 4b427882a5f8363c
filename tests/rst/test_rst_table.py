"""Cost tables: prices, what is refused, and the inherited RTX 3090 table against the reference's numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import linear_regression
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rst
from rst import Clock, CostTable, Provenance, TableError, Work

RTX3090 = Path(rst.__file__).parent / "tables" / "rtx3090.json"
PROVENANCE = Provenance(
    "a machine", "bert 4x256", ("float32", "bfloat16"), {"torch": "2.13"}, "2026-01-01", "measured", ("a note",)
)
FORWARD = tuple(0.5 + 1.0 * layers for layers in range(5))
BOTH = tuple(1.25 + 2.75 * layers for layers in range(5))


def small_table() -> CostTable:
    halved = tuple(seconds / 2 for seconds in FORWARD)
    return CostTable(8, {128: FORWARD, 64: halved}, {128: BOTH, 64: FORWARD}, 0.125, PROVENANCE)


def test_prices_follow_kind_length_and_layers() -> None:
    table = small_table()
    assert table.seconds(Work("forward", 8, 128, 3)) == 3.5
    assert table.seconds(Work("forward_backward", 8, 128, 3)) == 9.5
    assert table.seconds(Work("forward", 8, 64, 0)) == 0.25
    assert table.seconds(Work("update")) == 0.125


@given(
    a=st.integers(0, 10_000),
    b=st.integers(0, 10_000),
    kind=st.sampled_from(["forward", "forward_backward"]),
    layers=st.integers(0, 4),
)
def test_law_prices_are_linear_in_sequences(a: int, b: int, kind: Any, layers: int) -> None:
    table = small_table()
    one_by_one = table.seconds(Work(kind, a, 128, layers)) + table.seconds(Work(kind, b, 128, layers))
    assert table.seconds(Work(kind, a + b, 128, layers)) == pytest.approx(one_by_one, rel=1e-12)


def test_work_without_a_price_is_refused_with_what_there_is() -> None:
    with pytest.raises(TableError, match=r"length 512.*64, 128"):
        small_table().seconds(Work("forward", 1, 512, 2))
    with pytest.raises(TableError, match=r"5 layers.*ends at 4"):
        small_table().seconds(Work("forward", 1, 128, 5))


def test_a_saved_table_is_read_back_exactly(tmp_path: Path) -> None:
    table = small_table()
    path = tmp_path / "folder" / "table.json"
    table.save(path)
    read = CostTable.load(path)
    for name in ("sequences", "forward", "forward_backward", "update_s", "provenance", "layers"):
        assert getattr(read, name) == getattr(table, name)
    assert read.origin == str(path)
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]


def test_differences_are_named_in_words() -> None:
    table = small_table()
    assert table.differences("bert 4x256", 4, [128], "bfloat16") == []
    found = table.differences("m2 12x768", 12, [128, 512], "float16")
    assert len(found) == 4
    for words, difference in zip(
        (("bert 4x256", "m2 12x768"), ("4", "12"), ("64, 128", "512"), ("float32 and bfloat16", "float16")),
        found,
        strict=True,
    ):
        assert all(word in difference for word in words)


def put(*path: str, value: Any) -> Callable[[Any], None]:
    def corrupt(document: Any) -> None:
        for name in path[:-1]:
            document = document[name]
        document[path[-1]] = value

    return corrupt


def drop(*path: str) -> Callable[[Any], None]:
    def corrupt(document: Any) -> None:
        for name in path[:-1]:
            document = document[name]
        del document[path[-1]]

    return corrupt


CORRUPTIONS = [
    ("the inherited misprint", put("forward_backward", "128", "7", value=0.01052), "forward_backward.*7 layers"),
    ("ten times too much", put("forward_backward", "128", "6", value=0.9188), "forward_backward.*6 layers"),
    ("a misprint at the end", put("forward_backward", "128", "16", value=0.4253), "forward_backward.*16 layers"),
    ("a misprint at 0 layers", put("forward_backward", "128", "0", value=0.1172), "forward_backward.*1 layers"),
    ("neighbours swapped", put("forward", "128", "8", value=0.0433), "forward, .*8 layers.*not more"),
    ("zero", put("forward", "128", "0", value=0.0), "forward, .*0 layers.*positive"),
    ("negative", put("forward", "128", "3", value=-0.02), "forward, .*3 layers.*positive"),
    ("not finite", put("forward", "128", "3", value=float("nan")), "forward, .*3 layers.*finite"),
    ("a word", put("forward", "128", "3", value="0.02"), "forward, .*3 layers.*not a number"),
    ("true", put("update_s", value=True), "update_s.*not a number"),
    ("a negative update", put("update_s", value=-1.0), "update_s"),
    ("a depth missing", drop("forward", "128", "5"), "forward, length 128.*missing is 5"),
    ("the last depth missing", drop("forward", "128", "16"), "same numbers of layers"),
    ("a length missing", put("forward", value={}), "forward .none. and forward_backward .128."),
    ("a strange length", put("forward", "long", value={}), "length long"),
    ("no sequences", put("sequences", value=0), "sequences is 0"),
    ("half a sequence", put("sequences", value=0.5), "sequences is 0.5"),
    ("another format", put("format", value=2), "format 2"),
    ("a key missing", drop("update_s"), "no 'update_s'"),
    ("an unknown key", put("optimizer", value=1), "unknown 'optimizer'"),
    ("no origin", drop("provenance", "source"), "provenance: no 'source'"),
    ("a wrong type of origin", put("provenance", "precisions", value="float16"), "provenance.precisions"),
]


@pytest.mark.parametrize(("corrupt", "message"), [c[1:] for c in CORRUPTIONS], ids=[c[0] for c in CORRUPTIONS])
def test_a_table_that_cannot_be_right_is_refused_by_file_and_entry(
    corrupt: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    document = json.loads(RTX3090.read_text())
    corrupt(document)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(document))
    with pytest.raises(TableError, match=message) as refused:
        CostTable.load(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_forward_must_cost_less_than_forward_and_backward(tmp_path: Path) -> None:
    document = json.loads(RTX3090.read_text())
    document["forward"] = document["forward_backward"]
    path = tmp_path / "table.json"
    path.write_text(json.dumps(document))
    with pytest.raises(TableError, match=r"forward, length 128, 0 layers.*not less"):
        CostTable.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a cost table"),
        (b"[1]", "JSON object"),
        (b'{"format": 1, "format": 1}', "'format' appears twice"),
        (b'{"\xff": 1}', "not a cost table"),
        (b"", "not a cost table"),
    ],
)
def test_a_file_that_is_no_table_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(content)
    with pytest.raises(TableError, match=message):
        CostTable.load(path)
    with pytest.raises(TableError, match="cannot be read"):
        CostTable.load(tmp_path / "none.json")


@given(
    noise=st.lists(st.floats(-0.04, 0.04), min_size=13, max_size=13),
    share=st.floats(0.1, 2.0),
    nothing=st.floats(0.01, 1.0),
)
def test_an_uneven_table_of_a_real_machine_is_accepted(noise: list[float], share: float, nothing: float) -> None:
    """A few percent of scatter around a line is no reason to refuse, whatever 0 layers cost."""
    both = [(share + layers) * (1 + noise[layers]) for layers in range(13)]
    both[0] = nothing * both[1] * 0.999
    for layers in range(2, 13):
        both[layers] = max(both[layers], both[layers - 1] * 1.001)
    CostTable(16, {128: tuple(s / 3 for s in both)}, {128: tuple(both)}, 0.01, PROVENANCE)


# The inherited table.


@pytest.fixture(scope="module")
def inherited() -> CostTable:
    return CostTable.load(RTX3090)


def test_inherited_prices_are_the_reference_s(inherited: CostTable, shared: Path) -> None:
    golden = json.loads((shared / "golden" / "rst.json").read_text())
    for size, by_layers in golden["forward_backward_with_microbatch"].items():
        for layers, seconds in by_layers.items():
            if layers != "7":  # the misprint: 0.1052 here
                assert inherited.seconds(Work("forward_backward", int(size), 128, int(layers))) == seconds
    assert inherited.seconds(Work("forward_backward", 128, 128, 7)) == 0.1052
    for size, seconds in golden["forward_only_batch128"]["microbatch"].items():
        assert inherited.seconds(Work("forward", int(size), 128, 16)) == seconds


def test_inherited_entries_that_were_never_measured_are_derived_as_their_notes_say(inherited: CostTable) -> None:
    both, forward = inherited.forward_backward[128], inherited.forward[128]
    assert both[0] == pytest.approx(linear_regression(range(1, 17), both[1:]).intercept, abs=1e-5)
    for layers in range(17):
        assert forward[layers] == pytest.approx(both[layers] * 0.09285 / 0.2253, abs=1e-8)
    assert inherited.update_s == 0.0
    notes = " ".join(inherited.provenance.notes)
    for word in ("0.01052", "0 layers", "0.412", "update_s", "bfloat16"):
        assert word in notes
    assert inherited.differences(inherited.provenance.architecture, 16, [128], "float16") == []
    assert inherited.differences(inherited.provenance.architecture, 16, [128], "bfloat16") == []


UPDATE = [Work("forward_backward", 128, 128, 16)] * 12


def updates_in(table: CostTable, hours: float, update: list[Work]) -> int:
    """Whole updates until the budget is spent."""
    clock = Clock({"main": table}, hours * 3600)
    updates = 0
    while not clock.exhausted:
        for work in update:
            clock.charge(work)
        updates += 1
    return updates - 1  # the last one overran


@pytest.mark.parametrize(("hours", "updates"), [(24, 31_957), (12, 15_978), (6, 7_989)])
def test_capacity_of_the_baseline(inherited: CostTable, hours: float, updates: int) -> None:
    batch = [Work("forward_backward", 1536, 128, 16)]
    assert updates_in(inherited, hours, batch) == updates


def test_capacity_does_not_depend_on_the_microbatch(inherited: CostTable) -> None:
    assert updates_in(inherited, 1, UPDATE) == updates_in(inherited, 1, [Work("forward_backward", 1536, 128, 16)])


@pytest.mark.parametrize(("candidates", "updates"), [(2, 17_518), (3, 14_290), (4, 12_066)])
def test_capacity_of_selection(inherited: CostTable, candidates: int, updates: int) -> None:
    """Selective backprop with beta = 1, 2, 3 scores beta + 1 batches for each one trained on; RHO-loss scores two."""
    scored = Work("forward", 1536 * candidates, 128, 16)
    found = updates_in(inherited, 24, [scored, Work("forward_backward", 1536, 128, 16)])
    assert found == pytest.approx(updates, rel=0.01)


def test_capacity_of_stacking(inherited: CostTable) -> None:
    """4 of 16 layers until 12.5 % of the budget, 8 until 30 %, then all: 1.465 times the baseline's sequences."""
    clock = Clock({"main": inherited}, 24 * 3600)
    while not clock.exhausted:
        layers = 4 if clock.progress < 0.125 else 8 if clock.progress < 0.30 else 16
        clock.charge(Work("forward_backward", 1536, 128, layers))
    sequences = clock.counts["train"]["forward_backward"]["sequences"]
    assert sequences / (31_957 * 1536) == pytest.approx(1.465, rel=0.01)
