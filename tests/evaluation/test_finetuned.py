"""An encoder of any family with a head for any task: what it takes over, what it reads, and what it gives."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tuned import FAMILIES, GRID, LENGTH, model, options, split, task, weights

from cramming.architectures.encoder import Classifier
from cramming.errors import UserError
from cramming.evaluation import batches
from cramming.evaluation.batches import Inputs
from cramming.evaluation.config import Setting
from cramming.evaluation.finetuned import FineTuned, Start, build, fitted, judged, length_for, loss
from cramming.evaluation.task_heads import SpanHead, WordHead
from tests.architectures.families import VOCABULARY

SETTING = Setting(max_length=LENGTH)


def of_head(name: str) -> bool:
    """Whether a tensor of ``FineTuned`` may be new: a head's, or the pooler that some families keep in the encoder."""
    return name.startswith(("head.", "encoder.head.")) or "pooler" in name or "classifier" in name


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family in turn."""
    return str(request.param)


@pytest.mark.parametrize(("family", "kind", "spans"), GRID)
@torch.no_grad()
def test_padding_and_companions_change_nothing(family: str, kind: str, spans: int) -> None:
    asked = task(kind, spans)
    made, encoded = model(family, asked), split(asked, 9)
    together = batches.gather(encoded, np.arange(9))
    assert together.mask is not None
    logits = made(together)
    noise = torch.randint(5, VOCABULARY, together.tokens.shape, generator=torch.Generator().manual_seed(0))
    noisy = replace(together, tokens=together.tokens.where(together.mask, noise))
    torch.testing.assert_close(made(noisy), logits, rtol=1e-4, atol=1e-5)
    for example in range(9):
        alone = made(batches.gather(encoded, np.array([example])))
        torch.testing.assert_close(alone[0], logits[example, : alone.shape[1]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["classification", "tokens"])
def test_the_encoder_is_the_pretrained_one_and_the_head_is_drawn(family: str, kind: str) -> None:
    given = weights(family)
    made = {seed: build(Start(given), task(kind), SETTING, seed).state_dict() for seed in (0, 1)}
    again = build(Start(given), task(kind), SETTING, 0).state_dict()
    carried = 0
    for name, tensor in made[0].items():
        assert torch.equal(tensor, again[name]), name
        theirs = given.state.get(name.removeprefix("encoder."))
        if not of_head(name):
            assert theirs is not None, name
        if theirs is not None and not name.startswith("encoder.head."):
            assert torch.equal(tensor, theirs), name
            carried += 1
        elif name.endswith("weight") and "norm" not in name.lower():
            assert not torch.equal(tensor, made[1][name]), name
    assert carried > 10


def test_a_second_segment_begins_as_the_first_where_pretraining_knew_no_other(family: str) -> None:
    given = weights(family)
    tables = [name for name in given.state if "token_type" in name]
    told_apart, as_one = (
        build(Start(replace(given, one_type=one)), task("classification"), SETTING, 0) for one in (False, True)
    )
    for name in tables:
        theirs = given.state[name]
        assert len(theirs) == 1 or not torch.equal(theirs[0], theirs[1])
        assert torch.equal(told_apart.state_dict()[f"encoder.{name}"], theirs)
        assert torch.equal(as_one.state_dict()[f"encoder.{name}"], theirs[:1].expand_as(theirs))
    assert tables or family not in ("bert_tiny", "mosaic_tiny", "roberta_tiny", "albert_tiny")


def test_untrained_takes_nothing_over(family: str) -> None:
    given = weights(family)
    made = {seed: build(Start(given, untrained=True), task("classification"), SETTING, seed) for seed in (0, 1)}
    again = build(Start(given, untrained=True), task("classification"), SETTING, 0).state_dict()
    matrices = [n for n, p in made[0].named_parameters() if p.dim() == 2 and "filters" not in n]
    for name in matrices:
        assert torch.equal(made[0].state_dict()[name], again[name]), name
        assert not torch.equal(made[0].state_dict()[name], made[1].state_dict()[name]), name
        theirs = given.state.get(name.removeprefix("encoder."))
        assert theirs is None or not torch.equal(theirs, made[0].state_dict()[name]), name


def test_nobody_elses_random_state_is_touched() -> None:
    given = weights("bert_tiny")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(Start(given), task("classification"), SETTING, 0)
    assert torch.equal(torch.rand(3), expected)


def test_of_another_task_all_but_the_last_layer_is_carried(family: str) -> None:
    given, three, two = weights(family), task("classification"), replace(task("regression"), name="other")
    parent = build(Start(given), three, SETTING, 0)
    with torch.no_grad():
        for parameter in parent.parameters():
            parameter.add_(1.0)
    fresh = build(Start(given), two, SETTING, 7)
    child = build(Start(given, parent=parent.state_dict()), two, SETTING, 7)
    last = f"{child.last_layer}."
    assert {name for name in child.state_dict() if name.startswith(last)} >= {f"{last}weight"}
    poolers = 0
    for name, tensor in child.state_dict().items():
        source = fresh if name.startswith(last) else parent
        assert torch.equal(tensor, source.state_dict()[name]), name
        poolers += not name.startswith(last) and of_head(name)
    assert poolers or family == "hf"  # all have a layer between the encoder and the last


def test_a_parent_of_another_form_is_refused() -> None:
    given = weights("bert_tiny")
    parent = build(Start(given), task("classification", 2), SETTING, 0).state_dict()
    with pytest.raises(UserError, match="start_from: the other task's model is of another form"):
        build(Start(given, parent=parent), task("classification"), SETTING, 0)


@pytest.mark.parametrize("family", ["bert_tiny", "hf"])
def test_weights_that_do_not_fit_are_refused(family: str) -> None:
    given = weights(family)
    name = next(name for name in given.state if "word" in name)
    asked = task("classification")
    without = replace(given, state={n: t for n, t in given.state.items() if n != name})
    with pytest.raises(UserError, match=f"lacks '{name}'"):
        build(Start(without), asked, SETTING, 0)
    narrow = replace(given, state={**given.state, name: given.state[name][:, 1:]})
    with pytest.raises(UserError, match=f"'{name}' has shape"):
        build(Start(narrow), asked, SETTING, 0)
    more = replace(given, state={**given.state, "blocks.9.strange": torch.zeros(1)})
    with pytest.raises(UserError, match="strange' has no place"):
        build(Start(more), asked, SETTING, 0)


@pytest.mark.parametrize(("family", "kind", "spans"), GRID)
def test_last_layer_gives_the_outputs(family: str, kind: str, spans: int) -> None:
    asked = task(kind, spans)
    made = model(family, asked)
    layer = made.get_submodule(made.last_layer)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == asked.outputs
    logits = made(batches.gather(split(asked), np.arange(5)))
    with torch.no_grad():
        layer.bias += 1.0
        torch.testing.assert_close(made(batches.gather(split(asked), np.arange(5))), logits + 1.0)


@pytest.mark.parametrize(("family", "kind", "spans"), GRID)
def test_every_parameter_of_the_head_matters(family: str, kind: str, spans: int) -> None:
    asked = task(kind, spans)
    made, inputs = model(family, asked), batches.gather(split(asked), np.arange(6))
    assert inputs.labels is not None
    loss(asked, made(inputs), inputs.labels).backward()
    heads = [n for n, _ in made.named_parameters() if n.startswith(("head.", "encoder.head."))]
    for name, parameter in made.named_parameters():
        if name in heads and not (kind == "choice" and name == f"{made.last_layer}.bias"):  # adds to all choices alike
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", ["classification", "tokens"])
def test_without_dropout_training_and_evaluation_are_the_same(family: str, kind: str) -> None:
    asked = task(kind)
    inputs = batches.gather(split(asked), np.arange(4))
    for given, same in ((0.0, True), (0.3, False)):
        made = model(family, asked, dropout=given)
        assert torch.equal(made.eval()(inputs), made.train()(inputs)) is same


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert_tiny", (0.1, 0.1)), ("roberta_tiny", (0.1, 0.1)), ("albert_tiny", (0.1, 0.1)),
        ("deberta_tiny", (0.1, 0.1)), ("24hbert_tiny", (0.1, 0.1)), ("hf", (0.1, 0.1)), ("crammed_tiny", (0.1, 0.1)),
        ("mosaic_tiny", (0.1, 0.0)), ("m2_tiny", (0.1, 0.0)), ("modern_tiny", (0.0, 0.0)),
        ("neobert_tiny", (0.0, 0.0)),
    ],
)  # fmt: skip
def test_dropout_of_fine_tuning(family: str, expected: tuple[float, float]) -> None:
    chosen = options(family)
    found = fitted(chosen, SETTING)
    assert (found.dropout, found.attention_dropout) == expected
    own = replace(chosen, dropout=0.25)
    assert fitted(own, SETTING).dropout == 0.25
    given = fitted(own, replace(SETTING, dropout=0.3))
    assert (given.dropout, given.attention_dropout) == (0.3, 0.3 if expected[1] else 0.0)
    assert [m.p for m in model(family, task("classification"), dropout=0.3).modules() if isinstance(m, nn.Dropout)]


def test_the_mean_is_over_tokens_alone(family: str) -> None:
    asked, inputs = task("classification"), batches.gather(split(task("classification")), np.arange(5))
    made = model(family, asked, pooler="mean")
    assert inputs.mask is not None
    types = inputs.types if made._types else None
    states = made.encoder.states(inputs.tokens, inputs.mask, types)
    means = torch.stack([s[m].mean(0) for s, m in zip(states, inputs.mask, strict=True)])
    head: Any = made.encoder.head if isinstance(made.encoder, Classifier) else made.head
    torch.testing.assert_close(made(inputs), head(means[:, None]), rtol=1e-4, atol=1e-5)
    first = model(family, asked, pooler="first")
    torch.testing.assert_close(first.encoder.states(inputs.tokens, inputs.mask, types), states)
    if isinstance(first.encoder, Classifier):
        torch.testing.assert_close(first(inputs), first.encoder.head(states[:, :1]), rtol=1e-4, atol=1e-5)


def test_an_architectures_own_pooler_is_an_option_of_it() -> None:
    found = fitted(options("m2_tiny"), replace(SETTING, pooler="mean"))
    assert found.pool_all  # type: ignore[attr-defined]
    found = fitted(options("crammed_tiny"), replace(SETTING, pooler="first"))
    assert found.classification_head.pooler == "zero_index"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("family", "extends"),
    [("bert_tiny", False), ("m2_tiny", False), ("mosaic_tiny", True), ("modern_tiny", True), ("crammed_tiny", True)],
)
def test_longer_texts_where_no_weights_belong_to_positions(family: str, extends: bool) -> None:
    given, asked = weights(family), task("classification")
    assert length_for(given, 10) == LENGTH
    assert length_for(given, 50) == (50 if extends else LENGTH)
    made = build(Start(given), asked, replace(SETTING, max_length=50), 0)
    assert (made.positions >= 50) is extends
    if extends:
        inputs = Inputs(*_texts(1, 50))
        assert made(inputs).isfinite().all()


def _texts(rows: int, length: int) -> tuple[Tensor, None, Tensor, None, None, Tensor]:
    tokens = torch.full((rows, length), 7)
    return tokens, None, torch.zeros_like(tokens), None, None, torch.arange(rows)


def test_types_tell_segments_apart_where_a_family_knows_them() -> None:
    inputs = batches.gather(split(task("classification")), np.arange(4))
    for family, knows in (("bert_tiny", True), ("m2_tiny", True), ("hf", True), ("crammed_tiny", False)):
        made = model(family, task("classification"))
        same = torch.equal(made(inputs), made(replace(inputs, types=torch.zeros_like(inputs.types))))
        assert same is not knows, family
    made = model("roberta_tiny", task("classification"))  # has a table of one type, which a second must not overrun
    assert made(inputs).isfinite().all()


def test_spans_are_read_as_means_beside_the_text() -> None:
    made = model("bert_tiny", task("classification", 2))
    head = made.head
    assert isinstance(head, SpanHead)
    states = torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(0))
    spans = torch.tensor([[[1, 3], [5, 6]], [[2, 3], [0, 0]]])
    text = head.base.features(states)
    means = [[states[0, 1:3].mean(0), states[0, 5]], [states[1, 2], torch.zeros(128)]]
    joined = torch.stack([torch.cat((text[i], *means[i])) for i in range(2)])
    torch.testing.assert_close(head(states, None, spans), head.base.classifier(joined))


def test_marked_spans_leave_the_familys_classifier() -> None:
    assert model("bert_tiny", task("classification", 2), spans="marked").head is None
    assert model("bert_tiny", task("classification", 2)).head is not None


def test_words_are_their_first_tokens() -> None:
    head = WordHead(8, 3, 0.0)
    states = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    logits = head(states, torch.tensor([[[1, 3], [3, 4]], [[2, 5], [-1, -1]]]))
    assert logits.shape == (2, 2, 3)
    torch.testing.assert_close(logits[0, 1], head.classifier(states[0, 3]))
    torch.testing.assert_close(logits[1, 0], head.classifier(states[1, 2]))


def test_a_choice_is_between_an_examples_texts() -> None:
    asked = task("choice")
    made, inputs = model("bert_tiny", asked), batches.gather(split(asked), np.arange(4))
    logits = made(inputs)
    assert logits.shape == (4, 3)
    single = made.encoder(inputs.tokens, inputs.mask, inputs.types)
    assert torch.equal(logits.flatten(), single.flatten())


def test_losses_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0), 0.0], [0.0, 0.0, math.log(2.0)]])
    labels = torch.tensor([1, 0])
    expected = math.log(5 / 3) + math.log(4.0)
    assert loss(task("classification"), logits, labels).item() == pytest.approx(expected)
    assert loss(task("choice"), logits, labels).item() == pytest.approx(expected)
    assert loss(task("tokens"), logits[None], labels[None]).item() == pytest.approx(expected)
    assert loss(task("tokens"), logits[None], torch.tensor([[1, -100]])).item() == pytest.approx(math.log(5 / 3))
    values = loss(task("regression"), torch.tensor([[1.0], [4.0]]), torch.tensor([3.0, 3.5]))
    assert values.item() == pytest.approx(4.25)
    both = loss(task("multilabel"), torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    assert both.item() == pytest.approx(2 * math.log(2.0))
    assert judged(task("tokens"), torch.tensor([[1, -100], [2, 0]])) == 3
    assert judged(task("multilabel"), torch.zeros(4, 3)) == 4


def test_what_reads_the_first_token_only_is_what_reads_all(family: str) -> None:
    """The short cut in the last layer changes nothing."""
    made: FineTuned = model(family, task("classification"), pooler="first")
    if not isinstance(made.encoder, Classifier):
        return
    inputs = batches.gather(split(task("classification")), np.arange(7))
    types = inputs.types if made._types else None
    whole = made.encoder.head(made.encoder.states(inputs.tokens, inputs.mask, types), inputs.mask)
    torch.testing.assert_close(made(inputs), whole, rtol=1e-4, atol=1e-5)
