"""Distillation: its loss by hand, who pays for the teacher, and which teachers are refused."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import LAYERS, PassCost, batch_of, gradients, run_of, same, small_model, trained, weights
from settings import Taught
from torch import Tensor
from whole_runs import run_with

from cramming import folder
from cramming.batch import Batch
from cramming.calibration import Target
from cramming.cli import compose, pretraining
from cramming.costs import OWN_TABLE, FileConfig, Setting, WallClockConfig
from cramming.errors import UserError
from cramming.exchange.weights import of_run
from cramming.session import pretrain
from cramming.train import Run
from efficient_training.distillation import Distillation
from rst import CostTable, Provenance, Work


def taught(teacher: torch.nn.Module, **options: Any) -> Distillation:
    """By this model, at the price of the student."""

    class ByThis(Taught):
        def add_teacher(self, run: Run) -> str:
            name = super().add_teacher(run)
            run.engine.add_model("teacher", teacher)  # type: ignore[arg-type]
            return name

    return ByThis("it", **options)


def by_hand(student: Tensor, teacher: Tensor, batch: Batch, temperature: float, alpha: float) -> float:
    """Token by token, in Python's floats."""
    total, count = 0.0, 0
    for row, slot in batch.weights.nonzero().tolist():
        own, theirs = student[row, slot].tolist(), teacher[row, slot].tolist()

        def log_softmax(scores: list[float], t: float) -> list[float]:
            high = max(scores) / t
            norm = high + math.log(math.fsum(math.exp(s / t - high) for s in scores))
            return [s / t - norm for s in scores]

        p, q = log_softmax(theirs, temperature), log_softmax(own, temperature)
        apart = math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
        words = -log_softmax(own, 1.0)[int(batch.labels[row, slot])]
        total += alpha * temperature**2 * apart + (1 - alpha) * words
        count += 1
    return total / count


# ---- the loss ----


@pytest.mark.parametrize("layout", ["packed", "document"])
@pytest.mark.parametrize(("temperature", "alpha"), [(2.0, 0.7), (1.0, 1.0), (5.0, 0.2)])
def test_the_loss_is_the_formula(temperature: float, alpha: float, layout: str) -> None:
    teacher, batch = small_model(seed=7), batch_of(6, layout)
    run = run_of(taught(teacher, temperature=temperature, alpha=alpha), layout=layout)
    loss = run.engine.backward(batch, run.method.objective)
    with torch.no_grad():
        scores = [model(batch, logits=True).double() for model in (run.model, teacher)]
    assert float(loss) == pytest.approx(by_hand(*scores, batch, temperature, alpha), rel=1e-5)


def test_a_teacher_that_is_the_student_has_nothing_to_teach() -> None:
    run = run_of(taught(small_model(), alpha=1.0))
    loss = run.engine.backward(batch_of(6), run.method.objective)
    assert abs(float(loss)) < 1e-6
    assert gradients(run.model).abs().max() < 1e-6


