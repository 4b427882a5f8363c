"""How blocks run: what compiling a model block by block must not do, and what CUDA graphs ask of an engine.

Most backends here compile nothing: one counts what it is asked for, one treats the memory of what it computes as CUDA
graphs do. There are none on a processor, so ``graphs`` takes the path of a GPU; with the real backend (``full``) torch
then compiles as it would there and starts kernels one by one.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from memory import LENGTH, VOCABULARY, batch_of, engine_of, gradients, store, stream, weights
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd

from cramming import compiling
from cramming.architectures.configs.bert import BertConfig
from cramming.architectures.configs.modern import ModernConfig
from cramming.batch import Batch
from cramming.compiling import COMPILED, REPLAYED, lacking
from cramming.engine import Engine
from cramming.method import Forward, Method

objective = Method().objective
STEPS = 50


class Counted:
    """A backend that runs what it is given as it is."""

    def __init__(self) -> None:
        self.graphs = 0  # it was asked to compile
        self.calls = 0  # of them

    def __call__(self, module: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1

        def call(*arguments: Any) -> Any:
            self.calls += 1
            return module.forward(*arguments)

        return call


class Overwritten:
    """A backend whose graphs return memory of their own, which is overwritten as soon as the next pass begins."""

    def __init__(self) -> None:
        self.backend = aot_autograd(fw_compiler=self._compile, bw_compiler=self._compile)
        self.passes = 0
        self.overwrites = True
        self._written: list[torch.UntypedStorage] = []

    def _compile(self, module: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        def call(arguments: list[Any]) -> Any:
            given = {a.untyped_storage().data_ptr() for a in arguments if isinstance(a, Tensor)}
            found = module.forward(*arguments)
            arguments.clear()
            made = [f.untyped_storage() for f in found if isinstance(f, Tensor)]
            # The storage alone: autograd takes a gradient over as it is only from whoever holds no tensor of it.
            self._written += [storage for storage in made if storage.data_ptr() not in given]
            return found

        call._boxed_call = True  # type: ignore[attr-defined]
        return call

    def next_pass(self) -> None:
        """In place of torch's mark."""
        self.passes += 1
        for storage in self._written if self.overwrites else []:
            torch.empty(0, dtype=torch.uint8).set_(storage).fill_(0xFF)  # type: ignore[call-overload] # not a number
        self._written.clear()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """Counts what is compiled for blocks that are not replayed."""
    counted = Counted()
    monkeypatch.setitem(COMPILED, "backend", counted)
    torch._dynamo.reset()
    yield counted
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch, compiled: Counted) -> Counted:
    """Counts what is compiled to be replayed, on a device that is said to have CUDA graphs."""
    counted = Counted()
    monkeypatch.setattr(compiling, "lacking", lambda *about: None)
    monkeypatch.delitem(REPLAYED, "mode")
    monkeypatch.setitem(REPLAYED, "backend", counted)
    return counted


@pytest.fixture
def overwritten(monkeypatch: pytest.MonkeyPatch, graphs: Counted) -> Overwritten:
    """What is replayed overwrites what the pass before left."""
    memory = Overwritten()
    monkeypatch.setitem(REPLAYED, "backend", memory.backend)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", memory.next_pass)
    return memory


def deep(layers: int = 4, dropout: float = 0.0) -> torch.nn.Module:
    """BERT of width 32."""
    torch.manual_seed(0)
    config = BertConfig(layers=layers, hidden=32, heads=2, intermediate=64, dropout=dropout, init_std=0.1)
    return config.build(VOCABULARY, LENGTH).train(dropout > 0)


def step(engine: Engine, batch: Batch, depth: tuple[int, ...] | None = None) -> float:
    """A step and a scoring pass at a depth; the loss."""
    if depth is not None:
        engine.model.active_layers = depth
    engine.losses(batch, "selection")
    for part in batch.split(engine.microbatch_size):
        engine.backward(part, objective)
    engine.step(1.0)
    return engine.loss


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The log's lines about CUDA graphs."""
    return [record.getMessage() for record in caplog.records if "cuda_graphs" in record.getMessage()]


