"""Recipes have the optimizers of their papers, and a command line may change what is in them."""

import pytest

from cramming.cli import compose
from cramming.optim.config import AdamW
from cramming.optim.lamb import LambConfig
from cramming.optim.stable_adamw import StableAdamWConfig


@pytest.mark.parametrize(
    ("experiment", "expected", "clip_norm"),
    [
        ("albert_base", LambConfig(lr=1.76e-3, bias_correction=False), 1.0),
        ("modern_base", StableAdamWConfig(lr=8e-4, weight_decay=0.0125), None),
        ("modern_base_context", StableAdamWConfig(lr=3e-4, weight_decay=0.0333), None),
        ("modern_large", StableAdamWConfig(lr=5e-4, weight_decay=0.02), None),
        ("neobert", AdamW(lr=6e-4, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1), 1.0),
    ],
)
def test_the_optimizer_of_the_paper(experiment: str, expected: object, clip_norm: float | None) -> None:
    train = compose([f"experiment={experiment}"]).train
    assert (train.optim, train.clip_norm) == (expected, clip_norm)


def test_neobert_keeps_a_tenth_of_the_rate_from_nine_tenths_on() -> None:
    curve = compose(["experiment=neobert"]).train.schedule
    assert curve(0.9) == curve(1.0) == pytest.approx(0.1)
    assert curve(0.89) > 0.1


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        (["train/optim=lars", "train.optim.options={momentum: 0.5}"], "options", {"momentum": 0.5}),
        (["train/optim=lars", "train.optim.inner=adamw", "train.optim.options={betas: [0.8, 0.9]}"], "inner", "adamw"),
        (["train/optim=muon", "train.optim.momentum=0.9"], "momentum", 0.9),
        (["train/optim=soap", "train.optim.shampoo_beta=0.9"], "shampoo_beta", 0.9),
        (["train/optim=lamb", "train.optim.ratio_max=0.3"], "ratio_max", 0.3),
    ],
)
def test_options_from_a_command_line(words: list[str], key: str, expected: object) -> None:
    assert getattr(compose(["data=local", "data.path=x", *words]).train.optim, key) == expected
