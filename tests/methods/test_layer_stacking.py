"""Layer stacking: when it grows, what a growth leaves behind, and what it costs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from deep import deep_model, deep_run, layer_weights
from memory import PassCost, engine_of, same, stream, trained
from small_methods import SecondPass
from torch import Tensor, nn

from cramming.architectures import dense_outputs, from_reference
from cramming.architectures.configs.albert import AlbertConfig
from cramming.architectures.configs.hf import HfConfig
from cramming.architectures.references import FAMILIES
from cramming.batch import Batch
from cramming.config import PretrainConfig
from cramming.costs import RTX3090
from cramming.errors import UserError
from cramming.method import Chain, Method, Step
from cramming.schedule import Linear
from cramming.train import Run
from efficient_training.layer_stacking import LayerStacking, Stage
from efficient_training.progressive_batching import ProgressiveBatching
from rst import CostTable, Work
from rst.clock import Clock
from rst.costs import StepsCost
from tests.architectures.golden import load


def plan(layers: int, **options: Any) -> list[tuple[float, int]]:
    """(begins, layers) of each stage."""
    return [(stage.begins, stage.layers) for stage in LayerStacking(**options).stages(layers)]


def depth(stages: list[Stage], progress: float) -> int:
    """Layers at a share of the budget."""
    return [stage.layers for stage in stages if stage.begins <= progress][-1]


# ---- when ----


def stored_plan(config: dict[str, Any]) -> LayerStacking:
    """The earlier system's plan for 16 layers. Adding one at a time it ends where its times do."""
    first, times = config["num_initial_layers"], config["step_fractions"]
    if config["doubling"]:
        return LayerStacking(growth="double", shares=[first / 16, 1.0], at=times)
    return LayerStacking(growth="one", shares=[first / 16, (first + len(times)) / 16], at=times)


@pytest.mark.parametrize("case", [0, 1])
def test_the_earlier_systems_depth_at_any_time(shared: Path, case: int) -> None:
    stored = json.loads((shared / "golden/stacking_schedule.json").read_text())["cases"][case]
    budget_s, stages = 3600 * stored["config"]["budget"], stored_plan(stored["config"]).stages(16)
    found = [[time_s, depth(stages, time_s / budget_s)] for time_s, _ in stored["grid_time_layers"]]
    assert found == stored["grid_time_layers"]
    if case == 0:
        assert stages == LayerStacking().stages(16), "the default"


@pytest.mark.parametrize("case", [0, 1])
def test_the_earlier_systems_loop_grows_at_the_same_moments(shared: Path, case: int) -> None:
    """Its microbatches of 512 at the inherited prices. Once seven layers are active it goes on at a tenth of what they
    cost (a misprint in its table), and ours does not."""
    stored = json.loads((shared / "golden/stacking_schedule.json").read_text())["cases"][case]
    table, budget_s = CostTable.load(RTX3090), 3600 * stored["config"]["budget"]
    stages = stored_plan(stored["config"]).stages(16)
    steps, spent_s, changes = 0, 0.0, [[0, 0.0, depth(stages, 0.0)]]
    while spent_s < budget_s:
        steps, spent_s = steps + 1, spent_s + table.seconds(Work("forward_backward", 512, 128, changes[-1][2]))
        if depth(stages, spent_s / budget_s) > changes[-1][2]:
            changes.append([steps, spent_s, depth(stages, spent_s / budget_s)])
    comparable = [row for row in stored["rst_loop"]["changes_step_seconds_layers"] if row[2] <= 7 or case == 0]
    for ours, theirs in zip(changes, comparable, strict=False):
        assert ours == [theirs[0], pytest.approx(theirs[1], rel=1e-9), theirs[2]]
    assert len(changes) == len(stored["rst_loop"]["changes_step_seconds_layers"])
    if case == 0:
        assert steps == stored["rst_loop"]["total_microbatch_steps"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (16, [(0.0, 4), (0.125, 8), (0.3, 16)]),
        (12, [(0.0, 3), (0.125, 6), (0.3, 12)]),
        (22, [(0.0, 6), (0.125, 11), (0.3, 22)]),  # round(5.5) is 6
        (10, [(0.0, 2), (0.125, 5), (0.3, 10)]),  # round(2.5) is 2
        (3, [(0.0, 1), (0.125, 2), (0.3, 3)]),
        (2, [(0.0, 1), (0.3, 2)]),  # a quarter and a half of two are one
        (1, [(0.0, 1)]),
    ],
)
def test_shares_fit_any_depth(layers: int, expected: list[tuple[float, int]]) -> None:
    assert plan(layers) == expected


