"""Progressive batching: every test against its definition over gradients that are all kept, in float64."""

import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import PassCost, run_of, same, trained, weights
from torch import Tensor
from whole_runs import run_with

from cramming.batch import Batch
from cramming.checkpoint import Checkpoint, save
from cramming.errors import UserError
from cramming.method import Forward, Method, Step
from cramming.train import Run, train
from efficient_training.progressive_batching import RULES, ProgressiveBatching

Gradient = dict[str, Tensor]


class Keeping(ProgressiveBatching):
    """Keeps every batch's gradient, and those that steps were taken with."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.given: list[Gradient] = []
        self.steps: list[tuple[int, Gradient]] = []  # after how many batches in all, with which gradient

    def update(self, run: Run, batch: Batch, factor: float, step: Step) -> int:
        self.given.append(copied(run))

        def noted(factor: float) -> int:
            self.steps.append((len(self.given), copied(run)))
            return step(factor)

        return super().update(run, batch, factor, noted)


def copied(run: Run) -> Gradient:
    scale = run.engine.state_dict()["scale"]
    return {n: p.grad.double() / scale for n, p in run.model.named_parameters() if p.grad is not None}


def flat(gradient: Gradient) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in gradient.values()])


def passes(rule: str, theta: float, gradients: list[Gradient]) -> bool:
    """The tests as they are defined, two batches at least."""
    all_of = torch.stack([flat(gradient) for gradient in gradients])
    n, latest, mean_before = len(gradients), all_of[-1], all_of[:-1].mean(0)
    if rule == "norm":
        return bool(all_of.var(0).sum() / n < theta * all_of.mean(0).square().sum())
    if rule == "inner_product":
        square = mean_before.square().sum()
        return bool((latest @ mean_before - square).square() / (n - 1) < theta * square.square())
    cosines = [
        torch.nn.functional.cosine_similarity(
            gradients[-1][name].flatten(), torch.stack([g[name] for g in gradients[:-1]]).mean(0).flatten(), dim=0
        )
        for name in gradients[-1]
    ]
    return float(sum(cosines)) / len(cosines) > theta


def expected(rule: str, theta: float, given: list[Gradient], monotone: bool) -> list[int]:
    """After how many batches steps of 2 to 7 are taken."""
    taken, start, least, most = [], 0, 2, 7
    for end in range(1, len(given) + 1):
        n = end - start
        if n >= least and (n >= most or n == 1 or passes(rule, theta, given[start:end])):
            taken.append(end)
            least, start = max(least, n) if monotone else least, end
    return taken


THETAS = {"norm": (0.3, 0.5, 0.8), "inner_product": (1e-3, 1e-2, 0.1), "cosine": (0.2, 0.5, 0.7)}


@cache
def gathered(rule: str, theta: float, monotone: bool) -> Keeping:
    """A run of some steps of at most 7 batches."""
    method = Keeping(rule=rule, theta=theta, max_batches=7, monotone=monotone)
    trained(run_of(method, budget=4, lr=0.01))
    return method


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize(("rule", "theta"), [(rule, theta) for rule in RULES for theta in THETAS[rule]])
def test_a_step_is_taken_when_the_test_passes_with_the_mean_of_what_was_gathered(
    rule: str, theta: float, monotone: bool
) -> None:
    method = gathered(rule, theta, monotone)
    ends = [end for end, _ in method.steps]
    assert ends == expected(rule, theta, method.given, monotone)
    assert len(ends) == 4
    for start, (end, used) in zip([0, *ends], method.steps, strict=False):
        assert 2 <= end - start <= 7
        for name, gradient in used.items():
            mean = torch.stack([given[name] for given in method.given[start:end]]).mean(0)
            torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-7)


def test_the_settings_above_defer_and_do_not_always_wait_to_the_end() -> None:
    """Or they would say nothing about the tests."""
    lengths: dict[str, set[int]] = {}
    for rule, thetas in THETAS.items():
        for theta in thetas:
            ends = [0, *(end for end, _ in gathered(rule, theta, False).steps)]
            lengths.setdefault(rule, set()).update(end - start for start, end in pairwise(ends))
    assert all(len(found) > 2 for found in lengths.values()), lengths


def test_float16s_loss_scale_has_no_part_in_it() -> None:
    method = Keeping(theta=0.5, max_batches=7)
    run = trained(run_of(method, budget=4, lr=0.01, precision="float16"))
    assert run.engine.state_dict()["scale"] > 1.0
    assert [end for end, _ in method.steps] == expected("norm", 0.5, method.given, monotone=False)


def test_the_loss_of_a_step_is_the_mean_of_its_batches() -> None:
    losses: list[float] = []

    class Loss(Keeping):
        def objective(self, forward: Forward, batch: Batch) -> Tensor:
            loss = super().objective(forward, batch)
            losses.append(float(loss.detach()))
            return loss

    run = trained(run_of(Loss(theta=0.02, max_batches=3), budget=1, microbatch_size=8))
    assert len(losses) == 3
    assert run.engine.loss == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_a_parameter_that_a_batch_does_not_use_has_the_gradient_zero_there() -> None:
    class FirstLayerOnly(Method):
        """In every other batch."""

        calls = 0

        def before_step(self, run: Run) -> None:
            self.calls += 1
            run.model.active_layers = (0, 1) if self.calls % 2 else (0,)

    method = Keeping(theta=1e-9, max_batches=4)
    trained(run_with({"first": FirstLayerOnly(), "progressive_batching": method}, budget=1))
    _, used = method.steps[0]
    for name, gradient in used.items():
        total = sum(given[name] for given in method.given if name in given)
        torch.testing.assert_close(gradient, total / 4, rtol=1e-4, atol=1e-7)
    assert any(name not in method.given[1] for name in used)


def test_a_gradient_that_is_not_finite_is_the_engines_to_skip() -> None:
    """Neither it nor what was gathered before it is in a later mean."""

    class Spoilt(Keeping):
        def objective(self, forward: Forward, batch: Batch) -> Tensor:
            loss = super().objective(forward, batch)
            return loss * math.nan if len(self.given) == 1 else loss

    method = Spoilt(theta=1e-9, max_batches=2)
    run = trained(run_of(method, budget=2, lr=0.01, microbatch_size=8))
    assert [end for end, _ in method.steps] == [2, 4]
    assert run.engine.skipped_steps == 1
    mean = (flat(method.given[2]) + flat(method.given[3])) / 2
    torch.testing.assert_close(flat(method.steps[1][1]), mean, rtol=1e-4, atol=1e-7)


def test_what_waits_when_the_budget_ends_is_dropped() -> None:
    """Paid for, and no step taken with it."""
    method = ProgressiveBatching(theta=1e-9, max_batches=4)
    step = 4 * 8 * 3 * 3 + 1
    run = trained(run_of(method, budget=step + 100, costs=PassCost()))
    assert run.step == 1
    assert run.clock.counts["train"]["forward_backward"]["sequences"] == 6 * 8
    assert method.state_dict()["batches"] == 2
    one = trained(run_of(ProgressiveBatching(theta=1e-9, max_batches=4), budget=step, costs=PassCost()))
    assert torch.equal(weights(run.model), weights(one.model))


@pytest.mark.parametrize(
    ("rule", "precision"), [("norm", "float32"), ("inner_product", "bfloat16"), ("cosine", "float32")]
)
def test_a_step_that_waits_survives_a_kill(rule: str, precision: str, tmp_path: Path) -> None:
    """From every batch, of a step that waits too, to the last bit."""

    def fresh() -> Run:
        return run_of(
            ProgressiveBatching(rule=rule, theta=THETAS[rule][0], max_batches=4, monotone=True),
            budget=3, lr=0.01, precision=precision,
        )  # fmt: skip

    saved: list[Path] = []

    def keep(run: Run) -> None:
        saved.append(save(tmp_path / str(len(saved)), run.step, run.state_dict(), {}, keep=1, kept_at_h=[]))

    whole = fresh()
    train(whole, keep)
    assert len(saved) > 4
    for folder in saved[1:3]:
        resumed = fresh()
        resumed.load_state_dict(Checkpoint(folder).read())
        trained(resumed)
        assert torch.equal(weights(resumed.model), weights(whole.model))
        assert same(resumed.method.state_dict(), whole.method.state_dict())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rule": "norms"}, "rule=norms is unknown.*norm"),
        ({"theta": 0.0}, r"theta=0\.0 must be above 0"),
        ({"theta": math.nan}, "theta=nan must be above 0"),
        ({"rule": "cosine", "theta": 1.0}, r"theta=1\.0: no cosine is above that"),
        ({"min_batches": 0}, "min_batches=0 must lie between 1 and max_batches=128"),
        ({"min_batches": 9, "max_batches": 8}, "min_batches=9 must lie between 1 and max_batches=8"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        ProgressiveBatching(**options)
