"""Networks of transformers behind our contract compute what the bare networks compute, and obey its laws."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cramming.architectures.configs.albert import AlbertConfig
from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.deberta import DebertaConfig
from cramming.architectures.configs.hf import HfConfig
from cramming.architectures.hf import TransformersLanguageModel
from cramming.batch import Batch
from cramming.engine import Engine
from cramming.errors import UserError
from cramming.method import Method
from rst.clock import Clock
from rst.costs import StepsCost

MakeBatch = Callable[..., Batch]
VOCABULARY = 97
LENGTHS = [17, 1, 9, 12]
SIZES = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 3}
NAMED = {**SIZES, "max_position_embeddings": 40}
OURS: dict[str, Any] = {"layers": 3, "hidden": 24, "heads": 3, "intermediate": 40}


def hf(model_type: str, **options: Any) -> HfConfig:
    return HfConfig(model_type=model_type, config={**NAMED, **options})


ARCHS: dict[str, ArchConfig] = {
    "albert": AlbertConfig(**OURS, embedding_dim=16),
    "albert_groups": AlbertConfig(**{**OURS, "layers": 4}, groups=2, layers_in_group=2, nonlin="relu"),
    "deberta": DebertaConfig(**OURS, position_buckets=8, max_positions=20),
    "deberta_v2": DebertaConfig(
        **OURS, position_buckets=0, max_positions=20, share_attention_key=False, relative_norm=False, conv_kernel=3,
        absolute_positions=True, token_types=2, position_terms=["c2p"], conv_nonlin="tanh",
    ),
    "deberta_legacy": DebertaConfig(**OURS, position_buckets=8, max_positions=20, legacy_head=True),
    "bert": hf("bert"),
    "roberta": hf("roberta"),
    "electra": hf("electra", embedding_size=16),
    "distilbert": HfConfig(
        model_type="distilbert",
        config={"dim": 24, "n_heads": 3, "n_layers": 3, "hidden_dim": 40, "max_position_embeddings": 40},
    ),
    "modernbert": hf("modernbert", local_attention=8, global_attn_every_n_layers=2),
    "deberta_v1": hf("deberta", relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False),
    "mobilebert": hf("mobilebert", embedding_size=16, intra_bottleneck_size=12, true_hidden_size=12),
    "mpnet": hf("mpnet"),
}  # fmt: skip
HONOURING = [name for name in ARCHS if name != "mobilebert"]  # its words see their neighbours, in padding too
SUBSETS = {"albert_groups": (1, 2)}


def built(name: str, **changes: Any) -> TransformersLanguageModel:
    """A model whose weights are large enough that every part of it matters to the output."""
    torch.manual_seed(0)
    arch = copy.copy(ARCHS[name])
    for key, value in changes.items():
        setattr(arch, key, value)
    model = arch.build(VOCABULARY, 20)
    assert isinstance(model, TransformersLanguageModel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def bare(model: TransformersLanguageModel, **changes: Any) -> Any:
    """The library's own network with the same weights, made from its config."""
    config = copy.deepcopy(model.network.config)
    for key, value in changes.items():
        setattr(config, key, value)
    config._attn_implementation = "eager"
    network = type(model.network)(config).eval()
    if not changes:
        network.load_state_dict(model.network.state_dict())
    return network


def mask_of(batch: Batch) -> Tensor:
    lengths = torch.full((len(batch),), batch.length) if batch.lengths is None else batch.lengths
    return torch.arange(batch.length) < lengths[:, None]


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name.removeprefix("network."): p.grad for name, p in model.named_parameters()}


def mean_loss(model: torch.nn.Module, batch: Batch) -> Tensor:
    return (model(batch) * batch.weights).sum() / batch.normalizer


