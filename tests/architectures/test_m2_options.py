"""Options of M2-BERT: fresh weights, published sizes, rates of a parameter's own, and what is refused."""

import dataclasses
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from cramming.architectures.configs.m2 import M2Config
from cramming.architectures.growth import fit
from cramming.architectures.layers.filters import positional_features
from cramming.cli import compose
from cramming.errors import UserError
from cramming.optim import for_model
from cramming.optim.config import Adam, AdamW, Lion, OptimConfig, Sgd

SIZES = M2Config(layers=3, hidden=24, intermediate=48, filter_order=8, max_positions=20)
ARCHS = Path(__file__).resolve().parents[2] / "config" / "arch"


OWN = {"filter_lr": 3e-3, "filter_weight_decay": 0.25, "position_lr": 1e-5}


@pytest.mark.parametrize("config", [AdamW(lr=1e-2), Adam(lr=1e-2), Sgd(lr=1e-2), Lion(lr=1e-2)], ids=lambda c: c.kind)
def test_rates_of_filters_and_positions_act_in_every_optimizer(config: OptimConfig) -> None:
    """Moved with a gradient of a millionth everywhere, a parameter's decay and rate can be told from its change."""
    torch.manual_seed(0)
    model = dataclasses.replace(SIZES, **OWN).build(97, 20)
    optimizer = for_model(config, model)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = groups[id(parameter)]
        part = name.partition(".mixer.filters.")[2]
        if part == "features":
            expected = (1e-5, 0.0)
        elif part and part != "skip":
            expected = (3e-3, 0.25)
        else:
            decayed = parameter.dim() > 1 and "bias" not in name.rsplit(".", maxsplit=1)[-1]
            expected = (1e-2, config.weight_decay if decayed else 0.0)
        assert (group["base_lr"], group["weight_decay"]) == expected, name
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert "blocks.0.mixer.filters.weight_0" in moved
    assert "blocks.0.mixer.filters.features" not in moved
    if config.kind in ("adamw", "lion"):
        expected = before["blocks.0.mixer.filters.weight_0"] * (1 - 3e-3 * 0.25)
        torch.testing.assert_close(
            model.get_parameter("blocks.0.mixer.filters.weight_0").detach(), expected, rtol=1e-6, atol=0
        )


def test_without_options_filters_are_trained_like_everything_else() -> None:
    m2 = SIZES.build(97, 20)
    groups = for_model(AdamW(), m2).param_groups
    assert [(group["name"], group["base_lr"]) for group in groups] == [("decayed", 1e-3), ("not_decayed", 1e-3)]
    kept = {id(p) for p in groups[1]["params"]}
    filters = m2.blocks[0].mixer.filters
    assert id(filters.features) in kept, "positions are no matrix"
    assert id(filters.frequency) in kept
    assert id(filters.weight_0) not in kept
    all_decayed = for_model(AdamW(decay_norms=True, decay_biases=True), m2).param_groups
    assert [group["name"] for group in all_decayed] == ["decayed"], "as the published optimizer does"


def test_initial_weights_are_the_references() -> None:
    torch.manual_seed(0)
    model = M2Config(layers=2, hidden=64, intermediate=256).build(512, 32)
    bounds = {
        "short_weight": 3**-0.5,
        "short_bias": 3**-0.5,
        "expand.weight": 16**-0.5,
        "contract.weight": 64**-0.5,
        "contract.bias": 64**-0.5,
    }
    for name, parameter in model.named_parameters():
        bound = next((b for ending, b in bounds.items() if name.endswith(ending)), None)
        if bound is not None:
            assert parameter.abs().max() <= bound, name
            assert abs(parameter.std() * 3**0.5 / bound - 1) < 6 * (0.8 / parameter.numel()) ** 0.5, name
        elif name.endswith("filters.skip"):
            assert abs(parameter.std() - 1) < 5 / (2 * parameter.numel()) ** 0.5, name
        elif name.endswith("frequency"):
            assert (parameter == 10).all()
        elif parameter.dim() == 2:
            assert abs(parameter.std() - 0.02) < 5 * 0.02 / (2 * parameter.numel()) ** 0.5, name
        elif not name.endswith("features"):
            expected = torch.ones_like if name.endswith("norm.weight") else torch.zeros_like
            assert torch.equal(parameter, expected(parameter)), name


