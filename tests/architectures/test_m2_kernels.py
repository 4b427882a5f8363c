"""M2-BERT by every backend and in plain torch: the same outputs and gradients; each of its blocks is one graph."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cramming.architectures.layers.unpadding import Layout, Queries
from cramming.batch import Batch
from cramming.differentiation import differentiating_twice
from tests.architectures.test_m2 import LENGTHS, SIZES, assert_same, build, gradients

MakeBatch = Callable[..., Batch]


@pytest.mark.parametrize("options", [{}, {"training_additions": True}, {"bidirectional": False}, {"filter_length": 6}])
def test_every_way_to_convolve_agrees(make_batch: MakeBatch, options: dict[str, object]) -> None:
    model = build(**options)
    assert model.kernel_ops == ("gated_long_conv", "block_diagonal_glu")
    for lengths in (None, LENGTHS):
        batch = make_batch(lengths=lengths)
        found = {}
        for way in ("reference", "torch", "plain"):
            model.use_kernels(dict.fromkeys(model.kernel_ops, "torch" if way == "plain" else way))
            model.compute_plainly(model.all_ways if way == "plain" else ())
            found[way] = model.hidden(batch), gradients(model, batch)
        for way in ("reference", "plain"):
            torch.testing.assert_close(found["torch"][0], found[way][0], rtol=1e-4, atol=1e-5)
            assert_same(found["torch"][1], found[way][1])


def test_backends_are_chosen_by_operation() -> None:
    m2 = build()
    assert m2.kernels == {"gated_long_conv": "auto", "block_diagonal_glu": "auto"}
    assert m2.fast_paths()["convolution"].startswith("torch: one operation")
    m2.use_kernels({"gated_long_conv": "reference"})
    low = copy.deepcopy(m2).bfloat16()
    assert low.kernels == m2.kernels == {"gated_long_conv": "reference", "block_diagonal_glu": "auto"}
    said = m2.fast_paths()
    assert said["convolution"].startswith("reference: one operation")
    assert "transforms" not in said["convolution"]
    assert said["block_diagonal"].startswith("torch: ")
    with pytest.raises(ValueError, match=r"backend=trition is unknown.*triton"):
        m2.use_kernels({"block_diagonal_glu": "trition"})
    with pytest.raises(ValueError, match="attention is no operation of this model: it has gated_long_conv, block_"):
        m2.use_kernels({"attention": "torch"})
    assert build(blocks=3).kernel_ops == ("gated_long_conv",), "blocks that are no pairs"


@pytest.mark.parametrize("active", [(0, 1, 2), (1,), (0, 2)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("options", [{}, {"filter_length": 6, "training_additions": True}])
def test_gradients_of_microbatches_sum_to_that_of_plain_autograd(
    make_batch: MakeBatch, options: dict[str, object], checkpointing: bool, active: tuple[int, ...]
) -> None:
    """In float64, of layers that are there: with what is kept, a sequence at a time, against one pass without."""
    batch = make_batch(lengths=LENGTHS)
    model, plain = (build(**options).double() for _ in range(2))
    plain.compute_plainly(["convolution", "kept_filters", "block_diagonal"])
    model.active_layers = plain.active_layers = active
    model.gradient_checkpointing = checkpointing
    whole = gradients(plain, batch)
    for part in batch.split(1):
        ((model(part) * part.weights).sum() / batch.normalizer).backward()
    for name, parameter in model.named_parameters():
        if whole[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(
                parameter.grad, whole[name], rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_what_is_differentiated_twice_keeps_nothing(make_batch: MakeBatch, lengths: list[int] | None) -> None:
    m2, batch = build(), make_batch(lengths=lengths)
    once = gradients(m2, batch)
    with differentiating_twice():
        loss = (m2(batch) * batch.weights).sum() / batch.normalizer
        parameters = dict(m2.named_parameters())
        slopes = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        assert_same(dict(zip(parameters, slopes, strict=True)), once)
        again = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), m2.blocks[0].mixer.filters.weight_3)
    assert again[0].isfinite().all()
    assert again[0].any()


def test_layers_are_compiled_once_for_all() -> None:
    """One graph, and one for where the last layer's output is wanted; shapes that change double them."""
    model = build()
    inputs = torch.randint(1, 97, (4, 17))
    graphs = []

    def counting(graph: torch.fx.GraphModule, given: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend=counting)
    for depth in (3, 1, 2):
        model.active_layers = range(depth)
        layout = Layout(*inputs.shape)
        model.encode(inputs, layout, queries=Queries(layout.rows_of(torch.arange(4)[:, None])))[0].sum().backward()
    assert len(graphs) == 2
    for length in (9, 13, 8):
        model.encode(inputs[:, :length], Layout(4, length))
    torch._dynamo.reset()
    assert len(graphs) <= 2 * 2


def test_sizes_are_known_without_values() -> None:
    with torch.device("meta"):
        model, inputs = SIZES.build(97, 20), torch.empty(4, 17, dtype=torch.int64)
        assert model.encode(inputs, Layout(4, 17))[0].shape == (68, 24)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("at_queries", [False, True])
def test_a_block_is_one_graph(make_batch: MakeBatch, at_queries: bool, dropout: float) -> None:
    """Also while training, and where the last layer's output is wanted at a few positions."""
    model, batch = build(dropout=dropout), make_batch()
    layout = Layout(*batch.inputs.shape)
    queries = Queries(layout.rows_of(batch.positions)) if at_queries else None
    x = torch.randn(batch.inputs.numel(), 24, requires_grad=True)
    block, given = model.blocks[1], (x, layout, queries, *model.prepared(layout)[1])
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    results = []
    for call in (block, compiled):
        torch.manual_seed(0)
        made = call(*given)
        leaves = [x, *block.parameters()]
        results.append([made, *torch.autograd.grad(made.square().sum(), leaves, retain_graph=True)])
    torch._dynamo.reset()
    for plain, whole in zip(*results, strict=True):
        if not dropout:  # a compiler draws other numbers
            torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.full
def test_compiled_blocks_agree_with_plain_ones(make_batch: MakeBatch) -> None:
    m2, batch = build(), make_batch()
    plain, plain_gradients = m2(batch), gradients(m2, batch)
    for block in m2.blocks:
        block.compile()
    torch.testing.assert_close(m2(batch), plain, rtol=1e-4, atol=1e-5)
    assert_same(gradients(m2, batch), plain_gradients)
    fused = torch.optim.AdamW(m2.parameters(), lr=1e-2, fused=True)
    fused.step()
    fresh = build()
    fresh.load_state_dict({name.replace("_orig_mod.", ""): value for name, value in m2.state_dict().items()})
    torch.testing.assert_close(m2(batch), fresh(batch), rtol=1e-4, atol=1e-5)
