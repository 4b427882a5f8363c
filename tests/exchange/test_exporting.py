"""What an export writes, what it refuses, and that it appears whole or not at all."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cramming import export
from cramming.cli import pretraining
from cramming.errors import UserError
from cramming.exchange import exporting, onnx_graph
from cramming.session import pretrain

from .models import arch_of, kinds, weights_of


def write(to: Path, kind: str = "bert", overwrite: bool = False, **options: object) -> None:
    weights = weights_of(replace(arch_of(kind), **options))
    exporting.export(weights, to, name="it", facts={}, overwrite=overwrite, onnx=False)


def test_a_run_leaves_with_a_card(letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [
        "name=small", f"base_dir={tmp_path}", f"data_dir={letters}/stores", "data=local",
        f"data.path={letters}/text.txt",
        "data.seq_length=16", "data.vocab_size=128", "data.heldout_fraction=0.05", "rst=steps", "budget=2",
        "arch=bert_tiny", "train.batch_size=8", "impl.precision=float32", "impl.threads=1", "impl.microbatch_size=8",
    ]  # fmt: skip
    pretraining(pretrain, words)
    export.command(["name=small", f"base_dir={tmp_path}", f"to={tmp_path}/out"])
    assert "for transformers.BertForMaskedLM" in capsys.readouterr().out
    made = tmp_path / "out"
    assert {path.name for path in made.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
        "tokenizer_config.json", "training.json",
    }  # fmt: skip
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in made.iterdir()} == {0o666 & ~umask}
    card = (made / "README.md").read_text()
    loss = json.loads((tmp_path / "small" / "summary.json").read_text())["validation_loss"]
    for said in (
        "2 steps of 2 steps",
        f"held-out loss: {loss:.4f}",
        "local",
        "| layers | 2 |",
        "from_pretrained",
        "adamw",
    ):
        assert said in card, said


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    to = tmp_path / "it"
    to.mkdir()
    write(to)  # empty
    first = (to / "model.safetensors").read_bytes()
    with pytest.raises(
        UserError, match="is there and not empty: name another folder, or replace it with overwrite=true"
    ):
        write(to)
    write(to, hidden=64, overwrite=True)
    assert (to / "model.safetensors").read_bytes() != first
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").touch()
    with pytest.raises(UserError, match="was not written by an export, so overwrite=true does not remove it"):
        write(other, overwrite=True)
    with pytest.raises(UserError, match="is a file: name a folder"):
        write(other / "precious")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it", "other"], "and nothing is left over"


def test_options_that_nobody_else_has_are_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"ffn_layer_frequency": 2}, "arch.ffn_layer_frequency=2 cannot be exported"),
        ({"nonlin": "gelu_tanh"}, "arch.nonlin=gelu_tanh cannot be exported"),
        ({"attend_padding": True, "rotary": True}, "arch.rotary with arch.attend_padding cannot be exported"),
    ):
        with pytest.raises(UserError, match=message):
            write(tmp_path / "it", "crammed", **options)
    with pytest.raises(UserError, match="to= is needed"):
        export.command(["name=x"])
    assert not list(tmp_path.iterdir())


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    from cramming.exchange.opening import opened

    write(tmp_path / "it")
    (tmp_path / "it" / "training.json").write_text('{"arch": {"kind": "bert", "hiden": 3}}')
    with pytest.raises(UserError, match=r"training.json is damaged .*delete it, the rest is enough"):
        opened(str(tmp_path / "it"), "")
    (tmp_path / "it" / "training.json").unlink()
    assert opened(str(tmp_path / "it"), "").arch.kind == "bert"


# One here, the one whose graph has the most to get wrong; each takes seconds.
@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k == "modern" else pytest.mark.full) for k in kinds()])
def test_onnx_graphs_compute_the_same_at_any_length(kind: str, tmp_path: Path) -> None:
    """``write`` compares what onnxruntime computes with torch, also beyond windows; here: that it notices."""
    runtime = pytest.importorskip("onnxruntime")
    weights = weights_of(arch_of(kind), positions=96)
    onnx_graph.write(weights.model(), tmp_path / "encoder.onnx")
    session = runtime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask"]
    ids = torch.randint(5, 50, (2, 80))
    mask = torch.ones_like(ids)
    mask[1, 50:] = 0
    (plain,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    ids[1, 50:] = 7
    (other,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    difference = torch.from_numpy(plain - other).abs()
    assert difference[0].max() < 1e-5
    assert difference[1, :50].max() < 1e-5, "padding is attended to by nothing"

    graph = onnx_graph._Graph(weights_of(arch_of(kind), positions=96).model(), False)
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.mul_(1.5)
    with pytest.raises(UserError, match="is off by"):
        onnx_graph._compare(graph, tmp_path / "encoder.onnx", kind, [7])
    assert not (tmp_path / "encoder.onnx").exists()


def test_a_folder_that_is_only_on_another_machine_is_not_needed(tmp_path: Path) -> None:
    from cramming.exchange.opening import opened

    write(tmp_path / "it", "hf")
    file = tmp_path / "it" / "training.json"
    said = json.loads(file.read_text())
    said["arch"] |= {"model": str(tmp_path / "elsewhere"), "config": None}
    file.write_text(json.dumps(said))
    assert opened(str(tmp_path / "it"), "").arch.kind == "bert"  # a BERT by its config
