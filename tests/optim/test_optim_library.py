"""Which of the library's optimizers a run can have: worked out here, and compared with what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cramming import checkpoint
from cramming.cli import compose
from cramming.errors import UserError
from cramming.optim import build, library
from cramming.optim.library import Library, names
from cramming.registry import lookup

STEPS, HALF, LATE = 24, 13, 5
# In every run of the tests; the others are part of the full grid. Refused ones and others, by a fixed choice.
ALWAYS = (
    "adabelief",
    "adan",
    "lbfgs",
    "kron",
    "nero",
    "sophiah",
    "normuon",
    "came",
    "ranger",
    "schedulefreesgd",
    "pid",
)


def fresh() -> list[nn.Parameter]:
    shapes = [(8, 6), (4,), (6, 8), (4,)]
    drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    return [nn.Parameter(value) for value in drawn]


def made(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    groups = [{"params": parameters[::2]}, {"params": parameters[1::2], "weight_decay": 0.0}]
    return build("library", groups, lr=0.01, name=name)


def go_on(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range, factor: float = 1.0) -> None:
    """Gradients follow the parameters; the second half of those gets them late. The rate changes from step to step."""
    for t in steps:
        for index, parameter in enumerate(parameters):
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * t + index))
            there = index < 2 or t >= LATE
            parameter.grad = drawn * torch.tanh(parameter.detach()) + 0.1 if there else None
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor / (1 + t)
        optimizer.step()


def resumed_to_the_last_bit(name: str, folder: Path) -> bool:
    """With the generator where it was, as a run has it."""
    torch.manual_seed(0)
    whole = fresh()
    go_on(made(name, whole), whole, range(STEPS))
    torch.manual_seed(0)
    halved = fresh()
    first = made(name, halved)
    go_on(first, halved, range(HALF))
    random = torch.get_rng_state()
    checkpoint.save(folder, HALF, {"model": {}, "optimizer": first.state_dict()}, {}, keep=1, kept_at_h=[])
    found = checkpoint.newest(folder)
    assert found is not None
    resumed = [nn.Parameter(p.detach().clone()) for p in halved]
    second = made(name, resumed)
    second.load_state_dict(found[1]["optimizer"])
    torch.set_rng_state(random)
    go_on(second, resumed, range(HALF, STEPS))
    return all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def moves_at_rate_0(name: str) -> bool:
    parameters = fresh()
    try:
        go_on(made(name, parameters), parameters, range(LATE, LATE + 3), factor=0.0)
    except ZeroDivisionError:
        return True
    return not all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(parameters, fresh(), strict=True))


def moves_what_is_not_used(name: str) -> bool:
    parameters = fresh()
    go_on(made(name, parameters), parameters, range(LATE))
    return not all(torch.equal(a, b) for a, b in zip(parameters[2:], fresh()[2:], strict=True))


def why_not(name: str, folder: Path) -> str | None:
    """The reason to refuse an optimizer, found by trying; None if there is none."""
    try:
        optimizer = made(name, fresh())
    except (UserError, KeyError, AttributeError, ImportError):
        return library.WANTS_MORE
    if hasattr(optimizer, "eval"):
        return library.ELSEWHERE
    try:
        assert not moves_what_is_not_used(name)
        same = resumed_to_the_last_bit(name, folder)
    except (RuntimeError, ValueError, TypeError) as error:
        said = {
            "does not require grad": library.WANTS_GRAPH,
            "only supports 2D": library.WANTS_MATRICES,
            "which a checkpoint cannot hold": library.UNSAVED,
        }
        return next(reason for words, reason in said.items() if words in str(error))
    if not same:
        return library.UNEQUAL
    return library.UNSCHEDULED if moves_at_rate_0(name) else None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.full]) for name in names()]
)
def test_what_is_refused_is_what_does_not_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = library.REFUSED.get(name)
    monkeypatch.setattr(library, "REFUSED", {})
    found = why_not(name, tmp_path)
    if expected == library.UNEQUAL:  # rounding of products, which another processor may do alike
        assert found in (None, expected)
    else:
        assert found == expected


def test_the_library_has_what_we_say() -> None:
    assert set(library.REFUSED) < set(names())
    assert set(ALWAYS) < set(names())
    assert len(names()) - len(library.REFUSED) == 97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "train.optim.name=adabelief"),
        ({"name": "adabelif"}, "did you mean 'adabelief'"),
        ({"name": "kron"}, "a checkpoint cannot hold its state"),
        ({"name": "adabelief", "options": {"beta": [0.9, 0.98]}}, "did you mean 'betas'"),
        ({"name": "adabelief", "options": {"lr": 0.1}}, "no 'lr'"),
        ({"name": "rmsprop", "lr": -1.0}, "lr=-1.0"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Library(**options)
    assert message in str(caught.value)


def test_a_value_the_library_refuses_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"train\.optim\.name=adabelief: .*beta"):
        build("library", fresh(), lr=0.1, name="adabelief", options={"betas": [1.5, 0.9]})


def test_options_reach_the_optimizer_from_a_command_line() -> None:
    words = ["data=local", "data.path=x", "train/optim=library", "train.optim.name=adabelief", "train.optim.lr=0.2"]
    config = compose([*words, "train.optim.options={betas: [0.8, 0.7], rectify: true}"]).train.optim
    assert isinstance(config, lookup("train/optim", "library"))
    group = build("library", fresh(), lr=config.lr, name=config.name, options=config.options).param_groups[0]
    assert (group["betas"], group["rectify"], group["base_lr"]) == ((0.8, 0.7), True, 0.2)


def test_hidden_matrices_are_named_to_those_that_ask() -> None:
    groups = build("library", fresh(), lr=0.1, name="normuon").param_groups
    assert [(group["role"], group["use_muon"], len(group["params"])) for group in groups] == [
        ("hidden", True, 2),
        ("vector", False, 2),
    ]