def test_plans_by_hand() -> None:
    assert plan(6, schedule="monomial", growth="one", shares=[0.5, 1.0], until=0.6, power=2.0) == [
        (0.0, 3), (pytest.approx(0.6 / 9), 4), (pytest.approx(0.6 * 4 / 9), 5), (0.6, 6),
    ]  # fmt: skip
    # arccos(1 - 2 i / 4) / pi for i = 1 to 4.
    assert plan(16, schedule="cosine", growth="double", shares=[1 / 16, 1.0]) == [
        (0.0, 1), (pytest.approx(0.25), 2), (pytest.approx(0.375), 4), (pytest.approx(0.5), 8), (0.75, 16),
    ]  # fmt: skip
    assert plan(10, growth="double", shares=[0.2, 0.9], at=[0.1, 0.2, 0.3, 0.4]) == [
        (0.0, 2), (0.1, 4), (0.2, 8), (0.3, 9),
    ]  # fmt: skip
    assert plan(8, shares=[0.5, 0.5, 1.0], at=[0.1, 0.2]) == [(0.0, 4), (0.2, 8)]
    for i, (begins, _) in enumerate(plan(9, schedule="cosine", growth="one", shares=[1 / 9, 1.0], until=0.5)):
        assert begins == pytest.approx(0.5 * math.acos(1 - i / 4) / math.pi)


def test_a_run_is_as_deep_as_its_progress_says_at_the_beginning_of_a_step() -> None:
    """Priced by hand: 8 sequences x 3 x (1 + layers) and 1 for the update, until 12.5 % and 30 % of 2000."""
    run, depths = deep_run(LayerStacking(), budget=2000, costs=PassCost()), []
    trained(run, lambda r: depths.append(len(r.model.active_layers)))
    spent, expected = 0, []
    while spent < 2000:
        expected.append(1 if spent < 250 else 2 if spent < 600 else 4)
        spent += 8 * 3 * (1 + expected[-1]) + 1
    assert depths == expected
    assert run.clock.spent_s == spent
    assert run.clock.ledger == {"train": spent - len(depths), "optimizer": len(depths)}


# ---- what a growth leaves ----


def states(run: Run, layer: int) -> list[dict[str, Any] | None]:
    """A copy of what the optimizer keeps for each parameter of a layer; None for nothing."""
    kept: list[dict[str, Any] | None] = []
    for parameter in run.model.blocks[layer].parameters():
        state = run.engine.optimizer.state.get(parameter)
        kept.append({k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()} if state else None)
    return kept


def grown(method: LayerStacking, layers: int, optimizer: str, precision: str = "float32") -> tuple[Run, Any, Any]:
    """A run after four steps at its first depth, and after its first growth: weights and states of every layer."""
    hyperparameters = {"momentum": 0.9} if optimizer == "sgd" else None
    run = deep_run(method, layers, optimizer=optimizer, hyperparameters=hyperparameters, budget=4, precision=precision)
    trained(run)
    before = layer_weights(run.model), [states(run, layer) for layer in range(layers)]
    run.clock.budget_s = 4.1  # progress 0.976
    method.before_step(run)
    return run, before, (layer_weights(run.model), [states(run, layer) for layer in range(layers)])