# ---- depth ----

DEPTHS = [(0,), (0, 1), (0, 1, 2, 3), (0, 2), (1, 3), (3,), (1, 2, 3), (0, 1, 2), (2,), ()]


def test_no_depth_compiles_anything_that_the_whole_model_has_not(compiled: Counted) -> None:
    """Stacked, dropped, with and without gradients, whichever block is last or scaled: two places, each twice."""
    engine, batch = engine_of(deep(), compile=True, microbatch_size=4), batch_of(8)
    step(engine, batch)
    assert compiled.graphs == 4
    for depth in DEPTHS:
        engine.model.layer_scales = dict.fromkeys(depth[::2], 1.25)
        before = compiled.calls
        step(engine, batch, depth)
        assert compiled.calls == before + 4 * len(depth), "blocks ran, compiled: two parts, with gradients and without"
        engine.logits(batch, "selection")
        engine.uncharged_logits(next(batch.split(4)))
        engine.uncharged_hidden(next(batch.split(4)))
    assert compiled.graphs == 4


def test_kinds_of_layers_are_compiled_once_for_every_place(compiled: Counted) -> None:
    """Of layers that differ each kind has its own, however they are chosen."""
    torch.manual_seed(0)
    config = ModernConfig(layers=6, hidden=32, heads=2, intermediate=64, window=4, separate_documents=False)
    engine, batch = engine_of(config.build(VOCABULARY, LENGTH), compile=True, microbatch_size=8), batch_of(8)
    chosen = [(0, 1, 2, 3, 4, 5), (0, 1, 2, 3), (0,), (1, 2), (3,), (0, 3), (0, 1), (2, 3), (4, 5)]
    for depth in chosen:
        engine.model.active_layers = depth
        engine.backward(batch, objective)
    kinds = 3  # the first has no norm before it, every third sees all tokens, the others a window
    assert 0 < compiled.graphs <= 2 * kinds
    seen = compiled.graphs
    for depth in reversed(chosen):
        engine.model.active_layers = depth
        engine.backward(batch, objective)
    assert compiled.graphs == seen


# ---- CUDA graphs: which passes ----


def test_passes_that_are_paid_for_are_replayed_and_others_are_not(graphs: Counted, compiled: Counted) -> None:
    engine, batch = engine_of(deep(), compile=True, cuda_graphs=True, microbatch_size=8), batch_of(8)
    step(engine, batch)
    engine.logits(batch, "selection")
    assert (graphs.graphs, graphs.calls) == (4, 4 * 3)
    assert compiled.graphs == 0
    engine.uncharged_logits(batch)
    engine.uncharged_hidden(batch)
    assert (compiled.calls, graphs.calls) == (4 * 2, 4 * 3)
    step(engine, batch)
    assert (graphs.graphs, graphs.calls) == (4, 4 * 5)
    assert engine.cuda_graphs == "replayed"


def test_depths_that_grow_are_recorded_up_to_a_number(
    graphs: Counted, compiled: Counted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "PATHS", 4)  # two depths, with and without gradients
    engine, plain = (engine_of(deep(), compile=True, cuda_graphs=on, microbatch_size=8) for on in (True, False))
    batch, depths = batch_of(8), [tuple(range(depth)) for depth in (1, 2, 4, 3)]
    assert [step(engine, batch, depth) for depth in depths] == [step(plain, batch, depth) for depth in depths]
    assert warned(caplog) == [
        "impl.cuda_graphs=true: no graphs for passes at more than 4 depths and shapes, each of which is recorded for "
        "itself"
    ]
    assert engine.cuda_graphs.startswith("replayed, but not at more than 4 depths")
    recorded, others = graphs.calls, compiled.calls
    step(engine, batch, (0, 1))
    assert (graphs.calls, compiled.calls) == (recorded + 2 * 2, others), "those there are, are replayed"
    step(engine, batch, (0, 1, 2))
    assert (graphs.calls, compiled.calls) == (recorded + 2 * 2, others + 2 * 3)


