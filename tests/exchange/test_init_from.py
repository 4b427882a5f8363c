"""``init_from=``: fresh training from the weights of a checkpoint, which the run then needs no more."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cramming.build import Parts
from cramming.checkpoint import checkpoints
from cramming.cli import compose, pretraining
from cramming.config import PretrainConfig
from cramming.errors import UserError
from cramming.exchange import exporting, initializing
from cramming.exchange.imported import write_run
from cramming.exchange.opening import opened
from cramming.exchange.weights import corpus
from cramming.model import Model
from cramming.session import pretrain
from tests.session import runs

from .models import arch_of, tokenizer, weights_of


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported crammed encoder of 16 positions; its options are found beside its config."""
    folder = tmp_path_factory.mktemp("source") / "crammed"
    weights = weights_of(replace(arch_of("crammed"), batch_size=8))
    exporting.export(weights, folder, name="it", facts={}, overwrite=False, onnx=False)
    return folder


def words(source: Path, letters: Path, base_dir: Path, *more: str) -> list[str]:
    """A run of three steps on the letters."""
    return [
        f"init_from={source}", f"base_dir={base_dir}", f"data_dir={letters}/stores", "data=local",
        f"data.path={letters}/text.txt", "data.seq_length=16", "data.heldout_fraction=0.05", "rst=steps", "budget=3",
        "impl.precision=float32", "impl.threads=1", "impl.microbatch_size=8", *more,
    ]  # fmt: skip


def begun(config: PretrainConfig) -> Model:
    """The model as such a run begins with it."""
    model = Parts(config, tokenizer().vocab_size, torch.device("cpu")).model()
    initializing.initialize(model, config, tokenizer())
    return model


def test_a_run_takes_weights_architecture_and_tokenizer(source: Path, letters: Path, tmp_path: Path) -> None:
    pretraining(pretrain, words(source, letters, tmp_path, "name=more", "impl.save_every_h=null"))
    config = compose(words(source, letters, tmp_path))
    assert config.arch == replace(opened(str(source), "").arch, max_positions=16)
    assert config.train.batch_size == 8
    first = checkpoints(tmp_path / "more" / "checkpoints")[0]
    assert first.step == 0
    given = opened(str(source), "")
    saved = load_file(first.folder / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in given.state.items())
    assert not first.read()["engine"]["optimizer"]["state"], "the optimizer begins anew"
    summary = json.loads((tmp_path / "more" / "summary.json").read_text())
    assert summary["steps"] == summary["spent_s"] == 3
    for said in (summary, first.manifest()):
        assert said["init_from"]["weights_sha256"] == given.origin["weights_sha256"]
    assert opened("more@step=0", str(tmp_path)).origin["weights_sha256"] == given.origin["weights_sha256"]
    assert opened("more", str(tmp_path)).origin["weights_sha256"] != given.origin["weights_sha256"]


def test_what_types_of_tokens_pretraining_knew_is_remembered(source: Path, letters: Path, tmp_path: Path) -> None:
    """Ours takes every token for type 0; of what others trained nobody says."""
    scratch = [word for word in words(source, letters, tmp_path) if not word.startswith("init_from=")]
    pretraining(pretrain, [*scratch, "name=first", "arch=bert_tiny", "data.vocab_size=200", "train.batch_size=8"])
    pretraining(pretrain, words(tmp_path / "first", letters, tmp_path, "name=second"))
    pretraining(pretrain, words(source, letters, tmp_path, "name=of_others"))
    told = {name: opened(name, str(tmp_path)).one_type for name in ("first", "second", "of_others")}
    assert told == {"first": True, "second": True, "of_others": False}
    assert not opened(str(source), "").one_type


