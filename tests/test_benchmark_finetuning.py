"""The benchmark of fine-tuning compares the same work: without dropout both sides' losses and answers are the same."""

from typing import Any

import pytest

from benchmarks import finetuning
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
    "precision": "float32",
}


def measured(**changed: Any) -> dict[str, Any]:
    pytest.importorskip("accelerate")
    return finetuning.measure(finetuning.Options(**{**TINY, **changed}))


def test_both_sides_do_the_same() -> None:
    result = measured()
    losses = result["training"]["losses_mean"]
    assert losses["ours"] == pytest.approx(losses["theirs"], rel=1e-4)
    assert result["width_mean"]["ours"] == result["width_mean"]["theirs"]
    assert result["evaluation"]["float32"]["same_answers"] == 1.0
    for found in (result["training"], result["evaluation"]["float32"]):
        assert {clock: len(found[clock]["pairs"]) for clock in ("wall", "cpu")} == {"wall": 2, "cpu": 2}


def test_work_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = finetuning.their_trainer
    monkeypatch.setattr(finetuning, "their_trainer", lambda *args, **kw: changed(plain(*args, **kw)))

    def changed(trainer: Any) -> Any:
        trainer.model.classifier.weight.data.mul_(1.1)
        return trainer

    with pytest.raises(UserError, match="not the same models"):
        measured()


@pytest.mark.parametrize("words", [{"their_order": "sorted"}, {"pairs": 1}])
def test_wrong_options_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        finetuning.Options(**words)
