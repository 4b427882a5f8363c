"""A job from its beginning to its scores: what is learnt, when it is evaluated, and what may change a result."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fine_tuned
import numpy as np
import pytest
import small_tasks
import torch
from torch import Tensor, nn
from tuned import GRID, SETTING, job, model, same, split, splits, task, unlabelled, weights

from cramming.evaluation import batches, finetune, optimizing, saved
from cramming.evaluation.batches import Inputs
from cramming.evaluation.config import Setting
from cramming.evaluation.encoded import Encoded
from cramming.evaluation.finetune import evaluate, run, steps_of
from cramming.evaluation.finetuned import Start, judged, loss
from cramming.evaluation.job import JobResult
from cramming.evaluation.tasks import registry
from cramming.evaluation.tasks.task import Task
from cramming.evaluation.updating import Updater


@pytest.fixture
def final(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What there is to see of a job: its updater, and the examples of every step."""
    seen: dict[str, Any] = {}
    step = Updater.step

    def watched(self: Updater, inputs: Inputs, factor: float) -> Tensor:
        if seen.get("updater") is not self:
            seen.update(updater=self, examples=[], factors=[])
            seen["first"] = {n: t.clone() for n, t in self.model.state_dict().items()}
        seen["examples"].append(inputs.examples.tolist())
        seen["factors"].append(factor)
        return step(self, inputs, factor)

    monkeypatch.setattr(Updater, "step", watched)
    return seen


def state(seen: Mapping[str, Any]) -> dict[str, Tensor]:
    """The final weights."""
    return {name: tensor.clone() for name, tensor in seen["updater"].model.state_dict().items()}


# What is learnt


@pytest.mark.parametrize("kind", ["classification", "regression", "multilabel", "choice", "tokens"])
def test_a_rule_is_learnt(kind: Any, encoded_split: Any) -> None:
    asked = small_tasks.task(kind)
    if kind == "multilabel":
        asked = replace(asked, metrics=("micro_f1",))
    data = {
        name: encoded_split(kind, *size, longest=6) for name, size in (("train", (128, 0)), ("validation", (32, 1)))
    }
    if kind == "regression":  # 0 to 5, which a model of this size takes long to reach
        data = {name: replace(encoded, labels=encoded.labels / 5) for name, encoded in data.items()}
    epochs = 20 if kind == "regression" else 8
    setting = Setting(lr=3e-3, batch_size=16, epochs=epochs, max_length=64, dropout=0.0, pooler="mean")
    result = run(job(asked, setting), asked, Start(fine_tuned.weights(fine_tuned.bert())), data)
    assert result.steps == 8 * epochs
    assert result.train_loss < 0.15
    score = result.final.scores[asked.metrics[0]]
    assert score is not None
    assert score > 0.95
    assert result.final.loss < 0.15


@pytest.mark.parametrize(("family", "kind", "spans"), GRID)
def test_every_family_takes_a_step_at_every_kind(family: str, kind: str, spans: int, final: dict[str, Any]) -> None:
    asked = task(kind, spans)
    result = run(job(asked, replace(SETTING, max_steps=1, warmup=0)), asked, Start(weights(family)), splits(asked))
    assert np.isfinite(result.train_loss)
    assert np.isfinite(result.final.loss)
    moved = [n for n, t in state(final).items() if not torch.equal(t, final["first"][n])]
    assert any("embed" in name for name in moved)
    assert any(name.startswith(final["updater"].model.last_layer) for name in moved)
    assert ("kernels" in result.versions) == (family == "m2_tiny")


# What may change a result


def test_the_same_job_ends_in_the_same_bits(final: dict[str, Any]) -> None:
    asked = task("classification")
    results, states = [], []
    for noise in range(2):
        torch.manual_seed(noise)
        results.append(run(job(asked, seeds=(1, 2, 3)), asked, Start(weights("bert_tiny")), splits(asked)))
        states.append(state(final))
    assert same(*states)
    assert results[0].evaluations == results[1].evaluations
    assert results[0].train_loss == results[1].train_loss


