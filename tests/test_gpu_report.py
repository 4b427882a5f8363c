"""One report from many commands: what fails, hangs or does not fit loses nothing else, and nothing is done twice."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_page, gpu_report, stages
from benchmarks.gpu_report import Options
from benchmarks.stages import FAILED, LEFT_OUT, NOT_HERE, PASSED, Outcome, Stage, run
from cramming import cli
from cramming.errors import UserError
from cramming.scaling.command import Sizes

REPOSITORY = Path(__file__).resolve().parents[1]
WRITES = "import json, pathlib, sys; pathlib.Path(sys.argv[1].removeprefix('out=')).write_text(json.dumps({'x': 1}))"


def stage(name: str, code: str, *, expected_s: float = 1.0, bound_s: float = 60.0, **other: Any) -> Stage:
    return Stage(name, (sys.executable, "-c", code), expected_s, bound_s, **other)


def test_what_goes_wrong_loses_nothing_else(tmp_path: Path) -> None:
    hung = (
        "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print('on it', flush=True); time.sleep(600)"
    )
    asked = [
        stage("breaks", "import sys; print('so far', flush=True); sys.exit('error: no such thing')"),
        stage("hangs", hung, bound_s=0.5, writes=False),
        stage("long", WRITES, expected_s=1e6),
        stage("absent", WRITES, lacking="there is none"),
        stage("works", WRITES),
        stage("prints", "print('41 passed')", writes=False),
    ]
    told: list[str] = []
    seen: list[list[str]] = []
    outcomes = run(asked, tmp_path, budget_s=1e5, tell=told.append, after=lambda done: seen.append(list(done)))
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "breaks": FAILED,
        "hangs": FAILED,
        "long": LEFT_OUT,
        "absent": NOT_HERE,
        "works": PASSED,
        "prints": PASSED,
    }
    assert outcomes["breaks"].why == "no such thing (ended with 1)"
    assert outcomes["hangs"].why.startswith("stopped after ")
    assert outcomes["long"].why.startswith("needs about 11d 14h, ")
    assert json.loads((tmp_path / "works.json").read_text()) == {"x": 1}
    assert json.loads((tmp_path / "prints.json").read_text())["printed"] == ["41 passed"]
    assert (tmp_path / "breaks.log").read_text().splitlines()[0] == "so far"
    assert seen[0] == ["breaks"]
    assert seen[-1] == [s.name for s in asked]
    assert any(line.startswith("[5 of 6] works: about 1.0s; about 2.0s to the end") for line in told), told


def test_what_has_passed_is_not_run_again(tmp_path: Path) -> None:
    counts = f"{WRITES}; open({str(tmp_path / 'ran')!r}, 'a').write('x')"
    fails = stage("fails", f"open({str(tmp_path / 'ran')!r}, 'a').write('y'); raise SystemExit(1)")

    def ran(again: bool = False, code: str = counts) -> str:
        (tmp_path / "ran").write_text("")
        outcomes = run([stage("counts", code), fails], tmp_path, budget_s=1e5, again=again, tell=lambda line: None)
        assert [outcome.state for outcome in outcomes.values()] == [PASSED, FAILED]
        return (tmp_path / "ran").read_text()

    assert ran() == "xy"
    assert ran() == "y"  # what failed is tried again
    assert ran(again=True) == "xy"
    assert ran(code=f"{counts}  # with another option") == "xy"
    (tmp_path / "counts.json").unlink()
    assert ran(code=f"{counts}  # with another option") == "xy"


def test_a_command_that_passed_is_expected_to_take_as_long_again(tmp_path: Path) -> None:
    once = stage("works", WRITES)
    (tmp_path / "stages.json").write_text(
        json.dumps({"works": vars(Outcome(PASSED, took_s=1e6, command=once.said(tmp_path)))})
    )
    (outcome,) = run([once], tmp_path, budget_s=1e5, tell=lambda line: None).values()
    assert outcome.state == LEFT_OUT


def test_what_passed_is_known_where_its_folder_was_taken(tmp_path: Path) -> None:
    counts = stage("counts", f"{WRITES}; open({str(tmp_path / 'ran')!r}, 'a').write('x')")
    run([counts], tmp_path / "here", budget_s=1e5, tell=lambda line: None)
    (tmp_path / "here").rename(tmp_path / "there")
    (outcome,) = run([counts], tmp_path / "there", budget_s=1e5, tell=lambda line: None).values()
    assert (outcome.state, (tmp_path / "ran").read_text()) == (PASSED, "x")
    assert outcome.command[0] == "python"
    assert outcome.command[-1] == "out=counts.json"


def test_what_failed_comes_again_last(tmp_path: Path) -> None:
    asked = [
        stage("fails", f"{WRITES}; raise SystemExit(1)"),
        stage("long", WRITES, expected_s=1e6),
        stage("works", WRITES),
    ]
    order: list[str] = []
    for budget_s in (1e5, 1e7):
        run(asked, tmp_path, budget_s=budget_s, tell=lambda line: None, after=lambda done: order.append([*done][-1]))
    assert order == ["fails", "long", "works", "long", "fails"]


def test_what_had_less_time_than_it_may_take_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, budget_s = "import time; time.sleep(600)", 1e5
    # Each stage looks at the clock once before it begins, around its command, and the call itself at its beginning.
    readings = iter([0.0, 0.0, 0.0, 1.0, budget_s - 0.3, 0.0, 0.0])
    monkeypatch.setattr(stages, "time", SimpleNamespace(monotonic=lambda: next(readings)))
    asked = [stage("first", WRITES), stage("cut", hangs, expected_s=0.1)]
    outcomes = run(asked, tmp_path, budget_s=budget_s, tell=lambda line: None)
    assert [outcome.state for outcome in outcomes.values()] == [PASSED, LEFT_OUT]
    assert outcomes["cut"].why.endswith(", when the time was up")
    # One that has all the time there is does not come in the way of the others again.
    readings = iter([0.0, budget_s - 0.3, 0.0, 0.0])
    (outcome,) = run(asked[1:], tmp_path, budget_s=budget_s, tell=lambda line: None).values()
    assert outcome.state == FAILED


def test_a_command_ends_with_the_session_it_was_started_in(tmp_path: Path) -> None:
    """It is a group, so that all it starts can be ended, and no session, which would outlive ours."""
    says = stage("says", "import os; print(os.getsid(0), os.getpgrp() == os.getpid())", writes=False)
    run([says], tmp_path, budget_s=1e5, tell=lambda line: None)
    assert json.loads((tmp_path / "says.json").read_text())["printed"] == [f"{os.getsid(0)} True"]


def test_an_interruption_ends_the_command_that_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[Any] = []

    def interrupted(self: Any, timeout: float | None = None) -> int:
        running.append(self)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run([stage("hangs", "import time; time.sleep(600)")], tmp_path, budget_s=1e5, tell=lambda line: None)
    assert running[0].returncode == -signal.SIGKILL


def test_sigterm_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["gpu_report.py"])
    monkeypatch.setattr(gpu_report, "report", lambda options: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(KeyboardInterrupt) as ended:
            gpu_report.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.args == (143,)


def test_an_archive_holds_the_folder_and_not_itself(tmp_path: Path) -> None:
    folder = tmp_path / "2026-01-01-machine"
    folder.mkdir()
    (folder / "stages.json").write_text("{}")
    for _ in range(2):
        gpu_report.pack(folder, folder / "report.tar.gz")
    with tarfile.open(folder / "report.tar.gz") as tar:
        assert sorted(tar.getnames()) == [folder.name, f"{folder.name}/stages.json"]


def test_without_a_gpu_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^there is no NVIDIA GPU here") as error:
        gpu_report.report(Options(folder=str(tmp_path / "never")))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"device": "cpu"}, "add quick=true"),
        ({"device": "gpu"}, "device=gpu is unknown"),
        ({"minutes": 0.0}, "minutes=0 must be above 0"),
    ],
)
def test_wrong_options_are_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Options(**words)
    with pytest.raises(UserError, match="stages=store2 is unknown; did you mean 'store'"):
        gpu_report.stages(Options(stages=["store2"]), Path())


def test_every_stage_is_a_command_of_this_repository() -> None:
    for options in (Options(), Options(device="cpu", quick=True)):
        every = gpu_report.stages(options, Path("scratch"))
        names = [s.name for s in every]
        assert len(set(names)) == len(names)
        for s in every:
            assert 0 < s.expected_s <= s.bound_s
            if s.command[1].startswith("benchmarks/") and not s.lacking:
                assert (REPOSITORY / s.command[1]).is_file()
    names = [s.name for s in gpu_report.stages(Options(), Path("scratch"))]
    wanted = {f"step_{family}_base_{length}" for family in gpu_report.FAMILIES for length in (128, 512)}
    assert wanted | {"step_bert_large_128", "step_bert_large_512"} < set(names)
    only = Options(stages=["store", "tests_gpu"])
    assert [s.name for s in gpu_report.stages(only, Path())] == ["tests_gpu", "store"]


def test_no_stage_outlasts_a_command_of_ten_minutes() -> None:
    """Machines are lent for so long at a time; what is never through within it would never be measured."""
    every = gpu_report.stages(Options(glue="a", vocabulary="b"), Path())
    assert max(s.bound_s for s in every) <= 480
    wanted = [s.name for s in every]
    assert wanted.index("step_bert_base_128") < wanted.index("store") < wanted.index("optimizers")


def test_tests_for_a_gpu_are_found_wherever_they_lie() -> None:
    files = {word for s in gpu_report.stages(Options(), Path()) if s.name.startswith("tests_") for word in s.command}
    assert {f"tests/gpu/{file.name}" for file in (REPOSITORY / "tests" / "gpu").glob("test_gpu*.py")} <= files
    assert "tests/architectures/test_local_attention.py" in files  # one of its tests is for a GPU


def test_a_missing_package_costs_the_stages_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = gpu_report.importlib.util.find_spec
    missing = ("accelerate", "pytest")
    monkeypatch.setattr(gpu_report.importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    lacking = {s.name: s.lacking for s in gpu_report.stages(Options(), Path())}
    assert lacking["finetuning_random"] == "not installed: accelerate"
    assert lacking["tests_gpu"] == "not installed: pytest"
    assert not lacking["step_bert_base_128"]
    assert not lacking["store"]


SCHEMAS = {"step": "StepOptions", "forward": "ForwardOptions"}


@pytest.mark.parametrize("options", [Options(glue="a", vocabulary="b"), Options(device="cpu", quick=True)])
def test_every_stage_gives_its_benchmark_options_that_it_has(options: Options) -> None:
    """What runs on a GPU for the first time must not end at a word that is misspelt."""
    read = set()
    for s in gpu_report.stages(options, Path("scratch")):
        words = s.words(Path("results"))
        if words[1] == "-m" and words[2] == "benchmarks.data_share":
            cli.compose([word for word in words[3:] if not word.startswith("pairs=")])
        elif words[1].startswith("benchmarks/") and not s.lacking:
            name = Path(words[1]).stem
            schema: Any = getattr(importlib.import_module(f"benchmarks.{name}"), SCHEMAS.get(name, "Options"))
            found, rest = cli.parse(words[2:], schema, "")
            assert rest == []
            assert found.out == f"results/{s.name}.json"
            read.add(name)
    assert {"step", "forward", "store", "optimizers"} <= read


def steps(busy: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """A result as ``step.py`` writes it."""
    ratio = {"wall": {"median": 2.5, "quartiles": [2.4, 2.6]}, "busy": busy}
    row = {
        "arch": "bert",
        "length": 128,
        "sequences": 512,
        "refused": "",
        "unfit": {"low": "out of memory"},
        "tokens_per_s": {"ours": 1_000_000.0},
        "our_mfu": 0.571,
        "ratios": {"autocast": ratio},
        "block_s": {"ours": 0.0655},
        "our_flops_per_s": 3 * 512 * Sizes.of("bert_base", 128).forward_flops / 0.0655,
        "peak_mb": {"ours": 20480.0},
        "first_block_s": {"ours": 31.0},
    }
    yield (
        "step_bert_base_128",
        {"rows": [row], "options": {"size": "base", "compile": True}, "peak_flops_per_s": [989e12, "published"]},
    )


@pytest.mark.parametrize("busy", [False, True])
def test_the_page_has_the_headline_numbers(tmp_path: Path, busy: bool) -> None:
    results = dict(steps(busy))
    results["store"] = {
        "gigabytes": 10.0,
        "open_s": {"median": 0.2},
        "tokens_per_s": {"rows": {"median": 6e7}, "batches": {"median": 5.5e7}},
    }
    results["tests"] = {"printed": ["....", "12 passed in 40s"]}
    ratio = {"wall": {"median": 2.2, "quartiles": [2.1, 2.3]}, "busy": busy}
    results["finetuning_random"] = {
        "training": {**ratio, "peak_mb": {"ours": 2048.0, "theirs": 3072.0}, "our_examples_per_s_median": 1234.0},
        "evaluation": {"our_examples_per_s_median": 5678.0, "low": ratio},
    }
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (tmp_path / "broken.json").write_text('{"rows": [')
    command = ["python", "benchmarks/step.py", "out=step_bert_base_128.json"]
    outcomes = {name: Outcome(PASSED, took_s=61.0, command=command) for name in results}
    outcomes["broken"] = Outcome(FAILED, "stopped after 3m 00s | really", 180.0, command)
    outcomes["large"] = Outcome(LEFT_OUT, "needs about 2m 00s, 1m 00s were left")
    shown = gpu_page.page(tmp_path, {"device": "NVIDIA H200"}, outcomes, "A title")
    ratio = "contended" if busy else "2.50 (2.40-2.60)"
    row = f"| bert (base, compiled) | 128 | 512 | 1,000,000 | 57.1% |  | {ratio} | out of memory |  | 20.0 | 31.0 |"
    assert row in shown.splitlines()
    assert "| broken | failed | 3m 00s | stopped after 3m 00s / really |" in shown
    assert "| large | left out |  | needs about 2m 00s, 1m 00s were left |  |" in shown
    assert "MFU = 3 N F / (t R)" in shown
    assert "989.0 TFLOP/s, published" in shown
    assert "rows: 60,000,000 tokens/s, 60 times the fastest step here (wanted: 50)" in shown
    assert "tests: 12 passed in 40s" in shown
    ratio = "contended" if busy else "2.20 (2.10-2.30)"
    assert f"* finetuning_random, training: {ratio} times Trainer's speed, 1,234 examples/s; ours 2.0 GB, th" in shown
    assert f"* finetuning_random, evaluation, low: {ratio} times Trainer's speed, 5,678 examples/s" in shown
    assert "`python benchmarks/step.py out=step_bert_base_128.json`" in shown
    assert (
        f"python -m cramming.scaling arch=bert_base seq_length=128 measured={tmp_path}/step_bert_base_128.json" in shown
    )


def test_steps_with_cuda_graphs_say_what_those_are_worth(tmp_path: Path) -> None:
    (_, result) = next(steps(busy=False))
    result["options"]["cuda_graphs"] = True
    result["rows"][0]["ratios"]["launched"] = {"wall": {"median": 1.4, "quartiles": [1.35, 1.45]}, "busy": False}
    (tmp_path / "step_bert_base_128_graphs.json").write_text(json.dumps(result))
    outcomes = {"step_bert_base_128_graphs": Outcome(PASSED, took_s=61.0)}
    shown = gpu_page.page(tmp_path, {}, outcomes, "A title")
    assert "| bert (base, compiled, CUDA graphs) | 128 | 512 |" in shown
    assert "without CUDA graphs over one with them: 1.40 (1.35-1.45)" in shown


def test_lengths_that_are_stages_of_their_own_come_together(tmp_path: Path) -> None:
    for length in (512, 128):
        row = {
            "question": "window",
            "length": length,
            "sequences": 4,
            "tokens_per_s": {"window": 2000.0, "lifted": 1000.0},
            "peak_mb": {"window": 100.0, "lifted": 200.0},
            "ratios": {"lifted": {"wall": {"median": 2.0, "quartiles": [1.9, 2.1]}}},
            "contended": [],
            "losses": {},
            "unfit": {},
        }
        (tmp_path / f"attention_{length}.json").write_text(json.dumps({"rows": [row]}))
    outcomes = {f"attention_{length}": Outcome(PASSED) for length in (512, 128)}
    shown = gpu_page.page(tmp_path, {}, outcomes, "A title")
    places = [shown.index(f"| window | lifted | {length} | 4 | 1,000 | 2.00 (1.90-2.10) |") for length in (128, 512)]
    assert places == sorted(places)
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_that_cannot_be_shown_costs_its_section_alone(tmp_path: Path) -> None:
    results = {**dict(steps(busy=False)), "optimizers": {"rows": [{"over_adamw": "much"}]}}
    for name, result in results.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    shown = gpu_page.page(tmp_path, {}, {name: Outcome(PASSED) for name in results}, "A title")
    assert "Not shown: KeyError" in shown
    assert "| bert (base, compiled) | 128 | 512 | 1,000,000 |" in shown
    assert "## Several devices" in shown


def test_the_formula_is_the_one_of_the_page_of_benchmarks() -> None:
    assert gpu_page.MFU in (REPOSITORY / "benchmarks" / "README.md").read_text()


@pytest.mark.full
def test_the_whole_report_on_a_processor(tmp_path: Path) -> None:
    words = ["device=cpu", "quick=true", f"folder={tmp_path}"]
    ended = subprocess.run(
        [sys.executable, "benchmarks/gpu_report.py", *words],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    outcomes = json.loads((tmp_path / "stages.json").read_text())
    assert {name for name, outcome in outcomes.items() if outcome["state"] == PASSED} >= {
        "tests",
        "step_bert_tiny_16",
        "data_share",
        "store",
        "forward_tiny",
        "kernel_speed",
        "optimizers",
        "attention_quick",
    } | ({"finetuning"} if importlib.util.find_spec("accelerate") else set())
    shown = (tmp_path / "README.md").read_text()
    assert "| bert (tiny) | 16 | 2 |" in shown
    assert "reading and masking take" in shown
    assert stages.NOT_HERE in shown