SOURCES = {("stack", 4): [0, 1, 0, 1], ("interleave", 4): [0, 0, 1, 1], ("stack", 5): [0, 1, 0, 1, 0]}


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "sgd"])
@pytest.mark.parametrize("kept", ["fresh", "copy", "keep", "reset"])
@pytest.mark.parametrize(("order", "layers"), SOURCES)
def test_layers_and_what_the_optimizer_knows_of_them(order: str, layers: int, kept: str, optimizer: str) -> None:
    method = LayerStacking(shares=[0.4 if layers == 5 else 0.5, 1.0], at=[0.97], order=order, optimizer_state=kept)
    run, (weights, before), (copies, after) = grown(method, layers, optimizer)
    assert run.model.active_layers == tuple(range(layers))
    assert all(state is None for layer in (2, 3) for state in before[layer]), "they have never been trained"
    assert all(state is not None for layer in (0, 1) for state in before[layer])
    seen: set[int] = set()
    for layer, source in enumerate(SOURCES[order, layers]):
        assert torch.equal(copies[layer], weights[source])
        new, nothing = source in seen, [None] * len(before[0])
        seen.add(source)
        expected = {
            "fresh": nothing if new else before[source],
            "copy": before[source],
            "keep": before[layer],
            "reset": nothing,
        }
        assert same(after[layer], expected[kept])
    others = [p for name, p in run.model.named_parameters() if not name.startswith("blocks.")]
    assert all((run.engine.optimizer.state.get(p) is None) == (kept == "reset") for p in others)
    if kept == "copy":
        first, second = (
            run.model.blocks[SOURCES[order, layers].index(0) + i] for i in (0, 2 if order == "stack" else 1)
        )
        for one, other in zip(first.parameters(), second.parameters(), strict=True):
            pairs = zip(*(run.engine.optimizer.state[p].values() for p in (one, other)), strict=True)
            assert one.data_ptr() != other.data_ptr()
            assert all(a.data_ptr() != b.data_ptr() for a, b in pairs if isinstance(a, Tensor))


@pytest.mark.parametrize("case", ["copyopt", "nocopyopt"])
def test_the_earlier_systems_growths(shared: Path, case: str) -> None:
    """Six steps of eight layers' first two, four, eight: losses, weights and AdamW's state before and after each."""
    stored, tensors = load(shared, f"stacking_event_{case}")
    initial = {name.removeprefix("state_dict."): tensor for name, tensor in tensors["initial"].items()}
    model = from_reference("ntng", stored["config"], initial, "mlm")
    method = LayerStacking(
        shares=[0.25, 0.5, 1.0], at=stored["step_fractions"], optimizer_state="copy" if case == "copyopt" else "fresh"
    )
    clock = Clock({"main": StepsCost()}, stored["seconds_budget"])
    options = {key: stored["optimizer"][key] for key in ("betas", "eps", "weight_decay")}
    engine = engine_of(model, lr=stored["optimizer"]["lr"], clock=clock)
    # The reference decays the weights of its norms, by accident.
    decayed = {"params": [p for name, p in model.named_parameters() if not name.endswith("bias")]}
    rest = {"params": [p for name, p in model.named_parameters() if name.endswith("bias")], "weight_decay": 0.0}
    engine.optimizer = torch.optim.AdamW([decayed, rest], lr=stored["optimizer"]["lr"], **options)
    run = Run(PretrainConfig(), model, engine, stream(), clock, method, lambda _: 1.0, lambda _: 1)  # type: ignore[arg-type]
    method.setup(run)
    parameters, sources = dict(model.named_parameters()), FAMILIES["ntng"](stored["config"], "mlm").sources

    def compare(tag: str) -> None:
        for ours, source in sources.items():
            (theirs,) = source.names
            state = engine.optimizer.state.get(parameters[ours]) or {}
            found = {f"state_dict.{theirs}": parameters[ours]} | {f"optim.{theirs}.{k}": v for k, v in state.items()}
            wanted = {f"state_dict.{theirs}", *(f"optim.{theirs}.{key}" for key in ("exp_avg", "exp_avg_sq", "step"))}
            wanted &= set(tensors[tag])
            if tag != "final" and wanted and not {name for name in wanted if name.startswith("optim.")}:
                assert not state, f"{tag}: {theirs}"
            for name in wanted:
                there = tensors[tag][name]
                there = there if source.order is None or there.dim() == 0 else there[source.order]
                torch.testing.assert_close(found[name].detach(), there, rtol=0, atol=1e-5, msg=f"{tag}: {name}")

    for i, step in enumerate(stored["steps"]):
        assert len(model.active_layers) == step["active_before"]
        inputs = {name: tensors["input"][f"{i}.{name}"] for name in ("input_ids", "labels")}
        loss = dense_outputs(model, **inputs)["loss"]
        assert loss.item() == pytest.approx(step["loss"], abs=1e-5)
        loss.backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        if f"before{i}" in tensors:
            compare(f"before{i}")
        clock.spent_s, run.step = step["seconds"], i + 1
        method.before_step(run)
        assert len(model.active_layers) == step["active_after"]
        if f"after{i}" in tensors:
            compare(f"after{i}")
    compare("final")


