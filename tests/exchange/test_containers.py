"""Released checkpoints in every container: the reference systems' tensors give the model that parity is tested on."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cramming.architectures import from_reference
from cramming.architectures.reference import to_reference
from cramming.architectures.references import FAMILIES
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.exchange import importing
from cramming.exchange.importing import Request
from cramming.exchange.opening import opened
from cramming.exchange.weights import sha256

CASES = {
    "hf_bert_mlm": "hf_bert",
    "crammed_bert_mlm": "cramming",
    "ntng_c5_flash_mlm": "ntng",
    "ntng_c5_selfattn_mlm": "ntng",
    "mosaic_bert_mlm": "mosaic_bert",
    "m2_bert_mlm_s32": "m2_bert",
    "m2_bert_mlm_s32_ta": "m2_bert",
}
State = dict[str, Tensor]


def stored(shared: Path, case: str) -> tuple[dict[str, Any], State]:
    """The reference's own config and tensors."""
    config = json.loads((shared / "golden" / f"{case}.json").read_text())["config"]
    tensors = load_file(shared / "golden" / f"{case}.safetensors")
    return config, {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}


def composer(state: State, config: dict[str, Any]) -> dict[str, Any]:
    """A file of Composer's: clocks and random states beside the tensors, whose names begin with ``model.``."""
    return {
        "state": {
            "model": {f"model.{name}": tensor for name, tensor in state.items()},
            "timestamp": {"total_wct": datetime.timedelta(seconds=3)},
            "optimizers": {"AdamW": {"state": {0: {"step": torch.tensor(1.0)}}}},
            "integrations": {"huggingface": {"model": {"config": {"content": config}}}},
        },
        "rng": [{"torch": torch.get_rng_state(), "python": (3, (1, 2), None)}],
    }


def write(folder: Path, form: str, state: State, config: dict[str, Any]) -> Path:
    """A checkpoint in one of the forms; what to name to import it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if form == "safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
    elif form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif form == "shards":
        names = sorted(state)
        parts = [names[::2], names[1::2]]
        places = {}
        for number, part in enumerate(parts, start=1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: state[name].clone() for name in part}, folder / file)
            places |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    elif form == "composer":
        (folder / "config.json").unlink()
        torch.save(composer(state, config), folder / "ep0-ba70000-rank0.pt")
        return folder / "ep0-ba70000-rank0.pt"
    elif form == "wrapped":  # by compiling and by training on several GPUs
        torch.save({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, folder / "model.pt")
    else:
        assert form == "earlier", form  # of the earlier study: optimizer, model, scheduler, the rest
        (folder / "config.json").rename(folder / "model_config.json")
        torch.save([{"state": {}, "param_groups": []}, state, {"last_epoch": 3}], folder / "hours=24.00.pth")
    return folder


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["safetensors", "bin", "shards", "composer", "wrapped", "earlier"])
def test_every_container_gives_the_same_model(shared: Path, tmp_path: Path, case: str, form: str) -> None:
    config, state = stored(shared, case)
    expected = from_reference(CASES[case], config, state, "mlm")
    found = opened(str(write(tmp_path / "it", form, state, config)), str(tmp_path))
    assert found.origin["family"] == CASES[case]
    assert found.origin["weights_sha256"] == sha256(expected.state_dict())
    assert found.left_out == ()


def test_checkpoints_of_m2_need_no_config(shared: Path, tmp_path: Path) -> None:
    config, state = stored(shared, "m2_bert_mlm_s32")
    torch.save({f"model.{name}": tensor for name, tensor in state.items()}, tmp_path / "m2-bert-80M.pt")
    found = opened(str(tmp_path / "m2-bert-80M.pt"), str(tmp_path))
    assert found.origin["weights_sha256"] == sha256(from_reference("m2_bert", config, state, "mlm").state_dict())


def test_a_recipe_may_hold_the_config(shared: Path, tmp_path: Path) -> None:
    config, state = stored(shared, "mosaic_bert_mlm")
    torch.save(state, tmp_path / "mosaic.pt")
    with pytest.raises(UserError, match=r"mosaic.pt has no config.json or model_config.json beside it; .* config="):
        opened(str(tmp_path / "mosaic.pt"), str(tmp_path))
    (tmp_path / "main.yaml").write_text(json.dumps({"model": {"name": "mosaic_bert", "model_config": config}}))
    found = opened(str(tmp_path / "mosaic.pt"), str(tmp_path), Request(config=str(tmp_path / "main.yaml")))
    assert found.origin["family"] == "mosaic_bert"


@pytest.fixture
def bert(shared: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the stored BERT with its state or config changed; the file of its weights."""
    config, state = stored(shared, "hf_bert_mlm")

    def make(add: State | None = None, drop: str = "", rename: Callable[[str], str] = str, **keys: Any) -> Path:
        kept = {rename(name): tensor for name, tensor in (state | (add or {})).items() if not drop or drop not in name}
        folder = tmp_path / f"bert{len(list(tmp_path.iterdir()))}"
        write(folder, "bin", kept, {k: v for k, v in (config | keys).items() if v is not ...})
        return folder / "pytorch_model.bin"

    return make


