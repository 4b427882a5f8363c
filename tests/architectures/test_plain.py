"""A model that computes everything plainly gives what it gives otherwise: losses, logits, states and gradients."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from cramming.batch import Batch
from cramming.plain import WAYS
from tests.architectures.families import TINY, arch, built
from tests.architectures.test_contract import LENGTHS, close, gradients, same_gradients


def batches(make_batch: Callable[..., Batch], drops_tokens: bool) -> dict[str, Batch]:
    """Full rows, padded ones with empty slots, documents apart, and rows of which layers see a part."""
    full, padded = make_batch(), make_batch(lengths=LENGTHS)
    heads = torch.tensor([[5, 6], [0, 9], [3, 4], [8, 8]])
    starts = torch.zeros(full.inputs.shape, dtype=torch.bool).scatter(1, heads, True)
    found = {"full": full, "padded": padded, "documents": replace(full, starts=starts)}
    if drops_tokens:
        kept = torch.arange(0, 17, 2).expand(4, -1)
        found["kept"] = replace(full, kept=kept, kept_depth=(0.0, 0.5))
        found["kept and padded"] = replace(padded, kept=kept, kept_depth=(0.0, 0.5))
    return found


@pytest.mark.parametrize("name", TINY)
def test_plainly_it_is_the_same(name: str, make_batch: Callable[..., Batch]) -> None:
    fast, plain = built(arch(name)), built(arch(name))
    plain.compute_plainly(WAYS)
    assert plain.all_ways == fast.all_ways
    assert len(plain.all_ways) >= 2
    for what, batch in batches(make_batch, fast.drops_tokens).items():
        used = batch.weights.bool()
        losses = plain(batch)
        assert losses.isfinite().all(), what
        close(losses[used], fast(batch)[used], what)
        close(plain(batch, logits=True)[used], fast(batch, logits=True)[used], what)
        close(plain.hidden(batch), fast.hidden(batch), what)
        same_gradients(gradients(plain, batch), gradients(fast, batch))
        assert plain.work("forward", batch) == fast.work("forward", batch), "a budget pays for neither more nor less"


def test_a_summary_says_what_is_plain() -> None:
    model = built(arch("m2_tiny"))
    before = model.fast_paths()
    model.compute_plainly(["convolution", "unpadding"])
    changed = {key for key, said in model.fast_paths().items() if said != before[key]}
    assert changed == {"convolution", "unpadding"}
    assert "plain: by autograd" in model.fast_paths()["convolution"]
    albert = built(arch("albert_tiny"))
    assert albert.fast_paths()["vocabulary"] == "predicted positions only"
    albert.compute_plainly(["predicted_positions"])
    assert albert.fast_paths()["vocabulary"] == "every position"


def test_a_compiler_follows(make_batch: Callable[..., Batch]) -> None:
    model, batch = built(arch("modern_tiny")), make_batch()
    model.compute_plainly(WAYS)
    expected = model(batch)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend="eager")
    close(model(batch), expected)