def test_growths_that_are_due_together_come_one_after_the_other() -> None:
    """2 -> 3 -> 5 gives A,B,A,A,B, where 2 -> 5 at once would give A,B,A,B,A."""
    method = LayerStacking(shares=[0.4, 0.6, 1.0], at=[0.97, 0.975])
    _, (weights, _), (copies, _) = grown(method, 5, "sgd")
    assert [next(i for i in (0, 1) if torch.equal(copy, weights[i])) for copy in copies] == [0, 1, 0, 0, 1]


def test_layers_that_are_not_active_are_left_alone() -> None:
    method = LayerStacking(shares=[0.5, 1.0], at=[0.9])
    run = deep_run(method, budget=5)
    before = layer_weights(run.model)
    trained(run)
    moved = [not torch.equal(one, other) for one, other in zip(before, layer_weights(run.model), strict=True)]
    assert moved == [True, True, False, False]
    assert all(p.grad is None and p not in run.engine.optimizer.state for p in run.model.blocks[2].parameters())


def test_the_first_layer_of_modernbert_has_no_norm_to_copy() -> None:
    """What is copied from it keeps its own norm."""
    model = deep_model(4, "modern_tiny")
    norms = [block.attention_norm for block in model.blocks[1:]]
    before = [norm.weight.detach().clone() for norm in norms]  # type: ignore[union-attr]
    run = deep_run(LayerStacking(shares=[0.25, 1.0], at=[0.4]), model=model, budget=1)
    run.clock.spent_s = 0.5
    run.method.before_step(run)
    assert all(torch.equal(norm.weight, old) for norm, old in zip(norms, before, strict=True))  # type: ignore[union-attr]
    assert torch.equal(model.blocks[3].feedforward.expand.weight, model.blocks[0].feedforward.expand.weight)  # type: ignore[union-attr]


