"""What a person may type as a checkpoint, and what it means."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cramming import fill_mask, import_checkpoint
from cramming.errors import UserError
from cramming.evaluation import heldout
from cramming.exchange import exporting
from cramming.exchange.imported import write_run
from cramming.exchange.opening import opened
from cramming.exchange.places import locate
from tests.data.hub_server import HubServer

from .models import arch_of, weights_of

# Answers each line of its input, a checkpoint, with the hash of its weights or what is wrong.
CHILD = """
import sys
from cramming.cli import load_schemas
from cramming.errors import UserError
from cramming.exchange.opening import opened
load_schemas()
for given in sys.stdin:
    try:
        print(opened(given.strip(), "outputs").origin["weights_sha256"], flush=True)
    except UserError as error:
        print(error, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported BERT."""
    to = tmp_path_factory.mktemp("places") / "bert"
    exporting.export(weights_of(arch_of("bert")), to, name="it", facts={}, overwrite=False, onnx=False)
    return to


def test_runs_come_before_folders_and_folders_before_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(folder, "both")
    assert locate("both", "outputs").title == "folder both"
    write_run(opened("both", "outputs"), "both", "outputs", "both")
    for given in ("both", "both@last", "both@step=0", "outputs/both", "outputs/both@step=0"):
        found = locate(given, "outputs").run
        assert found is not None, given
        assert (found.name, found.checkpoint.step) == ("both", 0)
    assert locate("./both", "outputs").run is None, "a folder all the same"
    for given in ("both/model.safetensors", str(tmp_path / "both" / "model.safetensors")):
        assert locate(given, "outputs").title == f"file {given}"
        assert opened(given, "outputs").tokenizer is not None

    def refused(given: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            locate(given, "outputs")
        assert "\n" not in str(caught.value)

    refused("both@step=7", r"there is no checkpoint @step=7 .* there are: step=0")
    refused("bolh", r"bolh is not on this disk .* and bolh is no run in outputs; did you mean 'both'")
    refused("./bolh", r"\./bolh is neither a run in outputs, nor a folder or file of weights")
    refused("bolh.pt", r"bolh.pt is neither a run in outputs")
    Path("empty").mkdir()
    refused("empty", r"empty holds no weights: neither model.safetensors nor ")
    for name in ("a.pt", "b.pt"):
        (Path("empty") / name).touch()
    refused("empty", r"several files of weights \(a.pt, b.pt\): name one")


def test_ids_of_the_hub(folder: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    released = {name: files[name] for name in ("model.safetensors", "config.json", "tokenizer.json")}
    strange = json.dumps({"model_type": "strange", "auto_map": {"AutoModel": "code.Strange"}}).encode()
    with HubServer() as hub:
        hub.add(
            "models", "owner/bert", released | {"pytorch_model.bin": b"x", "onnx/model.onnx": b"x", "code.py": b"x"}
        )
        hub.add("models", "owner/strange", {"model.safetensors": files["model.safetensors"], "config.json": strange})
        hub.add("models", "owner/none", {"config.json": b"{}", "flax_model.msgpack": b"x"})
        hub.add("models", "owner/gated", released, gated=True)
        names = ["owner/bert", "owner/strange", "owner/none", "owner/gated", "owner/missing", "owner/bert@nothing"]
        found = _asked(hub, tmp_path, *names)
        assert set(hub.files_sent()) <= {*released, "config.json"}, "nothing else is fetched"
    assert found[0] == opened(str(folder), "").origin["weights_sha256"]
    assert "config.json (model_type strange) needs code of its own to load (auto_map), which is never run" in found[1]
    assert found[2].startswith("owner/none has no weights under a usual name (model.safetensors, ")
    assert found[3].startswith("owner/gated is only for those its owner lets: ask at https://")
    assert found[4] == "owner/missing is neither on this disk nor on the hub"
    assert found[5].startswith("owner/bert has no revision 'nothing' on the hub")
    # The server is gone now.
    again = _asked(hub, tmp_path, "owner/bert", "owner/new")
    assert again[0] == found[0], "what was fetched once is there"
    assert again[1].startswith("owner/new is not on this disk and cannot be fetched from the hub (127.0.0.1: ")


def _asked(hub: HubServer, home: Path, *names: str) -> list[str]:
    """A line about each name, from a process of its own: the library reads its environment once."""
    environment = hub.environment(home) | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="\n".join(names),
        text=True,
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
    )
    return done.stdout.splitlines()


def test_commands_take_any_of_them(folder: Path, letters: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    base = f"base_dir={tmp_path}"
    import_checkpoint.command([f"checkpoint={folder}", "name=bert", base])
    said = capsys.readouterr().out
    assert f"folder {folder}: hf_bert, " in said
    assert "tensors matched" in said
    assert "arch=bert with layers=2, hidden=32, heads=2" in said
    sentence = "ab [MASK] c"
    answers = []
    for given in (["name=bert", base], [f"checkpoint={folder}"], ["checkpoint=bert@step=0", base]):
        fill_mask.command([*given, "top=3", sentence])
        answers.append(capsys.readouterr().out.partition(sentence)[2])
    assert answers[0] == answers[1] == answers[2]
    assert answers[0].count("%") == 3

    corpus = ["data=local", f"data.path={letters}/text.txt", f"data_dir={letters}/stores", "data.heldout_fraction=0.05"]
    tables = []
    for given in (["name=bert", base], [f"checkpoint={folder}"]):
        heldout.command([*given, *corpus])
        tables.append(capsys.readouterr().out.partition("held-out loss")[2])
    assert tables[0] == tables[1] != ""
    for given in (["name=bert", base], [f"checkpoint={folder}"]):
        with pytest.raises(UserError, match="has no corpus of its own: name one, such as data=python_docs"):
            heldout.command(given)
    with pytest.raises(UserError, match=r"data.seq_length=64 is longer than the 16 positions of"):
        heldout.command([f"checkpoint={folder}", *corpus, "data.seq_length=64"])


def test_nothing_is_left_of_an_import_that_fails(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"model.safetensors cannot be read as weights"):
        import_checkpoint.command([f"checkpoint={broken}", "name=it", f"base_dir={tmp_path}/runs"])
    for word in ("checkpoint=x", "name=x"):
        with pytest.raises(UserError, match="checkpoint= and name= are needed"):
            import_checkpoint.command([word])
    assert not (tmp_path / "runs").exists()