def imported(file: Path, **said: Any) -> Any:
    return importing.of_files(file, "it", Request(**said))


def test_the_oldest_names_and_heads_of_other_tasks_are_known(bert: Callable[..., Path]) -> None:
    plain = imported(bert())
    other = {"bert.pooler.dense.weight": torch.zeros(1), "cls.seq_relationship.bias": torch.zeros(2)}

    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    found = imported(bert(add=other, rename=old))
    assert found.origin["weights_sha256"] == plain.origin["weights_sha256"]
    assert found.left_out == ("bert.pooler.dense.weight", "cls.seq_relationship.bias")
    assert "left out, as no part of a masked language model: 'bert.pooler.dense.weight'" in importing.summary(found)


def test_an_encoder_alone_gets_a_fresh_head_if_asked_for(bert: Callable[..., Path]) -> None:
    whole = imported(bert())
    alone = bert(drop="cls.", rename=lambda name: name.removeprefix("bert."))
    with pytest.raises(
        UserError, match=r"lacks 'cls.predictions.bias'.* it has no masked-language-model head: head=fr"
    ):
        imported(alone)
    found = imported(alone, head="fresh")
    assert set(found.fresh) == {name for name in whole.state if name.startswith("head.")}
    kept = set(whole.state) - set(found.fresh)
    assert all(torch.equal(found.state[name], whole.state[name]) for name in kept)
    assert not torch.equal(found.state["head.dense.weight"], whole.state["head.dense.weight"])
    again = imported(alone, head="fresh")
    assert again.origin["weights_sha256"] == found.origin["weights_sha256"], "the same every time"
    assert imported(bert(), head="fresh").left_out, "a head that is there is left out"


def test_the_tokenizer_is_filled_up_to_the_rows_there_are(bert: Callable[..., Path]) -> None:
    file = bert()
    rows = imported(file).vocab_size
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{number}]" for number in range(3)), "a", "b"]
    (file.parent / "vocab.txt").write_text("\n".join(words) + "\n")
    found = imported(file)
    assert found.tokenizer is not None
    assert found.tokenizer.vocab_size == found.vocab_size == rows
    plain = Tokenizer.load(file.parent / "vocab.txt")
    assert found.tokenizer.encode("a b a").tolist() == plain.encode("a b a").tolist() == [8, 9, 8]
    assert set(range(len(words), rows)) < set(found.tokenizer.special_ids), "never drawn as a random word"
    (file.parent / "vocab.txt").write_text("\n".join([*words, *(f"w{number}" for number in range(rows))]) + "\n")
    with pytest.raises(UserError, match=rf"the tokenizer has {rows + 10} ids and the checkpoint {rows} rows"):
        imported(file)


