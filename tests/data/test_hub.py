"""``data=hub`` against a stand-in for the hub on loopback: the text, what is fetched for it, cuts, kills, offline."""

import gzip
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

from tests.data.hub_server import HubServer

# Prepares what each line of its input describes. Waiting is written down instead of done.
CHILD = """
import io, json, sys, time
from pathlib import Path
waits = []
time.sleep = waits.append
import huggingface_hub
from cramming.cli import compose
from cramming.data import tokenizing
from cramming.data.preparation import prepare
from cramming.errors import UserError
from cramming.progress import PlainProgress
tokenizing.BLOCK_CHARACTERS = 4000
for line in sys.stdin:
    words, said = json.loads(line), io.StringIO()
    waits.clear()
    if words[0] == "fetch":
        huggingface_hub.snapshot_download(words[1], repo_type="dataset")
        answer = {}
    else:
        try:
            config = compose(words)
            store = prepare(config.data, Path(config.data_dir), 0, PlainProgress(said))
            answer = {"folder": str(store.folder), **store.manifest}
        except UserError as error:
            answer = {"error": str(error)}
    print(json.dumps(answer | {"said": said.getvalue(), "waited_s": sum(waits)}), flush=True)
"""
SHARDS, SHARD_ROWS = 4, 30
BLOCK_ROWS = 7  # of 599 characters, in a block of 4000
# More than there are: so that beforehand only the first file is looked into.
LIMIT = "data.max_documents=1000"
CARD = b"""---
configs:
- config_name: en
  data_files: [{split: train, path: en/train.*.json.gz}]
- config_name: de
  data_files: [{split: train, path: en/train.0*.json.gz}]
dataset_info:
- config_name: en
  features: [{name: text, dtype: string}, {name: url, dtype: string}]
  splits: [{name: train, num_examples: 120, num_bytes: 60000}]
- config_name: de
---
"""


def document(number: int) -> str:
    """About 600 characters, different for every number."""
    state = number + 1
    letters = []
    for _ in range(300):
        state = state * 6364136223846793005 % (1 << 64) + 1442695040888963407
        letters.append("abcdefghijklmnopqrstuvwxyz"[(state >> 40) % 26])
    return " ".join(letters)


TEXTS = [[document(SHARD_ROWS * shard + row) for row in range(SHARD_ROWS)] for shard in range(SHARDS)]


def parquet(texts: list[str], row_group_size: int = 10) -> bytes:
    buffer = io.BytesIO()
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    pyarrow.parquet.write_table(table, buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts).encode()


PARQUET = {f"data/train-{shard:05d}-of-00004.parquet": parquet(texts) for shard, texts in enumerate(TEXTS)}
GZIPPED = {f"en/train.{shard:05d}.json.gz": gzip.compress(jsonl(texts)) for shard, texts in enumerate(TEXTS)}
SOURCES = {
    "parquet": (["data.dataset=me/parquet"], list(PARQUET)),
    "gzip": (["data.dataset=me/gzip", "data.subset=en"], list(GZIPPED)),
}


