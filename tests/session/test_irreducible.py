"""The command that makes irreducible losses: what it trains on and scores, what a kill leaves, who finds its array."""

import json
import os
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest

from cramming.cli import load_schemas, pretraining
from cramming.data.stream import Split
from cramming.errors import UserError
from cramming.evaluation.trained import Selection, find, load_run
from cramming.session import pretrain
from efficient_training import irreducible
from efficient_training.irreducible_losses import IrreducibleLosses

from . import runs

BLOCK_ROWS = 150
PREPARED = "data.heldout_fraction=0.2"
# Some of each step, and every one that a whole command passes, in the order in which it does.
SOME = ["irreducible-block:2", "irreducible-manifest-rename:1"]
EVERY = [
    "step:3", "checkpoint-rename:1", "summary-rename:1", "irreducible-block:1", "irreducible-block-fsync:1",
    "irreducible-progress-write:1", "irreducible-progress-fsync:1", "irreducible-progress-rename:1",
    "irreducible-block:3", "irreducible-fsync:1", "irreducible-manifest-write:1", "irreducible-manifest-fsync:1",
    "irreducible-manifest-rename:1", "irreducible-rename:1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks an array."""
    monkeypatch.setattr(irreducible, "BLOCK_ROWS", BLOCK_ROWS)


def words(folder: Path, *more: str) -> list[str]:
    """Of a small run that holds out a fifth."""
    return runs.command(folder, PREPARED, *more)


def made(folder: Path, name: str = "il") -> IrreducibleLosses:
    """The array of a run."""
    return IrreducibleLosses.described(folder / "outputs" / name / "irreducible")


def numbers(folder: Path, name: str = "il") -> np.ndarray:
    """Its losses, (N,)."""
    return np.load(made(folder, name).folder / "losses.npy")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, corpus: str) -> Path:
    """The folder of a run ``il`` that was trained and has scored, killed never."""
    place = tmp_path_factory.mktemp("whole")
    (place / "text.txt").write_text(corpus)
    assert _in_a_process(words(place, "name=il")) == 0
    return place


def _in_a_process(given: list[str], kill_at: str = "") -> int | None:
    """Run the command in a process of its own; returns its exit code."""
    process = runs._CONTEXT.Process(target=_command, args=(given, kill_at))
    process.start()
    process.join(600)  # a guard against hanging, not a limit
    return process.exitcode


def _command(given: list[str], kill_at: str) -> None:
    from cramming import faults
    from cramming.cli import run_command

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    irreducible.BLOCK_ROWS = BLOCK_ROWS
    faults.arm(kill_at)
    run_command(lambda: irreducible.command(given))


def refused(given: list[str], *said: str) -> None:
    """The command ends in one line with these words."""
    with pytest.raises(UserError) as error:
        irreducible.command(given)
    assert "\n" not in str(error.value)
    for word in said:
        assert word in str(error.value)


def test_it_trains_on_what_is_held_out_and_scores_the_rest(whole: Path) -> None:
    """Every number is the trained model's loss of that row alone under the scoring mask."""
    load_schemas()
    run = load_run(find(Selection(name="il", base_dir=str(whole / "outputs"))))  # type: ignore[arg-type]
    store, array, losses = run.stream.store, made(whole), numbers(whole)
    split = Split(store.rows, 0.2)
    assert store.rows > 3 * BLOCK_ROWS
    assert losses.dtype == np.float32
    assert sorted(np.flatnonzero(np.isnan(losses))) == sorted(split.heldout(np.arange(split.heldout_rows)))
    assert array.misfit(store, split) is None
    array.verify(split)
    drawn = {int(row) for _ in range(30) for row in run.stream.draw(8).ids}
    assert np.isnan(losses[list(drawn)]).all(), "it trains on a row that it scores"
    for row in split.train(np.array([0, 1, split.train_rows - 1])):
        one = run.stream.masked(np.array([row]), np.array([0]), seed=220607137, rate=0.15, slots=2)
        assert float(losses[row]) == pytest.approx(float(run.engine.losses(one, "x")[0]), rel=1e-5)
    manifest = array.manifest
    assert manifest["mask"] == {"seed": 220607137, "rate": 0.15}
    assert manifest["trained_rows"] == run.stream.split.train_rows == split.heldout_rows - split.heldout_rows // 10
    assert manifest["mean_loss"] == pytest.approx(float(np.nanmean(losses)), rel=1e-5)
    assert manifest["cost"] == {"total": 12, "training": 12, "scoring": 0, "unit": "steps", "rst": "steps"}
    assert manifest["made_by"] == {"name": "il", "arch": "bert_tiny", "steps": 12, "seed": 0}


@pytest.mark.parametrize("points", [SOME, pytest.param(EVERY, marks=pytest.mark.full)], ids=["some", "every"])
def test_killed_in_each_step_the_same_command_goes_on(whole: Path, folder: Path, points: list[str]) -> None:
    given = words(folder, "name=il")
    for point in points:
        assert _in_a_process(given, kill_at=point) == -signal.SIGKILL, f"{point} was never passed"
        assert not (folder / "outputs" / "il" / "irreducible").exists()
    assert _in_a_process(given) == 0
    assert runs.same(runs.weights(folder, "il"), runs.weights(whole, "il"))
    ours, theirs = made(folder), made(whole)
    assert (ours.folder / "losses.npy").read_bytes() == (theirs.folder / "losses.npy").read_bytes()
    assert {key: value for key, value in ours.manifest.items() if key != "seal"} == {
        key: value for key, value in theirs.manifest.items() if key != "seal"
    }
    assert sorted(path.name for path in ours.folder.iterdir()) == ["losses.npy", "manifest.json"]
    before = {path: path.stat().st_mtime_ns for path in ours.folder.iterdir()}
    irreducible.command(given)
    assert {path: path.stat().st_mtime_ns for path in ours.folder.iterdir()} == before, (
        "what is there is not made again"
    )


