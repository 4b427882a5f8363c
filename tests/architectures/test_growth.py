"""A small model's weights in a larger one: which entry comes from where, what it computes, what is refused."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cramming.architectures.growth import fit
from cramming.architectures.layers.block_diagonal import BlockDiagonalLinear
from cramming.architectures.layers.filters import GeneratedFilters, positional_features
from cramming.batch import Batch
from cramming.errors import UserError
from cramming.model import Model
from tests.architectures.families import arch, built

MakeBatch = Callable[..., Batch]
OURS = (
    "bert_tiny",
    "24hbert_tiny",
    "roberta_tiny",
    "crammed_tiny",
    "mosaic_tiny",
    "modern_tiny",
    "neobert_tiny",
    "m2_tiny",
)
SMALL: dict[str, Any] = {"hidden": 24, "heads": 2, "intermediate": 48}
DOUBLED: dict[str, Any] = {"hidden": 48, "heads": 4, "intermediate": 96}
LENGTHS = [17, 1, 9, 12]


def sizes(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that the family has: M2 has no heads."""
    return {k: v for k, v in options.items() if k != "heads" or not name.startswith("m2")}


def placed(old: int, new: int, way: str) -> list[int]:
    """Which of ``old`` features each of ``new`` is, written out."""
    if way == "tile":
        return [j % old for j in range(new)]
    middle = (new - old) // 2
    return [(j - middle) % old for j in range(new)]


