"""Averaged weights: what they are the average of, who sees them, and that training does not."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import run_of, same, trained, weights
from torch import Tensor
from whole_runs import run_with

from cramming import export, folder
from cramming.batch import Batch
from cramming.cli import pretraining
from cramming.errors import UserError
from cramming.evaluation import heldout
from cramming.exchange.weights import of_run
from cramming.method import Method, Step
from cramming.session import pretrain
from cramming.train import Run
from cramming.validation import validate
from efficient_training.weight_averaging import WeightAveraging


def seen(run: Run) -> Tensor:
    """What an evaluation sees, all weights as one vector."""
    with run.method.evaluating(run):
        return weights(run.model)


def way(method: Method, **options: Any) -> tuple[Run, list[Tensor], list[Tensor]]:
    """A run, its weights after every step, and what an evaluation would have seen then."""
    passed, evaluated = [], []

    def observe(run: Run) -> None:
        passed.append(weights(run.model).double())
        evaluated.append(seen(run).double())

    run = trained(run_of(method, **{"budget": 7, "lr": 0.01, **options}), observe)
    return run, passed, evaluated


# ---- what is averaged ----


@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.5, 2), (0.999, 1)])
def test_a_moving_average_is_its_definition(decay: float, every: int) -> None:
    """sum of decay^(t-i) w_i over sum of decay^(t-i), with nothing of the first weights in it, in float64."""
    _, passed, evaluated = way(WeightAveraging(average="ema", decay=decay, every_steps=every))
    for step in range(every, 8):
        taken = passed[every - 1 : step : every]
        share = [decay ** (len(taken) - 1 - i) for i in range(len(taken))]
        expected = sum(s * w for s, w in zip(share, taken, strict=True)) / sum(share)
        torch.testing.assert_close(evaluated[step - 1], expected, rtol=0, atol=1e-6)
        assert (expected - passed[step - 1]).abs().max() > 1e-4 or len(taken) == 1


@pytest.mark.parametrize(("last_k", "every"), [(3, 1), (2, 2), (100, 1)])
def test_latest_weight_averaging_is_the_mean_of_the_last_snapshots(last_k: int, every: int) -> None:
    run, passed, evaluated = way(WeightAveraging(last_k=last_k, every_steps=every))
    for step in range(every, 8):
        taken = passed[every - 1 : step : every][-last_k:]
        expected = torch.stack(taken).mean(0)
        torch.testing.assert_close(evaluated[step - 1], expected, rtol=0, atol=1e-6)
    assert len(run.method.state_dict()["snapshots"]) == min(last_k, 7 // every)


@pytest.mark.parametrize(
    "method", [WeightAveraging(average="ema", decay=0.0), WeightAveraging(last_k=1, every_steps=1)], ids=["ema", "lawa"]
)
def test_at_neutral_settings_the_weights_themselves_are_evaluated(method: WeightAveraging) -> None:
    _, passed, evaluated = way(method)
    assert all(torch.equal(one, other) for one, other in zip(passed, evaluated, strict=True))


def test_before_the_first_snapshot_the_weights_themselves_are_evaluated() -> None:
    _, passed, evaluated = way(WeightAveraging(last_k=2, every_steps=5))
    assert all(torch.equal(one, other) for one, other in zip(passed[:5], evaluated[:5], strict=True))


def test_a_step_that_is_deferred_is_not_averaged_again() -> None:
    class EveryOther(Method):
        calls = 0

        def update(self, run: Run, batch: Batch, factor: float, step: Step) -> int:
            self.calls += 1
            return step(factor) if self.calls % 2 == 0 else 0

    method = WeightAveraging(average="ema")
    trained(run_with({"deferring": EveryOther(), "weight_averaging": method}, budget=3))
    assert method.state_dict()["updates"] == 3


@pytest.mark.parametrize("average", ["ema", "lawa"])
def test_weights_of_another_depth_are_no_part_of_an_average(average: str) -> None:
    class Grow(Method):
        def before_step(self, run: Run) -> None:
            run.model.active_layers = (0,) if run.step < 3 else (0, 1)

    passed: list[Tensor] = []
    method = WeightAveraging(average=average, every_steps=1, decay=0.5)
    run = run_with({"grow": Grow(), "weight_averaging": method}, budget=5)
    trained(run, lambda run: passed.append(weights(run.model).double()))
    share = 1 / 3 if average == "ema" else 1 / 2
    torch.testing.assert_close(
        seen(run).double(), share * passed[3] + (1 - share) * passed[4], rtol=0, atol=1e-6
    )  # fmt: skip


# ---- who sees it ----


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("average", ["ema", "lawa"])
def test_validation_sees_the_average_and_training_never_does(average: str, precision: str) -> None:
    method = WeightAveraging(average=average, every_steps=1, decay=0.9)
    run = run_of(method, budget=6, lr=0.01, precision=precision)
    trained(run, lambda run: validate(run, limit=4) and None)
    plain = trained(run_of(budget=6, lr=0.01, precision=precision))
    assert torch.equal(weights(run.model), weights(plain.model)), "to the last bit"
    assert same(run.engine.state_dict(), plain.engine.state_dict())
    lent = validate(run)
    with torch.no_grad():
        for name, value in method.lent(method.state_dict()).items():
            plain.model.get_parameter(name).copy_(value)
    assert lent == validate(plain)
    run.method = Method()
    assert lent != validate(run)


def test_of_a_run_that_is_looked_at_the_state_is_enough() -> None:
    run = trained(run_of(WeightAveraging(every_steps=2), budget=6, lr=0.01))
    looked_at = run_of(budget=6)
    looked_at.method = WeightAveraging(every_steps=2)  # set up by nobody
    looked_at.load_state_dict(run.state_dict())
    assert torch.equal(seen(looked_at), seen(run))


# ---- a run on disk ----


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run named ``averaged``."""
    place, draw = tmp_path_factory.mktemp("averaged"), random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 6))) for _ in range(200)]
    (place / "text.txt").write_text("\n\n".join(" ".join(draw.choices(words, k=40)) for _ in range(100)))
    pretraining(
        pretrain,
        [
            "name=averaged", f"base_dir={place}", f"data_dir={place}/stores", "data=local",
            f"data.path={place}/text.txt", "data.seq_length=16", "data.vocab_size=128", "data.heldout_fraction=0.05",
            "rst=steps", "budget=6", "arch=albert_tiny", "train.batch_size=8", "impl.precision=float32",
            "impl.threads=1", "impl.microbatch_size=8", "train.optim.lr=0.01",
            "method=weight_averaging", "method.weight_averaging.every_steps=2", "method.weight_averaging.last_k=2",
        ],
    )  # fmt: skip
    return place