class Preparing:
    """A process that prepares, with the server's environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        command = [sys.executable, "-c", CHILD]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

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
    """A hub, and processes that use it: one with a network, one without."""

    hub: HubServer
    home: Path
    online: Preparing
    offline: Preparing


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("hub")
    with HubServer() as hub:
        test = {"data/test-00000-of-00001.parquet": parquet(TEXTS[0][:5])}
        hub.add("datasets", "me/parquet", PARQUET | test)
        hub.add("datasets", "me/gzip", GZIPPED | {"README.md": CARD})
        hub.add("datasets", "me/plain", {"train.jsonl": jsonl(TEXTS[0])})
        hub.add("datasets", "me/gated", PARQUET, gated=True)
        hub.add("datasets", "me/code", PARQUET | {"code.py": b"raise SystemExit"})
        hub.add("datasets", "me/nothing", {"picture.bin": b"x"})
        hub.add("datasets", "me/broken", {"train.parquet": b"PAR1" + bytes(100)})
        environment = hub.environment(home)
        online, offline = Preparing(environment), Preparing(environment | {"HF_HUB_OFFLINE": "1"})
        yield World(hub, home, online, offline)
        online.stop()
        offline.stop()


@pytest.fixture
def options(tmp_path: Path, letters: str) -> list[str]:
    return ["data=hub", f"data_dir={tmp_path}/data", f"data.tokenizer={letters}"]


@pytest.fixture
def expected(tmp_path: Path, letters: str, world: World) -> dict[str, Any]:
    """The same text, from a file."""
    path = tmp_path / "all.jsonl"
    path.write_bytes(jsonl([text for texts in TEXTS for text in texts]))
    return world.online.ask(
        "data=local", f"data.path={path}", f"data_dir={tmp_path}/local", f"data.tokenizer={letters}"
    )


@pytest.mark.parametrize("which", SOURCES)
def test_the_text_is_the_files_and_nothing_is_asked_twice(
    world: World, options: list[str], expected: dict[str, Any], which: str
) -> None:
    dataset, files = SOURCES[which]
    world.hub.requests.clear()
    made = world.online.ask(*options, *dataset)
    assert made["tokens_sha256"] == expected["tokens_sha256"]
    assert made["documents"] == SHARDS * SHARD_ROWS
    assert "expecting about" in made["said"]
    assert "tokenizing: done, 120 documents" in made["said"]
    (read,) = made["inputs"]
    assert (read["dataset"], read["commit"]) == (f"me/{which}", world.hub.repos["datasets", f"me/{which}"].sha)
    assert [file for file in world.hub.files_sent() if file != "README.md"] == files
    world.hub.requests.clear()
    for process in (world.online, world.offline):
        assert process.ask(*options, *dataset)["folder"] == made["folder"]
    assert world.hub.requests == []


@pytest.mark.parametrize("which", SOURCES)
def test_what_is_not_needed_is_not_fetched(world: World, options: list[str], which: str) -> None:
    dataset, files = SOURCES[which]
    world.hub.requests.clear()
    made = world.online.ask(*options, *dataset, f"data.max_documents={SHARD_ROWS + 5}")
    assert made["documents"] == SHARD_ROWS + 5
    assert [file for file in world.hub.files_sent() if file != "README.md"] == files[:2]


@pytest.mark.parametrize("which", SOURCES)
def test_a_connection_cut_in_the_middle_of_a_file(
    world: World, options: list[str], expected: dict[str, Any], tmp_path: Path, which: str
) -> None:
    dataset, files = SOURCES[which]
    world.hub.cut(files[3], after=2000, times=2)
    made = world.online.ask(*options, *dataset, LIMIT)
    assert made["tokens_sha256"] == expected["tokens_sha256"]
    assert made["said"].count("Retrying in") == 2
    assert 0 < made["waited_s"] < 10
    # It stays cut: what is finished stays, and the same command goes on there.
    other = [*options, f"data_dir={tmp_path}/other"]
    world.hub.cut(files[3], after=2000, times=10**6)
    failed = world.online.ask(*other, *dataset, LIMIT)
    assert f"connection to {dataset[0]} was lost" in failed["error"]
    assert "run the same command again" in failed["error"]
    assert "\n" not in failed["error"]
    assert 30 < failed["waited_s"] < 180
    assert len(list((tmp_path / "other").glob("*.work/part-*.bin"))) == 3 * SHARD_ROWS // BLOCK_ROWS
    world.hub.mend()
    world.hub.requests.clear()
    made = world.online.ask(*other, *dataset, LIMIT)
    assert made["tokens_sha256"] == expected["tokens_sha256"]
    assert [file for file in world.hub.files_sent() if file != "README.md"] == [files[0], *files[2:]]


def test_killed_and_continued(world: World, options: list[str], expected: dict[str, Any]) -> None:
    dataset, files = SOURCES["parquet"]
    point = f"cursor-written:{2 * SHARD_ROWS // BLOCK_ROWS + 2}"
    doomed = Preparing(world.hub.environment(world.home) | {"CRAMMING_KILL_AT": point})
    assert doomed.ask(*options, *dataset, LIMIT) == {"killed": True}
    doomed.stop()
    world.hub.requests.clear()
    made = world.online.ask(*options, *dataset, LIMIT)
    assert made["tokens_sha256"] == expected["tokens_sha256"]
    assert [file for file in world.hub.files_sent() if file != "README.md"] == [files[0], *files[2:]]


def test_a_folder_and_a_file_of_ones_own(
    world: World, options: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, data in PARQUET.items():
        (folder / Path(name).name).write_bytes(data)
    made = world.online.ask(*options, f"data.dataset={folder}")
    assert made["tokens_sha256"] == expected["tokens_sha256"]
    assert [item["file"] for item in made["inputs"]] == [Path(name).name for name in PARQUET]
    one = world.online.ask(*options, f"data.dataset={folder}/train-00001-of-00004.parquet")
    assert one["documents"] == SHARD_ROWS
    assert one["inputs"][0]["sha256"] == made["inputs"][1]["sha256"]
    missing = world.online.ask(*options, f"data.dataset={folder}/nothing")
    assert "does not exist" in missing["error"]


def test_newer_data_is_taken_when_it_is_asked_for(world: World, options: list[str], tmp_path: Path) -> None:
    old = world.hub.add("datasets", "me/growing", {"train.jsonl": jsonl(TEXTS[0])})
    first = world.online.ask(*options, "data.dataset=me/growing")
    assert "nobody knows how much text" in first["said"]
    world.hub.add("datasets", "me/growing", {"train.jsonl": jsonl(TEXTS[0] + TEXTS[1])})
    again = world.online.ask(*options, "data.dataset=me/growing", "data.seq_length=64")
    assert again["documents"] == SHARD_ROWS
    (tmp_path / "data" / "hub.json").unlink()
    assert world.online.ask(*options, "data.dataset=me/growing", "data.seq_length=64")["documents"] == 2 * SHARD_ROWS
    pinned = world.online.ask(*options, "data.dataset=me/growing", f"data.revision={old.sha}")
    assert pinned["folder"] == first["folder"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.dataset=me/missing"], ["data.dataset=me/missing is not on the hub", "hf auth login"]),
        (["data.dataset=c4"], ["neither an id (owner/name)"]),
        (["data.dataset='a b/c'"], ["neither an id (owner/name)"]),
        (["data.dataset=me/gated"], ["is gated", "https://huggingface.co/datasets/me/gated", "hf auth login"]),
        (["data.dataset=me/code"], ["needs code of its own to load (code.py)", "never run", "refs/convert/parquet"]),
        (["data.dataset=me/nothing"], ["no files that can be read"]),
        (["data.dataset=me/broken"], ["cannot be read", "Parquet"]),
        (["data.dataset=me/parquet", "data.text_column=body"], ["no column 'body'", "columns are: id, text"]),
        (["data.dataset=me/gzip", "data.subset=en", "data.text_column=body"], ["columns are: text, url"]),
        (["data.dataset=me/plain", "data.text_column=body"], ["columns are: text, url"]),
        (["data.dataset=me/parquet", "data.text_column=id"], ["column 'id' is int64, not text"]),
        (["data.dataset=me/parquet", "data.split=validation"], ["no split 'validation'", "splits are: train, test"]),
        (["data.dataset=me/parquet", "data.split=train[:10%]"], ["not the name of a split", "data.max_documents"]),
        (["data.dataset=me/gzip", "data.subset=fr"], ["no subset 'fr': en, de", "data.subset=<name>"]),
        (["data.dataset=me/gzip"], ["comes in several subsets: en, de", "data.subset=<name>"]),
        (["data.dataset=me/parquet", "data.revision=v9"], ["no revision 'v9'"]),
        (["data.dataset=me/parquet", "data.join_rows=0"], ["data.join_rows=0"]),
        ([], ["data=hub needs data.dataset="]),
    ],
    ids=lambda value: " ".join(value) if len(value) < 3 and all("=" in word for word in value) else "",
)
def test_bad_input(world: World, options: list[str], tmp_path: Path, words: list[str], said: list[str]) -> None:
    error = world.online.ask(*options, *words).get("error", "")
    assert all(part in error for part in said), error
    assert "\n" not in error
    assert not list((tmp_path / "data").glob("store-*"))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["data=hub", "data.dataset=me/parquet"], "hf download me/parquet --repo-type dataset"),
        (["data=minipile"], "hf download JeanKaddour/minipile --repo-type dataset"),
        (["data=wikipedia"], "--include '20231101.en/*'"),
        (["data=c4_subset"], "python assets/download_c4_subset.py"),
    ],
)
def test_without_a_network(world: World, tmp_path: Path, words: list[str], command: str) -> None:
    error = world.offline.ask(*words, f"data_dir={tmp_path}")["error"]
    assert "HF_HUB_OFFLINE is set" in error
    assert command in error
    assert "data=python_docs" in error
    assert "data=local" in error


def test_a_hub_that_is_not_there(world: World, tmp_path: Path) -> None:
    with HubServer() as gone:
        url = gone.url
    process = Preparing(world.hub.environment(world.home) | {"HF_ENDPOINT": url})
    answer = process.ask("data=c4", f"data_dir={tmp_path}")
    process.stop()
    assert "127.0.0.1: Connection refused" in answer["error"]
    assert "hf download allenai/c4 --repo-type dataset" in answer["error"]
    assert answer["waited_s"] == 0


def test_files_fetched_beforehand_are_used_without_a_network(world: World, options: list[str], tmp_path: Path) -> None:
    world.hub.add("datasets", "me/fetched", PARQUET)
    world.online.ask("fetch", "me/fetched")
    world.hub.requests.clear()
    made = world.offline.ask(*options, "data.dataset=me/fetched")
    assert made["documents"] == SHARDS * SHARD_ROWS
    assert "from the hub's cache" in made["said"]
    # With a network again it stays with what it has.
    assert world.online.ask(*options, "data.dataset=me/fetched")["folder"] == made["folder"]
    assert world.hub.requests == []
    # Seen with a network first, the files in the cache are the same text: the half of it that was made is gone on with.
    other = [*options, f"data_dir={tmp_path}/other", "data.dataset=me/fetched"]
    assert world.online.ask(*other)["folder"] != made["folder"]
    assert world.offline.ask(*other, "data.seq_length=64")["tokens"] == made["tokens"]
    # A part of the files is not the corpus.
    (victim,) = (world.home / "hf" / "hub").glob("datasets--me--fetched/snapshots/*/data/*-00002-*")
    victim.unlink()
    assert "me/fetched" in world.offline.ask(*other, "data.seq_length=32")["error"]