@pytest.mark.parametrize("name", [*OURS, "albert_tiny", "deberta_tiny"])
def test_the_same_shape_is_the_same_weights(name: str) -> None:
    model = built(arch(name))
    for way in ({}, {"width": "centre"}):
        grown = fit(model.state_dict(), model, model, **way)
        assert grown.keys() == model.state_dict().keys()
        assert all(torch.equal(grown[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("way", ["tile", "centre"])
def test_every_entry_is_where_the_law_puts_it(way: str) -> None:
    """Of BERT with heads that get wider as well as more: hidden 24 to 40, 3 heads to 4, so 8 wide to 10."""
    small = built(arch("bert_tiny", hidden=24, heads=3, intermediate=40))
    large = built(arch("bert_tiny", hidden=40, heads=4, intermediate=52), seed=1)
    before = small.state_dict()
    grown = fit(before, small, large, width=way, fresh_share=0.0)
    hidden, wide = placed(24, 40, way), placed(40, 52, way)
    rows = [
        part * 24 + head * 8 + feature
        for part in range(3)
        for head in placed(3, 4, way)
        for feature in placed(8, 10, way)
    ]
    read = [head * 8 + feature for head in placed(3, 4, way) for feature in placed(8, 10, way)]
    block = "blocks.1"
    for tensor, expected in {
        "embeddings.word.weight": before["embeddings.word.weight"][:, hidden],
        "embeddings.position.weight": before["embeddings.position.weight"][:, hidden],
        "embeddings.norm.bias": before["embeddings.norm.bias"][hidden],
        f"{block}.attention.qkv.weight": before[f"{block}.attention.qkv.weight"][rows][:, hidden],
        f"{block}.attention.qkv.bias": before[f"{block}.attention.qkv.bias"][rows],
        f"{block}.attention.output.weight": before[f"{block}.attention.output.weight"][hidden][:, read],
        f"{block}.feedforward.expand.weight": before[f"{block}.feedforward.expand.weight"][wide][:, hidden],
        f"{block}.feedforward.contract.weight": before[f"{block}.feedforward.contract.weight"][hidden][:, wide],
        "head.dense.weight": before["head.dense.weight"][hidden][:, hidden],
        "head.bias": before["head.bias"],
    }.items():
        assert torch.equal(grown[tensor], expected), tensor
    if way == "centre":  # the small one stands in the middle
        assert torch.equal(grown["head.dense.weight"][8:32, 8:32], before["head.dense.weight"])


def test_queries_and_gates_grow_apart() -> None:
    small = built(arch("crammed_tiny", hidden=24, heads=2, intermediate=40, rotary=True))
    large = built(arch("crammed_tiny", hidden=32, heads=2, intermediate=60, rotary=True), seed=1)
    grown = fit(small.state_dict(), small, large, width="tile", fresh_share=0.0)
    name = "blocks.0.feedforward.function.expand.weight"
    values_and_gates = [half * 20 + j for half in range(2) for j in placed(20, 30, "tile")]
    assert torch.equal(grown[name], small.state_dict()[name][values_and_gates][:, placed(24, 32, "tile")])
    name = "blocks.0.attention.function.qkv.weight"  # rotation pairs the halves of a head, 12 wide and then 16
    turned = [
        part * 24 + head * 12 + half * 6 + j
        for part in range(3)
        for head in range(2)
        for half in range(2)
        for j in placed(6, 8, "tile")
    ]
    assert torch.equal(grown[name], small.state_dict()[name][turned][:, placed(24, 32, "tile")])


@pytest.mark.parametrize("way", ["tile", "centre"])
@pytest.mark.parametrize("name", [name for name in OURS if name != "mosaic_tiny"])  # its heads differ by their number
def test_all_parts_repeat_the_same_features(make_batch: MakeBatch, name: str, way: str) -> None:
    """If they do, products add up each feature twice, and halved they give every hidden state twice."""
    options = {"position": "learned"} if name == "crammed_tiny" else {}  # sines are others in other widths
    small = built(arch(name, **sizes(name, SMALL), **options))
    large = built(arch(name, **sizes(name, DOUBLED), **options), seed=1)
    large.load_state_dict(fit(small.state_dict(), small, large, width=way, fresh_share=0.0))
    blocks = 4 if name == "m2_tiny" else 1  # which its feed-forward part keeps apart
    inside = torch.tensor(placed(24 // blocks, 48 // blocks, way))
    features = (24 // blocks * torch.arange(blocks)[:, None] + inside).flatten()
    with torch.no_grad():
        for module in large.modules():
            if isinstance(module, nn.Linear | BlockDiagonalLinear):
                module.weight.div_(2)
            if isinstance(module, GeneratedFilters):  # of a channel's number, which is another now
                module.decay.copy_(next(m for m in small.modules() if isinstance(m, GeneratedFilters)).decay[features])
    batch = make_batch(lengths=LENGTHS)
    torch.testing.assert_close(large.hidden(batch), small.hidden(batch)[..., features], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("depth", "first"), [("stack", (0, 1)), ("interleave", (0, 3))])
@pytest.mark.parametrize("name", [*OURS, "deberta_tiny"])
def test_a_deeper_model_holds_the_small_one(
    make_batch: MakeBatch, name: str, depth: str, first: tuple[int, ...]
) -> None:
    options = {} if name != "modern_tiny" else {"theta": 10000.0}  # so that its global layers are like the others
    small, large = built(arch(name, **options)), built(arch(name, layers=5, **options), seed=1)
    grown = fit(small.state_dict(), small, large, depth=depth)
    large.load_state_dict(grown)
    batch = make_batch(lengths=LENGTHS)
    large.active_layers = first
    torch.testing.assert_close(large(batch), small(batch))
    torch.testing.assert_close(large.hidden(batch), small.hidden(batch))


@pytest.mark.parametrize(
    ("depth", "origins"), [("stack", [0, 1, 2, 0, 1, 2, 0]), ("interleave", [0, 0, 0, 1, 1, 2, 2])]
)
def test_layers_are_those_the_law_names(depth: str, origins: list[int]) -> None:
    small, large = built(arch("bert_tiny", layers=3)), built(arch("bert_tiny", layers=7), seed=1)
    grown, before = fit(small.state_dict(), small, large, depth=depth), small.state_dict()
    for name, tensor in grown.items():
        prefix, _, rest = name.partition(".")
        if prefix == "blocks":
            layer, _, inside = rest.partition(".")
            assert torch.equal(tensor, before[f"blocks.{origins[int(layer)]}.{inside}"]), name
        else:
            assert torch.equal(tensor, before[name]), name


def test_a_norm_that_the_first_layer_lacks_begins_as_the_identity() -> None:
    small, large = built(arch("modern_tiny")), arch("modern_tiny", layers=4).build(97, 20)
    grown = fit(small.state_dict(), small, large, depth="stack")
    assert "blocks.0.attention_norm.weight" not in grown
    assert torch.equal(grown["blocks.2.attention_norm.weight"], torch.ones(128))
    assert torch.equal(grown["blocks.3.attention_norm.weight"], small.state_dict()["blocks.1.attention_norm.weight"])


@pytest.mark.parametrize("name", ["bert_tiny", "roberta_tiny", "albert_tiny"])
def test_tables_of_positions_grow_and_are_cut(name: str) -> None:
    small = built(arch(name))
    (table,) = (n for n in small.state_dict() if n.endswith(("position.weight", "position_embeddings.weight")))
    before = small.state_dict()[table]

    def at(rows: int, how: str) -> Tensor:
        return fit(small.state_dict(), small, built(arch(name), rows, seed=1), positions=how)[table]

    assert torch.equal(at(47, "tile"), torch.cat((before, before, before))[:47])
    assert torch.equal(at(12, "cut"), before[:12])
    stretched = at(39, "interpolate")  # every second row is one of the 20, the others lie between two
    torch.testing.assert_close(stretched[::2], before)
    torch.testing.assert_close(stretched[1::2], (before[1:] + before[:-1]) / 2)
    with pytest.raises(UserError, match="20 positions in the checkpoint and 47 in the model: give init_positions=tile"):
        fit(small.state_dict(), small, built(arch(name), 47))
    with pytest.raises(UserError, match="and 12 in the model: give init_positions=cut"):
        fit(small.state_dict(), small, built(arch(name), 12), positions="interpolate")


def test_filters_begin_anew_at_their_new_length_with_what_was_learned() -> None:
    small, large = built(arch("m2_tiny")), built(arch("m2_tiny"), 39, seed=1)
    name = "blocks.1.mixer.filters.features"
    learned = torch.linspace(-1, 1, 20)[None, :, None] * torch.arange(1, 6)
    with torch.no_grad():
        small.get_parameter(name).copy_(positional_features(20, 5) + learned)
    for how in ("interpolate", "tile"):
        grown = fit(small.state_dict(), small, large, positions=how)
        expected = positional_features(39, 5) + torch.linspace(-1, 1, 39)[None, :, None] * torch.arange(1, 6)
        torch.testing.assert_close(grown[name], expected.expand_as(grown[name]))
        assert torch.equal(
            grown["blocks.1.mixer.filters.weight_1"], small.state_dict()["blocks.1.mixer.filters.weight_1"]
        )


@pytest.mark.parametrize("name", ["mosaic_tiny", "modern_tiny", "crammed_tiny", "deberta_tiny"])
def test_positions_that_are_worked_out_need_nothing(name: str) -> None:
    small, large = built(arch(name)), built(arch(name), 32, seed=1)
    large.load_state_dict(fit(small.state_dict(), small, large))
    with pytest.raises(UserError, match=r"init_positions=tile: .* has no table of positions: leave it out"):
        fit(small.state_dict(), small, large, positions="tile")


def text_like(step: int) -> Batch:
    """Sequences in which a token tells the next: t, 3t + 1, ... modulo 89; one place in five is masked."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(89, (16, 1), generator=generator).repeat(1, 20)
    for place in range(1, 20):
        ids[:, place] = (3 * ids[:, place - 1] + 1) % 89
    ids = ids + 5
    positions = torch.rand(16, 20, generator=generator).argsort(1)[:, :4]
    zeros, weights = torch.zeros(16, dtype=torch.int64), torch.ones(16, 4)
    inputs = ids.scatter(1, positions, 4)
    return Batch(zeros, zeros, inputs, positions, ids.gather(1, positions), weights, None, weights.sum())


def trained(model: Model, steps: range) -> list[float]:
    """The model trained in place; its loss at each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in steps:
        batch = text_like(step)
        loss = (model(batch) * batch.weights).sum() / batch.normalizer
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_grown_model_goes_on_from_what_the_small_one_knows() -> None:
    torch.manual_seed(0)
    small = arch("24hbert_tiny", layers=1, hidden=32, heads=2, intermediate=64).build(97, 20)
    trained(small, range(150))
    wide = arch("24hbert_tiny", layers=2, hidden=64, heads=4, intermediate=128)
    torch.manual_seed(1)
    grown, fresh = wide.build(97, 20), wide.build(97, 20)
    grown.load_state_dict(fit(small.state_dict(), small, grown, width="centre", depth="stack"))
    after, anew = trained(grown, range(200, 230)), trained(fresh, range(200, 230))
    assert sum(after[-10:]) / 10 < sum(anew[-10:]) / 10 - 0.5


@pytest.mark.parametrize(("share", "part"), [(0.0, False), (0.1, True)])
def test_copies_become_different_features_only_because_of_fresh_weights(share: float, part: bool) -> None:
    small, large = built(arch("bert_tiny", **SMALL)), built(arch("bert_tiny", **DOUBLED), seed=1)
    large.load_state_dict(fit(small.state_dict(), small, large, width="tile", fresh_share=share))
    before = large.blocks[0].feedforward.expand.weight.detach().clone()
    trained(large, range(3))
    learned = large.blocks[0].feedforward.expand.weight.detach() - before
    assert learned.any()
    assert (not torch.allclose(learned[:48], learned[48:], rtol=1e-2, atol=1e-5)) == part
    if part:  # biases and norms, and what does not repeat, are the small one's to the last bit
        grown = fit(small.state_dict(), small, large, width="tile", fresh_share=share)
        exact = fit(small.state_dict(), small, large, width="tile", fresh_share=0.0)
        for name, tensor in exact.items():
            kept = tuple(slice(size) for size in small.state_dict()[name].shape)
            if name.endswith("qkv.weight"):
                kept = (slice(24), slice(24))  # all queries of the two heads, by all features
            assert torch.equal(
                grown[name] if tensor.dim() == 1 else grown[name][kept], tensor if tensor.dim() == 1 else tensor[kept]
            ), name


def test_what_cannot_grow_is_refused_by_name() -> None:
    small = built(arch("bert_tiny"))

    def refuse(message: str, target: nn.Module, source: Model = small, **ways: str) -> None:
        assert isinstance(target, Model)
        with pytest.raises(UserError, match=message):
            fit(source.state_dict(), source, target, **ways)

    deeper, wider = built(arch("bert_tiny", layers=4)), built(arch("bert_tiny", hidden=256, heads=4))
    refuse("init_width=tiled is unknown; did you mean 'tile'", wider, width="tiled")
    refuse("init_depth=stacked is unknown; did you mean 'stack'", deeper, depth="stacked")
    refuse("init_positions=stretch is unknown; there are: cut, interpolate, tile", small, positions="stretch")
    refuse("has 2 layers and the model 4: give init_depth=stack or init_depth=interleave", deeper)
    refuse(r"is \(97, 128\) in the checkpoint and \(97, 256\) in the model: give init_width=tile", wider, depth="stack")
    refuse("has 4 layers and the model 2: it cannot shrink", small, source=deeper, depth="stack")
    refuse("it cannot shrink", small, source=wider, width="tile")
    refuse("has 97 words and the model 98: a vocabulary cannot grow", arch("bert_tiny").build(98, 20))
    refuse("holds a Bert and the model is a Roberta", built(arch("roberta_tiny")))
    refuse("'final_norm.weight': only the sizes", built(arch("bert_tiny", norm_scheme="pre")))
    refuse("'head.bias' of the checkpoint has no place", built(arch("bert_tiny", decoder_bias=False)))
    gated, plain = built(arch("crammed_tiny")), built(arch("crammed_tiny", glu=False, intermediate=1024))
    refuse("'blocks.0.feedforward.function.expand.weight' is made up in another way", plain, source=gated, width="tile")
    every, second = built(arch("crammed_tiny", layers=4)), arch("crammed_tiny", layers=2, ffn_layer_frequency=2)
    refuse("layer 0 of the checkpoint has nothing for", every, source=built(second), depth="stack")
    albert = built(arch("albert_tiny", layers=4))
    refuse("init_depth=stack: layers of Albert are one and the same", albert, built(arch("albert_tiny")), depth="stack")
    hidden = built(arch("albert_tiny", hidden=256, heads=4))
    refuse("how it would grow is not known", hidden, built(arch("albert_tiny")), width="tile")
    lacking = {name: tensor for name, tensor in small.state_dict().items() if name != "head.bias"}
    with pytest.raises(UserError, match=r"the checkpoint lacks 'head\.bias'"):
        fit(lacking, small, small)