def test_each_seed_changes_its_own_thing_alone(final: dict[str, Any]) -> None:
    asked = task("classification")
    found = {}
    for seeds in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        run(job(asked, seeds=seeds), asked, Start(weights("bert_tiny")), splits(asked))
        found[seeds] = final["first"], final["examples"], state(final)
    first, order, end = found[0, 0, 0]
    for seeds, (its_first, its_order, its_end) in found.items():
        assert same(first, its_first) is (seeds[0] == 0)
        assert (order == its_order) is (seeds[1] == 0)
        assert same(end, its_end) is (seeds == (0, 0, 0))


def test_nobody_elses_random_state_is_touched() -> None:
    asked, given = task("classification"), weights("bert_tiny")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(job(asked), asked, Start(given), splits(asked))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", ["classification", "choice", "tokens"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_size_of_a_pass_changes_rounding_only(kind: str, precision: str, final: dict[str, Any]) -> None:
    """Words are weighed the same wherever they are: passes of a token task hold different numbers of them."""
    asked, states = task(kind), []
    for size in (None, 3, 1):
        setting = replace(SETTING, dropout=0.0, optimizer="adamw", eps=0.1)  # Adam divides by what is near zero
        run(
            job(asked, setting), asked, Start(weights("bert_tiny")), splits(asked), precision=precision,
            microbatch_size=size,
        )  # fmt: skip
        states.append(state(final))
    tolerance = 1e-6 if precision == "float32" else 2e-4
    for other in states[1:]:
        for name, tensor in states[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=tolerance, msg=name)


@pytest.mark.parametrize("family", ["bert_tiny", "crammed_tiny", "hf"])
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_steps_are_those_of_plain_torch(family: str, clip_norm: float | None) -> None:
    """The definition: one loop over the batches, a full gradient of everything, torch's own clipping and AdamW."""
    asked = task("classification")
    setting = replace(SETTING, dropout=0.0, weight_decay=0.1, clip_norm=clip_norm, eps=1e-3)
    ours, plain = model(family, asked, dropout=0.0), model(family, asked, dropout=0.0)
    updater = Updater(ours, optimizing.optimizer(ours, setting), clip_norm=clip_norm)
    reference = torch.optim.AdamW(
        [
            {"params": [p for n, p in plain.named_parameters() if p.dim() > 1 and "bias" not in n]},
            {"params": [p for n, p in plain.named_parameters() if p.dim() < 2 or "bias" in n], "weight_decay": 0.0},
        ],
        lr=setting.lr, betas=(0.9, 0.98), eps=1e-3, weight_decay=0.1, foreach=False, fused=False,
    )  # fmt: skip
    for step, inputs in enumerate(batches.training(split(asked, 40), 8, 0, 0)):
        factor = (step + 1) / 5
        found = updater.step(inputs, factor)
        assert inputs.labels is not None
        expected = nn.functional.cross_entropy(plain.train()(inputs), inputs.labels)
        expected.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(plain.parameters(), clip_norm)
        for group in reference.param_groups:
            group["lr"] = setting.lr * factor
        reference.step()
        reference.zero_grad()
        torch.testing.assert_close(found, expected.detach())
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_passes_in_16_bits_move_weights_of_32(final: dict[str, Any]) -> None:
    asked, ends = task("classification"), {}
    for precision in ("float32", "bfloat16"):
        setting = replace(SETTING, precision=precision, dropout=0.0, epochs=2)
        result = run(job(asked, setting), asked, Start(weights("bert_tiny")), splits(asked))
        assert result.versions["precision"] == precision
        ends[precision] = state(final)
        dtypes = {p.dtype for n, p in final["updater"].module.named_parameters() if "word" not in n}
        assert dtypes == {getattr(torch, precision)}
    assert {tensor.dtype for tensor in ends["bfloat16"].values()} == {torch.float32}
    moved = torch.cat([(t - final["first"][n]).flatten() for n, t in ends["float32"].items()])
    apart = torch.cat([(t - ends["bfloat16"][n]).flatten() for n, t in ends["float32"].items()])
    assert 0 < apart.norm() < 0.5 * moved.norm()


