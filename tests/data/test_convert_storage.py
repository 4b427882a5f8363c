"""Converting into object storage: a real S3 server on loopback, and what goes wrong on the way there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import s3_server

from cramming.data.converting.options import ConvertOptions
from cramming.data.converting.plan import Plan
from cramming.data.converting.writing import write_plan
from cramming.data.sources.local import LocalConfig
from cramming.errors import UserError
from cramming.progress import Silent

OUT = "s3://bucket/corpus"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"{number} " * 50}) + "\n" for number in range(100)))
    return path


def convert(tmp_path: Path, corpus: Path, out: str) -> None:
    options = ConvertOptions(out=out, splits=["train", "val"], size_limit="4KiB", val_share=0.1)
    data_dir = tmp_path / "data"
    write_plan(Plan(LocalConfig(path=str(corpus)), options, data_dir, Silent()), out, data_dir, Silent())


def same(s3: s3_server.S3, folder: Path) -> int:
    """How many files of a folder lie in the bucket, all of them as they are there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        assert s3.get(f"bucket/corpus/{path.relative_to(folder)}") == path.read_bytes(), path.name
    return len(files)


@pytest.fixture
def whole(tmp_path: Path, corpus: Path) -> Path:
    convert(tmp_path, corpus, str(tmp_path / "whole"))
    return tmp_path / "whole"


def test_the_same_bytes_and_the_index_last(tmp_path: Path, corpus: Path, whole: Path, s3: s3_server.S3) -> None:
    s3.put("bucket/other", b"")
    s3.refuse("shard.00001", times=2)
    convert(tmp_path, corpus, OUT)
    assert same(s3, whole) > 4
    put = [one.path for one in s3.asked if one.method == "PUT" and "/train/" in one.path]
    assert put[-1].endswith("index.json")
    assert s3.count("train/shard.00001", "PUT") == 3
    with pytest.raises(UserError, match="s3://bucket/corpus/train has files already"):
        convert(tmp_path, corpus, OUT)


def test_expired_credentials_and_the_same_again(tmp_path: Path, corpus: Path, whole: Path, s3: s3_server.S3) -> None:
    s3.put("bucket/other", b"")
    s3.refuse("train/shard.00002", times=99, how=s3_server.EXPIRED)
    with pytest.raises(UserError, match="the credentials have expired; renew them and run the same command again"):
        convert(tmp_path, corpus, OUT)
    s3.mend()
    convert(tmp_path, corpus, OUT)
    assert same(s3, whole) > 4
    assert s3.count("train/shard.00000", "PUT") == 1


def test_no_such_bucket_and_no_access(tmp_path: Path, corpus: Path, s3: s3_server.S3) -> None:
    with pytest.raises(UserError, match="the bucket does not exist"):
        convert(tmp_path, corpus, OUT)
    s3.put("bucket/other", b"")
    s3.refuse("corpus", times=99, how=s3_server.DENIED)
    with pytest.raises(UserError, match="refuses access"):
        convert(tmp_path, corpus, OUT)


def test_killed_while_a_shard_is_sent(tmp_path: Path, corpus: Path, whole: Path, s3: s3_server.S3) -> None:
    s3.put("bucket/other", b"")
    gate = s3.hold("train/shard.00002")
    words = ["source=local", f"data.path={corpus}", f"out={OUT}", f"data_dir={tmp_path / 'data'}"]
    words += ["splits=[train,val]", "size_limit=4KiB", "val_share=0.1"]
    environment = {**os.environ, **s3.environment}
    child = subprocess.Popen([sys.executable, "-m", "cramming.data.convert", *words], env=environment)
    try:
        until = time.monotonic() + 100
        while not s3.count("train/shard.00002", "PUT"):
            assert child.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait(60)
        gate.set()
    convert(tmp_path, corpus, OUT)
    assert same(s3, whole) > 4
    assert s3.count("train/shard.00001", "PUT") == 1
