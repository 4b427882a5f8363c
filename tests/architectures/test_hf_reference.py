"""Checkpoints of transformers become models of ours and go back, for the families whose modules are the library's."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from cramming.architectures import from_reference
from cramming.architectures.configs.albert import AlbertConfig
from cramming.architectures.configs.base import ArchConfig
from cramming.architectures.configs.deberta import DebertaConfig
from cramming.architectures.configs.hf import HfConfig
from cramming.architectures.reference import to_reference
from cramming.architectures.references import DETECTORS, FAMILIES, WRITERS
from cramming.batch import Batch
from cramming.errors import UserError

SIZES = {
    "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 2,
    "max_position_embeddings": 34,
}  # fmt: skip
SMALL = {**SIZES, "vocab_size": 97}
V3 = {
    "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": "p2c|c2p", "position_biased_input": False, "type_vocab_size": 0, "layer_norm_eps": 1e-7,
    "max_relative_positions": -1, "legacy": False,
}  # fmt: skip
V2 = {**V3, "conv_kernel_size": 3, "conv_act": "gelu", "position_biased_input": True, "type_vocab_size": 2}
# Family, model_type, what its config says beside the sizes.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "albert": ("albert", "albert", {"embedding_size": 16}),
    "albert_groups": ("albert", "albert", {"embedding_size": 16, "num_hidden_groups": 2, "hidden_act": "gelu"}),
    "deberta_v3": ("deberta", "deberta-v2", V3),
    "deberta_v2": ("deberta", "deberta-v2", V2),
    "deberta_legacy": ("deberta", "deberta-v2", {**V3, "legacy": True, "share_att_key": False}),
    "electra": ("hf", "electra", {"embedding_size": 16}),
    "mpnet": ("hf", "mpnet", {}),
    "ernie": ("hf", "ernie", {"pad_token_id": 1}),
    "deberta_v1": ("hf", "deberta", {"relative_attention": True, "pos_att_type": "c2p|p2c"}),
    "distilbert": ("hf", "distilbert", {"dim": 24, "n_heads": 3, "hidden_dim": 40, "n_layers": 2}),
}
ARCHS: list[ArchConfig] = [
    AlbertConfig(layers=4, groups=2, hidden=24, heads=3, intermediate=40, embedding_dim=16, norm_eps=1e-6),
    AlbertConfig(layers=2, hidden=24, heads=3, intermediate=40, nonlin="relu", max_positions=40, dropout=0.1),
    DebertaConfig(layers=2, hidden=24, heads=3, intermediate=40, position_buckets=8, max_positions=32),
    DebertaConfig(
        layers=2, hidden=24, heads=3, intermediate=40, position_buckets=0, max_positions=32, conv_kernel=3,
        legacy_head=True, relative_norm=False, token_types=2, absolute_positions=True, nonlin="gelu_tanh",
    ),
    HfConfig(model_type="electra", config={**SIZES, "embedding_size": 16}),
    HfConfig(model_type="mpnet", config=SIZES, dropout=0.1),
]  # fmt: skip


def bare(case: str) -> Any:
    torch.manual_seed(0)
    _, model_type, more = CASES[case]
    sizes = {"vocab_size": 97, "max_position_embeddings": 32} if model_type == "distilbert" else SMALL
    network = AutoModelForMaskedLM.from_config(CONFIG_MAPPING[model_type](**{**sizes, **more}), dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def everywhere(inputs: torch.Tensor) -> Batch:
    """A batch that asks for every position."""
    rows = torch.arange(len(inputs))
    positions = torch.arange(inputs.shape[1]).expand(inputs.shape)
    weights = torch.ones(inputs.shape)
    return Batch(rows, rows, inputs, positions, inputs, weights, None, weights.sum())


INPUTS = torch.randint(5, 97, (2, 13), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_becomes_a_model_that_says_the_same(case: str) -> None:
    network, (family, _, _) = bare(case), CASES[case]
    config, state = network.config.to_dict(), network.state_dict()
    assert [name for name, detect in DETECTORS.items() if detect(config, state)] == [family]
    model = from_reference(family, config, state, "mlm")
    expected = network(input_ids=INPUTS).logits
    torch.testing.assert_close(model(everywhere(INPUTS), logits=True), expected, rtol=1e-4, atol=1e-5)
    del state[next(iter(state))]
    with pytest.raises(UserError, match="the checkpoint lacks"):
        from_reference(family, config, state, "mlm")


@pytest.mark.parametrize("case", CASES)
def test_the_padding_of_a_checkpoint_gets_no_gradient_from_its_lookup(case: str) -> None:
    network, (family, _, _) = bare(case), CASES[case]
    model = from_reference(family, network.config.to_dict(), network.state_dict(), "mlm")
    padding = network.config.pad_token_id
    inputs = INPUTS.clone()
    inputs[0, 3] = padding
    # The head shares the table, so only the encoder's part is looked at.
    network.base_model(input_ids=inputs)[0].square().sum().backward()
    model.hidden(everywhere(inputs)).square().sum().backward()
    ours, theirs = model.network.get_input_embeddings(), network.get_input_embeddings()
    assert model.embeddings.padding_id == padding
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-4)
    assert not ours.weight.grad[padding].any()


@pytest.mark.parametrize("case", ["albert", "deberta_v3", "electra", "distilbert"])
def test_a_classifier_becomes_ours(case: str) -> None:
    family = CASES[case][0]
    config = copy.deepcopy(bare(case).config)
    config.num_labels = 3
    torch.manual_seed(1)
    network = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    model = from_reference(family, network.config.to_dict(), network.state_dict(), "classification")
    mask = torch.arange(13) < torch.tensor([13, 8])[:, None]
    expected = network(input_ids=INPUTS, attention_mask=mask.long()).logits
    torch.testing.assert_close(model(INPUTS, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: f"{arch.kind}{ARCHS.index(arch)}")
def test_an_exported_folder_loads_in_transformers_and_comes_back(arch: ArchConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = arch.build(97, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    family, config = WRITERS[arch.kind](arch, 97, 32)
    config = json.loads(json.dumps(config))
    plan = FAMILIES[family](config, "mlm")
    ids = {"name": arch.name, "batch_size": arch.batch_size, "vocab_size": arch.vocab_size}
    if arch.kind == "hf":  # other words for the same network
        assert json.loads(json.dumps(WRITERS["hf"](plan.arch, 97, 32)[1])) == config
    else:
        positions = {"max_positions": 32} if arch.max_positions is None else {}  # type: ignore[attr-defined]
        assert {**vars(plan.arch), **ids} == {**vars(arch), **positions}
    state = to_reference(model, plan, copies=False)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": 0}))
    network = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    ours = model(everywhere(INPUTS), logits=True)
    torch.testing.assert_close(network(input_ids=INPUTS).logits, ours, rtol=0, atol=1e-5)
    again: Any = from_reference(family, config, state, "mlm")
    assert torch.equal(again(everywhere(INPUTS), logits=True), ours)


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("albert", {"hidden_act": "gelu_fast"}, "albert with hidden_act='gelu_fast' is not supported: import it with"),
        ("albert", {"hidden_size": None}, "lacks 'hidden_size'"),
        ("deberta", {"norm_rel_ebd": "rms"}, "deberta with norm_rel_ebd='rms' is not supported"),
        ("deberta", {"relative_attention": False}, "deberta with relative_attention=False is not supported"),
        ("deberta", {"pos_att_type": "p2p"}, "deberta with pos_att_type='p2p' is not supported"),
        ("deberta", {"embedding_size": 7}, "deberta with embedding_size=7 is not supported"),
        ("hf", {"model_type": "gpt2"}, "of model_type 'gpt2' has no masked language model in transformers"),
    ],
)
def test_configs_that_cannot_be_had_are_refused(family: str, change: dict[str, Any], message: str) -> None:
    case = next(case for case, (name, _, _) in CASES.items() if name == family)
    config = {**bare(case).config.to_dict(), **change}
    for key in [key for key, value in change.items() if value is None]:
        del config[key]
    with pytest.raises(UserError, match=message):
        FAMILIES[family](config, "mlm")


def test_the_released_deberta_is_read_with_its_own_head() -> None:
    """Its files hold ``lm_predictions``; transformers, not being told, would begin another head anew."""
    network = bare("deberta_v3")
    config = network.config.to_dict()
    del config["legacy"]
    plan = FAMILIES["deberta"](config, "mlm")
    assert not plan.arch.legacy_head  # type: ignore[attr-defined]
    for name in ("mask_predictions.dense.weight", "deberta.embeddings.position_embeddings.weight"):
        assert any(re.fullmatch(pattern, name) for pattern in plan.other_heads), name
    from_reference("deberta", config, network.state_dict(), "mlm")