def test_the_gradient_does_not_depend_on_the_microbatch_size() -> None:
    found = []
    for size in (8, 3):
        run = run_of(taught(small_model(seed=7)), microbatch_size=size)
        for part in batch_of(8).split(size):
            run.engine.backward(part, run.method.objective)
        found.append(gradients(run.model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_rows_to_spare_are_no_words() -> None:
    """A teacher's rows beyond the tokenizer's ids may hold anything."""

    class Wide(torch.nn.Module):
        """The teacher with 8 more rows, which are very likely."""

        active_layers = (0, 1)

        def __init__(self) -> None:
            super().__init__()
            self.inner = small_model(seed=7)
            self.work = self.inner.work

        def forward(self, batch: Batch, logits: bool = False) -> Tensor:
            scores: Tensor = self.inner(batch, logits=True)
            return torch.cat([scores, scores.new_full((*scores.shape[:2], 8), 100.0)], dim=-1)

    losses = []
    for teacher in (small_model(seed=7), Wide()):
        run = run_of(taught(teacher))
        losses.append(float(run.engine.backward(batch_of(4), run.method.objective)))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_other_precisions_teach_about_the_same(precision: str) -> None:
    runs = [trained(run_of(taught(small_model(seed=7)), budget=4, precision=p)) for p in ("float32", precision)]
    assert runs[0].engine.loss == pytest.approx(runs[1].engine.loss, rel=0.02)
    assert runs[1].engine.skipped_steps == 0


def test_a_student_comes_closer_to_its_teacher() -> None:
    def apart(run: Run) -> float:
        with torch.no_grad():
            scores = [model(batch_of(20), logits=True) for model in (run.model, teacher)]
        own, theirs = (torch.log_softmax(s, -1) for s in scores)
        return float((theirs.exp() * (theirs - own)).sum(-1).mean())

    teacher = small_model(seed=7)
    run = run_of(taught(teacher, alpha=1.0, temperature=1.0), budget=40, lr=0.01)
    before = apart(run)
    assert apart(trained(run)) < 0.8 * before


# ---- what it costs ----


def test_the_teacher_is_paid_for_every_sequence_at_its_own_price() -> None:
    class Dearer(PassCost):
        def seconds(self, work: Work) -> float:
            assert (work.kind, work.model) == ("forward", "teacher")
            return 7.0 * work.sequences

    class Priced(Taught):
        def add_teacher(self, run: Run) -> str:
            name = super().add_teacher(run)
            run.clock.costs["teacher"] = Dearer()
            return name

    own = 8 * 3 * (1 + LAYERS) + 1
    run = trained(run_with({"distillation": Priced("it")}, budget=3 * (own + 7 * 8), costs=PassCost()))
    assert run.step == 3
    assert run.clock.ledger["teacher"] == 3 * 7 * 8
    assert run.clock.counts["teacher"] == {"forward": {"passes": 6, "sequences": 24}}, "once for each microbatch"
    free = trained(run_with({"distillation": Priced("it")}, budget=3 * own, costs=PassCost(), free=["teacher"]))
    assert free.step == 3
    assert torch.equal(weights(free.model), weights(run.model))


def test_without_weight_the_teacher_is_not_even_read() -> None:
    run = trained(run_of(Distillation("no such place", alpha=0.0), budget=2))
    assert "teacher" not in run.clock.ledger


PROVENANCE = Provenance("", "", (), {}, "", "")


def setting(run_dir: Path, name: str = "teacher") -> Setting:
    """Of a model of two layers and 24 tokens."""
    target = Target("bert of two layers", 2, 24, "float32", "adamw")
    return Setting(target, run_dir, run_dir, lambda lengths: {}, lambda work: 1.0, own_table=f"rst-{name}.json",
                   subject=f"the {name}")  # fmt: skip


def test_another_models_table_is_its_own(tmp_path: Path) -> None:
    columns = {24: (1.0, 2.0, 3.0)}
    for name, architecture in (("main", "another"), ("teacher", "bert of two layers")):
        both = {24: tuple(3 * seconds for seconds in columns[24])}
        provenance = Provenance("", architecture, ("float32",), {}, "", "")
        CostTable(1, columns, both, 0.0, provenance).save(tmp_path / f"{name}.json")
    config = FileConfig(path=str(tmp_path / "main.json"), other_path=str(tmp_path / "teacher.json"))
    main = CostTable.load(tmp_path / "main.json")
    config.build_other(setting(tmp_path), main)
    assert json.loads((tmp_path / "rst-teacher.json").read_text())["provenance"]["architecture"] == "bert of two layers"
    assert not (tmp_path / OWN_TABLE).exists()
    folder.start_over(tmp_path)
    assert not (tmp_path / "rst-teacher.json").exists()
    config.other_path = ""
    with pytest.raises(UserError, match=r"main\.json does not match the teacher: it is for architecture 'another'"):
        config.build_other(setting(tmp_path), main)


def test_time_that_passes_is_paid_once(tmp_path: Path) -> None:
    config = WallClockConfig()
    main = config.build(setting(tmp_path))
    assert config.build_other(setting(tmp_path), main) is main


# ---- runs on disk ----


WORDS = [
    "data=local", "data.seq_length=16", "data.vocab_size=128", "data.heldout_fraction=0.05", "arch=bert_tiny",
    "train.batch_size=8", "impl.precision=float32", "impl.threads=1", "impl.microbatch_size=4", "rst=flops",
    "rst.flops_per_s=1e9", "impl.save_every_steps=2", "budget=0.3s",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run named ``teacher``, of four layers."""
    place, draw = tmp_path_factory.mktemp("taught"), random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 6))) for _ in range(200)]
    (place / "text.txt").write_text("\n\n".join(" ".join(draw.choices(words, k=40)) for _ in range(100)))
    train(place, "name=teacher", "arch.layers=4")
    return place


def train(place: Path, *words: str) -> dict[str, Any]:
    where = [f"base_dir={place}", f"data_dir={place}/stores", f"data.path={place}/text.txt"]
    pretraining(pretrain, [*where, *WORDS, *words])
    name = next(word for word in words if word.startswith("name=")).removeprefix("name=")
    found: dict[str, Any] = json.loads((place / name / "summary.json").read_text())
    return found


def by(checkpoint: str) -> list[str]:
    return ["method=distillation", f"method.distillation.checkpoint={checkpoint}"]


def test_a_run_learns_from_another(place: Path) -> None:
    """Priced by the teacher's own four layers; killed half way, it goes on to the same bits."""
    said = train(place, "name=student", *by("teacher"))
    teacher = of_run(folder.find(str(place), "teacher"))
    assert said["teacher_sha256"] == teacher.origin["weights_sha256"]
    per_sequence = teacher.model().flops(16, 2, 4) / 1e9
    sequences = said["work"]["teacher"]["forward"]["sequences"]
    assert sequences == said["work"]["train"]["forward_backward"]["sequences"]
    assert said["ledger"]["teacher"] == pytest.approx(sequences * per_sequence, rel=1e-9)
    assert said["ledger"]["teacher"] > 0.3 * said["ledger"]["train"]
    train(place, "name=again", *by("teacher"), "stop_at=0.15s")
    train(place, "name=again", *by("teacher"))
    both = [folder.find(str(place), name).checkpoint.read()["model"] for name in ("student", "again")]
    assert same(both[0], both[1])


def test_a_teacher_may_not_change_while_it_teaches(place: Path) -> None:
    train(place, "name=changing", "arch.layers=4", "budget=0.2s", "seed=1")
    train(place, "name=faithful", *by("changing"), "stop_at=0.15s")
    train(place, "name=changing", "arch.layers=4", "budget=0.2s", "seed=2", "resume=false")
    with pytest.raises(UserError, match="changing holds other weights than those that this run has learnt from"):
        train(place, "name=faithful", *by("changing"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*by("teachr")], "teachr.*teacher"),
        ([*by("teacher"), "data.vocab_size=150"], "teacher has another tokenizer than this run"),
        ([*by("short")], "takes sequences of up to 8 tokens and data.seq_length is 16"),
    ],
)
def test_teachers_that_cannot_teach_are_refused_before_training(
    place: Path, words: list[str], says: str
) -> None:  # fmt: skip
    if "short" in words[-1] and not (place / "short").exists():
        tokenizer = f"data.tokenizer={place}/teacher/tokenizer"
        train(place, "name=short", "data.seq_length=8", "arch.max_positions=8", "budget=0.1s", tokenizer)
    own = [f"data.tokenizer={place}/teacher/tokenizer"] if "short" in words[-1] else []
    with pytest.raises(UserError, match=says):
        train(place, "name=refused", *words, *own)
    assert not (place / "refused" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"checkpoint": ""}, "needs a teacher: method.distillation.checkpoint="),
        ({"alpha": 1.5}, r"alpha=1\.5 is the teacher's weight"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"temperature": 0.0}, r"temperature=0\.0 must be above 0"),
        ({"temperature": math.inf}, "temperature=inf"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Distillation(**{"checkpoint": "x", **options})


def test_a_command_line_needs_a_teacher() -> None:
    with pytest.raises(UserError, match="method=distillation needs a teacher"):
        compose(["data=local", "data.path=x", "method=distillation"])