def test_a_killed_run_goes_on_bitwise_when_its_source_is_gone(source: Path, letters: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(source, gone)
    whole = words(gone, letters, tmp_path / "outputs", "name=whole")
    halved = words(gone, letters, tmp_path / "outputs", "name=halved")
    assert runs.run(whole) == 0
    assert runs.run(halved, kill_at="step") == -9
    shutil.rmtree(gone)
    assert runs.run(halved) == 0
    assert runs.same(runs.weights(tmp_path, "whole"), runs.weights(tmp_path, "halved"))
    with pytest.raises(UserError, match="gone is neither a run"):
        pretraining(pretrain, words(gone, letters, tmp_path / "outputs", "name=new"))


def test_a_larger_architecture_grows_from_it(source: Path, letters: Path, tmp_path: Path) -> None:
    larger = words(source, letters, tmp_path, "arch.layers=4")
    with pytest.raises(UserError, match=r"init_from=.*: the checkpoint has 2 layers and the model 4: give init_depth"):
        begun(compose(larger))
    model = begun(compose([*larger, "init_depth=stack"]))
    given = opened(str(source), "").state
    for layer in range(4):
        name = "attention.function.qkv.weight"
        assert torch.equal(model.state_dict()[f"blocks.{layer}.{name}"], given[f"blocks.{layer % 2}.{name}"])


def test_a_fresh_head_is_drawn_from_the_seed(source: Path, letters: Path, tmp_path: Path) -> None:
    given = opened(str(source), "").state
    states = [
        begun(compose(words(source, letters, tmp_path, "init_head=fresh", f"seed={s}"))).state_dict() for s in (1, 2)
    ]
    for name, tensor in given.items():
        assert torch.equal(states[0][name], tensor) == torch.equal(states[1][name], tensor) == (name[:5] != "head.")
    assert not torch.equal(states[0]["head.dense.weight"], states[1]["head.dense.weight"])


@pytest.mark.parametrize("kind", ["crammed", "albert"])
def test_runs_can_give_up_their_heads_too(kind: str, letters: Path, tmp_path: Path) -> None:
    given = weights_of(arch_of(kind))
    write_run(given, "random", str(tmp_path), "it")
    own = [*words(Path("it"), letters, tmp_path), "train.batch_size=8"]
    kept, begun_anew = (begun(compose([*own, word])).state_dict() for word in ("init_head=mlm", "init_head=fresh"))
    assert all(torch.equal(kept[name], tensor) for name, tensor in given.state.items())
    changed = {name for name, tensor in given.state.items() if not torch.equal(begun_anew[name], tensor)}
    head = "network.predictions." if kind == "albert" else "head."
    assert changed == {name for name in given.state if name.startswith(head) and "decoder.weight" not in name}


def test_other_options_of_the_architecture_are_said(
    source: Path, letters: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    begun(compose(words(source, letters, tmp_path, "arch.nonlin=relu")))
    assert "changed: arch.nonlin gelu -> relu" in caplog.text


def test_what_does_not_fit_is_refused_before_any_work(source: Path, letters: Path, tmp_path: Path) -> None:
    def refused(message: str, *more: str, given: Path = source) -> None:
        with pytest.raises(UserError, match=message) as caught:
            pretraining(pretrain, words(given, letters, tmp_path / "none", "name=x", *more))
        assert "\n" not in str(caught.value)

    refused("holds arch crammed, and the run has bert: leave arch= out", "arch=bert_tiny")
    refused("data.seq_length=32 is longer than arch.max_positions=16", "data.seq_length=32")
    refused("data.tokenizer=train would give new words the places of those", "data.tokenizer=train")
    refused("is neither a run in .* nor a folder or file", given=tmp_path / "nothing")
    refused("init_head=new is not known", "init_head=new")
    other = tmp_path / "vocab.txt"
    pieces = [tokenizer().token(number) for number in range(tokenizer().vocab_size)]
    other.write_text("\n".join([*pieces[:5], *reversed(pieces[5:])]) + "\n")
    refused("knows 'a' by the id 5, which data.tokenizer=.*vocab.txt gives to '##z'", f"data.tokenizer={other}")
    other.write_text("\n".join(pieces[:20]) + "\n")
    refused(f"has {len(pieces)} token ids and data.tokenizer=.*vocab.txt has 20", f"data.tokenizer={other}")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(source / name, bare)
    refused("has no tokenizer beside it: give its own, data.tokenizer=", given=bare)
    for key in ("init_width=tile", "init_head=fresh", "data.tokenizer=checkpoint"):
        with pytest.raises(UserError, match=f"{key} .*init_from="):
            compose(["data=local", "data.path=x", "arch=bert_tiny", key])
    assert not (tmp_path / "none" / "x" / "checkpoints").exists()


def test_an_imported_checkpoint_is_no_run_to_train(source: Path, letters: Path, tmp_path: Path) -> None:
    write_run(opened(str(source), ""), str(source), str(tmp_path), "released")
    for again in ("resume=true", "resume=false"):
        with pytest.raises(UserError, match=r"released is an imported checkpoint, not a run: .* init_from=released"):
            pretraining(pretrain, words(source, letters, tmp_path, "name=released", again))
    with pytest.raises(UserError, match="name=released is taken"):
        write_run(opened(str(source), ""), str(source), str(tmp_path), "released")
    config = compose([word.replace(str(source), "released") for word in words(source, letters, tmp_path)])
    assert torch.equal(
        begun(config).state_dict()["head.dense.weight"], opened(str(source), "").state["head.dense.weight"]
    )


def test_data_is_the_sources_unless_another_is_named(letters: Path, tmp_path: Path) -> None:
    """A run knows its corpus; an exported folder says it, unless that lies on somebody's disk."""
    weights = weights_of(arch_of("crammed"))
    plain = compose(["data=python_docs", "data.seq_length=16", "data.max_tokens=5000", "data.tokenizer_kind=bpe"]).data
    local = compose(["data=local", f"data.path={letters}/text.txt", "data.seq_length=16"]).data
    for number, (data, kept) in enumerate([(plain, "python_docs"), (local, "c4_subset"), (None, "c4_subset")]):
        to = tmp_path / f"export{number}"
        known = replace(weights, data=None if data is None else corpus(data))
        exporting.export(known, to, name="it", facts={}, overwrite=False, onnx=False)
        assert str(letters) not in (to / "training.json").read_text()
        config = compose([f"init_from={to}", f"base_dir={tmp_path}"])
        assert config.data.name == kept
        assert config.data.tokenizer == "checkpoint"
    config = compose([f"init_from={tmp_path}/export0", "data.max_tokens=7000"])
    assert (config.data.seq_length, config.data.max_tokens, config.data.tokenizer_kind) == (16, 7000, "auto")
    assert compose([f"init_from={tmp_path}/export0", "data=minipile"]).data.name == "minipile"
    assert compose([f"init_from={tmp_path}/export0", "experiment=ntng_baseline"]).data.name != "python_docs"
    words_of_a_run = [*words(tmp_path / "export0", letters, tmp_path, "name=it", "budget=1")]
    pretraining(pretrain, words_of_a_run)
    assert compose(["init_from=it", f"base_dir={tmp_path}"]).data.path == f"{letters}/text.txt"


def test_who_chooses_the_architecture(source: Path, letters: Path, tmp_path: Path) -> None:
    own = words(source, letters, tmp_path)
    assert compose(own).arch.kind == "crammed"
    assert compose([*own, "arch=bert_tiny"]).arch.kind == "bert", "said on the command line"
    assert compose(["experiment=demo", *own]).arch.name == "bert_small", "or by a recipe"
    assert compose([*own, "arch.layers=3"]).arch.layers == 3
    sweep = [*own[1:], f"init_from={source},other", "-m"]
    with pytest.raises(UserError, match="several checkpoints in one sweep need arch="):
        pretraining(pretrain, sweep)