def test_layers_that_are_drawn_are_not_recorded(
    graphs: Counted, compiled: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever came before them: a run that was continued does the same."""
    engine, plain = (engine_of(deep(), compile=True, cuda_graphs=on, microbatch_size=8) for on in (True, False))
    batch, drawn = batch_of(8), [(0, 2), (1, 3), (3,), (1, 2, 3), (2,)]
    assert [step(engine, batch, depth) for depth in drawn] == [step(plain, batch, depth) for depth in drawn]
    engine.model.layer_scales = {0: 1.25}
    step(engine, batch, (0, 1))
    assert graphs.calls == 0
    assert [line[:68] for line in warned(caplog)] == [
        "impl.cuda_graphs=true: no graphs for passes of layers that are drawn"
    ]
    engine.model.layer_scales = None
    step(engine, batch, (0, 1))
    assert graphs.calls == 2 * 2


def test_batches_of_every_shape_are_not_recorded(
    graphs: Counted, compiled: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of(deep(2), compile=True, cuda_graphs=True, microbatch_size=8)
    for _ in range(2):
        engine.losses(batch_of(8, "document"), "selection")
    assert graphs.graphs == 0
    assert compiled.calls > 0
    assert [line[:66] for line in warned(caplog)] == [
        "impl.cuda_graphs=true: no graphs for passes of batches without the"
    ]
    engine.losses(batch_of(8), "selection")
    assert graphs.graphs == 2, "full ones are"


def test_every_pass_is_marked_where_it_begins_and_nothing_inside_it(
    graphs: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of the engine is one pass, whatever an objective asks of the model in it."""
    marks: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(graphs.calls))
    engine, batch = engine_of(deep(2), compile=True, cuda_graphs=True, microbatch_size=2), batch_of(4)

    def much(forward: Forward, part: Batch) -> Tensor:
        judged = engine.losses(part, "selection")
        both = objective(forward, part) + forward(part, logits=True).square().mean()
        return both * engine.logits(part, "selection").square().mean() + judged.mean()

    engine.backward(batch, much)
    assert marks == [0]
    at = graphs.calls
    assert at == 2 * 6
    engine.losses(batch, "selection")  # in two parts
    engine.probe("forward_backward", batch, (1,))()
    assert marks == [0, at, at + 2, at + 4]
    plain = engine_of(deep(2), compile=True, microbatch_size=4)
    plain.backward(batch, objective)
    assert len(marks) == 4


# ---- CUDA graphs: whose memory ----


def low(dropout: float = 0.0) -> Engine:
    """An engine with a low-precision copy of two layers, which replays them."""
    model = deep(2, dropout)
    return engine_of(model, "adamw", lr=1e-3, precision="bfloat16", microbatch_size=4, compile=True, cuda_graphs=True)


def trained() -> tuple[list[float], Tensor]:
    """50 steps on a batch in two parts, judged before; losses and scores of every step, and the weights."""
    engine = low(dropout=0.1)
    rows, curve = stream(store()), []
    torch.manual_seed(1)
    scores: list[Tensor] = []
    for number in range(STEPS):
        engine.model.active_layers = (0, 1) if number > 15 else (0,)
        batch = rows.draw(8)
        scores.append(engine.losses(batch, "selection"))
        for part in batch.split(4):
            engine.backward(part, objective)
        if number == 20:  # the gradients of a method that looks at them between steps
            engine.spend_gradients(lambda: None)
            engine.backward(next(batch.split(4)), objective)
        engine.step(1.0)
        curve.append(engine.loss)
    gc.collect()
    return [*curve, *(float(score) for score in torch.cat(scores))], weights(engine.model)


