"""Benchmarks compare the same work, say what does not fit, and run at every family's tiniest size."""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import attention_scaling, bench, forward, grid, step
from benchmarks.architectures import FAMILIES, IN_TRANSFORMERS, SIZES, Case, dense_labels
from benchmarks.comparison import Mode, run
from benchmarks.presentation import CONTENDED, page
from benchmarks.reporting import spread
from cramming.errors import UserError
from cramming.profiling.replay import Operand, Replay, recorded

REPOSITORY = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
TINY: dict[str, Any] = {"size": "tiny", "lengths": [16], "tokens": 32, "pairs": 3, "isolated": False, "device": "cpu"}


class Counted:
    """A side that counts its blocks and may fail at one of them."""

    flops: float | None = None

    def __init__(self, fails_at: int = 0, error: Exception | None = None) -> None:
        self.blocks, self.fails_at, self.error = 0, fails_at, error

    @property
    def loss(self) -> float | None:
        return float(self.blocks)

    def block(self) -> None:
        self.blocks += 1
        if self.error is not None and self.blocks == self.fails_at:
            raise self.error


def bounds(**changed: Any) -> grid.Bounds:
    """Generous ones, in this process."""
    return grid.Bounds(**{"device": CPU, "pairs": 4, "cell_s": 1e9, "block_s": 1e9, "memory_mb": 1e6, **changed})


def test_every_side_does_the_same_number_of_blocks() -> None:
    found = grid.measured({"ours": Counted, "theirs": Counted}, bounds(isolated=False))
    assert found.losses == {"ours": 4 + 2, "theirs": 4 + 2}
    assert {clock: len(values) for clock, values in found.seconds["theirs"].items()} == {"wall": 4, "cpu": 4}


@pytest.mark.parametrize("fails_at", [1, 2, 3, 6])
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (MemoryError(), "out of memory"),
        (UserError("out of memory with 2 sequences"), "out of memory"),
        (UserError("no such attention"), "refused: no such attention"),
        (KeyError("x"), "failed: KeyError: 'x'"),
    ],
)
def test_what_does_not_fit_leaves_the_others(fails_at: int, error: Exception, why: str) -> None:
    sides: grid.Builders = {"ours": Counted, "large": partial(Counted, fails_at, error), "theirs": Counted}
    found = grid.measured(sides, bounds(isolated=False))
    assert found.unfit == {"large": why}
    assert found.losses == {"ours": 6, "theirs": 6}
    assert set(grid.compared(found)) == {"theirs"}


def test_a_block_that_takes_too_long_does_not_fit() -> None:
    found = grid.measured({"ours": Counted}, bounds(isolated=False, block_s=-1.0))
    assert "more than block_s" in found.unfit["ours"]
    assert grid.compared(found) == {}


def test_ratios_are_of_pairs() -> None:
    found = grid.Measured(seconds={"ours": {"wall": [1.0, 2.0, 4.0]}, "theirs": {"wall": [3.0, 6.0, 20.0]}})
    ratio = grid.compared(found)["theirs"]
    assert ratio["wall"]["pairs"] == [3.0, 3.0, 5.0]
    assert ratio["wall"]["median"] == 3.0


@pytest.mark.parametrize(
    ("wall", "cpu", "other_cores", "expected"),
    [
        ([1.0, 1.0, 1.1], [1.0, 1.0, 1.0], 0.0, False),
        ([1.0, 1.2, 1.5], [1.0, 1.0, 1.0], 0.0, True),  # quartiles apart
        ([1.5, 1.5, 1.5], [1.0, 1.0, 1.0], 0.0, True),  # clocks apart
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], 0.5, True),  # somebody else was at work
    ],
)
def test_a_busy_machine_is_seen(wall: list[float], cpu: list[float], other_cores: float, expected: bool) -> None:
    ones = {"wall": [1.0] * 3, "cpu": [1.0] * 3}
    found = grid.Measured(seconds={"ours": ones, "theirs": {"wall": wall, "cpu": cpu}}, other_cores=other_cores)
    assert grid.busy(grid.compared(found)["theirs"], found) is expected


def test_time_left_follows_cells_of_the_same_length() -> None:
    left = grid.Remaining([128, 8192, 128, 8192])
    assert left.done(128, 1.0) == 3.0  # nothing known of the others yet
    assert left.done(8192, 10.0) == 11.0
    assert left.done(128, 3.0) == 10.0
    assert left.done(8192, 10.0) == 0.0


