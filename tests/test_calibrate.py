"""``python -m cramming.calibrate``: the table it writes is the one a run takes. Probes are run, no clock is read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cramming import calibration, resolve
from cramming.build import Parts
from cramming.calibrate import command
from cramming.calibration import Target
from cramming.cli import compose
from cramming.config import PretrainConfig
from cramming.costs import FileConfig, build_costs
from cramming.errors import UserError
from cramming.priced import target_of
from cramming.relative import base_of
from rst import CostTable, Provenance, Timing, Work, build_table, probe_works

BASE = ["arch=bert_tiny", "data.seq_length=16", "impl.precision=float32"]
SMALL = [*BASE, "arch.hidden=32", "arch.layers=4", "data.vocab_size=200"]
CPU = torch.device("cpu")


def price(name: str, work: Work) -> float:
    """A model costs a third of the base at every share of the depth; the machine here is slow."""
    if work.kind == "update":
        return 0.02 if name == "base" else 0.005
    share = {"base": work.layers / 2, "model": work.layers / 4}[name]
    return (
        (0.1 + share)
        * {"forward": 1.0, "forward_backward": 3.0}[work.kind]
        * work.sequences
        / (1.0 if name == "base" else 3.0)
    )


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was run, once each; it takes what ``price`` says."""
    calls: list[Any] = []

    def measure(probes: Mapping[Any, Callable[[], None]], **_: Any) -> dict[Any, Timing]:
        for probe, call in probes.items():
            call()
            calls.append(probe)
        priced = {p: p if isinstance(p, tuple) else ("base", p) for p in probes}
        return {p: Timing(price(name, work), 0.01, 9) for p, (name, work) in priced.items()}

    monkeypatch.setattr(calibration, "measure", measure)
    return calls


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of the base, as another machine may have measured it."""
    target = target_of(Parts(config_of(BASE), 8192, CPU), "float32")
    works = probe_works(2, 16, 64)
    timings = {work: Timing(price("base", work) / 50, 0.01, 9) for work in works}
    provenance = Provenance("another machine", target.architecture, ("float16",), {}, "2026-01-01", "measured")
    build_table(timings, provenance).save(tmp_path / "base.json")
    return tmp_path / "base.json"


def config_of(words: list[str]) -> PretrainConfig:
    return compose(["data=local", "data.path=none", *words])


def relative(table: Path, *words: str) -> list[str]:
    return [*SMALL, f"base_dir={table.parent}", f"relative_to={table}", "base_arch=bert_tiny", *words]


def test_a_measured_table_is_shown_again(ran: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, f"base_dir={tmp_path}"]
    command(words)
    assert ran
    said = capsys.readouterr().out
    ran.clear()
    command(words)
    assert ran == []
    assert capsys.readouterr().out == said
    assert "one update of adamw: 20.000 ms" in said


def test_a_table_scaled_to_another_architecture_prices_its_runs(
    table: Path, ran: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scaled.json"
    command(relative(table, f"out={out}"))
    assert f"rst=table rst.path={out}" in capsys.readouterr().out
    kinds = {(name, work.kind, work.layers) for name, work in ran}
    assert {layers for name, kind, layers in kinds if (name, kind) == ("base", "forward")} == {0, 1, 2}
    assert {layers for name, kind, layers in kinds if (name, kind) == ("model", "forward")} == {0, 1, 2, 3, 4}
    assert {("base", "update", 0), ("model", "update", 0)} <= kinds, "the table charges for updates"

    target = target_of(Parts(config_of(SMALL), 200, CPU), "float16")
    source, priced = CostTable.load(table), costs(out, target, tmp_path)
    for kind in ("forward", "forward_backward"):
        for layers in (0, 2, 4):
            work, there = Work(kind, 1, 16, layers), Work(kind, 1, 16, layers // 2)  # type: ignore[arg-type]
            assert priced.seconds(work) == pytest.approx(source.seconds(there) / 3)
    assert priced.seconds(Work("update")) == pytest.approx(source.update_s / 4)

    ran.clear()
    command(relative(table, f"out={out}"))
    assert ran == [], "a table that is there is shown"
    command(relative(table, f"out={out}", "rst.refresh=true"))
    assert ran
    with pytest.raises(UserError, match=r"scaled\.json is there and of no use for this.*rst\.refresh=true"):
        command(relative(table, f"out={out}", "arch.layers=3"))


def costs(path: Path, target: Target, folder: Path) -> Any:
    return build_costs(
        FileConfig(path=str(path)),
        target=target,
        base_dir=folder,
        run_dir=folder / "run",
        probes=lambda lengths: {},
        flops=lambda work: 1.0,
    )["main"]


def test_the_inherited_tables_base_is_the_studys_model() -> None:
    """Built from its recipe, its fingerprint is the table's own."""
    base = base_of("rtx3090", None)
    parts = Parts(base.config, 32768, CPU)
    assert base.table.differences(parts.architecture(), base.config.arch.layers, [128], "float16") == []
    assert (base.config.arch.layers, base.config.arch.hidden) == (16, 768)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["relative_to=rtx4090"], r"relative_to=rtx4090: there is no such table; there is rtx3090"),
        (["relative_to={table}"], r"needs base_arch="),
        (["relative_to={table}", "base_arch=bert_small"], "it is for architecture .*base_arch"),
        (["relative_to={table}", "base_arch=bert_tinny"], "did you mean 'bert_tiny'"),
        (["out=x.json"], r"out= is for relative_to="),
        (["rst=flops"], "rst=flops is not measured"),
        (["relative_too=rtx3090"], "relative_too"),
    ],
)
def test_what_cannot_be_scaled_is_refused_in_a_line(table: Path, ran: list[Any], words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        command([*SMALL, f"base_dir={table.parent}", *(word.format(table=table) for word in words)])
    assert "\n" not in str(refused.value)
    assert ran == []


def test_a_precision_this_machine_lacks_is_not_asked_of_it(
    table: Path, ran: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe for the reference machine says float16; its table may be scaled on a processor all the same."""
    monkeypatch.setattr(resolve, "device", lambda: CPU)
    command(relative(table, "rst=rtx3090", "impl.precision=float16"))
    scaled = CostTable.load(tmp_path / "_rst" / "base-bert_tiny.json")
    assert scaled.provenance.precisions == ("float16",), "those of the table it comes from"
