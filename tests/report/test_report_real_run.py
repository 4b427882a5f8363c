"""Runs that did train: they hold the format of the fabricated ones, and make a report."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from fabricate import run as fabricated
from omegaconf import OmegaConf

from cramming.report.command import command
from cramming.report.runs import read
from tests.session import runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two optimizers, six steps each, and one run that was killed."""
    place = tmp_path_factory.mktemp("trained")
    draw = random.Random(0)
    words = ["".join(draw.choices("abdegiklmnorstu", k=draw.randint(2, 8))) for _ in range(300)]
    documents = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(200)]
    (place / "text.txt").write_text("\n\n".join(documents))
    for optimizer in ("adamw", "lion"):
        words = [f"name={optimizer}", "seed=1", f"train/optim={optimizer}", "budget=6", "impl.validate_every_h=2"]
        assert runs.run(runs.command(place, *words)) == 0
    assert runs.run(runs.command(place, "name=killed", "seed=2", "budget=6"), kill_at="step:4") == -9
    return place / "outputs"


def test_fabricated_runs_have_the_format_of_real_ones(trained: Path, tmp_path: Path) -> None:
    real, made = trained / "adamw", fabricated(tmp_path, "made")

    def summary(folder: Path) -> dict[str, object]:
        return json.loads((folder / "summary.json").read_text())  # type: ignore[no-any-return]

    theirs, ours = summary(real), summary(made)
    assert set(ours) <= set(theirs)
    for key, value in ours.items():
        assert isinstance(theirs[key], type(value)) or isinstance(value, int | float), key
    assert set(ours["environment"]) <= set(theirs["environment"])  # type: ignore[call-overload]
    rows = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (real, made)
    ]
    assert {key for row in rows[1] for key in row} <= {key for row in rows[0] for key in row}
    configs = [OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")) for folder in (real, made)]
    assert set(configs[1]) <= set(configs[0])  # type: ignore[arg-type]
    for part in ("arch", "data", "train", "impl"):
        assert set(configs[1][part]) <= set(configs[0][part]), part  # type: ignore[index, call-overload]


def test_a_real_run_is_read(trained: Path) -> None:
    found, problems = read(trained / "lion")
    assert problems == []
    assert (found.seed, found.unit, found.budget_s, found.spent_s, found.unfinished) == (1, "steps", 6.0, 6.0, None)
    assert found.ledger["optimizer"] == 6.0
    killed, _ = read(trained / "killed")
    assert killed.unfinished is not None


def test_real_runs_make_a_report(
    trained: Path, tmp_path: Path, few_figures: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    few_figures()
    out = tmp_path / "report.html"
    command([f"{trained}/*", f"out={out}", "baseline=train/optim=adamw"])
    printed = capsys.readouterr().out
    assert "adamw (baseline)" in printed
    assert "lion" in printed
    text = out.read_text()
    assert "Unfinished: killed" in text
    assert "What is not comparable" not in text
    assert "6 steps" in text
