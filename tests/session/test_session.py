"""A run's life: its folder, its end, going on, starting over, what is refused, and its profile."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cramming import allocator, calibration, checkpoint
from cramming.cli import pretraining
from cramming.errors import UserError
from cramming.folder import find, held
from cramming.session import pretrain
from rst import Timing, Work

from . import runs


def train(folder: Path, *overrides: str) -> None:
    """Run in this process."""
    pretraining(pretrain, runs.command(folder, *overrides))


def summary(folder: Path, name: str) -> dict[str, object]:
    return json.loads((folder / "outputs" / name / "summary.json").read_text())


def test_a_run_leaves_what_a_person_looks_for(finished: Path) -> None:
    run_dir = finished / "outputs" / "whole"
    for name in ("config.yaml", "run.log", "metrics.jsonl", "summary.json", "curves.png", "checkpoints", "tokenizer"):
        assert (run_dir / name).exists(), name
    found = summary(finished, "whole")
    assert found["steps"] == found["spent_s"] == found["budget_s"] == 12
    assert found["ledger"] == {"train": 0.0, "optimizer": 12.0}
    assert found["work"]["train"]["forward_backward"] == {"passes": 24, "sequences": 96}  # type: ignore[index]
    assert {"wall_s", "validation_loss", "environment", "git_revision", "fast_paths"} <= found.keys()
    assert found["fast_paths"]["allocator"] == allocator.use("auto")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(1, 13)]
    needed = {"step", "progress", "loss", "lr", "spent_s", "elapsed_s", "tokens_per_s"}
    assert all(needed <= row.keys() for row in rows)
    assert rows[-1]["validation_loss"] == found["validation_loss"]
    assert rows[0]["loss"] > rows[-1]["loss"]
    kept = [c.step for c in checkpoint.checkpoints(run_dir / "checkpoints")]
    assert kept == [8, 12]


def test_a_finished_run_started_again_does_nothing_and_says_so(finished: Path, capfd: pytest.CaptureFixture) -> None:
    run_dir = finished / "outputs" / "whole"
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.name not in ("run.log", ".lock")}
    pretraining(pretrain, runs.command(finished, "name=whole"))
    assert "it is finished" in capfd.readouterr().out
    for path, changed in before.items():
        if path.name not in ("resolved.json", "tokenizer", "tokenizer.json", "checkpoints", "whole"):
            assert path.stat().st_mtime_ns == changed, path


def test_stopping_early_keeps_the_schedule_of_the_whole_budget(finished: Path, folder: Path) -> None:
    train(folder, "name=whole", "stop_at=5")
    assert summary(folder, "whole")["steps"] == 5
    train(folder, "name=whole", "stop_at=9")
    train(folder, "name=whole")
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))


def test_microbatches_of_another_size_train_the_same_model(folder: Path) -> None:
    for size in (2, 8):
        train(folder, f"name=of{size}", f"impl.microbatch_size={size}", "train/optim=sgd", "train.optim.lr=0.1")
    for name, expected in runs.weights(folder, "of8").items():
        torch.testing.assert_close(runs.weights(folder, "of2")[name], expected, rtol=1e-5, atol=1e-6)


def test_another_configuration_under_the_same_name_is_refused(finished: Path) -> None:
    with pytest.raises(UserError, match=r"train\.optim\.lr was 0\.001, now 0\.1"):
        train(finished, "name=whole", "train.optim.lr=0.1")


def test_options_that_are_newer_than_a_run_do_not_keep_it_from_going_on(folder: Path) -> None:
    train(folder, "name=old", "stop_at=4")
    file = folder / "outputs" / "old" / "config.yaml"
    stored = file.read_text()
    file.write_text(stored.replace("  validate_sequences: 10000\n", "").replace("  train_on: train\n", ""))
    assert file.read_text().count("\n") == stored.count("\n") - 2
    train(folder, "name=old", "stop_at=5")
    assert summary(folder, "old")["steps"] == 5


def test_a_command_that_was_refused_leaves_its_name_free(folder: Path, finished: Path) -> None:
    with pytest.raises(UserError, match="no such account"):
        train(folder, "name=whole", "free=[selections]")
    assert not (folder / "outputs").exists(), "refused before any work"
    with pytest.raises(UserError, match="rtx3090"):
        train(folder, "name=whole", "rst=rtx3090", "budget=1m")
    train(folder, "name=whole")
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))


def test_another_way_to_compute_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(folder, "name=a", "stop_at=4")
    train(folder, "name=a", "impl.microbatch_size=2")
    assert "microbatch_size 4 -> 2: bitwise equality no longer holds" in caplog.text


def test_starting_over(folder: Path, finished: Path) -> None:
    train(folder, "name=whole", "train.optim.lr=0.1", "stop_at=4")
    train(folder, "name=whole", "resume=false")
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))


def test_a_second_process_is_refused(folder: Path) -> None:
    with held(folder / "outputs" / "a"):
        assert runs.run(runs.command(folder, "name=a")) == 2
    assert not (folder / "outputs" / "a" / "checkpoints").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    folder: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(folder, "name=whole", "stop_at=10")
    newest = checkpoint.checkpoints(folder / "outputs" / "whole" / "checkpoints")[-1].folder
    (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:-7])
    train(folder, "name=whole")
    assert f"{newest} is damaged: model.safetensors" in caplog.text
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))


@pytest.mark.parametrize(
    ("key", "says"), [("architecture", "of another architecture"), ("tokenizer_sha256", "of another tokenizer")]
)
def test_a_checkpoint_of_something_else_is_refused(folder: Path, key: str, says: str) -> None:
    train(folder, "name=a", "stop_at=4")
    newest = checkpoint.checkpoints(folder / "outputs" / "a" / "checkpoints")[-1].folder
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps(checkpoint.sealed({**manifest, key: "something else"})))
    with pytest.raises(UserError, match=says):
        train(folder, "name=a")


def test_changed_text_under_a_run_is_refused(folder: Path) -> None:
    train(folder, "name=a", "stop_at=4")
    text = folder / "text.txt"
    text.write_text(text.read_text().upper() + "\n\nand more")
    before = (folder / "outputs" / "a" / "tokenizer" / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="of another"):
        train(folder, "name=a")
    assert (folder / "outputs" / "a" / "tokenizer" / "tokenizer.json").read_bytes() == before


def test_a_hopeless_run_ends_with_its_reason(folder: Path) -> None:
    options = ("train.early_stop.after_h=5", "train.early_stop.above_loss=0.1")
    train(folder, "name=a", *options)
    found = summary(folder, "a")
    assert found["steps"] == 6
    assert "early stop: loss" in str(found["end_reason"])
    train(folder, "name=a", *options)  # stays ended
    assert summary(folder, "a") == found
    (folder / "outputs" / "a" / "summary.json").unlink()  # killed before it was written: ends again, no step more
    train(folder, "name=a", *options)
    assert (summary(folder, "a")["steps"], summary(folder, "a")["end_reason"]) == (6, found["end_reason"])


def test_validation_and_kept_checkpoints_at_marks_of_the_budget(folder: Path) -> None:
    train(folder, "name=a", "impl.validate_every_h=5", "impl.keep_at_h=[3]", "impl.keep_checkpoints=1")
    lines = (folder / "outputs" / "a" / "metrics.jsonl").read_text().splitlines()
    assert [row["step"] for row in map(json.loads, lines) if "validation_loss" in row] == [5, 10, 12]
    assert [c.step for c in checkpoint.checkpoints(folder / "outputs" / "a" / "checkpoints")] == [3, 12]
    assert find(str(folder / "outputs"), None, "a@3h").checkpoint.step == 3
    with pytest.raises(UserError, match=r"there are: step=3, step=12"):
        find(str(folder / "outputs"), "a", "@step=7")


def test_repeating_a_run_from_its_stored_configuration(finished: Path, folder: Path) -> None:
    base = f"base_dir={finished / 'outputs'}"
    pretraining(pretrain, ["from_run=whole", "name=again", base])
    assert runs.same(runs.weights(finished, "again"), runs.weights(finished, "whole"))
    pretraining(pretrain, ["from_run=whole", "name=seed1", "seed=1", "budget=2", base])
    assert not runs.same(runs.weights(finished, "seed1"), runs.weights(finished, "whole"))
    with pytest.raises(UserError, match="did you mean 'whole'"):
        pretraining(pretrain, ["from_run=whol", "name=b", base])
    with pytest.raises(UserError, match="give name="):
        pretraining(pretrain, ["from_run=whole", base])


def test_a_multirun_names_its_jobs_and_survives_one_that_fails(folder: Path) -> None:
    words = [*runs.command(folder, "name=sweep", "budget=2"), "-m", "seed=1,0", "train.mask_rate=0.15,7"]
    with pytest.raises(UserError, match=r"2 of 4 jobs failed, the first with: train\.mask_rate=7"):
        pretraining(pretrain, words)
    done = sorted(path.parent.name for path in (folder / "outputs").glob("*/summary.json"))
    assert done == ["sweep-seed=0,train.mask_rate=0.15", "sweep-seed=1,train.mask_rate=0.15"]


@pytest.mark.parametrize("clock", ["wallclock", "flops rst.flops_per_s=1e9", "calibrate rst.within_s=0.5"])
def test_other_clocks_end_their_budget_after_a_whole_step(
    folder: Path, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(probes: Mapping[Work, Callable[[], None]], **_: Any) -> dict[Work, Timing]:
        for probe in probes.values():  # each is run, and takes what a machine that nobody disturbs would take
            probe()
        return {w: Timing(1e-3 * (1 + w.layers) * (3 if w.kind == "forward_backward" else 1), 0, 9) for w in probes}

    monkeypatch.setattr(calibration, "measure", measure)
    kind, *options = clock.split()
    train(folder, "name=a", f"rst={kind}", *options, "budget=0.05s")
    found = summary(folder, "a")
    assert found["spent_s"] >= 0.05
    assert found["work"]["train"]["forward_backward"]["sequences"] == 8 * found["steps"]  # type: ignore[index,operator]
    assert sum(found["ledger"].values()) == pytest.approx(found["spent_s"])  # type: ignore[attr-defined]


def test_the_command_writes_a_page_and_says_the_verdict(
    folder: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the clock counts and what is learned stays the same; a profile that is there is not made again."""
    words = runs.command(folder, "name=whole", "impl.profile=true", "impl.profile_steps=4")
    pretraining(pretrain, [*words, "stop_at=10"])
    run_dir = folder / "outputs" / "whole"
    files = ("profile.json", "profile.md", "profile.png", "trace.json.gz")
    before = {name: (run_dir / "profile" / name).read_bytes() for name in files}
    pretraining(pretrain, words)
    assert {name: (run_dir / "profile" / name).read_bytes() for name in files} == before
    assert runs.same(runs.weights(folder, "whole"), runs.weights(finished, "whole"))
    summary, plain = (json.loads((f / "outputs/whole/summary.json").read_text()) for f in (folder, finished))
    assert [summary[key] for key in ("ledger", "work", "validation_loss")] == [
        plain[key] for key in ("ledger", "work", "validation_loss")
    ]
    found = json.loads(before["profile.json"])
    assert summary["profile"]["verdict"] == found["verdict"]
    assert f"profile: {found['verdict']}" in capsys.readouterr().out
    assert found["limit_s"] > 0
    assert found["verdict"] in before["profile.md"].decode()
    assert "| backward |" in before["profile.md"].decode()
    assert "https://ui.perfetto.dev" in (run_dir / "run.log").read_text()
    pretraining(pretrain, [*words[:-2], "resume=false", "stop_at=2"])
    assert not (run_dir / "profile").exists(), "started over"


def test_a_run_too_short_for_a_profile_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pretraining(pretrain, runs.command(folder, "name=short", "impl.profile=true", "budget=3"))
    assert "ended within the 5 steps to warm up: no profile" in caplog.text
    assert "profile" not in json.loads((folder / "outputs/short/summary.json").read_text())


def test_commands_that_read_a_run(finished: Path) -> None:
    """The one trained last is taken and named; figures are those of the run's own validation."""
    base = f"base_dir={finished / 'outputs'}"
    root = Path(__file__).resolve().parents[2]
    shown = subprocess.run(
        [sys.executable, str(root / "validate_bert.py"), base, "name=whole"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.startswith("run whole, step 12, saved ")
    assert f"{summary(finished, 'whole')['validation_loss']:.4f}" in shown
    filled = subprocess.run(
        [sys.executable, "-m", "cramming.fill_mask", base, "name=whole", "top=3", "ba [MASK] du [MASK]"],
        capture_output=True, text=True, check=True, cwd=root,
    ).stdout.splitlines()  # fmt: skip
    assert len(filled) == 4
    assert all(line.count("%") == 3 for line in filled[2:])
