"""``rst=...``: which prices a run gets, and that it keeps them."""

import logging
import multiprocessing
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cramming import calibration
from cramming.calibration import Machine, Target, table_path
from cramming.costs import (
    CalibrateConfig,
    FileConfig,
    FlopsConfig,
    RstConfig,
    Rtx3090Config,
    StepsConfig,
    WallClockConfig,
    build_costs,
)
from cramming.errors import UserError
from rst import CostTable, Timing, Work, probe_works

MACHINE = Machine("a processor", 2, 2, None, {"torch": "2.13"})
ARCHITECTURE = "bert layers=4 hidden=256"
TARGET = Target(ARCHITECTURE, 4, 128, "float32", "adamw")
KINDS = ("calibrate", "flops", "rtx3090", "steps", "table", "wallclock")


def price(work: Work, speed: float) -> float:
    return {"forward": 0.1, "forward_backward": 0.3, "update": 0.05}[work.kind] * (1 + work.layers) * speed


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A machine that is measured at once, at the speed a test says; counts how often it is measured."""
    state = {"speed": 1.0, "measured": 0}

    def measure(probes: Mapping[Work, Callable[[], None]], **options: Any) -> dict[Work, Timing]:
        state["measured"] += 1
        return {work: Timing(price(work, state["speed"]), 0.01, 9) for work in probes}

    monkeypatch.setattr(calibration, "measure", measure)
    monkeypatch.setattr(calibration, "this_machine", lambda: MACHINE)
    return state


def probes(lengths: Collection[int] = (128,)) -> Mapping[Work, Callable[[], None]]:
    return {work: lambda: None for length in lengths for work in probe_works(4, length, 16 * 128 // length)}


def costs(config: RstConfig, base_dir: Path, run: str = "x", **changes: Any) -> Any:
    options: dict[str, Any] = {
        "base_dir": base_dir,
        "run_dir": base_dir / run,
        "probes": probes,
        "flops": lambda work: 2e6 * work.sequences,
        "calibrate_command": "python -m cramming.calibrate arch=bert_small",
    }
    options |= {name: changes.pop(name) for name in list(changes) if name in (*options, "synchronize")}
    found = build_costs(config, target=replace(TARGET, **changes), **options)
    assert list(found) == ["main"]
    return found["main"]


FULL = Work("forward_backward", 16, 128, 4)


def test_a_machine_is_measured_once_for_each_kind_of_run(speed: dict[str, float], tmp_path: Path) -> None:
    first = costs(CalibrateConfig(), tmp_path, "a")
    assert first.seconds(FULL) == pytest.approx(1.5)
    speed["speed"] = 2.0  # the machine is slower now, but its runs stay comparable
    assert costs(CalibrateConfig(), tmp_path, "b").seconds(FULL) == first.seconds(FULL)
    assert speed["measured"] == 1
    for name, change in (("c", {"precision": "bfloat16"}), ("d", {"architecture": "bert layers=4 hidden=128"})):
        assert costs(CalibrateConfig(), tmp_path, name, **change).seconds(FULL) == pytest.approx(3.0)
    assert speed["measured"] == 3
    assert len(list((tmp_path / "_rst").glob("*.json"))) == 3


def test_runs_that_differ_in_their_optimizer_share_the_prices_of_passes(
    speed: dict[str, float], tmp_path: Path
) -> None:
    adamw = costs(CalibrateConfig(), tmp_path, "a")
    speed["speed"] = 2.0  # the machine has slowed down: only the update's share of a pass may count
    lion = costs(CalibrateConfig(), tmp_path, "b", optimizer="lion")
    assert speed["measured"] == 2
    for work in probes():
        assert lion.seconds(work) == pytest.approx(adamw.seconds(work), rel=1e-12)
    costs(CalibrateConfig(refresh=True), tmp_path, "c", optimizer="lion")
    assert costs(CalibrateConfig(), tmp_path, "d").seconds(FULL) == pytest.approx(2 * adamw.seconds(FULL))


def test_the_key_of_a_table_is_everything_its_numbers_depend_on(tmp_path: Path) -> None:
    target = TARGET
    targets = [
        replace(target, architecture="other"),
        replace(target, layers=5),
        replace(target, length=512),
        replace(target, precision="float16"),
        replace(target, optimizer="lion"),
    ]
    machines = [
        replace(MACHINE, cpu="other"),
        replace(MACHINE, cores=4),
        replace(MACHINE, threads=1),
        replace(MACHINE, gpu="a card"),
        replace(MACHINE, software={"torch": "2.14"}),
    ]
    paths = [table_path(tmp_path, t, MACHINE) for t in (target, *targets)]
    paths += [table_path(tmp_path, target, m) for m in machines]
    assert len(set(paths)) == 1 + len(targets) + len(machines)
    assert table_path(tmp_path, replace(target), replace(MACHINE)) == paths[0]
    assert table_path(tmp_path, replace(target, shorter=(32,)), MACHINE) == paths[0], "one table with more columns"


def test_a_run_keeps_the_table_it_began_with(speed: dict[str, float], tmp_path: Path) -> None:
    began = costs(CalibrateConfig(), tmp_path)
    for shared in (tmp_path / "_rst").iterdir():
        shared.unlink()
    speed["speed"] = 2.0
    resumed = costs(CalibrateConfig(refresh=True), tmp_path)
    assert speed["measured"] == 1
    for work in probes():
        assert resumed.seconds(work) == began.seconds(work), "to the last bit"


def test_refresh_measures_anew_for_new_runs(speed: dict[str, float], tmp_path: Path) -> None:
    costs(CalibrateConfig(), tmp_path, "a")
    speed["speed"] = 2.0
    assert costs(CalibrateConfig(refresh=True), tmp_path, "b").seconds(FULL) == pytest.approx(3.0)
    assert costs(CalibrateConfig(), tmp_path, "c").seconds(FULL) == pytest.approx(3.0)
    assert costs(CalibrateConfig(), tmp_path, "a").seconds(FULL) == pytest.approx(1.5)


def test_a_table_tells_where_it_comes_from(speed: dict[str, float], tmp_path: Path) -> None:
    provenance = costs(CalibrateConfig(), tmp_path).provenance
    assert provenance.device == "a processor, 2 threads on 2 cores"
    assert (provenance.architecture, provenance.precisions) == (ARCHITECTURE, ("float32",))
    assert provenance.software == {"torch": "2.13"}


def test_a_damaged_table_is_named_with_the_way_out(speed: dict[str, float], tmp_path: Path) -> None:
    costs(CalibrateConfig(), tmp_path, "a")
    (shared,) = (tmp_path / "_rst").glob("*.json")
    shared.write_text("{")
    with pytest.raises(UserError, match=rf"{shared}.*rst\.refresh=true"):
        costs(CalibrateConfig(), tmp_path, "b")
    own = tmp_path / "a" / "rst.json"
    own.write_text("{")
    with pytest.raises(UserError, match=rf"{own}.*resume=false"):
        costs(CalibrateConfig(), tmp_path, "a")


def test_a_busy_machine_is_measured_longer_and_then_refused_in_one_line(
    speed: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_s: list[float] = []
    quiet_from = 3

    def measure(probes: Mapping[Work, Callable[[], None]], *, within_s: float, **_: Any) -> dict[Work, Timing]:
        given_s.append(within_s)
        noise = 0.0 if len(given_s) >= quiet_from else 100.0
        return {work: Timing(price(work, 1.0) + noise / (1 + work.layers), 0.5, 3) for work in probes}

    monkeypatch.setattr(calibration, "measure", measure)
    assert costs(CalibrateConfig(within_s=5.0), tmp_path, "a").seconds(FULL) == pytest.approx(1.5)
    assert given_s == [5.0, 10.0, 20.0]
    given_s.clear()
    quiet_from = 4
    with pytest.raises(UserError, match="too busy") as refused:
        costs(CalibrateConfig(refresh=True), tmp_path, "b")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "b").exists()
    assert costs(CalibrateConfig(), tmp_path, "c").seconds(FULL) == pytest.approx(1.5), "the table before is kept"


def _measure_in_child(base_dir: Path, run: str, barrier: Any, count: Any) -> None:
    def slow_measure(probes: Mapping[Work, Callable[[], None]], **_: Any) -> dict[Work, Timing]:
        with count.get_lock():
            count.value += 1
        return {work: Timing(price(work, count.value), 0.01, 9) for work in probes}

    calibration.measure = slow_measure  # type: ignore[assignment]
    calibration.this_machine = lambda: MACHINE
    barrier.wait()
    costs(CalibrateConfig(), base_dir, run)


def test_runs_that_start_together_measure_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, count = context.Barrier(3), context.Value("i", 0)
    names = ("a", "b", "c")
    children = [context.Process(target=_measure_in_child, args=(tmp_path, n, barrier, count)) for n in names]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert count.value == 1
    assert len({(tmp_path / name / "rst.json").read_text() for name in names}) == 1


def test_the_inherited_table_is_refused_for_another_kind_of_run(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        costs(Rtx3090Config(), tmp_path)
    message = str(refused.value)
    for words in (
        "16 layers, not 4",
        "float16 and bfloat16, not float32",
        "`python -m cramming.calibrate arch=bert_small relative_to=rtx3090`",
        "rst.accept_mismatch=true",
    ):
        assert words in message
    assert "\n" not in message
    assert not (tmp_path / "x").exists()


def test_a_mismatch_can_be_accepted_and_stays_on_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        table = costs(Rtx3090Config(accept_mismatch=True), tmp_path)
    assert table.seconds(Work("forward_backward", 128, 128, 4)) == 0.06508
    assert "16 layers, not 4" in caplog.text
    assert "16 layers, not 4" in CostTable.load(tmp_path / "x" / "rst.json").provenance.notes[-1]


@pytest.mark.parametrize("change", [{"length": 512}, {"layers": 24}])
def test_a_price_that_is_not_there_cannot_be_accepted(change: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"accept_mismatch=true does not help.*no price.*cramming\.calibrate"):
        costs(Rtx3090Config(accept_mismatch=True), tmp_path, **change)


def test_the_inherited_table_prices_the_run_it_was_made_for(tmp_path: Path) -> None:
    made_for = CostTable.load(Path(__file__).parents[2] / "rst" / "tables" / "rtx3090.json")
    change = {"architecture": made_for.provenance.architecture, "layers": 16, "precision": "bfloat16"}
    assert costs(Rtx3090Config(), tmp_path, **change).seconds(Work("forward_backward", 128, 128, 16)) == 0.2253


def test_a_table_of_ones_own(speed: dict[str, float], tmp_path: Path) -> None:
    costs(CalibrateConfig(), tmp_path, "a")
    mine = tmp_path / "mine.json"
    mine.write_text((tmp_path / "a" / "rst.json").read_text())
    assert costs(FileConfig(path=str(mine)), tmp_path, "b").seconds(FULL) == pytest.approx(1.5)
    mine.unlink()
    assert costs(FileConfig(path=str(mine)), tmp_path, "b").seconds(FULL) == pytest.approx(1.5)
    with pytest.raises(UserError, match=r"rst\.path.*mine\.json.*cannot be read.*cramming\.calibrate"):
        costs(FileConfig(path=str(mine)), tmp_path, "c")
    with pytest.raises(UserError, match=r"rst\.path="):
        costs(FileConfig(), tmp_path, "c")


def test_prices_without_a_table(tmp_path: Path) -> None:
    assert costs(StepsConfig(), tmp_path).seconds(Work("update")) == 1.0
    assert costs(FlopsConfig(flops_per_s=4e6), tmp_path).seconds(FULL) == 8.0
    waited: list[int] = []
    costs(WallClockConfig(), tmp_path, synchronize=lambda: waited.append(1)).seconds(FULL)
    assert waited
    assert not (tmp_path / "x").exists(), "only tables are kept with the run"
    with pytest.raises(UserError, match=r"rst\.flops_per_s of -1"):
        costs(FlopsConfig(flops_per_s=-1.0), tmp_path)
    with pytest.raises(UserError, match=r"rst\.within_s=0"):
        costs(CalibrateConfig(within_s=0.0), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_choice_composes_from_its_file(kind: str) -> None:
    folder = Path(calibration.__file__).parents[1] / "config"
    with initialize_config_dir(str(folder), version_base=None):
        config = OmegaConf.to_object(compose(overrides=[f"+rst={kind}"]).rst)
    assert isinstance(config, RstConfig)
    assert config.kind == kind
    assert config.unit_s == (1 if kind == "steps" else 3600)


SHORT = Work("forward_backward", 64, 32, 4)


def test_shorter_sequences_are_measured_against_full_ones(speed: dict[str, float], tmp_path: Path) -> None:
    """A run with a curriculum pays for full passes what one without it pays, however fast the machine is by then."""
    plain = costs(CalibrateConfig(), tmp_path, "a")
    lion = costs(CalibrateConfig(), tmp_path, "b", optimizer="lion")
    speed["speed"] = 2.0
    growing = costs(CalibrateConfig(), tmp_path, "c", shorter=(32,))
    assert speed["measured"] == 3
    for work in probes():
        assert growing.seconds(work) == plain.seconds(work)
    # Its 64 short sequences take as long as 16 full ones on the machine of these tests.
    assert growing.seconds(SHORT) == pytest.approx(plain.seconds(FULL), rel=1e-12)
    speed["speed"] = 3.0
    more = costs(CalibrateConfig(), tmp_path, "d", shorter=(32, 64), optimizer="lion")
    assert speed["measured"] == 4, "only the 64 were missing: the optimizers share the prices of passes"
    assert more.seconds(SHORT) == growing.seconds(SHORT)
    assert more.seconds(Work("update")) == lion.seconds(Work("update"))
    assert costs(CalibrateConfig(), tmp_path, "e", shorter=(64,)).seconds(SHORT) == growing.seconds(SHORT)
    assert speed["measured"] == 4
    assert "length 32: measured against a pass of 128 tokens" in growing.provenance.notes
    costs(CalibrateConfig(refresh=True), tmp_path, "f", shorter=(32,))
    assert costs(CalibrateConfig(), tmp_path, "g").seconds(FULL) == pytest.approx(3 * plain.seconds(FULL))


def test_a_table_without_a_length_the_run_begins_with_is_refused(tmp_path: Path) -> None:
    made_for = CostTable.load(Path(__file__).parents[2] / "rst" / "tables" / "rtx3090.json")
    change = {"architecture": made_for.provenance.architecture, "layers": 16, "precision": "float16"}
    assert costs(Rtx3090Config(), tmp_path, "a", **change).layers == 16
    for config in (Rtx3090Config(), Rtx3090Config(accept_mismatch=True)):
        with pytest.raises(UserError, match=r"length 128, not 32|no price for length 32") as refused:
            costs(config, tmp_path, "b", shorter=(32,), **change)
        assert "use rst=calibrate" in str(refused.value)