def test_a_run_is_read_with_its_average_or_its_last_weights(place: Path) -> None:
    """Tied weights, which go by two names, under both of them."""
    found = folder.find(str(place), "averaged")
    saved = found.checkpoint.read()
    averaged, last = of_run(found), of_run(found, averaged=False)
    assert same(dict(last.state), saved["model"])
    assert averaged.origin["averaged"]
    assert "averaged" not in last.origin
    assert averaged.origin["weights_sha256"] != last.origin["weights_sha256"]
    model, snapshots = averaged.model(), saved["method"]["snapshots"]
    assert len(snapshots) == 2
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), (snapshots[0][name] + snapshots[1][name]) / 2, rtol=0, atol=0)


def test_commands_take_the_average_unless_asked_for_the_last_weights(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = json.loads((place / "averaged" / "summary.json").read_text())["validation_loss"]
    losses = []
    for words in ([], ["weights=last"]):
        heldout.command(["name=averaged", f"base_dir={place}", *words])
        losses.append(f"{said:.4f}" in capsys.readouterr().out)
    assert losses == [True, False]
    for name, words in (("average", []), ("last", ["weights=last"])):
        export.command(["name=averaged", f"base_dir={place}", f"to={place}/{name}", *words])
    exported = [(place / name / "model.safetensors").read_bytes() for name in ("average", "last")]
    assert exported[0] != exported[1]
    with pytest.raises(UserError, match=r"weights=lost is unknown.*last"):
        export.command(["name=averaged", f"base_dir={place}", f"to={place}/none", "weights=lost"])


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"average": "law"}, "average=law is unknown.*lawa"),
        ({"every_steps": 0}, "every_steps=0 must be a whole number from 1"),
        ({"last_k": 0}, "last_k=0 must be a whole number from 1"),
        ({"decay": 1.0}, r"decay=1\.0 must lie in"),
        ({"decay": -0.1}, r"decay=-0\.1 must lie in"),
        ({"decay": math.nan}, "decay=nan must lie in"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        WeightAveraging(**options)
