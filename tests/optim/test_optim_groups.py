"""Who is decayed, which options there are, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from cramming.errors import UserError
from cramming.optim import build, for_model, parameter_groups
from cramming.optim.config import Adam, AdamW, Lion, Sgd
from cramming.registry import kinds


class Small(torch.nn.Module):
    """Every sort of parameter: tied matrices, biases, norm weights, a bias with two dimensions, one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.inner = torch.nn.Linear(4, 4)
        self.block_bias = torch.nn.Parameter(torch.ones(2, 2))
        self.frozen = torch.nn.Parameter(torch.ones(3, 3), requires_grad=False)
        self.decoder = torch.nn.Linear(4, 7)
        self.decoder.weight = self.embedding.weight


def names(groups: list[dict[str, Any]], model: torch.nn.Module) -> dict[str, list[str]]:
    known = {parameter: name for name, parameter in model.named_parameters()}
    return {group["name"]: [known[p] for p in group["params"]] for group in groups}


def test_matrices_are_decayed_and_biases_and_norms_are_not() -> None:
    model = Small()
    assert names(parameter_groups(model), model) == {
        "decayed": ["embedding.weight", "inner.weight"],
        "not_decayed": ["block_bias", "norm.weight", "norm.bias", "inner.bias", "decoder.bias"],
    }


def test_norm_weights_and_biases_are_decayed_on_request() -> None:
    model = Small()
    assert names(parameter_groups(model, decay_norms=True), model) == {
        "decayed": ["embedding.weight", "norm.weight", "inner.weight"],
        "not_decayed": ["block_bias", "norm.bias", "inner.bias", "decoder.bias"],
    }
    assert names(parameter_groups(model, decay_biases=True), model) == {
        "decayed": ["block_bias", "embedding.weight", "norm.bias", "inner.weight", "inner.bias", "decoder.bias"],
        "not_decayed": ["norm.weight"],
    }
    everything = for_model(AdamW(decay_norms=True, decay_biases=True, weight_decay=0.02), model).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in everything] == [(7, 0.02)]


def test_every_trainable_parameter_is_in_exactly_one_group_in_the_same_order_every_time() -> None:
    first, second = Small(), Small()
    listed = [p for group in parameter_groups(first) for p in group["params"]]
    assert len(listed) == len({id(p) for p in listed})
    assert {id(p) for p in listed} == {id(p) for p in first.parameters() if p.requires_grad}
    assert names(parameter_groups(first), first) == names(parameter_groups(second), second)


def test_a_group_without_members_is_left_out() -> None:
    assert [g["name"] for g in parameter_groups(torch.nn.Linear(2, 2, bias=False))] == ["decayed"]


@pytest.mark.parametrize("config", [AdamW(), Adam(), Sgd(), Lion()])
def test_with_no_gradient_signal_only_the_decayed_group_moves(config: Any) -> None:
    """A zero gradient leaves decay as the only force: p (1 - lr wd) where it is decoupled."""
    model = Small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = for_model(config, model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"embedding.weight", "inner.weight"}
    if config.kind in ("adamw", "lion"):
        expected = before["inner.weight"] * (1 - config.lr * config.weight_decay)
        torch.testing.assert_close(model.inner.weight.data, expected, rtol=1e-6, atol=0)


def test_groups_carry_base_lr_and_a_rate_of_their_own_wins() -> None:
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    given = [{"params": [first]}, {"params": [second], "lr": 0.5}]
    optimizer = build("adamw", given, lr=0.1)
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert given == [{"params": [first]}, {"params": [second], "lr": 0.5}]


def test_the_defaults_are_the_study_s() -> None:
    adamw = build("adamw", [torch.nn.Parameter(torch.ones(2))], lr=1e-3).param_groups[0]
    assert (adamw["betas"], adamw["eps"], adamw["weight_decay"]) == ((0.9, 0.98), 1e-12, 0.01)
    assert (AdamW().lr, Adam().lr, Adam().betas, Lion().lr, Lion().weight_decay) == (
        1e-3,
        5e-4,
        [0.9, 0.999],
        7e-4,
        0.1,
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lionn", {"lr": 0.1}, "did you mean 'lion'"),
        ("adamw", {"lr": 0.1, "beta": [0.9, 0.98]}, "did you mean 'betas'"),
        ("adamw", {"lr": 0.1, "momentum": 0.9}, "no 'momentum'; there are: betas, eps, weight_decay"),
        ("adamw", {"lr": 0.1, "decay_norms": True}, "no 'decay_norms'"),
        ("adamw", {"lr": -1.0}, "lr=-1.0"),
        ("sgd", {"lr": math.nan}, "lr=nan"),
        ("lion", {"lr": math.inf}, "lr=inf"),
        ("lion", {"lr": 0.0}, "lr=0"),
        ("adamw", {"lr": 0.1, "weight_decay": -0.1}, "weight_decay=-0.1"),
        ("adamw", {"lr": 0.1, "betas": [0.9]}, "betas"),
        ("adamw", {"lr": 0.1, "betas": [0.9, 1.0]}, "betas"),
        ("adam", {"lr": 0.1, "eps": -1e-8}, "eps"),
        ("sgd", {"lr": 0.1, "momentum": 1.0}, "momentum"),
        ("sgd", {"lr": 0.1, "momentum": 0.0}, "nesterov=false"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(name, [torch.nn.Parameter(torch.ones(2))], **options)
    assert message in str(caught.value)


def test_every_optimizer_has_a_config_file_and_composes_as_typed() -> None:
    folder = Path(__file__).resolve().parents[2] / "config" / "train" / "optim"
    for kind, cls in {"adamw": AdamW, "adam": Adam, "sgd": Sgd, "lion": Lion}.items():
        assert kind in kinds("train/optim")
        assert list(OmegaConf.load(folder / f"{kind}.yaml").defaults) == [f"schema_{kind}", "_self_"]
        node = OmegaConf.merge(OmegaConf.structured(cls), {"lr": 1})
        assert OmegaConf.to_object(node) == cls(lr=1.0)
