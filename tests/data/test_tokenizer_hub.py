"""``data.tokenizer=<owner/name>`` against a stand-in for the hub on loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizer_training import train
from tests.data.hub_server import HubServer

# Answers each line of its input, a name, with the tokenizer's hash or what is wrong.
CHILD = """
import sys
from cramming.data.tokenizer_hub import from_hub
from cramming.errors import UserError
for name in sys.stdin:
    try:
        print(from_hub(name.strip()).sha256, flush=True)
    except UserError as error:
        print(error, flush=True)
"""


def asked(hub: HubServer, home: Path, *names: str, **environment: str) -> list[str]:
    """A line about each name, from a process of its own: the library reads its environment once."""
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(
        command,
        input="\n".join(names),
        text=True,
        stdout=subprocess.PIPE,
        env=hub.environment(home) | environment,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.fixture
def trained(english: str, tmp_path: Path) -> bytes:
    train([english], 400, "it", "bpe").save(tmp_path / "trained")
    return (tmp_path / "trained" / "tokenizer.json").read_bytes()


def test_tokenizers_of_the_hub(trained: bytes, letters: str, tmp_path: Path) -> None:
    vocabulary = Path(letters).read_bytes()
    with HubServer() as hub:
        hub.add("models", "owner/whole", {"tokenizer.json": trained, "model.py": b"raise SystemExit"})
        hub.add("models", "owner/old", {"vocab.txt": vocabulary})
        bert = json.dumps({"tokenizer_class": "BertTokenizer"}).encode()
        hub.add("models", "owner/bert", {"vocab.txt": vocabulary, "tokenizer_config.json": bert})
        other = json.dumps({"tokenizer_class": "BertJapaneseTokenizer"}).encode()
        hub.add("models", "owner/other", {"vocab.txt": vocabulary, "tokenizer_config.json": other})
        hub.add("models", "owner/none", {"model.safetensors": b""})
        hub.add("models", "owner/gated", {"tokenizer.json": trained}, gated=True)
        names = ["whole", "old", "bert", "other", "none", "gated", "missing"]
        found = asked(hub, tmp_path, *(f"owner/{name}" for name in names))
        assert {request.file for request in hub.requests if request.method == "GET" and request.sent} <= {
            "",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        }, "nothing else is fetched"
    assert found[0] == Tokenizer.load(tmp_path / "trained").sha256
    assert found[1] == found[2] == Tokenizer.load(Path(letters)).sha256
    for line, name, says in zip(
        found[3:],
        names[3:],
        (
            "is a BertJapaneseTokenizer without a tokenizer.json: it needs code to load, which is never run",
            "has no tokenizer.json and no vocab.txt",
            "can be read only by those its owner lets: ask there, then run `hf auth login`",
            "is neither on this disk nor on the hub",
        ),
        strict=True,
    ):
        assert line.startswith(f"data.tokenizer=owner/{name} {says}; ")
        assert "data.tokenizer=train" in line
    # The server is gone now.
    again = asked(hub, tmp_path, "owner/whole", "owner/new", HF_HUB_ETAG_TIMEOUT="1")
    assert again[0] == found[0], "what was fetched once is there"
    assert again[1].startswith("data.tokenizer=owner/new is not on this disk and cannot be fetched (127.0.0.1: ")