def test_both_sides_are_given_the_same_prediction() -> None:
    batch = Case("bert", 40, 3, SIZES["tiny"], 0.15).batch()
    labels = dense_labels(batch)
    assert (labels >= 0).sum(1).tolist() == [6, 6, 6]
    assert torch.equal(labels.gather(1, batch.positions), batch.labels)
    assert (batch.inputs.gather(1, batch.positions) == 4).all()


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.full if number % 3 else ()) for number, name in enumerate(FAMILIES)]
)
def test_a_step_of_every_family(family: str) -> None:
    """The counterparts' logits are checked on the way: a family that computes something else is refused."""
    options = step.StepOptions(archs=[family], precision="float32", **TINY)
    (row,) = run(options, Mode("step", partial(step.sides, options)))["rows"]
    assert (row["refused"], row["unfit"]) == ("", {})
    assert row["same_model"] == (family in IN_TRANSFORMERS)
    assert row["our_flops_per_s"] > 0
    assert row["tokens_per_s"]["limit"] > 0
    assert row["tokens_per_s"]["scoring"] > 0
    ours, theirs = row["losses"]["ours"], row["losses"]["float32"]
    # After the same steps on the same batch from the same weights; another model need only have learned.
    assert math.isclose(ours, theirs, rel_tol=1e-3) if row["same_model"] else ours < math.log(512) + 0.5


@pytest.mark.parametrize("microbatch_tokens", [0, 16])
@pytest.mark.parametrize("family", ["bert", "crammed", "mosaic", "modern", "neobert"])
def test_the_limit_is_what_a_step_multiplies(family: str, microbatch_tokens: int) -> None:
    options = step.StepOptions(precision="float32", microbatch_tokens=microbatch_tokens, **TINY)
    case = Case(family, 16, 2, SIZES["tiny"], 0.15)
    limit = step.limit(case, options)
    assert limit.flops == step.Ours(case, options).flops
    limit.block()


def test_the_limit_of_long_convolutions_has_their_transforms() -> None:
    model = Case("m2", 16, 2, SIZES["tiny"], 0.15).our_model()
    calls = recorded(model, Case("m2", 16, 2, SIZES["tiny"], 0.15).batch(), 2)
    transforms = [call for call in calls if call.transform is not None]
    # Of each layer's two filters and their input, and the way back, in both directions; how many, the form decides.
    assert len(transforms) >= 4 * model.layers
    assert sum(call.operations for call in calls) > 0
    Replay(calls, CPU).block()


def test_operands_are_laid_out_as_they_were() -> None:
    made = torch.randn(5, 7).mT[1:, ::2]
    operand = Operand.of(made)
    again = operand.tensor(CPU)
    assert (again.shape, again.stride(), again.dtype) == (made.shape, made.stride(), made.dtype)
    assert Operand.of(torch.randn(3, dtype=torch.complex64)).tensor(CPU).dtype == torch.complex64


@pytest.mark.parametrize("mode", [forward.INFER, forward.TRAIN, forward.PUBLISHED])
def test_forward_in_every_mode(mode: str) -> None:
    options = forward.ForwardOptions(mode=mode, archs=["bert", "modern", "albert", "m2"], calls=2, **TINY)
    result = run(options, Mode(mode, partial(forward.sides, options), 2, within=forward.within(options)))
    for row in result["rows"]:
        same_code = mode == forward.PUBLISHED and row["arch"] == "albert"
        assert list(row["unfit"]) == (["ours"] if same_code else []), row["unfit"]
        assert row["refused"] == ""


def test_the_published_passes_are_the_same_from_the_same_states() -> None:
    case = Case("bert", 16, 2, SIZES["tiny"], 0.15)
    states = torch.randn(2, 16, SIZES["tiny"].hidden, generator=torch.Generator().manual_seed(0))
    counterpart = case.counterpart()
    ours = forward.from_hidden(case.our_model(), states, case.batch().inputs)()
    theirs = forward.theirs_from_hidden(counterpart.build(), counterpart.model_type, states)()
    assert torch.allclose(ours, theirs.flatten(0, 1), atol=1e-5)


def test_a_model_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from cramming.architectures.layers.feedforward import FeedForward

    plain = FeedForward.forward
    monkeypatch.setattr(FeedForward, "forward", lambda self, x: 1.1 * plain(self, x))
    with pytest.raises(UserError, match="logits differ"):
        Case("bert", 16, 2, SIZES["tiny"], 0.15).our_model()


def test_sides_are_chosen_by_name() -> None:
    case = Case("m2", 16, 2, SIZES["tiny"], 0.15)
    options = step.StepOptions(beside="bert", baselines=["float32"], precision="float32", **TINY)
    assert list(step.sides(options, case)) == ["ours", "our bert", "float32"]
    assert list(step.sides(options, Case("bert", 16, 2, SIZES["tiny"], 0.15))) == ["ours", "float32"]
    options.baselines = []
    assert list(step.sides(options, case)) == ["ours", "our bert", "limit", "scoring", "forward_limit", "float32"]
    options.baselines = ["float"]
    with pytest.raises(UserError, match="baselines=float "):
        step.sides(options, case)


def test_a_step_with_cuda_graphs_is_compared_with_one_without_and_refused_where_there_are_none() -> None:
    case = Case("bert", 16, 2, SIZES["tiny"], 0.15)
    options = step.StepOptions(cuda_graphs=True, baselines=["launched"], **TINY)
    sides = step.sides(options, case)
    assert list(sides) == ["ours", "launched"]
    with pytest.raises(UserError, match="cuda_graphs=true: none: there are none on a cpu"):
        sides["ours"]()
    sides["launched"]()
    options.cuda_graphs = False
    with pytest.raises(UserError, match="baselines=launched"):
        step.sides(options, case)