def test_nothing_of_a_pass_is_read_after_the_next_has_begun(overwritten: Overwritten) -> None:
    """Gradients, losses and scores over 50 steps, to the last bit, though all that blocks returned is overwritten."""
    losses, after = trained()
    assert overwritten.passes == STEPS * (2 + 2) + 1
    overwritten.overwrites = False
    expected, expected_after = trained()
    assert losses == expected
    assert torch.equal(after, expected_after)


def test_in_float32_gradients_would_be_overwritten(overwritten: Overwritten) -> None:
    """Why it is refused there, and that the test above could fail."""
    engine, batch = engine_of(deep(2), compile=True, cuda_graphs=True, microbatch_size=4), batch_of(8)
    for part in batch.split(4):
        engine.backward(part, objective)
    assert gradients(engine.model).isnan().any()


def test_an_objective_may_ask_for_more_than_one_pass(overwritten: Overwritten) -> None:
    def much(forward: Forward, part: Batch) -> Tensor:
        scores = forward(part, logits=True)
        with torch.no_grad():
            target = forward(part, logits=True).argmax(-1)
        return objective(forward, part) + torch.nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten())

    found = []
    for overwritten.overwrites in (True, False):
        engine = low()
        for _ in range(3):
            for part in batch_of(8).split(4):
                engine.backward(part, much)
            engine.step(1.0)
        found.append(weights(engine.model))
    assert torch.equal(*found)


# ---- CUDA graphs: where there are none ----


@pytest.mark.parametrize(
    ("where", "precision", "compile", "checkpointing", "why"),
    [
        ("cuda", "bfloat16", True, False, None),
        ("cuda", "float16", True, False, None),
        ("cuda", "float32", True, False, "in float32 there is no copy"),
        ("cuda", "bfloat16", False, False, "blocks are not compiled (impl.compile=false)"),
        ("cuda", "bfloat16", True, True, "impl.gradient_checkpointing computes blocks again"),
        ("cpu", "bfloat16", True, False, "there are none on a cpu"),
    ],
)
def test_what_keeps_blocks_from_being_replayed(
    where: str, precision: str, compile: bool, checkpointing: bool, why: str | None
) -> None:
    weight = SimpleNamespace(device=torch.device(where))
    model: Any = SimpleNamespace(parameters=lambda: iter([weight]), gradient_checkpointing=checkpointing)
    found = lacking(model, precision, compile)
    assert (found or "").startswith(why or "")
    assert (found is None) == (why is None)


@pytest.mark.parametrize("compile", [True, False])
def test_where_there_are_none_a_line_says_so(compile: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert engine_of(compile=compile).cuda_graphs == "not asked for"
    assert warned(caplog) == []
    engine = engine_of(compile=compile, cuda_graphs=True)
    assert warned(caplog) == ["impl.cuda_graphs=true: blocks run without: there are none on a cpu"]
    assert engine.cuda_graphs == "none: there are none on a cpu"


@pytest.mark.full
def test_replayed_blocks_compute_what_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real compiler, asked for graphs: as without them to 1e-6, as not compiled to 1e-4, over 50 steps."""
    monkeypatch.setattr(compiling, "lacking", lambda *about: None)
    torch._dynamo.reset()
    curves = []
    for options in ({"compile": True, "cuda_graphs": True}, {"compile": True}, {}):
        engine = engine_of(deep(3), "adamw", lr=1e-3, microbatch_size=4, **options)
        rows = stream(store())
        curves.append([step(engine, rows.draw(8)) for _ in range(STEPS)])
    torch._dynamo.reset()
    replayed, others, written = map(torch.tensor, curves)
    assert replayed[-1] < replayed[0] - 0.05, "it learns"
    torch.testing.assert_close(replayed, others, rtol=1e-6, atol=0)
    torch.testing.assert_close(replayed, written, rtol=1e-4, atol=0)
