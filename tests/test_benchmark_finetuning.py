"""The benchmark of fine-tuning compares the same work: without dropout both sides' losses and answers are the same."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import against_transformers, finetuning
from benchmarks.finetuning_case import random_rows
from cramming.errors import UserError

TINY: dict[str, Any] = {
    "pairs": 2,
    "warmup": 1,
    "steps": 2,
    "layers": 2,
    "hidden": 32,
    "heads": 2,
    "vocab_size": 300,
    "max_length": 32,
    "batch_size": 8,
    "lr": 1e-3,
    "dropout": 0.0,
    "device": "cpu",
    "precision": "float32",
}


def measured(**changed: Any) -> dict[str, Any]:
    pytest.importorskip("accelerate")
    return finetuning.measure(finetuning.Options(**{**TINY, **changed}))


@pytest.fixture(scope="module")
def run() -> tuple[dict[str, Any], list[str]]:
    """A result, and in which order clocks were read and the device was waited for."""
    events: list[str] = []
    clock = against_transformers.now

    def read() -> tuple[float, float]:
        events.append("clock")
        return clock()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "now", read)
        patch.setattr(against_transformers, "now", read)  # of what adds up the seconds
        patch.setattr(finetuning, "synchronize", lambda device: events.append("waited"))
        return measured(), events


def test_both_sides_do_the_same(run: tuple[dict[str, Any], list[str]]) -> None:
    result, _ = run
    losses = result["training"]["losses_mean"]
    assert losses["ours"] == pytest.approx(losses["theirs"], rel=1e-4)
    assert result["width_mean"]["ours"] == result["width_mean"]["theirs"]
    assert result["evaluation"]["float32"]["same_answers"] == 1.0
    assert result["training"]["peak_mb"].keys() == {"ours", "theirs"}
    assert result["vocab_size"] >= TINY["vocab_size"]
    for found in (result["training"], result["evaluation"]["float32"]):
        assert {clock: len(found[clock]["pairs"]) for clock in ("wall", "cpu")} == {"wall": 2, "cpu": 2}


def test_clocks_are_read_when_the_device_has_done_its_work(run: tuple[dict[str, Any], list[str]]) -> None:
    _, events = run
    assert events.count("clock") > 20
    assert events[0] == "waited"
    assert {before for before, event in pairwise(events) if event == "clock"} == {"waited"}


def test_work_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = finetuning.their_trainer
    monkeypatch.setattr(finetuning, "their_trainer", lambda *args, **kw: changed(plain(*args, **kw)))

    def changed(trainer: Any) -> Any:
        trainer.model.classifier.weight.data.mul_(1.1)
        return trainer

    with pytest.raises(UserError, match="not the same models"):
        measured()


def test_memory_is_what_a_side_holds_and_takes_in_its_first_block(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"now": 30.0, "most": 0.0}
    monkeypatch.setattr(finetuning, "memory_mb", lambda device: held["now"])
    monkeypatch.setattr(finetuning, "forget_peak", lambda device: held.update(most=held["now"]))
    monkeypatch.setattr(finetuning, "peak_mb", lambda device: held["most"])

    class Case:
        device = torch.device("cpu")

    class Ours:
        case = Case()

        def block(self, steps: int) -> None:
            held["now"] += 7.0  # its optimizer, which stays
            held["most"] = max(held["most"], held["now"] + 100.0)

    class State:
        global_step = 1

    ours: Any = Ours()
    alternate = finetuning.Alternate(ours, 1, {"ours": 10.0, "theirs": 20.0})
    alternate.on_epoch_begin(None, None, None)
    for theirs in (400.0, 9000.0):
        held["now"] += 5.0
        held["most"] = held["now"] + theirs
        alternate.on_step_end(None, State(), None)
    assert alternate.peak_mb == {"theirs": 20.0 + 5.0 + 400.0, "ours": 10.0 + 7.0 + 100.0}


def test_random_rows_are_as_long_as_is_asked_for(tmp_path: Path) -> None:
    for words_mean in (3.0, 9.4):
        folder = random_rows(tmp_path / str(words_mean), words_mean) / "SST-2"
        rows = [line.split("\t") for line in (folder / "train.tsv").read_text().splitlines()[1:]]
        words = [len(text.split()) for text, _ in rows]
        assert sum(words) / len(words) == pytest.approx(words_mean, rel=0.05)
        assert min(words) == 1
        assert {label for _, label in rows} == {"0", "1"}
    again = random_rows(tmp_path / "again", 9.4) / "SST-2"
    assert (again / "train.tsv").read_bytes() == (folder / "train.tsv").read_bytes()


def test_without_accelerate_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning.transformers.utils, "is_accelerate_available", lambda: False)
    with pytest.raises(UserError, match="accelerate, which is not installed"):
        finetuning.measure(finetuning.Options(**TINY))


def test_without_a_gpu_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no NVIDIA GPU here"):
        finetuning.Options(device="cuda").where()


@pytest.mark.parametrize("words", [{"their_order": "sorted"}, {"pairs": 1}, {"device": "gpu"}, {"words_mean": 0.5}])
def test_wrong_options_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        finetuning.Options(**words)