def assert_same(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        # A parameter that nothing depends on has no gradient in one computation and zeros in another.
        a, b = (torch.zeros(()) if g is None else g for g in (gradient, other[name]))
        close = torch.allclose(*torch.broadcast_tensors(a, b), rtol=1e-3, atol=1e-5)
        assert close, f"{name}: {(a - b).abs().max()}"


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_the_bare_network_says_the_same(name: str, lengths: list[int] | None, make_batch: MakeBatch) -> None:
    model, batch = built(name), make_batch(lengths=lengths)
    if lengths is not None and name not in HONOURING:
        with pytest.raises(
            UserError, match=r"hf of type 'mobilebert' lets what is in padding .* use data.layout=packed"
        ):
            model(batch)
        return
    network, mask, used = bare(model), mask_of(batch), batch.weights.bool()
    logits = network(input_ids=batch.inputs, attention_mask=mask.long()).logits
    there = logits[torch.arange(len(batch))[:, None], batch.positions]
    expected = F.cross_entropy(there.flatten(0, 1), batch.labels.flatten(), reduction="none").view(batch.labels.shape)

    losses = model(batch)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    torch.testing.assert_close(losses[used], expected[used], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(batch, logits=True)[used], there[used], rtol=1e-4, atol=2e-5)
    states = network.base_model(input_ids=batch.inputs, attention_mask=mask.long())[0]
    torch.testing.assert_close(model.hidden(batch), states * mask[..., None], rtol=1e-4, atol=1e-5)
    theirs = gradients(network, (expected * batch.weights).sum() / batch.normalizer)
    assert_same(gradients(model, mean_loss(model, batch)), theirs)


@pytest.mark.parametrize("name", HONOURING)
def test_padding_never_leaks_and_sequences_are_apart(name: str, make_batch: MakeBatch) -> None:
    model, batch = built(name), make_batch(lengths=LENGTHS)
    other, padding = copy.copy(batch), ~mask_of(batch)
    object.__setattr__(other, "inputs", batch.inputs.where(~padding, torch.randint(1, 97, batch.inputs.shape)))
    assert torch.equal(model(batch), model(other))
    assert torch.equal(model.hidden(batch), model.hidden(other))
    assert_same(gradients(model, mean_loss(model, batch)), gradients(model, mean_loss(model, other)))
    together = model.hidden(batch)
    assert not together[padding].any()
    for row, length in enumerate(LENGTHS):
        one = torch.zeros(1, dtype=torch.int64)
        inputs = batch.inputs[row : row + 1, :length]
        alone = model.hidden(Batch(one, one, inputs, one[None], one[None], one[None].float(), None, one.sum()))
        torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HONOURING)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_documents_are_apart(name: str, lengths: list[int] | None, make_batch: MakeBatch) -> None:
    model, batch = built(name), make_batch(lengths=lengths)
    starts = torch.zeros(batch.inputs.shape, dtype=torch.bool)
    starts[:, 0] = True
    starts[0, 6] = starts[0, 7] = starts[3, 10] = True
    object.__setattr__(batch, "starts", starts)
    states, losses = model.hidden(batch), model(batch)
    for row, first, last in ((0, 0, 6), (0, 6, 7), (0, 7, 17), (3, 0, 10), (3, 10, 17 if lengths is None else 12)):
        one = torch.zeros(1, dtype=torch.int64)
        inside = (batch.positions[row] >= first) & (batch.positions[row] < last) & batch.weights[row].bool()
        places, labels = batch.positions[row][inside] - first, batch.labels[row][inside]
        inputs, ones = batch.inputs[row : row + 1, first:last], torch.ones(1, len(places))
        document = Batch(one, one, inputs, places[None], labels[None], ones, None, ones.sum())
        torch.testing.assert_close(states[row : row + 1, first:last], model.hidden(document), rtol=1e-4, atol=1e-5)
        if len(places):
            torch.testing.assert_close(losses[row][inside][None], model(document), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHS)
def test_active_layers_are_a_network_of_those_layers(name: str, make_batch: MakeBatch) -> None:
    model, batch = built(name), make_batch()
    active = SUBSETS.get(name, (0, 2))
    config, weights = model.network.config, model.network.state_dict()
    changes: dict[str, Any] = {"num_hidden_layers": len(active)}
    if getattr(config, "layer_types", None):
        changes["layer_types"] = [config.layer_types[i] for i in active]
    network = bare(model, **changes)
    if not name.startswith("albert"):
        place = f"{model.stack.place}." if model.stack else ""
        kept = {f"{place}{layer}.": f"{place}{i}." for i, layer in enumerate(active)}
        weights = {
            next((new + n.removeprefix(old) for old, new in kept.items() if n.startswith(old)), n): w
            for n, w in weights.items()
            if not n.startswith(place) or any(n.startswith(old) for old in kept)
        }
    network.load_state_dict(weights)
    model.active_layers = active
    full = torch.ones_like(batch.inputs)
    states = network.base_model(input_ids=batch.inputs, attention_mask=full)[0]
    torch.testing.assert_close(model.hidden(batch), states, rtol=1e-4, atol=1e-5)
    found = gradients(model, mean_loss(model, batch))
    used = {id(p) for layer in active for p in model.blocks[layer].parameters()}
    of_layers = {id(p) for block in model.blocks for p in block.parameters()}
    for key, parameter in model.named_parameters():
        if id(parameter) in of_layers:
            assert (found[key.removeprefix("network.")] is not None) == (id(parameter) in used), key


