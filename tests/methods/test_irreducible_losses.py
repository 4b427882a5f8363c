"""Arrays of irreducible losses: how a run finds its own, and what is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from irreducible_arrays import array, held_out, refused
from memory import run_of, same, stream

from cramming.batch import Batch
from cramming.train import Run
from efficient_training.irreducible import command
from efficient_training.rho_loss import RhoLoss


def in_base(base: Path, rho: RhoLoss) -> Callable[[], Run]:
    """A run whose base folder is ``base``, when it is called."""

    def made() -> Run:
        run = run_of()
        run.config.base_dir, run.config.name = str(base), "target"
        run.method = rho
        rho.setup(run)
        return run

    return made


def test_auto_is_the_newest_that_fits_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused(
        in_base(tmp_path, RhoLoss()),
        "no irreducible losses of this data, tokenizer and split (12 of 120 rows held out)",
        f"make them with `python -m efficient_training.irreducible name=il from_run=target base_dir={tmp_path}`",
    )
    refused(
        lambda: run_of(RhoLoss(), batch_size=lambda progress: 12),
        "too little to train a small model on: hold out more in this run and in all that are compared",
        "data.heldout_fraction=0.2",
    )
    for name, changed in (
        ("corpus", {"data_fingerprint": "x"}),
        ("tokenizer", {"tokenizer_sha256": "x"}),
        ("split", held_out(24)),
        ("foreign", {"mask": None}),
    ):
        array(tmp_path / name / "irreducible", **changed)
    array(tmp_path / "torn" / "irreducible")
    (tmp_path / "torn" / "irreducible" / "manifest.json").write_text("{}")
    refused(in_base(tmp_path, RhoLoss()), "no irreducible losses of this data")
    assert "torn/irreducible/manifest.json is damaged" in caplog.text
    old = array(tmp_path / "il" / "irreducible", made_by={"name": "il"})
    os.utime(old.folder / "manifest.json", (1e9, 1e9))
    run = in_base(tmp_path, RhoLoss())()
    assert run.method.about()["irreducible_losses"]["folder"] == str(old.folder)
    losses = np.full(120, 1.5, dtype=np.float32)
    new = array(tmp_path / "later" / "irreducible", losses, made_by={"name": "later"})
    with caplog.at_level("INFO"):
        later = in_base(tmp_path, RhoLoss())()
    assert later.method.about()["irreducible_losses"]["folder"] == str(new.folder)
    assert f"uses the irreducible losses of later ({new.folder}); these fit as well: il ({old.folder})" in caplog.text
    # A run that began with the old one goes on with it, and does not go on without it.
    later.method.load_state_dict(run.method.state_dict())
    assert later.method.about()["irreducible_losses"]["folder"] == str(old.folder)
    (old.folder / "manifest.json").unlink()
    gone = in_base(tmp_path, RhoLoss())()
    refused(
        lambda: gone.method.load_state_dict(run.method.state_dict()),
        f"began with the irreducible losses in {old.folder}",
    )


def test_an_array_can_be_named_in_any_way(tmp_path: Path) -> None:
    folder = array(tmp_path / "il" / "irreducible").folder
    for given_ in ("il", str(folder), str(folder.parent), str(folder / "losses.npy")):
        assert in_base(tmp_path, RhoLoss(irreducible=given_))().method.about()["irreducible_losses"]["folder"] == str(
            folder
        )
    refused(in_base(tmp_path, RhoLoss(irreducible="li")), "irreducible=li is no run", "did you mean 'il'?")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text("")
    refused(in_base(tmp_path, RhoLoss(irreducible="half")), "has no irreducible losses", "it goes on")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data_fingerprint": "x"}, "another corpus (its text, or how it is prepared): x, this run has memory"),
        ({"tokenizer_sha256": "x"}, "another tokenizer: x, this run has fake"),
        (held_out(24), "another split: 24 of 120 rows held out, this run 12 of 120 rows held out"),
        ({"split": {"name": "study", "heldout_rows": 12}}, "12 of 120 rows held out as study says"),
    ],
)
def test_losses_of_something_else_are_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    array(tmp_path / "il" / "irreducible", **changed)
    refused(in_base(tmp_path, RhoLoss(irreducible="il")), said, "name=target-il from_run=target")


def test_unknown_masks_are_accepted_only_if_asked_for(tmp_path: Path) -> None:
    """Sequences are then scored as they train."""
    folder = array(tmp_path / "il" / "irreducible", mask=None).folder
    refused(
        in_base(tmp_path, RhoLoss(irreducible="il")), "masks that nobody knows", "method.rho_loss.foreign_masks=true"
    )
    run = in_base(tmp_path, RhoLoss(foreign_masks=True))()
    assert run.method.about()["irreducible_losses"]["foreign_masks"] is True
    scored = []
    plain = run.engine.losses
    run.engine.losses = lambda batch, account: scored.append(batch) or plain(batch, account)  # type: ignore[method-assign,func-returns-value]
    assert run.next_batch() is not None
    assert same(Batch.concatenate(scored), stream().draw(16))
    assert run.method.about()["irreducible_losses"]["folder"] == str(folder)


def test_holes_and_damage_are_named(tmp_path: Path) -> None:
    split = stream().split
    train, held_out = split.train(np.arange(108)), split.heldout(np.arange(12))
    losses = np.ones(120, dtype=np.float32)
    losses[held_out] = np.nan
    opened = lambda folder: lambda: run_of(RhoLoss(irreducible=str(folder)))  # noqa: E731
    opened(array(tmp_path / "whole", losses).folder)()
    losses[train[[3, 50]]] = np.nan
    losses[held_out] = 1  # as many numbers as before and more
    holes = array(tmp_path / "holes", losses).folder
    refused(opened(holes), "has holes: 2 of the 108 training rows have no irreducible loss", "make it anew")
    for name, spoil, said in (
        ("short", lambda f: (f / "losses.npy").write_bytes((f / "losses.npy").read_bytes()[:-4]), "checksum"),
        (
            "flipped",
            lambda f: (f / "losses.npy").write_bytes((f / "losses.npy").read_bytes()[:-1] + b"\x01"),
            "checksum",
        ),
        ("gone", lambda f: (f / "losses.npy").unlink(), "losses.npy is missing"),
        ("edited", lambda f: _edit(f, rows=119), "manifest.json is damaged (it does not match its checksum)"),
        ("no JSON", lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
    ):
        folder = array(tmp_path / name).folder
        spoil(folder)
        refused(opened(folder), said)
    wrong = array(tmp_path / "integers", np.ones(120, dtype=np.int32)).folder  # type: ignore[arg-type]
    refused(opened(wrong), "holds int32[120], not a float for each of 120 rows")
    refused(opened(array(tmp_path / "objects", np.ones(7, dtype=np.float32)).folder), "float32[7]")


def _edit(folder: Path, **changed: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changed))


def test_several_processes_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(lambda: command(["name=il"]), "made by one process, and these are 2", "steps=[score]")
