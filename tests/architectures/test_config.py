"""What may be said about an architecture."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cramming.architectures import ArchConfig, BertConfig
from cramming.errors import UserError
from cramming.registry import lookup

FILES = sorted((Path(__file__).resolve().parents[2] / "config" / "arch").glob("*.yaml"))


def test_registering_needs_no_torch() -> None:
    code = "import sys, cramming.architectures; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_option_is_valid_and_named_as_its_file(file: Path) -> None:
    content = OmegaConf.load(file)
    schemas = [entry.removeprefix("schema_") for entry in content.pop("defaults") if entry.startswith("schema_")]
    for kind in schemas:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(lookup("arch", kind)), content))
        assert isinstance(config, ArchConfig)
        assert config.name == file.stem


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 100, "heads": 12}, "arch.heads=12 does not divide arch.hidden=100: the nearest that does is 10"),
        ({"layers": 0}, "arch.layers=0 is too small"),
        ({"dropout": 1.0}, "arch.dropout=1.0 is not a probability"),
        ({"attention_dropout": -0.1}, "arch.attention_dropout=-0.1 is not a probability"),
        ({"batch_size": 0}, "arch.batch_size=0 is too small"),
    ],
)
def test_impossible_sizes_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BertConfig(**settings)


def test_sequences_longer_than_the_position_table_are_refused() -> None:
    config = BertConfig(layers=1, hidden=8, heads=2, intermediate=8, max_positions=64)
    with pytest.raises(UserError, match=r"data.seq_length=128 is longer than arch.max_positions=64"):
        config.build(100, 128)
    assert config.build(100, 32).embeddings.position.weight.shape == (64, 8)
    assert dataclasses.replace(config, max_positions=None).build(100, 32).embeddings.position.weight.shape == (32, 8)
