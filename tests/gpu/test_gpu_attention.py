"""Kernels of attention on an NVIDIA GPU against the written-out form. Skipped where there is none.

Shape legend: T tokens, H hidden.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.attention_forms import ROWS, lacking
from cramming.architectures.layers.unpadding import Layout, Queries
from cramming.cli import pretraining
from cramming.session import pretrain
from tests.session import runs

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
HIDDEN, HEADS, LENGTH = 128, 4, 300
LENGTHS = [300, 1, 129, 128, 9, 257, 300, 2]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"alibi": True},
    {"rotary": 10000.0},
    {"window": 33},
    {"alibi": True, "window": 70},
    {"rotary": 100.0, "window": 130},
]
IDS = [" ".join(options) or "plain" for options in OPTIONS]
TRAINING = ("data.layout=document", "budget=8", "train/optim=sgd", "train.optim.lr=0.1")


def layouts(kind: str) -> Layout:
    """On the device."""
    inputs = torch.zeros(len(LENGTHS), LENGTH, dtype=torch.int64, device=DEVICE)
    padded = Layout.of(inputs, lengths=torch.tensor(LENGTHS, device=DEVICE))
    if kind == "padded":
        return padded
    if kind == "documents":
        starts = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)) < 0.02
        return Layout.of(inputs, starts=starts.to(DEVICE))
    if kind == "padding computed":
        return Layout(len(LENGTHS), LENGTH, mask=padded.mask)
    if kind == "some tokens":
        return padded.part(torch.arange(0, sum(LENGTHS), 3, device=DEVICE))
    return Layout.of(inputs)


def make(options: dict[str, Any], form: str, dtype: torch.dtype) -> SelfAttention:
    """A layer with weights large enough for attention to be uneven, the same in every precision."""
    torch.manual_seed(0)
    layer = SelfAttention(HIDDEN, HEADS, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.mul(2).bfloat16())
    layer.form = form
    return layer.to(DEVICE, dtype)


def states(layout: Layout, dtype: torch.dtype) -> Tensor:
    """(T, H), the same in every precision."""
    rows = layout.sequences * layout.length if layout.cells is None else len(layout.cells)
    drawn = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()
    return drawn.to(DEVICE, dtype).requires_grad_()


def results(layer: SelfAttention, layout: Layout, queries: Queries | None = None) -> list[Tensor]:
    """Output and gradients."""
    x = states(layout, layer.qkv.weight.dtype)
    y = layer(x, replace(layout, memo={}), queries)
    if layout.mask is not None and layout.cells is None and queries is None:
        y = y[layout.mask.flatten()]
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])]


def differences(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Norms of the differences over those of what was expected."""
    return [float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(found, expected, strict=True)]


def assert_follows(form: str, options: dict[str, Any], layout: Layout, queries: Queries | None = None) -> None:
    """A form in bfloat16 is hardly further from float64 than the written-out form in bfloat16 is."""
    layer, low = make(options, form, torch.bfloat16), make(options, "math", torch.bfloat16)
    missing = lacking(form, layer.asked(0.0), DEVICE, torch.bfloat16)
    if missing is not None:
        pytest.skip(f"{form}: {missing}")
    exact = results(make(options, "math", torch.float64), layout, queries)
    plain, ours = (differences(results(one, layout, queries), exact) for one in (low, layer))
    # Of keys' biases the gradient is nothing but rounding: all scores of a query change alike.
    for one, other in zip(ours, plain, strict=True):
        assert one < 1.5 * other + 3e-3, (ours, plain)


@pytest.mark.parametrize("kind", ["full", "padded", "documents", "padding computed", "some tokens"])
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
@pytest.mark.parametrize("form", [*ROWS, "sdpa", "auto"])
def test_16_bits_follow_float64(form: str, options: dict[str, Any], kind: str) -> None:
    assert_follows(form, options, layouts(kind))


@pytest.mark.parametrize("kind", ["full", "padded"])
@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
@pytest.mark.parametrize("form", [*ROWS, "auto"])
def test_wanted_queries_follow_float64(form: str, options: dict[str, Any], kind: str) -> None:
    layout, places = layouts(kind), torch.zeros(len(LENGTHS), 5, dtype=torch.int64)
    places[0], places[5] = torch.tensor([299, 0, 7, 130, 128]), torch.tensor([256, 3, 3, 200, 1])
    assert_follows(form, options, layout, Queries(layout.rows_of(places.to(DEVICE))))


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_flex_in_float32_is_the_definition(options: dict[str, Any]) -> None:
    layout = layouts("padded")
    found, expected = (results(make(options, form, torch.float32), layout) for form in ("flex", "math"))
    assert max(differences(found[:3], expected[:3])) < 5e-3  # of TF32, should that be on


@pytest.mark.parametrize("form", ["auto", "varlen", "flex"])
def test_compiled_layers_are_those_that_are_not(form: str) -> None:
    """Every batch has other lengths and another number of tokens; the graph is made for any of them."""
    layer, compiled = (make({"rotary": 10000.0, "window": 33}, form, torch.bfloat16) for _ in range(2))
    compiled.compile()
    counts = []
    for seed in range(6):
        lengths = torch.randint(1, LENGTH + 1, (9,), generator=torch.Generator().manual_seed(seed))
        layout = Layout.of(torch.zeros(9, LENGTH, device=DEVICE), lengths=lengths.to(DEVICE))
        assert max(differences(results(compiled, layout)[:2], results(layer, layout)[:2])) < 0.02
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[-1] == counts[2]


@pytest.mark.parametrize("options", [{}, {"rotary": 10000.0, "window": 33}], ids=["plain", "rotary window"])
def test_no_layer_waits_for_the_device(options: dict[str, Any]) -> None:
    layer, layout = make(options, "varlen", torch.bfloat16), layouts("padded")
    x = states(layout, torch.bfloat16)
    layer(x, layout).sum().backward()  # what is made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x, replace(layout, memo={})).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("form", ["varlen", "flex"])
def test_memory_grows_with_the_tokens_and_not_with_their_pairs(form: str) -> None:
    layer, peaks = make({"window": 128}, form, torch.bfloat16), []
    for length in (4096, 8192):
        layout = Layout(2, length)
        x = states(layout, torch.bfloat16)
        layer(x, replace(layout, memo={})).sum().backward()  # compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        layer(x, layout).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 2.5 * peaks[0]


@pytest.mark.parametrize("form", ["auto", "varlen", "flex"])
def test_a_run_on_documents_is_the_one_in_plain_products(tmp_path: Path, form: str) -> None:
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    text = "\n\n".join(" ".join(words[(i * j) % len(words)] for j in range(1, 3 + i % 12)) for i in range(1, 300))
    (tmp_path / "text.txt").write_text(text)
    for name, given in (("plain", "math"), ("rows", form)):
        more = ("impl.precision=bfloat16", f"impl.attention={given}", f"name={name}", *TRAINING)
        pretraining(pretrain, runs.command(tmp_path, *more))
    summary = json.loads((tmp_path / "outputs" / "rows" / "summary.json").read_text())
    taken = summary["fast_paths"].get("attention_unpadded", summary["fast_paths"]["attention"])
    assert taken == ("varlen" if form == "auto" else form)
    plain, rows = (runs.weights(tmp_path, name) for name in ("plain", "rows"))
    for name, expected in plain.items():
        torch.testing.assert_close(rows[name], expected, rtol=0.02, atol=2e-3)
