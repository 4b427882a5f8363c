"""NeoBERT against an independent definition, written from its paper and its released configuration; in and out.

The definition: https://arxiv.org/abs/2502.19587, section 3 and table 1. How a released matrix is laid out (heads
outside, then queries, keys and values; neighbouring features turned together; gates before values):
https://huggingface.co/chandar-lab/NeoBERT.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cramming.architectures import dense_outputs, from_reference
from cramming.architectures.configs.modern import ModernConfig
from cramming.architectures.reference import to_reference
from cramming.architectures.references import DETECTORS, FAMILIES, WRITERS
from cramming.architectures.references.neobert import FORM
from cramming.batch import Batch
from cramming.errors import UserError

MakeBatch = Callable[..., Batch]
RELEASED = {
    "architectures": ["NeoBERTLMHead"],
    "decoder_init_range": 0.02,
    "dim_head": 64,
    "embedding_init_range": 0.02,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_length": 4096,
    "model_type": "neobert",
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "pad_token_id": 0,
    "vocab_size": 30522,
}
SMALL = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "dim_head": 8,
    "num_hidden_layers": 3,
    "intermediate_size": 40,
    "vocab_size": 97,
}
WIDTH = 32  # of the gates: 2/3 of 40, rounded up to a multiple of 8


def checkpoint(head: str = "mlm") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A config and random weights under the released names, large enough that every part of them matters."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"model.encoder.weight": (97, 24), "model.layer_norm.weight": (24,)}
    for i in range(3):
        layer = f"model.transformer_encoder.{i}"
        shapes |= {
            f"{layer}.qkv.weight": (72, 24),
            f"{layer}.wo.weight": (24, 24),
            f"{layer}.ffn.w12.weight": (2 * WIDTH, 24),
            f"{layer}.ffn.w3.weight": (24, WIDTH),
            f"{layer}.attention_norm.weight": (24,),
            f"{layer}.ffn_norm.weight": (24,),
        }
    if head == "mlm":
        shapes |= {"decoder.weight": (97, 24), "decoder.bias": (97,)}
    else:
        shapes |= {"dense.weight": (24, 24), "dense.bias": (24,), "classifier.weight": (3, 24), "classifier.bias": (3,)}
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return RELEASED | SMALL, {name: x + 1 if name.endswith("norm.weight") else x for name, x in state.items()}


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + RELEASED["norm_eps"]).sqrt() * weight


def turned(x: Tensor) -> Tensor:
    """Neighbouring features as complex numbers, times e^(i p 10000^(-2j/D)) at position p: (S, A, D) -> same."""
    length, _, width = x.shape
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)


def states(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Hidden states of one sequence without padding: (S,) -> (S, H)."""
    x = state["model.encoder.weight"][ids]
    for i in range(3):
        layer = f"model.transformer_encoder.{i}"
        normed = rms_norm(x, state[f"{layer}.attention_norm.weight"])
        q, k, v = (normed @ state[f"{layer}.qkv.weight"].T).view(len(ids), 3, 24).split(8, dim=-1)  # by head
        scores = torch.einsum("qad,kad->aqk", turned(q), turned(k)) / 8**0.5
        read = torch.einsum("aqk,kad->qad", scores.softmax(-1), v).flatten(1)
        x = x + read @ state[f"{layer}.wo.weight"].T
        normed = rms_norm(x, state[f"{layer}.ffn_norm.weight"])
        gates, values = (normed @ state[f"{layer}.ffn.w12.weight"].T).chunk(2, dim=-1)
        x = x + (F.silu(gates) * values) @ state[f"{layer}.ffn.w3.weight"].T
    return rms_norm(x, state["model.layer_norm.weight"])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("length", [1, 20, 33])
