"""Fine-tuned models on the disk: whole or absent, the same to the last bit, transformers' where it has the class."""

import json
from pathlib import Path
from typing import Any

import fine_tuned
import numpy as np
import pytest
import small_tasks
import torch

from cramming import faults
from cramming.architectures.configs.hf import HfConfig
from cramming.errors import UserError
from cramming.evaluation import finetuned, saved
from cramming.evaluation.batches import evaluation
from cramming.evaluation.config import Setting
from cramming.evaluation.encoding import in_memory
from cramming.evaluation.finetune import evaluate
from cramming.evaluation.finetuned import FineTuned, Start
from cramming.evaluation.tasks.registry import TASKS
from cramming.evaluation.tasks.task import Example, Span, Task, Text
from cramming.exchange.importing import FRESH, Request
from cramming.exchange.opening import opened
from tests.exchange.models import arch_of, kinds

SETTING = Setting(max_length=fine_tuned.POSITIONS)
# Families whose text classifier transformers has; the others have names of their own system, or ours.
LIBRARY = {"24hbert", "albert", "bert", "deberta", "hf", "modern", "roberta"}
PAIRS = [("the pilot found", "a map"), ("old", "it is not the river, 3 or 4"), ("a", "b c d e f")]


def write(folder: Path, model: FineTuned, setting: Setting = SETTING, **about: Any) -> str | None:
    return saved.save(model, folder, tokenizer=small_tasks.letters(), setting=setting, about=about)


def asked(task: Task) -> list[Example]:
    """Examples that any task of pairs takes."""
    return [Example((Text(pair),) * task.choices, None, {"index": i}) for i, pair in enumerate(PAIRS)]


def logits(one: saved.Saved) -> np.ndarray:
    encoded = in_memory(one.task, asked(one.task), one.tokenizer, max_length=one.max_length, spans="pooled")
    return evaluate(one.model, encoded)


@pytest.mark.parametrize("kind", kinds())
def test_transformers_says_the_same(kind: str, tmp_path: Path) -> None:
    import transformers

    task = TASKS["mnli"]
    library = write(tmp_path / "it", fine_tuned.model(task, SETTING, arch_of(kind)))
    assert (library is not None) == (kind in LIBRARY)
    said = json.loads((tmp_path / "it" / saved.DESCRIPTION).read_text())
    if library is None:
        assert said["loads_with"] is None
        return
    assert said["loads_with"] == f"transformers.{library}"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "it").eval()
    assert type(model).__name__ == library
    assert model.config.id2label == dict(enumerate(task.labels))
    assert model.config.problem_type == "single_label_classification"
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "it")
    texts = words(*map(list, zip(*PAIRS, strict=True)), return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**texts).logits
    np.testing.assert_allclose(theirs, logits(saved.load(tmp_path / "it")), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "problem", "names"),
    [
        ("stsb", "regression", {0: "score"}),
        ("rte", "single_label_classification", {0: "entailment", 1: "not_entailment"}),
        ("swag", None, {0: "score"}),
    ],
)
def test_configs_say_what_the_outputs_are(name: str, problem: str | None, names: dict, tmp_path: Path) -> None:
    import transformers

    write(tmp_path / "it", fine_tuned.model(TASKS[name], SETTING))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "it")
    assert model.config.problem_type == problem
    assert model.config.id2label == names
    assert model.config.label2id == {label: number for number, label in names.items()}


def test_what_a_family_cannot_say_is_ours_alone(tmp_path: Path) -> None:
    pooled, tokens = Setting(max_length=64, pooler="mean"), small_tasks.task("tokens")
    for name, task, setting, kind in (
        ("spans", TASKS["wic"], SETTING, "bert"),
        ("pooling", TASKS["mnli"], pooled, "bert"),
        ("words", tokens, SETTING, "albert"),
        ("crammed", TASKS["mnli"], SETTING, "crammed"),
    ):
        assert write(tmp_path / name, fine_tuned.model(task, setting, arch_of(kind)), setting) is None
        assert not (tmp_path / name / "config.json").exists(), "nobody else must take it for his own"
        assert json.loads((tmp_path / name / saved.DESCRIPTION).read_text())["names"] == "cramming"
    assert write(tmp_path / "modern", fine_tuned.model(TASKS["mnli"], pooled, arch_of("modern")), pooled) is not None
    assert json.loads((tmp_path / "modern" / "config.json").read_text())["classifier_pooling"] == "mean"


@pytest.mark.parametrize("kind", kinds())
def test_a_model_comes_back_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    for task in (TASKS["stsb"], TASKS["wic"], small_tasks.task("tokens")):
        model = fine_tuned.model(task, SETTING, arch_of(kind))
        write(tmp_path / task.name, model, seed=3)
        there = saved.load(tmp_path / task.name)
        assert (there.task, there.setting, there.about) == (task, SETTING, {"seed": 3})
        assert there.max_length == min(64, model.positions)
        assert there.tokenizer.sha256 == small_tasks.letters().sha256
        assert not there.model.training
        assert there.model.state_dict().keys() == model.state_dict().keys()
        for name, tensor in there.model.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
        examples = small_tasks.examples("tokens" if task.kind == "tokens" else "classification", 4, labelled=False)
        if task.span_count:
            spans = (Span(0, 0, 3), Span(0, 4, 6))
            examples = [Example((Text(e.texts[0].segments, spans),), None, e.key) for e in examples]
        encoded = in_memory(task, examples, there.tokenizer, max_length=64, spans="pooled")
        for inputs in evaluation(encoded, 4096):
            with torch.no_grad():
                assert torch.equal(model(inputs), there.model(inputs))


