"""Profiles: where the time of steps went, what a trace says about operators, and that a run does not notice."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import LAYERS, batch_of, run_of, same, small_model, trained, weights
from small_methods import KeepHardest, SecondPass

from cramming.method import Method
from cramming.profiling import operators, profile
from cramming.profiling.limit import limit_s
from cramming.profiling.operators import Operator, by_kind, kind_of, shares, traced
from cramming.profiling.page import verdict
from cramming.profiling.phases import HostMarker, Pass, Timeline
from cramming.recording.summary import summary_table
from cramming.train import Run, train


@pytest.fixture(autouse=True)
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn once, where a command is tested, and takes longer than these runs."""
    monkeypatch.setattr(profile, "plot", lambda *_: None)


class Clock:
    """Goes on by itself: one second each time it is read, and more where it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def half(passes: Sequence[Pass]) -> float:
    return 0.5


def profiled(
    folder: Path, method: Method | None = None, limit: Callable[[Sequence[Pass]], float | None] = half, **options: Any
) -> tuple[Run, dict[str, Any]]:
    """A run in memory with a profile of 4 steps, on a clock that ticks whenever it is read."""
    run = run_of(method, **options)
    watch = profile.Profile(run, folder, steps=4, limit=limit, about={}, clock=HostMarker(Clock()))

    def observe(run: Run) -> None:
        watch.step_ended(run.step)
        watch.step_begins()

    watch.step_begins()
    train(run, observe)
    assert watch.finish() is not None
    return run, json.loads((folder / "profile" / "profile.json").read_text())


# ---- phases ----


def test_phases_inside_one_another_add_up_to_the_step() -> None:
    clock = Clock()
    timeline = Timeline(HostMarker(clock), lambda: (0, 1))
    batch = batch_of(2)
    with timeline("data"):
        pass  # before the step: not of it
    timeline.begin()
    clock.now_s += 4
    with timeline("data"), timeline.forward("selection", batch, gradients=False):
        clock.now_s += 10
    with timeline.forward("train", batch, gradients=True):
        clock.now_s += 20
        with timeline("optimizer"):
            clock.now_s += 30
    with timeline.backward("train"):
        clock.now_s += 40
    timeline.pause()  # a method defers the step
    clock.now_s += 1000
    timeline.begin()
    with timeline.backward("second_pass"):
        clock.now_s += 50
    timeline.pause()
    # A second more for each mark that follows one: the times the clock was read.
    expected = {"data": 2, "selection": 11, "forward": 22, "optimizer": 31, "backward": 41, "second_pass": 51}
    assert timeline.end() == {"other": 5 + 5, **expected}
    assert [(one.account, one.gradients, one.active_layers) for one in timeline.passes] == [
        ("selection", False, (0, 1)),
        ("train", True, (0, 1)),
    ]
    timeline.begin()
    timeline.pause()
    assert timeline.end() == {"other": 1.0}, "the next step begins at nothing"


def test_what_fails_inside_a_phase_ends_it() -> None:
    timeline = Timeline(HostMarker(Clock()), lambda: ())
    timeline.begin()
    with pytest.raises(RuntimeError), timeline("data"):
        raise RuntimeError
    timeline.pause()
    assert timeline.end() == {"other": 2.0, "data": 1.0}


# ---- a run ----


@pytest.mark.parametrize(
    ("method", "precision"), [(Method, "bfloat16"), (KeepHardest, "float32"), (SecondPass, "bfloat16")]
)
def test_a_profile_changes_nothing(method: type[Method], precision: str, tmp_path: Path) -> None:
    """Not a bit of the state, dropout included, not a second on the clock."""
    run, found = profiled(tmp_path, method(), precision=precision, dropout=0.1)
    plain = trained(run_of(method(), precision=precision, dropout=0.1))
    assert same(run.state_dict(), plain.state_dict())
    assert type(run.engine.phases).__name__ == "Phases", "nobody listens any more"
    own = {"KeepHardest": ["selection"], "SecondPass": ["second_pass"]}.get(method.__name__, [])
    assert list(found["phases"]) == ["data", *own, "forward", "backward", "optimizer", "other"]
    assert sum(found["phases"].values()) == pytest.approx(1)
    assert sum(found["classes"].values()) == pytest.approx(1)
    assert {"matrix products", "element-wise operators", "optimizer"} <= set(found["classes"])
    assert (found["steps"], found["traced_steps"], found["timed_steps"]) == (4, 3, 1)


def test_the_limit_is_of_all_passes_of_a_step(tmp_path: Path) -> None:
    asked: list[Sequence[Pass]] = []

    def limit(passes: Sequence[Pass]) -> None:
        asked.append(passes)

    _, found = profiled(tmp_path, KeepHardest(), limit)
    (passes,) = asked
    trained_on = [one for one in passes if one.gradients]
    assert [(one.account, len(one.batch)) for one in trained_on] == [("train", 4)] * 2
    assert {one.account for one in passes if not one.gradients} == {"selection"}
    assert found["share_of_limit"] is None
    assert "no memory" in found["notes"][-1]
    assert found["verdict"].startswith("the limit is not known; largest waste: ")


@pytest.mark.parametrize(("budget", "traced_steps", "timed_steps"), [(6, 1, 0), (8, 3, 0), (9, 3, 1), (30, 3, 1)])
def test_runs_that_end_early_are_profiled_with_what_they_have(
    budget: int, traced_steps: int, timed_steps: int, tmp_path: Path
) -> None:
    _, found = profiled(tmp_path, budget=budget)
    assert (found["traced_steps"], found["timed_steps"]) == (traced_steps, timed_steps)
    assert any("no step was timed" in note for note in found["notes"]) == (timed_steps == 0)


def test_of_steps_with_many_passes_the_last_are_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_TRACED_PASSES", 3)
    _, found = profiled(tmp_path, microbatch_size=1)
    with gzip.open(tmp_path / "profile" / "trace.json.gz", "rt") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert [names.count(f"phase: {name}") for name in ("forward", "backward", "data")] == [3, 3, 0]
    assert names.count("phase: optimizer") >= 1
    assert (found["traced_steps"], found["timed_steps"], found["passes"]) == (1, 3, 8)
    assert "the trace has the last 3 of the 8 passes of a step" in found["notes"]
    assert found["classes"]["reading and masking data"] == pytest.approx(found["phases"]["data"])


def test_a_process_that_ends_in_between_leaves_nothing(tmp_path: Path) -> None:
    run = run_of(budget=30)
    watch = profile.Profile(run, tmp_path, steps=20, limit=half, about={})

    def observe(run: Run) -> None:
        watch.step_ended(run.step)
        if run.step == 7:
            raise KeyboardInterrupt
        watch.step_begins()

    watch.step_begins()
    with pytest.raises(KeyboardInterrupt):
        train(run, observe)
    watch.close()
    assert not (tmp_path / "profile").exists()
    assert watch.finish() is None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        pass  # the tracer was stopped: another can be started


# ---- files ----


def test_a_damaged_profile_does_not_keep_a_run_from_its_summary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "profile.json").write_text("{")
    assert profile.NoProfile(tmp_path).finish() is None
    assert "is damaged" in caplog.text


# ---- operators ----


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", operators.PRODUCTS),
        ("aten::_fft_r2c", operators.PRODUCTS),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", operators.PRODUCTS),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", operators.PRODUCTS),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", operators.ATTENTION),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", operators.ATTENTION),
        ("triton_tem_fused_flex_attention_0", operators.ATTENTION),
        ("triton_poi_fused_add_gelu_3", operators.FUSED),
        ("## Call CompiledFxGraph fcboqdl6m7 ##", operators.FUSED),
        ("aten::gelu_backward", operators.ELEMENTWISE),
        ("aten::_foreach_add_", operators.ELEMENTWISE),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor>", operators.ELEMENTWISE),
        ("aten::native_layer_norm_backward", operators.NORMS),
        ("aten::_softmax", operators.NORMS),
        ("aten::copy_", operators.COPIES),
        ("aten::_to_copy", operators.COPIES),
        ("Memcpy HtoD (Pinned -> Device)", operators.COPIES),
        ("aten::index_copy", operators.INDEXING),
        ("aten::embedding_dense_backward", operators.INDEXING),
        ("aten::scatter_add_", operators.INDEXING),
        ("aten::native_dropout", operators.RANDOM),
        ("aten::bernoulli_", operators.RANDOM),
        ("aten::_fused_adamw_", operators.UPDATE),
        ("aten::expand", operators.REST),
        ("aten::as_strided", operators.REST),
        ("aten::linear", operators.REST),  # what it calls is the product
        ("autograd::engine::evaluate_function: IndexBackward0", operators.REST),
        ("GeluBackward0", operators.REST),
    ],
)
def test_operators_are_classed_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def event(cat: str, name: str, ts: float, dur: float, tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": tid, "args": args}


def listed(found: operators.Traced) -> dict[str, dict[str, tuple[float, int]]]:
    """Microseconds and calls, by phase and name."""
    return {phase: {o.name: (round(o.seconds * 1e6, 6), o.calls) for o in of} for phase, of in found.items()}


def test_an_operator_has_the_time_that_is_its_own() -> None:
    events = [
        event("user_annotation", "phase: forward", 0, 100),
        event("cpu_op", "aten::linear", 10, 50),
        event("cpu_op", "aten::addmm", 20, 30),
        event("cpu_op", "aten::addmm", 70, 20),
        event("user_annotation", "phase: optimizer", 91, 8),
        event("cpu_op", "aten::mm", 92, 6),
        event("cpu_op", "aten::mm", 300, 6),  # of no phase
        event("cpu_op", "aten::mm", 30, 6, tid=2),  # of another thread
        {"ph": "M", "name": "process_name"},
    ]
    between = "(Python and what else is between operators)"
    found = traced(events)
    assert listed(found) == {
        "forward": {between: (22, 1), "aten::linear": (20, 1), "aten::addmm": (50, 2)},
        "optimizer": {between: (2, 1), "aten::mm": (6, 1)},
    }
    kinds = by_kind(shares({"forward": 0.8, "optimizer": 0.1, "data": 0.1}, found, {}))
    products, rest = 0.8 * 50 / 92, 0.8 * 42 / 92
    assert kinds == pytest.approx(
        {operators.PRODUCTS: products, operators.REST: rest, operators.UPDATE: 0.1, operators.READING: 0.1}
    )
    assert next(iter(kinds)) == operators.PRODUCTS


def test_kernels_belong_to_the_phase_that_launched_them() -> None:
    """Whenever the device comes to run them; what it does not fill of a phase is waiting."""
    events = [
        event("user_annotation", "phase: forward", 0, 10),
        event("user_annotation", "phase: backward", 10, 10),
        event("cpu_op", "aten::mm", 1, 2, **{"External id": 7}),
        event("cuda_runtime", "cudaLaunchKernel", 2, 1, correlation=70),
        event("kernel", "a_library's_own", 50, 30, tid=9, correlation=70, **{"External id": 7}),
        event("cpu_op", "aten::add_", 12, 2, tid=2, **{"External id": 8}),  # the way back runs on another thread
        event("cuda_runtime", "cudaLaunchKernel", 13, 1, tid=2, correlation=80),
        event("kernel", "vectorized_elementwise_kernel", 80, 5, tid=9, correlation=80, **{"External id": 8}),
        event("cuda_runtime", "cudaLaunchKernel", 33, 1, correlation=90),
        event("kernel", "vectorized_elementwise_kernel", 90, 5, tid=9, correlation=90),  # between steps
    ]
    found = traced(events)
    assert found["forward"] == [Operator("a_library's_own", operators.PRODUCTS, 30e-6, 1)], "by what launched it"
    assert listed(found)["backward"] == {"vectorized_elementwise_kernel": (5, 1)}
    kinds = by_kind(shares({"forward": 0.6, "backward": 0.4}, found, {"forward": 40e-6, "backward": 20e-6}))
    assert kinds == pytest.approx({operators.PRODUCTS: 0.45, operators.REST: 0.45, operators.ELEMENTWISE: 0.1})


def test_a_trace_without_phases_says_nothing() -> None:
    assert traced([event("cpu_op", "aten::mm", 0, 1)]) == {}


# ---- the limit ----


def test_the_limit_adds_up_over_passes_and_leaves_no_trace() -> None:
    """With a clock that ticks when it is read, the products of every pass take a second, whatever they are."""
    whole, layers = batch_of(8), tuple(range(LAYERS))
    alike = [Pass("train", part, True, layers) for part in whole.split(4)]
    scored = Pass("selection", whole, False, layers)
    state = torch.get_rng_state()

    def build() -> Any:
        return small_model(dropout=0.5)

    expected = weights(build())
    torch.set_rng_state(state)
    assert limit_s(alike, build, 4, now=Clock()) == 2.0
    assert limit_s([*alike, scored], build, 4, now=Clock()) == 4.0, "two parts of four sequences are scored"
    assert limit_s([*alike, Pass("train", whole, True, ())], build, 4, now=Clock()) == 3.0
    padded = Pass("train", batch_of(8, "document"), True, layers)
    assert limit_s([padded, padded], build, 4, now=Clock()) == 2.0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(build()), expected)


def test_a_model_for_which_there_is_no_memory_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def recorded(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    passes = [Pass("train", batch_of(4), True, (0,))]
    assert limit_s(passes, recorded, 4) is None  # type: ignore[arg-type]
    monkeypatch.setattr("cramming.profiling.limit.recorded", recorded)
    assert limit_s(passes, small_model, 4) is None


# ---- the verdict ----


def test_the_largest_waste_is_what_is_not_needed() -> None:
    kinds = {operators.PRODUCTS: 0.6, operators.ATTENTION: 0.1, operators.ELEMENTWISE: 0.18, operators.REST: 0.12}
    said = "62 % of the limit of its matrix products; largest waste: element-wise operators 18 %"
    found = {"share_of_limit": 0.62, "largest_waste": profile._largest_waste(kinds, 0.62)}
    assert verdict(found) == said
    slow = profile._largest_waste(kinds, 0.4)
    assert slow == {"class": "products and attention above the limit", "share": pytest.approx(0.3)}
    assert profile._largest_waste({operators.PRODUCTS: 1.0}, 1.0) is None
    table = summary_table(
        {"steps": 1, "validation_loss": None, "spent_s": 1, "budget_s": 1, "wall_s": 1, "ledger": {}, "profile": found}
        | {"profile": {"verdict": said}},
        ascii_only=True,
    )
    assert table.splitlines()[-1] == f"profile: {said}"