def test_tokenizers_in_older_forms(bert: Callable[..., Path]) -> None:
    file = bert()
    folder = file.parent
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {piece: number for number, piece in enumerate([*special, *"abcdefgh", "Ġ", "Ġa"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ a\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    found = imported(file).tokenizer
    assert found is not None
    assert found.encode("ab a").tolist() == [vocabulary["a"], vocabulary["b"], vocabulary["Ġa"]]
    assert (found.pad_id, found.mask_id) == (1, 4)

    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    assert imported(file).tokenizer is None
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertJapaneseTokenizer"}))
    with pytest.raises(UserError, match=r"is a BertJapanese: it needs code to load, which is never run; .*tokenizer="):
        imported(file)
    assert imported(file, tokenizer=str(folder / "vocab.txt")).tokenizer is not None


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_the_reference_wrote(shared: Path, case: str) -> None:
    config, state = stored(shared, case)
    plan = FAMILIES[CASES[case]](config, "mlm")
    written = to_reference(from_reference(CASES[case], config, state, "mlm"), plan, copies=True)
    assert written.keys() == state.keys(), "or its strict loader would refuse them"
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())
    memory = {tensor.data_ptr() for tensor in written.values()}
    assert len(memory) == len(written), "safetensors takes no tensors that share memory"


class Attack:
    """Runs a command when it is unpickled by anything that allows it."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.proof),)


def test_files_that_cannot_be_used_are_refused_by_name(bert: Callable[..., Path], tmp_path: Path) -> None:
    def refused(file: Path, message: str, **said: Any) -> None:
        with pytest.raises(UserError, match=message) as caught:
            imported(file, **said)
        assert "\n" not in str(caught.value)

    weight = "bert.encoder.layer.0.output.dense.weight"
    refused(bert(drop=weight), f"pytorch_model.bin: the checkpoint lacks '{weight}'")
    refused(bert(add={"bert.x": torch.zeros(1)}), r"bin: the checkpoint has tensors without a place .*'bert.x'")
    refused(bert(rename=lambda name: f"x.{name}"), r"lacks 'bert.embeddings.LayerNorm.bias', .* and 37 more$")
    refused(bert(hidden_size=...), r"config.json: the reference's config lacks 'hidden_size'")
    refused(bert(num_attention_heads=7), r"config.json: .*heads=7 does not divide")
    refused(bert(vocab_size=999), r"'bert.embeddings.word_embeddings.weight' has shape .* the config says \(999, ")
    refused(bert(), "lacks", family="roberta")
    refused(bert(), "family=brt is not known", family="brt")
    refused(bert(), "head=mln is not known", head="mln")
    unknown = bert(rename=lambda name: f"x.{name}", model_type="strange", auto_map={"AutoModel": "code.Strange"})
    refused(
        unknown, r"config.json \(model_type strange\) needs code of its own to load \(auto_map\), which is never run"
    )
    refused(
        bert(rename=lambda name: f"x.{name}", model_type="odd"),
        r"\(odd, with tensors such as .* is of no family known here: .*hf_bert.*; .* family=",
    )

    file = bert()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(file, "cannot be read as weights, it is cut off, damaged or something else")
    file.write_bytes(b"")
    refused(file, "cannot be read as weights")
    save_file({"a": torch.zeros(3)}, file.with_suffix(".safetensors"))
    cut = file.with_suffix(".safetensors")
    cut.write_bytes(cut.read_bytes()[:-4])
    refused(cut, "cannot be read as weights")
    torch.save({"state_dict": {"a": 1}}, file)
    refused(file, "holds a int under 'a', where a tensor must be")
    torch.save({}, file)
    refused(file, "holds no tensors")
    proof = tmp_path / "proof"
    for zipped in (True, False):
        torch.save({"a": Attack(proof)}, file, _use_new_zipfile_serialization=zipped)
        refused(file, r"pytorch_model.bin holds code \(posix.mkdir\), which is never run")
    assert not proof.exists()
    (file.parent / "config.json").write_text("{")
    torch.save({"a": torch.zeros(1)}, file)
    refused(file, r"config.json cannot be read as JSON")
