"""What may be said about an architecture."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cramming.architectures import ArchConfig, BertConfig, CrammedConfig
from cramming.architectures.configs import ClassificationHeadConfig
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "layer_norm"}, "arch.norm=layer_norm is unknown; did you mean 'layernorm'?"),
        ({"norm_scheme": "Pre"}, "arch.norm_scheme=Pre is unknown; did you mean 'pre'?"),
        (
            {"position": "alibi"},
            "arch.position=alibi is unknown; there are: learned, none, scaled_sinusoidal, sinusoidal",
        ),
        ({"nonlin": "gelu_new"}, "arch.nonlin=gelu_new is unknown"),
        ({"head": "full"}, "arch.head=full is unknown"),
        ({"init": "xavier"}, "arch.init=xavier is unknown"),
        ({"heads": 7}, "arch.heads=7 does not divide arch.hidden=768: the nearest that does is 6"),
        ({"intermediate": 3071}, "arch.intermediate=3071 cannot be halved by arch.glu=true: make it even"),
        ({"hidden": 36, "rotary": True}, "arch.rotary=true turns pairs, but arch.hidden=36 .* odd width 3"),
        ({"embedding_dim": 15}, "arch.position=scaled_sinusoidal needs an even width of embeddings, not 15"),
        ({"embedding_dim": 128, "head": "none"}, "arch.head=none with arch.embedding_dim=128 .* use arch.head=linear"),
        ({"embedding_dim": 0}, "arch.embedding_dim=0 is too small"),
        ({"ffn_layer_frequency": 0}, "arch.ffn_layer_frequency=0 is too small"),
        ({"embedding_dropout": 1.0}, "arch.embedding_dropout=1.0 is not a probability"),
    ],
)
def test_impossible_encoders_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CrammedConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooler": "mean"}, "arch.classification_head.pooler=mean is unknown"),
        ({"nonlin": "Tanh"}, "arch.classification_head.nonlin=Tanh is unknown; did you mean 'tanh'?"),
        ({"head_dim": 0}, "arch.classification_head.head_dim=0 must be at least 1"),
        ({"classifier_dropout": 1.0}, "arch.classification_head.classifier_dropout=1.0 is not a probability"),
    ],
)
def test_impossible_classification_heads_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassificationHeadConfig(**settings)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("crammed", 120_179_713),
        ("crammed_2023", 119_589_889),
        ("crammed_original", 111_239_936),
        ("crammed_simple", 110_945_024),
        ("crammed_c2", 110_846_721),
        ("crammed_c3", 110_812_417),
        ("crammed_c4", 96_574_465),
        ("crammed_i4", 150_513_921),
        ("crammed_large", 337_081_344),
    ],
)
def test_published_variants_have_the_parameters_of_the_reference(name: str, parameters: int) -> None:
    import torch

    content = OmegaConf.load(next(file for file in FILES if file.stem == name))
    content.pop("defaults")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CrammedConfig), content))
    with torch.device("meta"):
        model = config.build(config.vocab_size, 128)
    assert sum(p.numel() for p in model.parameters()) == parameters
