"""Sequence-length warm-up: the length is the line, rounded down; what is decided is the curriculum of lengths."""

import math

import numpy as np
import pytest
from memory import LENGTH

from cramming.build import Parts
from cramming.cli import compose
from cramming.errors import UserError
from cramming.lengths import Lengths
from cramming.method import Method
from cramming.priced import target_of
from efficient_training.length_warmup import LengthWarmup


@pytest.mark.parametrize(
    ("start", "multiple", "until", "full"),
    [(8, 8, 0.5, 128), (32, 32, 0.3, 128), (24, 16, 0.7, 100), (64, 7, 0.01, 128)],
)
def test_the_length_is_the_line_rounded_down(start: int, multiple: int, until: float, full: int) -> None:
    """The paper's pacing function, by the share of the budget spent."""
    lengths = LengthWarmup(start=start, multiple=multiple, until=until).lengths(full)
    for progress in np.linspace(0.0, 1.0, 1009).tolist():
        line = start + (full - start) * min(1.0, progress / until)
        if abs((line - start) / multiple - round((line - start) / multiple)) < 1e-9:
            continue  # at a stair the two formulas may round apart
        expected = full if line >= full else start + math.floor((line - start) / multiple) * multiple
        assert lengths(progress) == expected
    assert lengths(0.0) == start
    assert lengths(until) == lengths(1.0) == full


def test_unfolded_rows_take_lengths_that_divide_them() -> None:
    lengths = LengthWarmup(start=16, multiple=16, until=0.7, mode="unfold").lengths(128)
    assert lengths.shorter == (16, 32, 64)
    assert lengths.unfold
    assert lengths.until == pytest.approx((0.7 * 16 / 112, 0.7 * 48 / 112, 0.7))


def test_full_length_from_the_start_is_no_curriculum() -> None:
    assert LengthWarmup(start=128).lengths(128) == Lengths(128)
    assert Method().lengths(128) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"start": 3}, "start=3 must be at least 4"),
        ({"until": 0.0}, r"until=0\.0 is the share"),
        ({"until": 1.0}, r"until=1\.0 is the share"),
        ({"until": math.nan}, "until=nan is the share"),
        ({"multiple": 0}, "multiple=0 must be at least 1"),
        ({"mode": "unfolds"}, "mode=unfolds is unknown.*unfold"),
        ({"start": 256}, r"start=256 is longer than data\.seq_length=128"),
        ({"start": 48, "mode": "unfold"}, r"start=48 does not divide data\.seq_length=128.*32 does"),
        ({"start": 8, "multiple": 1}, "makes 121 lengths from 8 to 128.*give 8 or more"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        LengthWarmup(**options).lengths(128)  # type: ignore[arg-type]


def test_the_way_out_of_too_many_lengths_is_one() -> None:
    LengthWarmup(start=8, multiple=8).lengths(128)


WORDS = ["data=local", "data.path=x", "arch=bert_tiny", "data.seq_length=128", "method=length_warmup"]


def test_a_command_line_has_its_lengths_and_prices_for_each() -> None:
    import torch

    config = compose([*WORDS, "method.length_warmup.start=64"])
    assert config.lengths == Lengths(128, (64, 96), (0.15, 0.3))
    assert target_of(Parts(config, 100, torch.device("cpu")), "float32").lengths == (128, 64, 96)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.lengths=[16]", "train.lengths_until=[0.1]"], "method=length_warmup and train.lengths: each of these"),
        (["method.length_warmup.mode=unfold", "data.layout=document"], "mode=unfold cuts full rows"),
        (["method.length_warmup.start=5", "train.mask_rate=0.05"], "sequences of 5 tokens predict none"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        compose([*WORDS, *words])


def test_a_row_in_memory_has_room_for_it() -> None:
    """The setting that other tests take to act does."""
    assert LengthWarmup(start=8, multiple=8, until=0.5).lengths(LENGTH).shorter == (8, 16)