# When it is evaluated, and when it ends


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 3}, 9), ({"epochs": 0.5}, 2), ({"epochs": 1e-9}, 1), ({"epochs": 2.5}, 8),
        ({"epochs": 1, "min_steps": 20}, 20), ({"epochs": 100, "max_steps": 7}, 7),
        ({"epochs": 1, "min_steps": 4, "max_steps": 7}, 4),
    ],
)  # fmt: skip
def test_steps(options: dict[str, Any], expected: int, final: dict[str, Any]) -> None:
    setting, asked = replace(SETTING, **options), task("classification")
    assert steps_of(setting, 21) == (3, expected)
    if expected < 10:
        data = splits(asked, 21)
        result = run(job(asked, setting), asked, Start(weights("bert_tiny")), data, score=constant(0.5))
        assert (result.steps, len(final["examples"])) == (expected, expected)
        assert result.examples == sum(map(len, final["examples"]))
        whole = final["examples"][:3]
        assert expected < 3 or sorted(example for batch in whole for example in batch) == list(range(21))
        curve = optimizing.factors(setting, expected)
        assert final["factors"] == [curve(step) for step in range(expected)]


def constant(*values: float | None) -> Any:
    """Scores that do not ask the model: the headline's, one after another, the last for good."""
    left = list(values)

    def score(asked: Task, logits: np.ndarray, encoded: Encoded) -> dict[str, float | None]:
        return dict.fromkeys(asked.metrics, left.pop(0) if len(left) > 1 else left[0])

    return score


def result_of(setting: Setting, *values: float | None) -> JobResult:
    """A job whose evaluations score these."""
    asked = task("classification")
    given = Start(weights("bert_tiny"))
    return run(job(asked, setting), asked, given, splits(asked), score=constant(*values))


def test_evaluations_come_after_epochs_or_steps_and_at_the_end() -> None:
    after_epochs = result_of(replace(SETTING, epochs=2.5), 0.5)
    assert [(e.step, e.epoch) for e in after_epochs.evaluations] == [(3, 1.0), (6, 2.0), (8, 8 / 3)]
    after_steps = result_of(replace(SETTING, epochs=2.5, evaluate_every_steps=5), 0.5)
    assert [e.step for e in after_steps.evaluations] == [5, 8]


def test_the_best_is_the_first_of_equals_and_the_final_the_last() -> None:
    setting = replace(SETTING, epochs=4)
    result = result_of(setting, None, 0.6, 0.6, 0.4)
    assert (result.best, result.final.scores) == (1, {"accuracy": 0.4})
    assert result_of(setting, None).best == 0
    assert not result.stopped_early


def test_patience_ends_it() -> None:
    setting = replace(SETTING, epochs=6, patience=2)
    result = result_of(setting, 0.5, 0.6, 0.6, 0.5, 0.9)
    assert (result.stopped_early, result.steps, len(result.evaluations), result.best) == (True, 12, 4, 1)
    assert not result_of(setting, 0.1, 0.2, 0.3, 0.3, 0.4, 0.5).stopped_early


# What comes out