def test_growth_waits_for_a_step_that_was_put_off() -> None:
    """Nine batches, three to a step: from 10 % and 30 % on, within the first, all of it has one depth."""

    class Sequences:
        def seconds(self, work: Work) -> float:
            return float(work.sequences)

    gathered = ProgressiveBatching(min_batches=3, max_batches=3)
    chain = Chain({"layer_stacking": LayerStacking(at=[0.1, 0.3]), "progressive_batching": gathered})
    run, depths = deep_run(chain, budget=72, costs=Sequences()), []
    trained(run, lambda r: depths.append((r.step, len(r.model.active_layers))))
    assert depths == [(0, 1), (0, 1), (1, 1), (1, 4), (1, 4), (2, 4), (2, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_computes_is_what_has_grown(precision: str) -> None:
    """The low-precision copy follows: the same losses as an engine that begins with these weights."""
    run, _, _ = grown(LayerStacking(shares=[0.5, 1.0], at=[0.97]), 4, "adamw", precision)
    batch = stream().draw(4)
    again = deep_model(4, hidden=32, heads=2, intermediate=64)
    again.load_state_dict(run.model.state_dict())
    fresh = engine_of(again, precision=precision)
    assert torch.equal(run.engine.losses(batch, "check"), fresh.losses(batch, "check"))


# ---- learning rate and freezing ----


def test_learning_rates_follow_the_depth() -> None:
    schedule = Linear(warmup=0.2)
    run, rates = deep_run(LayerStacking(learning_rate_power=0.5), 4, schedule=schedule), []
    trained(run, lambda r: rates.append([group["lr"] for group in r.engine.optimizer.param_groups]))
    depths = [1, 1, 2, 4, 4, 4, 4, 4, 4, 4]
    for step, (found, active) in enumerate(zip(rates, depths, strict=True)):
        assert found == pytest.approx([1e-3 * schedule(step / 10) * math.sqrt(active / 4)] * len(found))


@pytest.mark.parametrize("order", ["stack", "interleave"])
@pytest.mark.parametrize("share", [0.15, 1.0])
def test_lower_layers_are_frozen_for_a_share_of_the_budget(order: str, share: float) -> None:
    method = LayerStacking(shares=[0.5, 1.0], at=[0.4], order=order, freeze_lower=share)
    run, seen = deep_run(method, 4), []
    trained(run, lambda r: seen.append(layer_weights(r.model)))
    old = {0, 1} if order == "stack" else {0, 2}
    for step in range(5, 10):
        moved = {i for i in range(4) if not torch.equal(seen[step][i], seen[step - 1][i])}
        # Grown before the fifth step, at 0.4; frozen in it and in the sixth.
        assert moved == ({0, 1, 2, 3} - old if step < 6 or share == 1 else {0, 1, 2, 3}), step


@pytest.mark.parametrize("names", [("stacking", "second", "watch"), ("second", "stacking", "watch")])
def test_frozen_layers_have_no_gradient_when_the_step_clips(names: tuple[str, ...]) -> None:
    """Also where another method passes the batch a second time, whichever comes first in the list."""
    seen: list[list[bool]] = []

    class Watch(Method):
        def update(self, run: Run, batch: Batch, factor: float, step: Step) -> int:
            seen.append([all(p.grad is None for p in block.parameters()) for block in run.model.blocks])
            return step(factor)

    stacking = LayerStacking(shares=[0.5, 1.0], at=[0.4], freeze_lower=0.25)
    methods = {"stacking": stacking, "second": SecondPass(), "watch": Watch()}
    trained(deep_run(Chain({name: methods[name] for name in names}), 4))  # type: ignore[misc]
    shallow, frozen, whole = [False, False, True, True], [True, True, False, False], [False] * 4
    assert seen == [shallow] * 4 + [frozen] * 3 + [whole] * 3


# ---- bad input ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shares": [0.5, 0.25, 1.0]}, r"shares=\[0.5, 0.25, 1.0\] shrinks"),
        ({"shares": []}, r"shares=\[\] names no stage"),
        ({"shares": [0.0, 1.0]}, "must be shares of the layers above 0, up to 1"),
        ({"shares": [0.5, float("nan")], "at": [0.5]}, "must be shares of the layers"),
        ({"at": [0.125, 1.2]}, r"at=\[0.125, 1.2\] must be shares of the budget above 0 and below 1: at 1 it is over"),
        ({"at": [0.3, 0.125]}, r"at=\[0.3, 0.125\] must ascend"),
        ({"at": [0.3]}, r"at=\[0.3\] must say when each stage but the first begins: .* takes 2 times"),
        ({"schedule": "cosin"}, "schedule=cosin is unknown; did you mean 'cosine'"),
        ({"order": "interleaved"}, "order=interleaved is unknown; did you mean 'interleave'"),
        ({"optimizer_state": "copied"}, "optimizer_state=copied is unknown; did you mean 'copy'"),
        ({"schedule": "cosine", "until": 1.0}, "until=1.0 is when the last growth comes: give a share .* below 1"),
        ({"schedule": "monomial", "power": 0.0}, "power=0.0 must be above 0"),
        ({"learning_rate_power": float("inf")}, "learning_rate_power=inf is not a finite number"),
        ({"freeze_lower": 1.5}, "freeze_lower=1.5 is a share of the budget"),
    ],
)
def test_plans_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"method.layer_stacking.{says}|{says}"):
        LayerStacking(**options)


@pytest.mark.parametrize(
    ("model", "method", "says"),
    [
        (
            lambda: AlbertConfig(layers=4, hidden=32, heads=2, intermediate=64, embedding_dim=16).build(64, 24),
            LayerStacking(),
            "method=layer_stacking needs layers that are each their own, and those of Albert are one and the same",
        ),
        (
            lambda: HfConfig(model_type="funnel", config={"d_model": 32, "n_head": 2, "d_inner": 64}).build(64, 24),
            LayerStacking(),
            "only run all together",
        ),
        (
            lambda: deep_model(16),
            LayerStacking(growth="one"),
            r"at=\[0.125, 0.3\] ends at 6 of 16 layers: growth=one needs 12 times, or schedule=monomial",
        ),
        (
            lambda: deep_model(4, "crammed_tiny", ffn_layer_frequency=2),
            LayerStacking(),
            "cannot copy layer 0 of Crammed to layer 1: they differ in 'feedforward.function.contract.weight'",
        ),
    ],
    ids=["shared", "inseparable", "short", "unlike"],
)
def test_models_it_cannot_stack_are_refused(model: Any, method: LayerStacking, says: str) -> None:
    with pytest.raises(UserError, match=says):
        deep_run(method, model=model())


def test_layers_that_differ_may_be_stacked_like_to_like() -> None:
    model: nn.Module = deep_model(4, "crammed_tiny", ffn_layer_frequency=2)
    trained(deep_run(LayerStacking(shares=[0.5, 1.0], at=[0.5]), model=model, budget=3))  # type: ignore[arg-type]