def test_states_logits_losses_and_gradients_are_the_definitions(
    make_batch: MakeBatch, length: int, padded: bool
) -> None:
    config, state = checkpoint()
    model = from_reference("neobert", config, state, "mlm")
    lengths = [length, max(1, length // 2), max(1, length - 3)]
    batch = make_batch(3, length, min(4, length), lengths if padded else None)
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    losses, used = model(batch), batch.weights.bool()
    total = torch.zeros(())
    mask = torch.arange(length) < torch.tensor(lengths if padded else [length] * 3)[:, None]
    found = dense_outputs(model, batch.inputs, mask)
    for row in range(3):
        tokens = int(mask[row].sum())
        hidden = states(theirs, batch.inputs[row, :tokens])
        logits = hidden @ theirs["decoder.weight"].T + theirs["decoder.bias"]
        torch.testing.assert_close(found["hidden"][row, :tokens], hidden, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["logits"][row, :tokens], logits, rtol=1e-4, atol=2e-5)
        places = batch.positions[row, used[row]]
        expected = F.cross_entropy(logits[places], batch.labels[row, used[row]], reduction="none")
        torch.testing.assert_close(losses[row, used[row]], expected, rtol=1e-4, atol=1e-5)
        total = total + expected.sum() / batch.normalizer
    total.backward()
    ((losses * batch.weights).sum() / batch.normalizer).backward()
    sources = FAMILIES["neobert"](config, "mlm").sources
    for ours, source in sources.items():
        due = theirs[source.names[0]].grad
        due = due if source.order is None else due[source.order]
        torch.testing.assert_close(
            model.get_parameter(ours).grad, due, rtol=1e-3, atol=1e-5, msg=lambda m, n=ours: f"{n}: {m}"
        )
    assert sources.keys() == dict(model.named_parameters()).keys()


def test_classification_is_the_definitions() -> None:
    config, state = checkpoint("classification")
    model = from_reference("neobert", config, state, "classification")
    ids = torch.randint(1, 97, (2, 11), generator=torch.Generator().manual_seed(1))
    first = torch.stack([states(state, row)[0] for row in ids])
    pooled = torch.tanh(first @ state["dense.weight"].T + state["dense.bias"])
    expected = pooled @ state["classifier.weight"].T + state["classifier.bias"]
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-5)


def test_what_is_written_is_what_was_read() -> None:
    config, state = checkpoint()
    plan = FAMILIES["neobert"](config, "mlm")
    model = from_reference("neobert", config, state, "mlm")
    family, written = WRITERS["modern"](plan.arch, plan.vocab_size, plan.positions)
    assert family == "neobert"
    assert {key: written[key] for key in config if key in written} == config | {"intermediate_size": 48}
    again = FAMILIES[family](written, "mlm")
    assert again.arch == plan.arch
    back = to_reference(model, again, copies=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert [name for name, detect in DETECTORS.items() if detect(written, state)] == ["neobert"]
    bare = {name.removeprefix("model.") for name in state}
    assert [name for name, detect in DETECTORS.items() if detect({}, bare)] == ["neobert"]


def test_the_released_config_is_arch_neobert() -> None:
    plan = FAMILIES["neobert"](RELEASED, "mlm")
    arch = plan.arch
    assert (arch.layers, arch.hidden, arch.heads, arch.intermediate) == (28, 768, 12, 2048)
    assert (arch.norm_eps, arch.init, arch.init_std) == (1e-5, "uniform", 0.02)
    assert (plan.vocab_size, plan.positions, plan.padding_id) == (30522, 4096, 0)
    assert WRITERS["modern"](arch, 30522, 4096)[1]["intermediate_size"] == 3072
    assert not arch.drops_out


def test_checkpoints_that_do_not_fit_are_refused_by_name() -> None:
    config, state = checkpoint()
    for changed, message in (
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"ngpt": True}, "ngpt=True is not supported"),
        ({"rope": False}, "rope=False is not supported"),
        ({"intermediate_size": 80}, r"'model.transformer_encoder.0.ffn.w12.weight' has shape \(64, 24\)"),
    ):
        with pytest.raises(UserError, match=message):
            from_reference("neobert", config | changed, state, "mlm")
    del state["model.transformer_encoder.2.wo.weight"]
    with pytest.raises(UserError, match=r"lacks 'model.transformer_encoder.2.wo.weight'"):
        from_reference("neobert", config, state, "mlm")


def test_widths_it_would_round_are_not_written() -> None:
    with pytest.raises(UserError, match=r"arch.intermediate=20 cannot be exported"):
        WRITERS["modern"](ModernConfig(**FORM, intermediate=20), 97, 40)
