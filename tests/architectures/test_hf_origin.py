"""Where networks of transformers come from: folders, hub ids, kinds; classifiers; and what is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cramming.architectures import growth, hf_origin
from cramming.architectures.configs.albert import AlbertConfig
from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.deberta import DebertaConfig
from cramming.architectures.configs.hf import HfConfig
from cramming.architectures.hf_build import wrapped
from cramming.architectures.hf_head import EVERYWHERE, FUSED, ROWS
from cramming.batch import Batch
from cramming.cli import compose
from cramming.errors import UserError

MakeBatch = Callable[..., Batch]
SIZES = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 2}
NAMED = {**SIZES, "max_position_embeddings": 40}
OURS: dict[str, Any] = {"layers": 2, "hidden": 24, "heads": 3, "intermediate": 40}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as ``save_pretrained`` writes it, of a network with a vocabulary of its own."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING["electra"](**NAMED, embedding_size=16, vocab_size=97, hidden_dropout_prob=0.3)
    AutoModelForMaskedLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_folder_says_what_is_built(saved: Path) -> None:
    arch = HfConfig(model=str(saved), config={"num_hidden_layers": 3})
    model: Any = arch.build(50, 20)
    assert (model.layers, arch.layers, model.vocab_size, model.max_positions) == (3, 3, 50, 40)
    assert type(model.network).__name__ == "ElectraForMaskedLM"
    assert model.network.get_input_embeddings().weight.shape == (50, 16)
    assert not any(m.p for m in model.modules() if isinstance(m, nn.Dropout)), "dropout is what arch.dropout says"
    dropping: Any = HfConfig(model=str(saved), dropout=0.2, attention_dropout=0.4).build(50, 20)
    assert {m.p for m in dropping.network.base_model.modules() if isinstance(m, nn.Dropout)} == {0.2, 0.4}


def test_published_weights_are_those_of_the_folder(saved: Path, make_batch: MakeBatch) -> None:
    batch, theirs = make_batch(), AutoModelForMaskedLM.from_pretrained(saved).eval()
    model: Any = HfConfig(model=str(saved), pretrained=True).build(97, 20)
    expected = theirs(input_ids=batch.inputs).logits[torch.arange(len(batch))[:, None], batch.positions]
    torch.testing.assert_close(model(batch, logits=True), expected, rtol=1e-4, atol=1e-5)
    padded: Any = HfConfig(model=str(saved), pretrained=True).build(90, 20)
    assert padded.vocab_size == 97, "rows beyond the tokenizer's ids stay"
    with torch.device("meta"):
        outline: Any = HfConfig(model=str(saved), pretrained=True).build(97, 20)
    assert {n: p.shape for n, p in outline.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_weights_that_are_missing_start_fresh_and_are_named(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    HfConfig(model=str(saved), pretrained=True).build(97, 20, labels=3)
    assert "has no classifier.dense.bias, classifier.dense.weight" in caplog.text


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    arch = HfConfig(config=NAMED)
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(arch.build(97, 20).state_dict())
        drawn = torch.rand(())
        torch.manual_seed(seed)
        arch.build(97, 20)
        assert torch.equal(drawn, torch.rand(())), "what is tried at the beginning draws nothing"
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_special_ids_are_those_of_tokenizers_trained_here_unless_given() -> None:
    ours: Any = HfConfig(model_type="roberta", config=NAMED).build(97, 20)
    assert ours.network.config.pad_token_id == 0
    assert ours.max_positions == 39, "positions are counted from behind the padding's id"
    given: Any = HfConfig(model_type="roberta", config={**NAMED, "pad_token_id": 1}).build(97, 20)
    assert (given.network.config.pad_token_id, given.max_positions) == (1, 38)
    with torch.device("meta"):
        own: Any = HfConfig(model_type="roberta", config=NAMED).build(50265, 20)
    assert own.network.config.pad_token_id == 1


@pytest.mark.parametrize(
    ("model_type", "more", "path"),
    [
        ("bert", {}, FUSED),
        ("deberta", {"legacy": False}, FUSED),  # a product with the table of words, in no module
        ("mobilebert", {"embedding_size": 16, "intra_bottleneck_size": 12, "true_hidden_size": 12}, ROWS),
    ],
)
def test_the_short_cut_that_fits_the_head_is_taken(model_type: str, more: dict[str, Any], path: str) -> None:
    model: Any = HfConfig(model_type=model_type, config={**NAMED, **more}).build(97, 20)
    assert model.fast_paths()["vocabulary"] == path


class Scaled(nn.Linear):
    """A decoder whose product is not the last word."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Neighbours(nn.Module):
    """A transform that looks at other positions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.mean(1, keepdim=True)


def test_heads_of_another_make_fall_back_to_what_is_right(make_batch: MakeBatch) -> None:
    batch, rows = make_batch(), torch.arange(4)[:, None]
    for part, replacement, path in (("decoder", Scaled(24, 97), ROWS), ("transform", Neighbours(), EVERYWHERE)):
        torch.manual_seed(0)
        network = AutoModelForMaskedLM.from_config(CONFIG_MAPPING["bert"](**NAMED, vocab_size=97)).eval()
        setattr(network.cls.predictions, part, replacement)
        model: Any = wrapped(network, 40, language_model=True)
        assert model.fast_paths()["vocabulary"] == path
        expected = network(input_ids=batch.inputs).logits[rows, batch.positions]
        torch.testing.assert_close(model(batch, logits=True), expected)
        losses = nn.functional.cross_entropy(expected.flatten(0, 1), batch.labels.flatten(), reduction="none")
        torch.testing.assert_close(model(batch).flatten(), losses)


def test_a_network_without_a_stack_of_layers_runs_whole_or_says_so(make_batch: MakeBatch) -> None:
    sizes = {"d_model": 24, "n_head": 3, "d_inner": 40, "d_head": 8, "block_sizes": [1, 2], "num_decoder_layers": 1}
    arch = HfConfig(model_type="funnel", config=sizes)
    model: Any = arch.build(97, 20)
    assert (model.layers, arch.layers, len(model.blocks), model.active_layers) == (3, 3, 0, (0, 1, 2))
    assert model(make_batch()).isfinite().all()
    with pytest.raises(UserError, match=r"hf of type 'funnel' cannot run 2 of its 3 layers, .* use rst=wallclock"):
        model.active_layers = (0, 1)
    assert model.active_layers == (0, 1, 2)


def classifiers() -> list[ArchConfig]:
    return [
        AlbertConfig(**OURS, embedding_dim=16),
        DebertaConfig(**OURS, position_buckets=8, max_positions=20),
        HfConfig(config=NAMED),
        HfConfig(model_type="mpnet", config=NAMED),
        HfConfig(model_type="modernbert", config=NAMED),
    ]


@pytest.mark.parametrize("arch", classifiers(), ids=["albert", "deberta", "bert", "mpnet", "modernbert"])
def test_a_classifier_takes_the_encoder_and_says_what_the_bare_one_says(arch: ArchConfig) -> None:
    torch.manual_seed(0)
    model: Any = arch.build(97, 20, labels=3)
    language_model: Any = arch.build(97, 20)
    encoder = {
        f"network.{model.network.base_model_prefix}.{n}"
        for n, _ in language_model.network.base_model.named_parameters()
    }
    assert encoder <= set(dict(model.named_parameters())), "the encoders' parameters are named alike"
    found = model.load_state_dict({n: p for n, p in language_model.state_dict().items() if n in encoder}, strict=False)
    assert not found.unexpected_keys

    generator = torch.Generator().manual_seed(0)
    inputs, mask = (
        torch.randint(5, 97, (3, 11), generator=generator),
        torch.arange(11) < torch.tensor([11, 4, 7])[:, None],
    )
    bare = AutoModelForSequenceClassification.from_config(model.network.config, dtype=torch.float32).eval()
    bare.load_state_dict(model.network.state_dict())
    expected = bare(input_ids=inputs, attention_mask=mask.long()).logits
    logits = model(inputs, mask)
    assert logits.shape == (3, 3)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(inputs.where(mask, 7), mask), model(inputs.where(mask, 8), mask))
    if getattr(model.network.config, "type_vocab_size", 0):
        types = (torch.arange(11) > 3).long().expand(3, -1)
        expected = bare(input_ids=inputs, token_type_ids=types).logits
        torch.testing.assert_close(model(inputs, token_types=types), expected, rtol=1e-4, atol=1e-5)


def test_the_command_line_reaches_every_option() -> None:
    words = ["arch=hf", "arch.model_type=roberta", "arch.config={hidden_size: 24, num_attention_heads: 3}"]
    arch = compose(words).arch
    assert arch == HfConfig(model_type="roberta", config={"hidden_size": 24, "num_attention_heads": 3})
    assert compose(["arch=albert"]).arch.hidden == compose(["arch=deberta"]).arch.hidden == 768


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": 3}, "arch.config=3 is no mapping: write"),
        ({"pretrained": True}, "arch.pretrained=true needs weights: give arch.model="),
        ({"model": "./nowhere"}, "arch.model=./nowhere is no folder with a config.json"),
        ({"model": "some/id", "pretrained": True, "config": {"hidden_size": 8}}, "takes a model as it is"),
        ({"dropout": 1.5}, "arch.dropout=1.5 is not a probability"),
    ],
)
def test_impossible_options_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HfConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model_type": "brt"},
            "arch.model_type=brt has no masked language model in transformers; did you mean 'bert'",
        ),
        ({"model_type": "bart"}, "arch.model_type=bart has a decoder: only encoders"),
        ({"config": {"hiden_size": 8}}, "arch.config.hiden_size is no option of 'bert'; did you mean 'hidden_size'"),
        ({"config": {"hidden_size": "wide"}}, "arch.model_type=bert .*hidden_size"),
        ({"config": {"hidden_size": 10, "num_attention_heads": 3}}, "transformers refuses it: The hidden size"),
        ({"config": {"hidden_dropout_prob": 0.1}}, "hidden_dropout_prob is set by arch.dropout"),
        ({"config": {"vocab_size": 3}}, "arch.config.vocab_size is not set here: it follows the tokenizer"),
        (
            {"config": {**SIZES, "max_position_embeddings": 12}},
            "data.seq_length=20 is longer than the 12 positions of 'bert': .*{max_position_embeddings: 20}",
        ),
        ({"model_type": "xmod", "config": NAMED}, "type 'xmod' does not run on token ids alone: Input language"),
    ],
)
def test_networks_that_cannot_be_had_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HfConfig(**options).build(97, 20)


def test_foreign_tokenizers_are_refused_for_published_weights(saved: Path) -> None:
    for size in (98, 5000):
        with pytest.raises(UserError, match=f"needs the tokenizer of arch.model=.* of about 97 ids, .* has {size}"):
            HfConfig(model=str(saved), pretrained=True).build(size, 20)
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"its weights cannot be read: .*model.safetensors"):
        HfConfig(model=str(saved), pretrained=True).build(97, 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json in it cannot be read"),
        ("{}", "lacks 'model_type'"),
        (
            '{"model_type": "my_bert", "auto_map": {"AutoModel": "m.M"}}',
            "needs code from its repository, which is never",
        ),
        ('{"model_type": "gpt2"}', "of type 'gpt2', has no masked language model in transformers"),
        (json.dumps({"model_type": "bert", "is_decoder": True}), "has a decoder"),
    ],
)
def test_folders_that_cannot_be_used_are_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        HfConfig(model=str(tmp_path)).build(97, 20)


def test_without_a_network_an_id_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_origin, "unreachable", lambda: "huggingface.co: Name or service not known")
    with pytest.raises(UserError, match=r"arch.model=some/id is no folder here, was not fetched .* service not known"):
        HfConfig(model="some/id").build(97, 20)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (AlbertConfig, {"heads": 7}, "arch.heads=7 does not divide arch.hidden=768"),
        (AlbertConfig, {"groups": 13}, "arch.groups=13 leaves groups that are never applied"),
        (AlbertConfig, {"embedding_dim": 0}, "arch.embedding_dim=0 is too small"),
        (AlbertConfig, {"nonlin": "gelu_new"}, "arch.nonlin=gelu_new is unknown"),
        (DebertaConfig, {"heads": 7}, "arch.heads=7 does not divide arch.hidden=768"),
        (DebertaConfig, {"position_terms": ["p2p"]}, "arch.position_terms has 'p2p', which is unknown"),
        (DebertaConfig, {"conv_kernel": 4}, "arch.conv_kernel=4 has no middle"),
        (DebertaConfig, {"position_buckets": 3}, "arch.position_buckets=3 is too small"),
        (
            DebertaConfig,
            {"max_positions": 100},
            "arch.position_buckets=256 leaves no distances .* arch.max_positions=100",
        ),
    ],
)
def test_impossible_encoders_are_refused(config: type[ArchConfig], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**settings)


@pytest.mark.parametrize("arch", [AlbertConfig(max_positions=64), DebertaConfig(max_positions=64, position_buckets=8)])
def test_sequences_longer_than_the_positions_are_refused(arch: ArchConfig) -> None:
    with pytest.raises(UserError, match=r"data.seq_length=128 is longer than arch.max_positions=64"):
        arch.build(97, 128)


def test_what_was_chosen_is_said() -> None:
    model: Any = HfConfig(config={**SIZES, "max_position_embeddings": 512}).build(97, 20)
    said = model.fast_paths()
    assert said["network"].endswith(" BertForMaskedLM")
    assert said["attention"] == "math up to 256 tokens, then sdpa"
    assert (model.fast_paths(128)["attention"], model.fast_paths(512)["attention"]) == ("math", "sdpa")
    model.attention = "sdpa"
    assert model.fast_paths(128)["attention"] == "sdpa"
    with pytest.raises(ValueError, match="'flash' is not one of auto, math, sdpa"):
        model.attention = "flash"
    own: Any = DebertaConfig(**OURS, position_buckets=8, max_positions=20).build(97, 20)
    assert own.fast_paths()["attention"] == "the network's own"


def test_what_grows_and_what_does_not() -> None:
    small: Any = HfConfig(config=NAMED).build(97, 20)
    deep: Any = HfConfig(config={**NAMED, "num_hidden_layers": 4}).build(97, 20)
    grown = growth.fit(small.state_dict(), small, deep, depth="stack")
    deep.load_state_dict(grown)
    for layer, block in enumerate(deep.blocks):
        for name, tensor in block.state_dict().items():
            assert torch.equal(tensor, small.blocks[layer % 2].state_dict()[name])
    longer: Any = HfConfig(config={**NAMED, "max_position_embeddings": 80}).build(97, 20)
    longer.load_state_dict(growth.fit(small.state_dict(), small, longer, positions="tile"))
    table = longer.network.bert.embeddings.position_embeddings.weight
    assert torch.equal(table[40:], small.network.bert.embeddings.position_embeddings.weight)

    wide: Any = HfConfig(config={**NAMED, "hidden_size": 48}).build(97, 20)
    with pytest.raises(UserError, match=r"is \(97, 24\) in the checkpoint and \(97, 48\) in the model"):
        growth.fit(small.state_dict(), small, wide, width="tile")
    counted: Any = HfConfig(model_type="roberta", config=NAMED).build(97, 20)
    further: Any = HfConfig(model_type="roberta", config={**NAMED, "max_position_embeddings": 80}).build(97, 20)
    with pytest.raises(UserError, match="position"):
        growth.fit(counted.state_dict(), counted, further, positions="tile")
    shared, more = (AlbertConfig(**{**OURS, "layers": n}, embedding_dim=16).build(97, 20) for n in (2, 4))
    with pytest.raises(UserError, match="layers of Albert are one and the same"):
        growth.fit(shared.state_dict(), shared, more, depth="stack")  # type: ignore[arg-type]
    more.load_state_dict(growth.fit(shared.state_dict(), shared, more))  # type: ignore[arg-type]
    assert torch.equal(next(more.blocks[3].parameters()), next(shared.blocks[0].parameters()))  # type: ignore[union-attr]
