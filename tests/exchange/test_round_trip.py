"""Every architecture leaves, is loaded by others, and comes back: nothing is lost, to the last bit."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from cramming.evaluation.trained import Selection, selected, with_data
from cramming.exchange import exporting
from cramming.exchange.imported import write_run
from cramming.exchange.opening import opened
from cramming.exchange.weights import Weights
from cramming.validation import validate

from .models import arch_of, kinds, logits, padded_batch, weights_of

BY_TRANSFORMERS = {"bert", "roberta", "albert", "deberta", "modern", "hf"}


def exported(weights: Weights, to: Path) -> Path:
    exporting.export(weights, to, name="it", facts={}, overwrite=False, onnx=False)
    return to


def same(one: Weights, other: Weights) -> None:
    """The same weights to the last bit, saying the same (a Fourier transform's last bit is up to where memory lies)."""
    assert one.origin["weights_sha256"] == other.origin["weights_sha256"]
    torch.testing.assert_close(logits(one.model()), logits(other.model()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", kinds())
def test_import_validate_export_import(kind: str, tmp_path: Path, letters: Path) -> None:
    before = weights_of(arch_of(kind))
    first = exported(before, tmp_path / "first")
    found = opened(str(first), "nowhere")
    assert found.tokenizer is not None
    assert found.tokenizer.sha256 == before.tokenizer.sha256
    write_run(found, str(first), str(tmp_path / "runs"), "it")
    kept, run = selected(Selection("it", str(tmp_path / "runs")))
    same(kept, before)
    if kind != "hf":  # whose options may name a folder, which an export says by itself
        assert kept.arch == before.arch

    # Of one thing, read from two places, the same is said about the same text.
    words = [f"data_dir={letters}/stores", "data=local", f"data.path={letters}/text.txt", "data.seq_length=16"]
    words += ["data.heldout_fraction=0.05", "impl.precision=float32"]
    here = validate(with_data(kept, run, words))
    there = validate(with_data(before, None, words))
    assert here == there
    assert here is not None
    assert here.predicted_tokens == 50

    second = exported(kept, tmp_path / "second")
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (first / "config.json").read_text() == (second / "config.json").read_text()
    same(opened(str(second), "nowhere"), before)


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind in BY_TRANSFORMERS])
def test_transformers_loads_it_without_remote_code(kind: str, tmp_path: Path) -> None:
    weights = weights_of(arch_of(kind))
    folder = exported(weights, tmp_path / "it")
    assert not list(folder.glob("*.py"))
    model, report = transformers.AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    _, ids, mask = padded_batch()
    with torch.no_grad():
        theirs = model.eval()(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits(weights.model()), theirs[:, :7], rtol=0, atol=1e-5)

    words = transformers.AutoTokenizer.from_pretrained(folder)
    ours = weights.tokenizer
    assert ours is not None
    assert words("ab [MASK]")["input_ids"] == [
        ours.cls_id, *ours.encode("ab").tolist(), ours.mask_id, ours.sep_id
    ]  # fmt: skip
    assert (words.pad_token_id, words.unk_token_id) == (ours.pad_id, ours.unk_id)
    assert model.config.pad_token_id == ours.pad_id


def test_what_changes_an_exported_config_counts(tmp_path: Path) -> None:
    """An exported folder tells us more than its config.json does; if that was changed by hand, the config is right."""
    weights = weights_of(arch_of("crammed"))
    folder = exported(weights, tmp_path / "it")
    assert opened(str(folder), "nowhere").arch.batch_size == weights.arch.batch_size
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("GELUglu", "SiLUglu"))
    changed = opened(str(folder), "nowhere").model()
    assert not torch.allclose(logits(changed), logits(weights.model()))