def test_a_folder_depends_on_nothing_outside(tmp_path: Path) -> None:
    """``arch=hf`` may name a folder with a published model, which another machine does not have."""
    import transformers

    source = tmp_path / "published"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    words = small_tasks.letters().vocab_size
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=words, **sizes)).save_pretrained(source)
    model = fine_tuned.model(TASKS["rte"], SETTING, HfConfig(model=str(source)))
    write(tmp_path / "it", model)
    before = logits(saved.load(tmp_path / "it"))
    for file in source.iterdir():
        file.unlink()
    np.testing.assert_array_equal(logits(saved.load(tmp_path / "it")), before)
    assert str(tmp_path) not in (tmp_path / "it" / saved.DESCRIPTION).read_text()


def test_a_tokenizer_with_a_template_of_its_own_gets_ours(tmp_path: Path) -> None:
    """RoBERTa's puts two [SEP] between two texts; the model was fine-tuned with one."""
    import tokenizers
    import transformers

    from cramming.data.tokenizer import Tokenizer

    backend = tokenizers.Tokenizer.from_str(small_tasks.letters().to_json())
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    model = fine_tuned.model(TASKS["mnli"], SETTING, arch_of("roberta"))
    saved.save(model, tmp_path / "it", tokenizer=Tokenizer(backend), setting=SETTING)
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "it")("a", "b")["input_ids"]
    assert (
        ids
        == in_memory(
            model.task, [Example((Text(("a", "b")),), None, {})], small_tasks.letters(), max_length=64, spans="pooled"
        ).tokens.tolist()
    )


def test_a_folder_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, folder = TASKS["rte"], tmp_path / "model"
    first, second = (fine_tuned.model(task, SETTING, seed=seed) for seed in (1, 2))

    class Stopped(BaseException):
        pass

    def stopping(at: str) -> None:
        def point(name: str) -> None:
            if name == at:
                raise Stopped

        monkeypatch.setattr(faults, "point", point)

    for at in ("saved-fsync", "saved-rename", "cramming_task-write"):
        stopping(at)
        with pytest.raises(Stopped):
            write(folder, first)
        assert not folder.exists(), at
    stopping("")
    write(folder, first)
    stopping("saved-fsync")
    with pytest.raises(Stopped):
        write(folder, second)
    before = saved.load(folder).model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.state_dict().items())
    stopping("")
    write(folder, second)
    after = saved.load(folder).model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in second.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "nothing is left over"
    assert len({path.stat().st_mode & 0o777 for path in folder.iterdir()}) == 1


def test_saving_changes_nothing(tmp_path: Path) -> None:
    model = fine_tuned.model(TASKS["rte"], SETTING).train()
    before, state = torch.get_rng_state(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write(tmp_path / "it", model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", kinds())
def test_another_training_begins_with_its_encoder(kind: str, tmp_path: Path) -> None:
    """Whatever names its tensors have, and whatever head it has; what is drawn anew is the same every time."""
    ids = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    for task in (TASKS["mnli"], TASKS["wic"]):
        model, folder = fine_tuned.model(task, SETTING, arch_of(kind)), str(tmp_path / task.name)
        write(tmp_path / task.name, model)
        with pytest.raises(UserError):
            opened(folder, str(tmp_path), Request())
        weights = opened(folder, str(tmp_path), Request(head=FRESH))
        assert weights.tokenizer is not None
        again: Any = finetuned.build(Start(weights), TASKS["rte"], SETTING, 1)
        before: Any = model
        with torch.no_grad():
            torch.testing.assert_close(again.encoder.states(ids), before.encoder.states(ids), rtol=1e-5, atol=1e-5)
        other = opened(folder, str(tmp_path), Request(head=FRESH))
        assert weights.origin["weights_sha256"] == other.origin["weights_sha256"]


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it is no fine-tuned model: it has no cramming_task.json"):
        saved.load(tmp_path / "it")
    folder = tmp_path / "it"
    write(folder, fine_tuned.model(TASKS["rte"], SETTING))
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    description = json.loads(whole[saved.DESCRIPTION])
    for name, content, wrong in (
        ("model.safetensors", b"", "is damaged"),
        ("model.safetensors", whole["model.safetensors"][:-10], "is damaged"),
        ("config.json", b"{", "is damaged"),
        ("config.json", json.dumps({**json.loads(whole["config.json"]), "num_hidden_layers": 1}).encode(), "damaged"),
        (saved.DESCRIPTION, b"{", "is damaged"),
        (saved.DESCRIPTION, json.dumps({**description, "task": {}}).encode(), "is damaged"),
        (saved.DESCRIPTION, json.dumps({**description, "format": 9}).encode(), "is of format 9, this version reads 1"),
        ("tokenizer.json", b"{", "damaged"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=wrong):
            saved.load(folder)
        (folder / name).write_bytes(whole[name])
    saved.load(folder)
