"""The inherited table is for the earlier study's run, and for no other."""

import pytest
import torch

from cramming.build import Parts
from cramming.cli import compose
from cramming.costs import RTX3090
from rst import CostTable

VOCABULARY = 32768


def differences(*overrides: str, vocabulary: int = VOCABULARY) -> list[str]:
    """In what the table differs from a run."""
    config = compose(["data=local", "data.path=x", "arch=crammed", *overrides])
    parts = Parts(config, vocabulary, torch.device("cpu"))
    lengths = [config.data.seq_length]
    return CostTable.load(RTX3090).differences(parts.architecture(), config.arch.layers, lengths, "bfloat16")


@pytest.mark.parametrize(
    "free",
    [
        [],
        ["train.batch_size=128", "train.optim.decay_norms=true", "seed=3"],
        ["arch.norm_eps=1e-6", "arch.init=small", "arch.classification_head.pooler=max", "data.heldout_fraction=0.01"],
    ],
)
def test_the_studys_run_is_priced_without_accepting_anything(free: list[str]) -> None:
    assert differences(*free) == []


@pytest.mark.parametrize(
    "other",
    [
        "arch=crammed_2023",
        "arch=crammed_c4",
        "arch.rotary=true",
        "arch.glu=false",
        "arch.bias=true",
        "arch.dropout=0.1",
    ],
)
def test_a_run_that_costs_something_else_is_not(other: str) -> None:
    (difference,) = [found for found in differences(other) if "layers, not" not in found]
    assert "architecture" in difference
    assert len(differences("train.mask_rate=0.25")) == len(differences(vocabulary=30000)) == 1