@pytest.mark.parametrize("name", ARCHS)
def test_without_layers_the_embeddings_are_the_hidden_states(name: str, make_batch: MakeBatch) -> None:
    model, batch = built(name), make_batch()
    seen: list[Tensor] = []
    handle = model.blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model.hidden(batch)
    handle.remove()
    model.active_layers = ()
    found = model.hidden(batch)
    if hasattr(model.network.base_model, "final_norm"):
        seen[0] = model.network.base_model.final_norm(seen[0])
    torch.testing.assert_close(found, seen[0])
    empty = gradients(model, mean_loss(model, batch))
    layers = {id(p) for block in model.blocks for p in block.parameters()}
    assert all(empty[n.removeprefix("network.")] is None for n, p in model.named_parameters() if id(p) in layers)


@pytest.mark.parametrize("name", ARCHS)
def test_gradient_checkpointing_changes_no_gradient(name: str, make_batch: MakeBatch) -> None:
    model, batch = built(name), make_batch()
    model.active_layers = active = SUBSETS.get(name, (0, 2))
    plain = gradients(model, mean_loss(model, batch))
    passes: list[int] = []
    handle = model.blocks[active[0]].register_forward_pre_hook(lambda *_: passes.append(1))
    model.gradient_checkpointing = True
    again = gradients(model, mean_loss(model, batch))
    handle.remove()
    assert len(passes) >= 2, "the layer was not computed again"
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, rtol=0, atol=0)


@pytest.mark.parametrize("name", ARCHS)
def test_bfloat16_follows_float32(name: str, make_batch: MakeBatch) -> None:
    model, batch = built(name), make_batch()
    engine = Engine(model, torch.optim.SGD(model.parameters()), Clock({"main": StepsCost()}, 9.0), precision="bfloat16")
    assert torch.equal(engine.losses(batch, "train"), engine.losses(batch, "train"))
    torch.testing.assert_close(engine.losses(batch, "train"), model(batch).mean(1), rtol=0.03, atol=0.05)
    low = copy.deepcopy(model).to(torch.bfloat16)
    assert low(batch).dtype == torch.float32
    exact = torch.cat([g.flatten() for g in gradients(model, mean_loss(model, batch)).values() if g is not None])
    engine.backward(batch, Method().objective)
    rounded = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert F.cosine_similarity(exact, rounded, dim=0) > 0.98
    for key, buffer in low.network.named_buffers():
        if key.endswith("inv_freq"):
            assert torch.equal(buffer, model.network.get_buffer(key)), f"{key} was rounded"


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_flops_are_those_of_the_products(name: str, layers: int, make_batch: MakeBatch) -> None:
    model, batch = built(name), make_batch(sequences=1)
    model.attention = "math"
    model.active_layers = range(layers)
    with FlopCounterMode(display=False) as counter:
        model(batch)
    assert model.flops(batch.length, batch.positions.shape[1], layers) == counter.get_total_flops() > 0
    assert model.active_layers == tuple(range(layers))


@pytest.mark.parametrize("wrong", [(1, 0), (0, 0), (3,), (-1,)])
def test_layers_that_do_not_exist_are_refused(wrong: tuple[int, ...]) -> None:
    model = built("albert")
    with pytest.raises(ValueError, match="ascending subset"):
        model.active_layers = wrong
    assert model.active_layers == (0, 1, 2)


@pytest.mark.full
@pytest.mark.parametrize("name", ["albert", "deberta", "bert", "modernbert"])
def test_compiled_layers_agree_with_plain_ones(name: str, make_batch: MakeBatch) -> None:
    model, batch = built(name), make_batch()
    plain, exact = model(batch), gradients(model, mean_loss(model, batch))
    for block in model.blocks:
        block.compile()
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        torch.testing.assert_close(model(batch), plain, rtol=1e-4, atol=1e-5)
        assert_same(gradients(model, mean_loss(model, batch)), exact)
    model.active_layers = (0, 2)
    assert model(batch).isfinite().all()
