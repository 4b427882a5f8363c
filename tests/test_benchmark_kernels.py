"""The benchmark of kernels compares the same work, and says how near it comes to what the device allows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import kernels, kernels_sides
from benchmarks.kernels_sides import BASELINES, BOTH, CONVOLUTION, FORWARD, GLU, KEPT, Timed, Work
from cramming.errors import UserError
from cramming.kernels import reference

TINY: dict[str, Any] = {"lengths": [8, 32], "tokens": 64, "channels": 8, "pairs": 3, "isolated": False, "device": "cpu"}
CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of a device are not measured here."""
    monkeypatch.setattr(kernels, "copy_bytes_per_s", lambda device: 1e10)
    monkeypatch.setattr(kernels, "peak_flops_per_s", lambda device, name: (1e12, "measured"))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_row_has_its_ratio_and_its_share(dtype: str) -> None:
    result = kernels.measure(kernels.Options(dtype=dtype, backends=["reference", "torch"], **TINY))
    rows = result["rows"]
    kinds = {(row["op"], row["passes"], row["length"], row["side"]) for row in rows}
    lengths = {CONVOLUTION: (8, 32), GLU: (64,)}
    assert kinds == {
        (op, passes, length, side)
        for op, baseline in BASELINES.items()
        for passes in (FORWARD, BOTH)
        for length in lengths[op]
        for side in (baseline, "reference", "torch", *([f"torch{KEPT}"] if op == CONVOLUTION else []))
    }
    for row in rows:
        assert row["sequences"] * row["length"] == 64
        assert row["differs"] == "", row
        assert row["unfit"] is None
        assert 0 < row["share"] == row["floor_s"] / row["seconds"]
        assert row["above_mb"] > 0
        assert (row["times"] is None) == (row["side"] == row["baseline"])
    json.dumps(result)
    shown = kernels.page(result)
    assert len(shown.rows) == len(rows)
    assert {len(cells) for cells in shown.rows} == {len(shown.columns)}


@pytest.mark.usefixtures("quick")
def test_a_side_that_computes_something_else_has_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = kernels_sides.published
    monkeypatch.setattr(kernels_sides, "published", lambda *operands: 1.01 * exact(*operands))
    options = kernels.Options(ops=[CONVOLUTION], passes=[FORWARD], backends=["torch"], **TINY | {"lengths": [8]})
    result = kernels.measure(options)
    assert "computes something else than published" in result["rows"][1]["differs"]
    assert kernels.page(result).rows[1][7] == "differs"


@pytest.mark.usefixtures("quick")
def test_what_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.backends, "of", lambda op, name: (None, "no GPU"))
    options = kernels.Options(ops=[GLU], passes=[FORWARD], backends=["cuda"], **TINY)
    result = kernels.measure(options)
    assert [(row["side"], row["unfit"]) for row in result["rows"]] == [("batched products", None), ("cuda", "no GPU")]
    assert "block_diagonal_glu, cuda at 64: no GPU" in kernels.page(result).notes


@pytest.mark.parametrize("length", [1, 7, 32])
def test_published_is_the_definition(length: int) -> None:
    work = Work(CONVOLUTION, BOTH, length, 2, 4, torch.float64, CPU)
    theirs = Timed(work, BASELINES[CONVOLUTION], 1, 1).call()
    operands, incoming = work.operands(0)
    exact = reference.convolve(work.given(operands))  # type: ignore[arg-type]
    torch.testing.assert_close(theirs[0].transpose(0, 1), exact)
    slopes = torch.autograd.grad(exact, operands, incoming)
    for number, (found, slope) in enumerate(zip(theirs[1:], slopes, strict=True)):
        torch.testing.assert_close(found.permute(2, 0, 1) if number < 2 else found, slope)


def test_batched_products_are_the_definition() -> None:
    work = Work(GLU, FORWARD, 6, 2, 8, torch.float64, CPU)
    (theirs,) = Timed(work, BASELINES[GLU], 1, 1).call()
    torch.testing.assert_close(theirs, reference.glu(work.given(work.operands(0)[0])))  # type: ignore[arg-type]


def test_floors() -> None:
    work = Work(CONVOLUTION, FORWARD, 128, 4, 16, torch.bfloat16, CPU)
    signals, filters = 5 * 2 * 16 * 4 * 128, 4 * (2 * 2 * 16 * 128 + 2 * 16 + 48 * 4)
    assert work.floor_bytes() == signals + filters
    layer = Work(GLU, BOTH, 64, 1, 8, torch.float32, CPU)
    assert layer.floor_operations() == 3 * (3 * 2 * 64 * 8 * 8)  # b blocks of (H/b x 8H/b) and (4H/b x H/b)


def test_memory_is_what_a_call_holds_above_its_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    side = Timed(Work(GLU, FORWARD, 64, 1, 64, torch.float32, CPU), "torch", 1, 1)
    monkeypatch.setattr(side, "call", lambda: [torch.empty(2**18) + torch.ones(2**18)])
    assert side.peak_mb() == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ops": ["gated_conv"]}, "ops=gated_conv is unknown"),
        ({"backends": ["cudda"]}, "backends=cudda is unknown.*cuda"),
        ({"passes": ["backward"]}, "passes=backward is unknown"),
        ({"pairs": 2}, "pairs=2 is too few"),
        ({"dtype": "float8"}, "dtype=float8 is unknown"),
        ({"channels": 6}, "channels=6 must be a multiple of 4"),
        ({"lengths": [0]}, r"lengths=\[0\]"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        kernels.Options(**options)


@pytest.mark.usefixtures("quick")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lengths=[8]", "tokens=16", "channels=4", "pairs=3", "isolated=false", "device=cpu", "passes=[forward]"]
    out = tmp_path / "kernels.json"
    monkeypatch.setattr("sys.argv", ["kernels.py", *words, "backends=[torch]", f"out={out}"])
    kernels.main()
    assert {row["side"] for row in json.loads(out.read_text())["rows"]} == {
        *BASELINES.values(),
        "torch",
        f"torch{KEPT}",
    }
    assert "share of floor" in out.with_suffix(".md").read_text()
    assert "gated_long_conv" in capsys.readouterr().out
