"""Tasks from a stand-in for the hub on loopback: what comes is what is read; cuts, kills, damage, no network."""

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cramming.evaluation.rows import generated, hub, official
from cramming.evaluation.tasks import forms
from cramming.evaluation.tasks.registry import TASKS
from tests.data.hub_server import HubServer

# Reads or fetches what each line of its input names. Waiting is left out.
CHILD = """
import json, sys, time
from pathlib import Path
time.sleep = lambda seconds: None
from cramming.errors import UserError
from cramming.evaluation import download, material
from cramming.evaluation.config import EvalConfig
from cramming.evaluation.rows import hub
hub._BLOCK_BYTES = 1000
for line in sys.stdin:
    what, *words = json.loads(line)
    try:
        if what == "download":
            download.command(words)
            answer = {"torch": "torch" in sys.modules}
        else:
            config, notes = EvalConfig(name="x", suite="x", tasks=[what]), []
            (task,) = material.tasks_of(config, Path(words[1]))
            found = material.examples_of(config, task, words[0], Path(words[1]), notes)
            answer = {"examples": [[[t.segments for t in e.texts], e.label, e.key] for e in found], "notes": notes}
    except UserError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""
SPLITS = ("train", "validation", "test")
NAMES = ("rte", "rte_superglue", "wsc", "record", "swag", "race")


class Process:
    """A process that reads tasks, with the server's environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment,
        )  # fmt: skip

    def ask(self, *words: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([str(word) for word in words]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer or self._process.wait() == -signal.SIGKILL, "it ended with a traceback"
        return json.loads(answer) if answer else {"killed": True}

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass
class World:
    """A hub, processes with and without a network, and the rows that the hub has, in official folders."""

    hub: HubServer
    home: Path
    online: Process
    offline: Process
    made: Path

    def expected(self, name: str, split: str) -> list[Any]:
        examples = forms.to_examples(TASKS[name], official.read(TASKS[name], split, self.made, []))
        told = [[[text.segments for text in e.texts], e.label, {**e.key}] for e in examples]
        return json.loads(json.dumps(told))


def parquet(name: str, split: str, made: Path) -> list[bytes]:
    """A split as the hub has it: -1 where there is no label; in two files."""
    rows = official.read(TASKS[name], split, made, [])
    if name not in ("record", "race"):
        rows = [{**row, "label": -1 if row["label"] is None else row["label"]} for row in rows]
    else:
        rows = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    files = []
    for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), buffer)
        files.append(buffer.getvalue())
    return files


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("hub")
    made = home / "made"
    generated.write(made, NAMES)
    with HubServer() as server:
        files: dict[str, dict[str, bytes]] = {}
        for name in NAMES:
            task = TASKS[name]
            dataset = hub.DATASETS.get(name) or hub.DATASETS[task.collection]
            subset = {"rte_superglue": "rte", "wsc": "wsc.fixed", "swag": "regular", "race": "all"}.get(name, name)
            for split in SPLITS:
                for number, data in enumerate(parquet(name, split, made)):
                    # SuperGLUE has code of its own: only the hub's conversion can be read.
                    inner = (
                        f"{split}/000{number}" if task.collection == "superglue" else f"{split}-0000{number}-of-00002"
                    )
                    files.setdefault(dataset, {})[f"{subset}/{inner}.parquet"] = data
        for dataset, content in files.items():
            if dataset == "aps/super_glue":
                server.add("datasets", dataset, {"super_glue.py": b"raise SystemExit"})
                server.branch(dataset, "refs/convert/parquet", content)
            else:
                server.add("datasets", dataset, content, stored="lfs")
        environment = server.environment(home)
        online, offline = Process(environment), Process(environment | {"HF_HUB_OFFLINE": "1"})
        yield World(server, home, online, offline, made)
        online.stop()
        offline.stop()


@pytest.mark.parametrize("name", NAMES)
def test_the_hubs_rows_are_the_official_ones(world: World, tmp_path: Path, name: str) -> None:
    for split in SPLITS:
        answer = world.online.ask(name, split, tmp_path)
        assert answer.get("error") is None
        assert answer["examples"] == world.expected(name, split)
        assert "officially" in answer["notes"][0]
    sent = len(world.hub.requests)
    for process in (world.online, world.offline):  # it is here now
        assert process.ask(name, "train", tmp_path)["examples"] == world.expected(name, "train")
    assert len(world.hub.requests) == sent
    manifest = json.loads((hub.folder_of(TASKS[name], tmp_path) / "manifest.json").read_text())
    assert {split: told["rows"] for split, told in manifest["splits"].items()}.keys() == set(SPLITS)


