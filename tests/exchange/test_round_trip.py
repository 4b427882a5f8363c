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
from cramming.model import Model
from cramming.train import Run
from cramming.validation import validate

from .models import arch_of, kinds, logits, padded_batch, tokenizer, weights_of

BY_TRANSFORMERS = {"bert", "24hbert", "roberta", "albert", "deberta", "modern", "hf"}


def exported(weights: Weights, to: Path) -> Path:
    exporting.export(weights, to, name="it", facts={}, overwrite=False, onnx=False)
    return to


def same(one: Weights, other: Weights) -> None:
    """The same weights to the last bit, saying the same (a Fourier transform's last bit is up to where memory lies)."""
    assert one.origin["weights_sha256"] == other.origin["weights_sha256"]
    torch.testing.assert_close(logits(one.model()), logits(other.model()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.full if number % 2 else ()) for number, kind in enumerate(kinds())]
)
def test_import_validate_export_import(kind: str, tmp_path: Path, letters: Path) -> None:
    before = weights_of(arch_of(kind))
    first = exported(before, tmp_path / "first")
    if kind in BY_TRANSFORMERS:
        transformers_agrees(before, first)
    found = opened(str(first), "nowhere")
    assert found.tokenizer is not None
    assert found.tokenizer.sha256 == tokenizer().sha256
    write_run(found, str(first), str(tmp_path / "runs"), "it")
    kept, run = selected(Selection("it", str(tmp_path / "runs")))
    same(kept, before)
    if kind != "hf":  # whose options may name a folder, which an export says by itself
        assert kept.arch == before.arch

    words = [f"data_dir={letters}/stores", "data=local", f"data.path={letters}/text.txt", "data.seq_length=16"]
    looked_at = with_data(kept, run, [*words, "data.heldout_fraction=0.05", "impl.precision=float32"])
    result = validate(looked_at)
    assert result is not None
    assert result.predicted_tokens == 50
    assert result.loss == pytest.approx(loss_of(before.model(), looked_at), abs=1e-5)

    second = exported(kept, tmp_path / "second")
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (first / "config.json").read_text() == (second / "config.json").read_text()
    same(opened(str(second), "nowhere"), before)


def transformers_agrees(weights: Weights, folder: Path) -> None:
    """The library loads the folder without remote code and says the same."""
    assert not list(folder.glob("*.py"))
    model, report = transformers.AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    _, ids, mask = padded_batch()
    with torch.no_grad():
        theirs = model.eval()(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits(weights.model()), theirs[:, :7], rtol=0, atol=1e-5)

    words, ours = transformers.AutoTokenizer.from_pretrained(folder), tokenizer()
    assert words("ab [MASK]")["input_ids"] == [ours.cls_id, *ours.encode("ab").tolist(), ours.mask_id, ours.sep_id]
    assert (words.pad_token_id, words.unk_token_id) == (ours.pad_id, ours.unk_id)
    assert model.config.pad_token_id == ours.pad_id


@torch.no_grad()
def loss_of(model: Model, run: Run) -> float:
    """Mean cross entropy of a model on what a run validates on."""
    total = count = 0.0
    for batch in run.stream.heldout(5, mask_rate=0.15, mask_seed=0, limit=1000):
        total += float((model(batch) * batch.weights).sum())
        count += float(batch.weights.sum())
    return total / count


def test_what_changes_an_exported_config_counts(tmp_path: Path) -> None:
    """An exported folder tells us more than its config.json does; if that was changed by hand, the config is right."""
    weights = weights_of(arch_of("crammed"))
    folder = exported(weights, tmp_path / "it")
    assert opened(str(folder), "nowhere").arch.batch_size == weights.arch.batch_size
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("GELUglu", "SiLUglu"))
    changed = opened(str(folder), "nowhere").model()
    assert not torch.allclose(logits(changed), logits(weights.model()))
