"""A run whose batches and sequences grow: killed anywhere, priced at true lengths, validated at the full one."""

import json
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cramming.cli import pretraining
from cramming.errors import UserError
from cramming.session import pretrain

from . import runs

GROWING = [
    "train.lengths=[4,8]", "train.lengths_until=[0.25,0.5]", "train.batch_size_initial=2", "train.batch_size_ramp=0.7",
]  # fmt: skip


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", [pytest.param("truncate", marks=pytest.mark.full), "unfold"])
def test_killed_in_every_part_of_a_curriculum(folder: Path, mode: str) -> None:
    """Steps 1 to 3 are of 4 tokens, 4 to 6 of 8, the others of 16; batches grow from 2 rows to 8 until step 8."""
    growing = [*GROWING, f"train.lengths_mode={mode}", "impl.save_every_steps=1"]
    assert runs.run(runs.command(folder, "name=whole", *growing)) == 0
    words = runs.command(folder, "name=killed", *growing)
    for point in ("step:2", "step:3", "checkpoint-renamed:2", "step:2"):
        assert runs.run(words, kill_at=point) == -signal.SIGKILL
    assert runs.run(words) == 0
    assert runs.same(runs.weights(folder, "killed"), runs.weights(folder, "whole"))
    whole, killed = (folder / "outputs" / name for name in ("whole", "killed"))
    left, right = (json.loads((place / "summary.json").read_text()) for place in (whole, killed))
    for key in ("sequences", "tokens", "loss", "validation_loss", "validation_sequences", "work"):
        assert left[key] == right[key], key

    sizes = [2, 2, 2, 4, 4, 6, 6, 8, 8, 8, 8, 8]  # rows of 16 tokens
    lengths = [4] * 3 + [8] * 3 + [16] * 6
    pieces = [16 // length if mode == "unfold" else 1 for length in lengths]
    assert left["sequences"] == sum(size * n for size, n in zip(sizes, pieces, strict=True))
    assert left["tokens"] == sum(size * n * s for size, n, s in zip(sizes, pieces, lengths, strict=True))


def test_prices_of_short_sequences(folder: Path) -> None:
    """Under analytic prices a step costs what its own length costs, attention and predicted positions included."""
    words = [
        "rst=flops",
        "rst.flops_per_s=1e6",
        "budget=60s",
        "train.lengths_mode=unfold",
        "impl.save_every_steps=null",
    ]
    pretraining(pretrain, runs.command(folder, "name=a", *words, *GROWING[:2], "train.mask_rate=0.25"))
    spent = [0.0, *(row["spent_s"] for row in rows(folder / "outputs" / "a"))]
    steps = [after - before for before, after in pairwise(spent)]
    distinct = sorted({round(seconds, 6) for seconds in steps})
    assert len(distinct) == 3
    # 8 rows of 16 tokens as 32 x 4, 16 x 8, 8 x 16; hidden 32, feed-forward 64, vocabulary 300, a quarter predicted.
    expected = [3e-6 * 128 / s * _flops(s, s // 4) for s in (4, 8, 16)]
    assert distinct == pytest.approx(sorted(expected), rel=1e-4)


def _flops(length: int, predicted: int, hidden: int = 32, wide: int = 64, vocabulary: int = 300) -> float:
    """Products of a two-layer BERT, the last layer at predicted positions only, by hand."""
    projections = 2 * hidden * (4 * hidden + 2 * wide)
    first = length * projections + 4 * length**2 * hidden
    keys_and_values = length * 2 * hidden * 2 * hidden
    last = keys_and_values + predicted * (projections - 4 * hidden**2) + 4 * predicted * length * hidden
    return first + last + predicted * 2 * hidden * (hidden + vocabulary)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.lengths=[8]"], "equally many"),
        (["train.lengths=[5]", "train.lengths_until=[0.5]", "train.lengths_mode=unfold"], "5 does not divide"),
        (["train.lengths=[4]", "train.lengths_until=[0.5]", "train.mask_rate=0.1"], "give 10 tokens or more"),
        (["train.lengths_mode=cut"], "there are: truncate, unfold"),
        (
            ["train.lengths=[8]", "train.lengths_until=[0.5]", "train.lengths_mode=unfold", "data.layout=document"],
            "data.layout=document are padded",
        ),
        (["train.batch_size_ramp=0.5"], r"give train\.batch_size_initial=128"),
        (["train.batch_size_initial=4"], r"batch_size_ramp=0\.0 is not a share"),
    ],
)
def test_curricula_that_cannot_be_are_refused_before_any_work(folder: Path, words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        pretraining(pretrain, runs.command(folder, "name=a", *words))
    assert "\n" not in str(refused.value)
    assert not (folder / "outputs").exists()


def test_the_inherited_table_has_one_length(folder: Path) -> None:
    words = ["rst=rtx3090", "budget=1m", "data.seq_length=128", "train.lengths=[32]", "train.lengths_until=[0.5]"]
    with pytest.raises(UserError, match=r"it has length 128, not 32; .*use rst=calibrate"):
        pretraining(pretrain, runs.command(folder, "name=a", *words, "train.batch_size=4"))