def test_layers_may_begin_alike_as_the_published_code_lets_them() -> None:
    alike = ("short_weight", "short_bias", "skip", "frequency", "features", "expand.weight", "contract.weight",
             "contract.bias", "norm.weight", "norm.bias", "bias_0", "bias_1", "bias_2", "put.bias")  # fmt: skip
    for identical in (False, True):
        torch.manual_seed(0)
        model = dataclasses.replace(SIZES, identical_layers=identical).build(97, 20)
        first = dict(model.blocks[0].named_parameters())
        for name, parameter in model.blocks[2].named_parameters():
            constant = float(parameter.detach().std()) == 0 or name.endswith("features")
            assert torch.equal(parameter, first[name]) == (constant or (identical and name.endswith(alike))), name


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("m2", 80_285_760), ("m2_110m", 115_583_616), ("m2_260m", 259_133_760), ("m2_341m", 341_038_144)],
)
def test_published_sizes_have_the_references_parameters(name: str, parameters: int) -> None:
    content = OmegaConf.load(ARCHS / f"{name}.yaml")
    content.pop("defaults")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(M2Config), content))
    with torch.device("meta"):
        assert sum(p.numel() for p in config.build(config.vocab_size, 128).parameters()) == parameters
        if name == "m2":
            assert sum(p.numel() for p in config.build(config.vocab_size, 128, 3).parameters()) == 80_256_003
            config = dataclasses.replace(config, training_additions=False)
            assert sum(p.numel() for p in config.build(config.vocab_size, 128).parameters()) == 80_267_328


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 770}, "arch.blocks=4 does not divide arch.hidden=770: make it 768, say"),
        ({"intermediate": 3074}, "arch.blocks=4 does not divide arch.intermediate=3074"),
        ({"filter_features": 4}, "arch.filter_features=4 must be odd and at least 3"),
        ({"filter_features": 1}, "arch.filter_features=1 must be odd and at least 3"),
        ({"filter_length": 0}, "arch.filter_length=0 is too small"),
        ({"attention_dropout": 0.1}, "arch.attention_dropout=0.1: m2 has no attention; use arch.dropout"),
        ({"filter_lr": -1.0}, "arch.filter_lr=-1.0 must be a finite number from 0"),
        ({"position_lr": float("nan")}, "arch.position_lr=nan must be a finite number from 0"),
        ({"classifier_dropout": 1.0}, "arch.classifier_dropout=1.0 is not a probability"),
    ],
)
def test_impossible_options_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        M2Config(**settings)


def test_sequences_longer_than_the_position_table_are_refused_and_filters_may_be_shorter() -> None:
    config = dataclasses.replace(SIZES, max_positions=64, filter_length=16)
    with pytest.raises(UserError, match=r"data.seq_length=128 is longer than arch.max_positions=64"):
        config.build(97, 128)
    model = config.build(97, 32)
    assert model.blocks[0].mixer.filters.features.shape == (2, 16, 5)
    assert model.fast_paths(64)["convolution"].endswith("real transforms of 128 points")


RECIPES = {"m2_80m": "m2", "m2_110m": "m2_110m", "m2_260m": "m2_260m", "m2_341m": "m2_341m"}


@pytest.mark.parametrize("name", [*RECIPES, "m2_bert_baseline", "m2_flash_baseline"])
def test_published_recipes(name: str) -> None:
    """bert/yamls/pretrain of https://github.com/HazyResearch/m2."""
    config = compose([f"experiment={name}"])
    train, data, optim = config.train, config.data, config.train.optim
    assert (train.batch_size, data.seq_length, data.layout, data.name) == (4096, 128, "document", "c4")
    assert (optim.kind, optim.betas, optim.eps) == ("adamw", [0.9, 0.98], 1e-6)
    assert (optim.decay_norms, optim.decay_biases) == (True, True)
    assert optim.lr * optim.weight_decay == pytest.approx(1e-5), "a step's decay where the factor is 1"
    assert [round(train.schedule(p), 3) for p in (0.03, 0.06, 1.0)] == [0.5, 1.0, 0.02]
    assert (config.arch.dropout, config.impl.precision) == (0.1, "bfloat16")
    if name in RECIPES:
        assert (config.arch.name, optim.lr, train.mask_rate, train.clip_norm) == (RECIPES[name], 8e-4, 0.3, 1.0)
    elif name == "m2_bert_baseline":
        assert (config.arch.name, optim.lr, train.mask_rate, train.clip_norm) == ("bert_base", 5e-4, 0.15, None)
    else:
        assert (config.arch.name, optim.lr, train.mask_rate, train.clip_norm) == ("mosaic", 5e-4, 0.3, None)
        assert config.arch.glu is False


def test_longer_filters_begin_as_the_formula_and_what_training_changed() -> None:
    """Twice as long: positions of the table and features of places are stretched, the formula is that of the length."""
    torch.manual_seed(0)
    small = dataclasses.replace(SIZES, max_positions=16).build(97, 16)
    large = dataclasses.replace(SIZES, max_positions=31, layers=6).build(97, 31)
    features = small.blocks[1].mixer.filters.features
    with torch.no_grad():
        features.add_(torch.linspace(0, 1, 16)[:, None])
    grown = fit(small.state_dict(), small, large, depth="stack", positions="interpolate")
    large.load_state_dict(grown)
    for layer, block in enumerate(large.blocks):
        change = torch.linspace(0, 1, 31)[:, None] * (layer % 3 == 1)
        expected = positional_features(31, 5) + change
        torch.testing.assert_close(block.mixer.filters.features.detach(), expected.expand(2, -1, -1))
        assert torch.equal(block.mixer.filters.weight_3, small.blocks[layer % 3].mixer.filters.weight_3)


@pytest.mark.parametrize("said", [{"head.weight": {"lr": 1.0}}, {"weight": {"momentum": 0.5}}])
def test_options_that_mean_nothing_are_refused(said: dict[str, dict[str, float]]) -> None:
    model = torch.nn.Linear(2, 2)
    model.parameter_options = lambda: said  # type: ignore[method-assign]
    with pytest.raises(UserError, match="there is none, or they are not among"):
        for_model(AdamW(), model)