def test_a_download_goes_on_where_it_was_killed(world: World, tmp_path: Path) -> None:
    words = ("download", "tasks=[rte,swag]", f"data_dir={tmp_path}")
    files = world.hub.repos["datasets", "nyu-mll/glue"].files
    first, second = (f"rte/train-0000{number}-of-00002.parquet" for number in range(2))
    blocks = -(-len(files[first]) // 1000) + 2
    doomed = Process(world.hub.environment(world.home) | {"CRAMMING_KILL_AT": f"task-block:{blocks}"})
    world.hub.requests.clear()
    assert doomed.ask(*words) == {"killed": True}
    doomed.stop()
    assert world.hub.files_sent() == [first, second]
    assert "only a part of RTE is in" in world.offline.ask("rte", "train", tmp_path)["error"]
    world.hub.requests.clear()
    assert world.online.ask(*words) == {"torch": False}
    assert first not in world.hub.files_sent()
    assert len(files[second]) > 2000
    assert sum(request.sent for request in world.hub.requests if request.file == second) == len(files[second]) - 2000
    assert not list((tmp_path / "tasks").rglob("*.work"))
    for name in ("rte", "swag"):
        assert world.offline.ask(name, "validation", tmp_path)["examples"] == world.expected(name, "validation")


@pytest.mark.parametrize(
    "point",
    ["task-rename", *(pytest.param(p, marks=pytest.mark.full) for p in ("task-split-fsync:2", "manifest-rename"))],
)
def test_a_download_killed_while_it_puts_files_in_place(world: World, tmp_path: Path, point: str) -> None:
    words = ("download", "tasks=rte", f"data_dir={tmp_path}")
    doomed = Process(world.hub.environment(world.home) | {"CRAMMING_KILL_AT": point})
    assert doomed.ask(*words) == {"killed": True}
    doomed.stop()
    assert not (tmp_path / "tasks" / "glue" / "rte").exists()
    world.hub.requests.clear()
    assert "error" not in world.online.ask(*words)
    assert world.hub.files_sent() == []
    assert world.offline.ask("rte", "train", tmp_path)["examples"] == world.expected("rte", "train")


def test_a_connection_that_is_cut(world: World, tmp_path: Path) -> None:
    world.hub.cut("rte/validation-00001-of-00002.parquet", after=500, times=10**6)
    words = ("download", "tasks=rte", f"data_dir={tmp_path}")
    error = world.online.ask(*words)["error"]
    assert "only a part of RTE is in" in error
    assert "it goes on where it was" in error
    assert "\n" not in error
    world.hub.mend()
    assert "error" not in world.online.ask(*words)
    assert world.offline.ask("rte", "validation", tmp_path)["examples"] == world.expected("rte", "validation")


def test_what_is_damaged_is_not_read_and_can_be_fetched_again(world: World, tmp_path: Path) -> None:
    words = ("download", "tasks=rte", f"data_dir={tmp_path}")
    world.online.ask(*words)
    file = hub.folder_of(TASKS["rte"], tmp_path) / "train.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + b"x" + whole[-8:])
    for error in (world.offline.ask("rte", "train", tmp_path)["error"], world.online.ask(*words)["error"]):
        assert "has another checksum than when it was downloaded" in error
        assert "delete it and run: python -m cramming.evaluation.download tasks=rte" in error
    file.write_bytes(whole[:-9])
    assert "only a part of RTE is in" in world.offline.ask("rte", "train", tmp_path)["error"]
    file.unlink()
    assert "error" not in world.online.ask(*words)
    assert file.read_bytes() == whole


def test_what_differs_from_what_the_hub_lists_is_not_kept(world: World, tmp_path: Path) -> None:
    repo = world.hub.repos["datasets", "allenai/swag"]
    path = "regular/test-00000-of-00002.parquet"
    whole = repo.files[path]
    told = dict(repo.listed)
    repo.listed[path] = "0" * 64
    error = world.online.ask("download", "tasks=swag", f"data_dir={tmp_path}")["error"]
    assert f"{path} of allenai/swag came with another content than the hub lists" in error
    repo.listed.update(told)
    repo.listed.pop(path, None)
    assert "error" not in world.online.ask("download", "tasks=swag", f"data_dir={tmp_path}")
    assert repo.files[path] == whole


def test_downloaded_folders_can_be_named(world: World, tmp_path: Path) -> None:
    world.online.ask("download", "tasks=rte", f"data_dir={tmp_path}")
    folder = tmp_path / "tasks"
    rows = official.read(TASKS["rte"], "train", folder, [])
    assert len(rows) == 200
    (folder / "glue" / "rte" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"4 bytes, .* were downloaded: it is not whole"):
        official.read(TASKS["rte"], "train", folder, [])


def test_without_a_network(world: World, tmp_path: Path) -> None:
    for words in (("rte", "train", tmp_path), ("download", "tasks=rte", f"data_dir={tmp_path}")):
        error = world.offline.ask(*words)["error"]
        assert (
            f"RTE is not in {tmp_path}/tasks/glue/rte, and the hub cannot be reached (HF_HUB_OFFLINE is set)" in error
        )
        assert "python -m cramming.evaluation.download tasks=rte" in error
        assert "eval.data_dir=<folder>" in error
        assert "\n" not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tasks=rtee"], "there is no task 'rtee'; did you mean 'rte'"),
        (["collection=glu"], "there is no collection 'glu'; did you mean 'glue'"),
        (["collection=glue", "tasks=[rte,boolq]"], "collection=glue has no task 'boolq'"),
        (["rte"], "'rte' is not an option: give tasks=[cola,rte]"),
        (["task=rte"], "unknown option task; did you mean 'tasks'"),
        (["tasks=mrpc"], "nyu-mll/glue has no parquet files for the splits train, validation, test of 'mrpc'"),
    ],
)
def test_bad_input(world: World, tmp_path: Path, words: list[str], said: str) -> None:
    error = world.online.ask("download", *words, f"data_dir={tmp_path}")["error"]
    assert said in error
    assert "\n" not in error


def test_a_dataset_that_is_gone(world: World, tmp_path: Path) -> None:
    gone = world.hub.repos.pop(("datasets", "ehovy/race"))
    error = world.online.ask("download", "tasks=race", f"data_dir={tmp_path}")["error"]
    world.hub.repos["datasets", "ehovy/race"] = gone
    assert "RACE's dataset is on the hub no more, or private" in error
    assert "\n" not in error