@pytest.mark.parametrize(
    "words", [{"archs": ["brt"]}, {"beside": "brt"}, {"size": "huge"}, {"pairs": 2}, {"batches": "x"}]
)
def test_wrong_options_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        step.StepOptions(**words)


@pytest.mark.full
def test_in_processes_of_their_own(tmp_path: Path) -> None:
    """The command as it is typed: one side runs out of the memory it may take, the others are measured."""
    out = tmp_path / "result.json"
    words = "archs=[deberta] lengths=[16,4096] tokens=32 size=tiny pairs=3 threads=1 device=cpu memory_gb=0.4"
    ended = subprocess.run(
        [sys.executable, "benchmarks/step.py", *words.split(), "precision=float32", f"out={out}"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    short, long = json.loads(out.read_text())["rows"]
    assert set(short["ratios"]) == {"limit", "scoring", "forward_limit", "float32"}
    assert long["unfit"] == dict.fromkeys(("ours", "limit", "scoring", "forward_limit", "float32"), "out of memory")
    assert "does not fit" in ended.stdout


@pytest.mark.full
def test_the_whole_table_as_it_is_typed(tmp_path: Path) -> None:
    out = tmp_path / "folder" / "bench.json"
    words = ["quick=true", "models=[bert_small,m2_base]", "pairs=3", "threads=1", "device=cpu", f"out={out}"]
    ended = subprocess.run(
        [sys.executable, "benchmarks/bench.py", *words],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    models = json.loads(out.read_text())["models"]
    assert set(models["bert_small"]["rows"][0]["ratios"]) >= {"limit", "scoring", "forward_limit"}
    assert set(models["m2_base"]["rows"][0]["ratios"]) == {"limit", "scoring", "forward_limit"}
    shown = out.with_suffix(".md").read_text()
    assert shown in ended.stdout
    assert "| m2_base |" in shown


def test_what_theirs_reaches_of_the_limit_is_of_the_same_pairs() -> None:
    def ratio(*pairs: float) -> dict[str, Any]:
        return {"wall": spread(list(pairs)), "busy": False}

    ratios = {"limit": ratio(0.5, 0.6, 0.8), "autocast": ratio(2.0, 1.0, 4.0)}  # 0.25, 0.6 and 0.2 of it
    page = bench.page({"m": {"ratios": ratios, "unfit": {}, "tokens_per_s": {"ours": 1.0}}})
    shown = page.rows[0]
    assert len(shown) == len(page.columns)
    assert shown[2:6] == ["0.60 (0.50-0.80)", "2.00 (1.00-4.00)", "0.25 (0.20-0.60)", ""]
    ratios["limit"]["busy"] = True
    shown = bench.page({"m": {"ratios": ratios, "unfit": {}, "tokens_per_s": {"ours": 1.0}}}).rows[0]
    assert shown[2:5] == [CONTENDED, "2.00 (1.00-4.00)", CONTENDED]


def test_scaling_with_the_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder" / "scaling.json"
    words = [
        "quick=true",
        "isolated=false",
        "archs=[mosaic,m2]",
        "forms=[math,sdpa,varlen]",
        "device=cpu",
        f"out={out}",
    ]
    monkeypatch.setattr(sys, "argv", ["attention_scaling.py", *words, "precision=float32"])
    attention_scaling.main()
    said = capsys.readouterr().out
    rows = {(row["question"], row["length"]): row for row in json.loads(out.read_text())["rows"]}
    questions = [question for question, length in rows if length == 32]
    assert questions == ["families", "window", "padding", "full", "padded"]
    for (question, _), row in rows.items():
        assert all(speed > 0 for speed in row["tokens_per_s"].values())
        assert list(row["unfit"]) == (["varlen"] if question in ("full", "padded") else []), row["unfit"]
        if question in ("padding", "full", "padded"):  # the same mathematics on the same batch
            losses = list(row["losses"].values())
            assert losses == pytest.approx([losses[0]] * 2, rel=1e-3)
    assert rows["families", 32]["tokens"] == rows["families", 128]["tokens"] == 128 > rows["padding", 32]["tokens"]
    assert out.with_suffix(".md").read_text() in said
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_contended_ratio_is_no_number() -> None:
    measured = {"median": 2.0, "quartiles": [1.9, 2.1]}
    row: dict[str, Any] = {"arch": "bert", "against": "bert", "length": 128, "sequences": 2, "refused": "", "unfit": {}}
    row |= {"tokens_per_s": {"ours": 2.0, "low": 1.0}, "peak_mb": {}, "same_model": True, "losses": {}}
    for busy, cell in {False: "2.00 (1.90-2.10)", True: "contended"}.items():
        row["ratios"] = {"low": {"wall": measured, "busy": busy}}
        shown = page({"mode": "step", "peak_flops_per_s": None, "rows": [row]})
        assert cell in shown.rows[0]
        assert ("busy" in " ".join(shown.notes)) == busy
