"""What a parameter is to its model, in every family, and what the optimizers that ask make of it."""

import math
from typing import Any

import pytest
import torch
from whole_runs import OPTIMIZERS, OPTIONS

from cramming.errors import UserError
from cramming.optim import build, for_model, parameter_groups
from cramming.optim.config import OptimConfig
from cramming.optim.groups import HIDDEN, OUTSIDE, VECTOR, fan_ratio
from cramming.optim.muon import Muon, MuonConfig
from cramming.registry import lookup
from tests.architectures.families import TINY, arch

VOCABULARY, LENGTH = 96, 24


def model_of(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return arch(family).build(VOCABULARY, LENGTH)  # type: ignore[return-value]


def roles(model: torch.nn.Module) -> dict[str, str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model)
    return {names[p]: role for g in groups for p, role in zip(g["params"], g["roles"], strict=True)}


@pytest.mark.parametrize("family", TINY)
def test_hidden_are_the_matrices_of_layers_in_every_family(family: str) -> None:
    model = model_of(family)
    found = roles(model)
    inside = {id(p) for p in model.blocks.parameters()}  # type: ignore[union-attr, operator]
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, p in model.named_parameters():
        if p.ndim < 2 or min(p.shape[-2:]) == 1:  # such as M2's short filters, one for each channel
            assert found[name] == VECTOR, name
        elif id(p) not in inside:
            assert found[name] == OUTSIDE, name
        else:
            assert found[name] == HIDDEN or "mixer.filters" in name, name
    layers = {role for name, role in found.items() if "attention" in name and "weight" in name and "orm" not in name}
    assert layers <= {HIDDEN}
    assert any(role == OUTSIDE for name, role in found.items() if "mbedding" in name)


@pytest.mark.parametrize("family", TINY)
def test_muon_takes_what_is_hidden_and_adamw_the_rest(family: str) -> None:
    model = model_of(family)
    optimizer: Any = for_model(MuonConfig(), model)
    muon, adamw = optimizer.parts
    assert isinstance(muon, Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    hidden = {id(p) for group in muon.param_groups for p in group["params"]}
    expected = {name for name, role in roles(model).items() if role == HIDDEN}
    assert {name for name, p in model.named_parameters() if id(p) in hidden} == expected
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert all(group["base_lr"] == 1e-3 for group in optimizer.param_groups)
    assert {group["weight_decay"] for group in muon.param_groups} == {0.1}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("family", ["m2_tiny", "albert_tiny"])
def test_every_optimizer_steps_on_shapes_of_every_sort(name: str, family: str) -> None:
    """Block-diagonal weights, filters, shared layers."""
    model = model_of(family)
    config: OptimConfig = lookup("train/optim", name)(**OPTIONS.get(name, {}))
    optimizer = for_model(config, model)
    random = torch.Generator().manual_seed(1)
    for _ in range(2):
        for p in model.parameters():
            p.grad = 0.01 * torch.randn(p.shape, generator=random)
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_without_a_word_on_roles_shapes_decide() -> None:
    shapes = [(3, 4), (5,), (6, 1, 3), (2, 4, 4)]
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    groups = build("lamb", parameters, lr=0.1).param_groups
    assert [(g["role"], [tuple(p.shape) for p in g["params"]]) for g in groups] == [
        (HIDDEN, [(3, 4), (2, 4, 4)]),
        (VECTOR, [(5,), (6, 1, 3)]),
    ]


def test_groups_of_one_role_keep_what_the_group_said() -> None:
    given = [{"params": [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))], "lr": 0.5}]
    groups = build("muon", given, lr=0.1).param_groups
    assert [(g["role"], g["base_lr"]) for g in groups] == [(HIDDEN, 0.5), (VECTOR, 0.5)]