def test_a_run_without_losses_says_the_command_that_makes_them(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Typed as it stands, that command makes losses which the run then finds by itself, and names."""
    rho = words(folder, "name=rho", "method=rho_loss", "budget=4")
    with pytest.raises(UserError) as error:
        pretraining(pretrain, rho)
    said = str(error.value).split("`")[1]
    assert said.startswith("python -m efficient_training.irreducible name=il from_run=rho")
    irreducible.command(shlex.split(said)[3:])
    assert "method.rho_loss.irreducible=il" in capsys.readouterr().out
    pretraining(pretrain, rho)
    summary = json.loads((folder / "outputs" / "rho" / "summary.json").read_text())
    used = summary["irreducible_losses"]
    assert used["folder"] == str(made(folder).folder)
    assert (used["made_by"]["name"], used["charged"], used["foreign_masks"]) == ("il", False, False)
    assert (summary["ledger"]["irreducible"], summary["free"], summary["spent_s"]) == (4, ["irreducible"], 4)
    assert summary["work"]["selection"]["forward"]["sequences"] == 4 * 16
    assert "uses the irreducible losses of il" in (folder / "outputs" / "rho" / "run.log").read_text()
    rows = [json.loads(row) for row in (folder / "outputs" / "rho" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["reducible_loss_kept"] > row["reducible_loss"] for row in rows)
    # Killed and continued it ends the same.
    straight = runs.weights(folder, "rho")
    again = [*rho, "impl.save_every_steps=1"]
    assert runs.run([*again, "resume=false"], kill_at="step:3") == -signal.SIGKILL
    assert runs.run(again) == 0
    assert runs.same(runs.weights(folder, "rho"), straight)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("data.heldout_fraction=0.1", "of another split"),
        ("data.seq_length=24", "of another corpus"),
        ("data.vocab_size=310", "of another tokenizer"),
    ],
)
def test_losses_of_other_data_are_refused_by_name(whole: Path, folder: Path, changed: str, said: str) -> None:
    array = made(whole).folder
    with pytest.raises(UserError, match=said):
        pretraining(
            pretrain, words(folder, "name=a", "method=rho_loss", f"method.rho_loss.irreducible={array}", changed)
        )


def test_both_steps_apart(whole: Path, folder: Path) -> None:
    given = words(folder, "name=il")
    place = [f"base_dir={folder / 'outputs'}", "name=il", "steps=[score]"]
    refused(place, "there is no run 'il'")
    irreducible.command([*given, "steps=[train]", "stop_at=5"])
    refused(place, "il is not trained to its end")
    irreducible.command([*given, "steps=[train]"])
    assert not (folder / "outputs" / "il" / "irreducible").exists()
    refused([*place, "budget=3"], "steps=[score] takes a run as it was trained: leave budget= out")
    irreducible.command(place)
    assert numbers(folder).tobytes() == numbers(whole).tobytes()
    refused([*place, "mask_seed=3"], "losses under another mask (mask_rate=0.15 mask_seed=220607137", "another name")
    refused([*place, "mask_rate=1.5"], "mask_rate=1.5 must lie between 0 and 1")
    refused([*place[:-1], "steps=[guess]"], "steps=[guess] is not understood; there are: train, score")
    refused([*place, "-m"], "leave -m= out")
    refused([*given, "-m"], "-m: this command makes one array")
    # Trained again, its losses are others; they take the place of those before.
    irreducible.command([*given, "resume=false", "seed=1"])
    assert numbers(folder).tobytes() != numbers(whole).tobytes()


def test_the_other_part_needs_no_selection_and_no_order(folder: Path) -> None:
    """What the target run says of its own sequences is left out; other methods stay."""
    load_schemas()
    config = irreducible.training(words(folder, "name=il", "method=[rho_loss,layer_stacking]", "data.order=rarity"))
    assert list(config.method) == ["layer_stacking"]
    assert (config.data.train_on, config.data.order, config.data.heldout_fraction) == ("heldout", "random", 0.2)


def test_too_little_held_out_and_runs_on_the_other_part_are_refused(folder: Path) -> None:
    refused(words(folder, "name=il", "data.heldout_fraction=0"), "data.heldout_fraction=0 holds nothing out")
    refused(
        words(folder, "name=il", "data.heldout_fraction=0.005"),
        "data.heldout_fraction=0.005 holds out", "less than one batch of train.batch_size=8",
        "data.heldout_fraction=0.2",
    )  # fmt: skip
    pretraining(pretrain, words(folder, "name=target", "budget=1"))
    refused(
        [f"base_dir={folder / 'outputs'}", "name=target", "steps=[score]"], "trained on the sequences it would score"
    )


def test_training_on_the_other_part_by_option(folder: Path) -> None:
    def wrong(*given: str) -> str:
        with pytest.raises(UserError) as error:
            pretraining(pretrain, words(folder, "name=a", *given))
        return str(error.value)

    assert "data.train_on=rest is not known; there are: heldout, train" in wrong("data.train_on=rest")
    assert "data.order=rarity orders the sequences" in wrong("data.train_on=heldout", "data.order=rarity")