def test_a_result_says_what_happened() -> None:
    asked = replace(task("classification"), evaluated=("validation_matched", "validation_mismatched"))
    data = {
        "train": split(asked),
        "validation_matched": split(asked, 9, 1),
        "validation_mismatched": split(asked, 7, 2),
    }
    told: list[tuple[int, int, int]] = []
    asked_job = job(asked, replace(SETTING, epochs=10))
    result = run(asked_job, asked, Start(weights("bert_tiny")), data, report=lambda *said: told.append(said))
    assert result.key == asked_job.key
    assert set(result.final.scores) == {"accuracy", "accuracy@mismatched"}
    assert result.rows == {"train": 24, "validation_matched": 9, "validation_mismatched": 7}
    assert result.data_sha256["train"] == data["train"].sha256
    assert result.cut["train"] == {"texts": 0, "tokens": 0, "spans": 0}
    assert told[-1] == (30, 30, 240)
    assert [step for step, _, _ in told] == sorted({*range(3, 31, 3), 20})
    assert set(result.seconds) == {"train", "evaluate", "all"}
    assert JobResult.of_json(result.as_json()).final == result.final


def test_train_loss_is_of_the_last_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    count = iter(range(100))
    monkeypatch.setattr(Updater, "step", lambda self, inputs, factor: torch.tensor(float(next(count))))
    assert result_of(replace(SETTING, epochs=10), 0.5).train_loss == (27 + 28 + 29) / 3


def test_loss_of_an_evaluation_is_what_training_makes_small() -> None:
    for kind, spans in (("classification", 0), ("tokens", 0), ("regression", 0), ("multilabel", 0), ("choice", 0)):
        asked = task(kind, spans)
        made, encoded = model("bert_tiny", asked), split(asked)
        inputs = batches.gather(encoded, np.arange(24))
        assert inputs.labels is not None
        expected = loss(asked, made(inputs), inputs.labels).item() / judged(asked, inputs.labels)
        assert finetune.mean_loss(asked, evaluate(made, encoded), encoded) == pytest.approx(expected, rel=1e-4), kind


@pytest.mark.parametrize("kind", ["classification", "choice", "tokens"])
@torch.no_grad()
def test_logits_are_in_the_order_of_the_split(kind: str) -> None:
    asked = task(kind)
    made, encoded = model("bert_tiny", asked), unlabelled(split(asked))
    made.train()
    logits = evaluate(made, encoded, tokens_per_batch=50)
    assert made.training
    made.eval()
    alone = [made(batches.gather(encoded, np.array([example]))) for example in range(24)]
    expected = torch.cat([row.flatten(0, -2) for row in alone]).numpy()
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_final_model_is_kept(tmp_path: Path, final: dict[str, Any], splits: Mapping[str, Encoded]) -> None:
    asked = small_tasks.task("classification")
    setting = replace(SETTING, max_length=64)
    result = run(
        job(asked, setting), asked, Start(fine_tuned.weights(fine_tuned.bert())), splits, keep=tmp_path / "model"
    )
    kept = saved.load(tmp_path / "model")
    assert same(state(final), kept.model.state_dict())
    assert kept.about["scores"] == dict(result.final.scores)
    assert kept.about["steps"] == result.steps


def test_tasks_without_training_are_answered_at_the_end() -> None:
    asked, other = replace(registry.find("mnli"), evaluated=("validation",)), registry.find("ax")
    data = {"train": split(task("classification")), "validation": split(task("classification"), 9, 1)}
    data |= {f"ax/{name}": split(task("classification"), 8, 2) for name in other.evaluated}
    result = run(job(asked, also=("ax",)), asked, Start(weights("bert_tiny")), data)
    assert set(result.also) == {"ax"}
    assert set(result.also["ax"]) == {other.outcome(m, s) for m in other.metrics for s in other.evaluated}


def test_it_begins_with_another_tasks_model(final: dict[str, Any]) -> None:
    asked = task("classification")
    run(job(asked), asked, Start(weights("bert_tiny")), splits(asked))
    parent = state(final)
    child = task("regression", name="child")
    run(job(child), child, Start(weights("bert_tiny"), parent=parent), splits(child))
    carried = {n: t for n, t in final["first"].items() if not n.startswith("encoder.head.classifier")}
    assert same(carried, parent)