def test_vectors_have_no_trust_ratio_unless_asked() -> None:
    """The first step of LAMB without decay: a vector's is Adam's, a matrix's as long as the matrix times the rate."""
    for asked in (False, True):
        matrix, vector = torch.nn.Parameter(torch.full((3, 4), 2.0)), torch.nn.Parameter(torch.full((9,), 2.0))
        optimizer = build("lamb", [matrix, vector], lr=0.1, weight_decay=0.0, adapt_vectors=asked, eps=0.0)
        matrix.grad, vector.grad = torch.ones(3, 4), torch.ones(9)
        optimizer.step()
        assert float((matrix.detach() - 2.0).norm()) == pytest.approx(0.1 * 2.0 * math.sqrt(12), rel=1e-5)
        assert float((vector.detach() - 2.0).norm()) == pytest.approx(0.3 * (2.0 if asked else 1.0), rel=1e-5)


def test_lars_leaves_vectors_to_the_inner_optimizer_if_asked() -> None:
    vector = torch.nn.Parameter(torch.ones(4))
    optimizer = build("lars", [vector], lr=0.1, weight_decay=0.5, adapt_vectors=False, options={"nesterov": False})
    vector.grad = torch.ones(4)
    optimizer.step()
    torch.testing.assert_close(vector.detach(), torch.full((4,), 1 - 0.1 * 1.5))
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_lars_leaves_alone_what_has_no_length() -> None:
    """A bias at 0 would never leave it by a share of its own length: its gradient stays, without decay."""
    zero, still = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = build("lars", [zero, still], lr=0.1, weight_decay=0.5, options={"nesterov": False})
    zero.grad, still.grad = torch.ones(3), torch.zeros(3)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.full((3,), -0.1))
    assert torch.equal(still.detach(), torch.ones(3))


def test_fans() -> None:
    assert fan_ratio(torch.ones(12, 3), HIDDEN) == 2.0
    assert fan_ratio(torch.ones(4, 3, 12), HIDDEN) == 0.5
    assert fan_ratio(torch.ones(9), VECTOR) == 3.0
    assert fan_ratio(torch.ones(4, 1, 4), VECTOR) == 4.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adafactor", {"eps": [1e-30]}, "eps=[1e-30] must be two numbers"),
        ("adafactor", {"clip_threshold": 0.0}, "clip_threshold=0.0"),
        ("adafactor", {"decay_rate": 0.8}, "decay_rate=0.8"),
        ("adafactor", {"beta1": 1.0}, "beta1=1.0"),
        ("lamb", {"ratio_min": 0.5, "ratio_max": 0.1}, "ratio_max=0.1 is below ratio_min=0.5"),
        ("lars", {"trust_coefficient": math.nan}, "trust_coefficient=nan"),
        ("lars", {"inner": "larc"}, "inner=larc cannot stand inside lars"),
        ("larc", {"inner": "schedule_free"}, "inner=schedule_free cannot stand inside larc"),
        ("lars", {"inner": "adamww"}, "did you mean 'adamw'"),
        ("lars", {"options": {"momentun": 0.5}}, "sgd has no 'momentun'; did you mean 'momentum'"),
        ("lars", {"options": {"lr": 0.5}}, "sgd has no 'lr'"),
        ("lars", {"options": {"momentum": 2.0}}, "momentum=2.0"),
        ("muon", {"iterations": 0}, "iterations=0"),
        ("muon", {"momentum": 1.0}, "momentum=1.0"),
        ("prodigy", {"d0": 0.0}, "d0=0.0"),
        ("prodigy", {"growth": 1.0}, "growth=1.0"),
        ("shampoo", {"eps": 0.0}, "eps=0"),
        ("shampoo", {"block_size": 0}, "block_size=0"),
        ("soap", {"update_every": 0}, "update_every=0"),
        ("soap", {"shampoo_beta": 1.0}, "shampoo_beta=1.0"),
        ("stable_adamw", {"betas": [0.9]}, "betas=[0.9]"),
        ("radam", {"beta": [0.9]}, "did you mean 'betas'"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(name, [torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, **options)
    assert message in str(caught.value)
