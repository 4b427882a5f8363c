"""Runs on corpora in shards, in a folder and in S3: trained, killed, taken up, validated; samples shown."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cramming import folder
from cramming.data import show
from cramming.data.shards.mds_writer import write_mds
from cramming.data.tokenizer import Tokenizer, from_vocabulary
from cramming.errors import UserError

from ..data import s3_server
from . import runs

LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """230 rows to train on in shards of ten, 20 to validate on, and their tokenizer."""
    place = tmp_path_factory.mktemp("shards")
    draw = np.random.default_rng(0)
    for split, count in (("train", 230), ("val", 20)):
        rows = ({"tokens": draw.integers(5, 31, 16).astype("<i8").tobytes()} for _ in range(count))
        write_mds(place / split, {"tokens": "bytes"}, rows, size_limit=1600, compression="zstd", hashes=["sha1"])
    tokenizer = Tokenizer(from_vocabulary("\n".join(LETTERS), place))
    (place / "tokenizer.json").write_text(tokenizer.to_json())
    return place


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, shards: Path) -> Iterator[s3_server.S3]:
    """The same corpus at ``s3://bucket/corpus``."""
    pytest.importorskip("moto", reason="moto[s3], flask and flask-cors are not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = s3_server.start(monkeypatch.setenv)
    server.put_folder("bucket/corpus", shards)
    yield server
    server.close()


def words(folder: Path, remote: object, *more: str) -> list[str]:
    """A run of twelve steps, two windows of three shards each and a little of the third."""
    kept = [word for word in runs.TINY if not word.startswith(("data", "budget"))]
    return [
        *kept, "budget=12", f"base_dir={folder / 'outputs'}", f"data_dir={folder / 'data'}", "data=mds",
        f"data.remote={remote}", "data.seq_length=16", "data.shuffle_window=3", *more,
    ]  # fmt: skip


def ended(folder: Path, words: list[str], kill_at: str = "", environment: dict[str, str] | None = None) -> int | None:
    """A run in a process of its own to its end: the exit code. What it says on its error stream is in ``said``."""
    process = runs._CONTEXT.Process(target=_child, args=(words, kill_at, environment or {}, str(folder / "said")))
    process.start()
    process.join(600)  # a guard against hanging, not a limit
    return process.exitcode


def _child(words: list[str], kill_at: str, environment: dict[str, str], said: str) -> None:
    os.environ.update(environment)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    runs._run(words, kill_at)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """The folder of a finished run named ``whole``, from the folder."""
    place = tmp_path_factory.mktemp("whole")
    assert ended(place, words(place, shards, "name=whole")) == 0
    return place


def summary(folder: Path) -> dict[str, object]:
    return json.loads((folder / "outputs" / "whole" / "summary.json").read_text())  # type: ignore[no-any-return]


def test_killed_in_the_middle_of_a_shard(tmp_path: Path, shards: Path, whole: Path) -> None:
    run = words(tmp_path, shards, "name=whole")
    assert ended(tmp_path, run, kill_at="step:7") == -signal.SIGKILL
    assert ended(tmp_path, run) == 0
    assert runs.same(runs.weights(tmp_path, "whole"), runs.weights(whole, "whole"))
    assert summary(tmp_path)["validation_loss"] == summary(whole)["validation_loss"]
    assert summary(whole)["validation_sequences"] == 20


def test_from_s3_killed_and_with_credentials_that_expire(
    tmp_path: Path, whole: Path, s3: s3_server.S3, shards: Path
) -> None:
    """The same weights as from the folder, a small cache besides; what cannot be fetched is one line, nothing lost."""
    run = words(
        tmp_path, "s3://bucket/corpus", "name=whole", f"data.cache_dir={tmp_path / 'fast'}", "data.cache_limit=12kB"
    )
    assert ended(tmp_path, run, "step:3", s3.environment) == -signal.SIGKILL
    s3.refuse("corpus/train/shard", times=10_000, how=s3_server.EXPIRED)
    assert ended(tmp_path, run, "", s3.environment) == 2
    lines = (tmp_path / "said").read_text().splitlines()
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == 1
    assert "refuses: the credentials have expired; renew them and run the same command again" in errors[0]
    assert not any("Traceback" in line for line in lines)
    s3.mend()
    assert ended(tmp_path, run, "", s3.environment) == 0
    assert runs.same(runs.weights(tmp_path, "whole"), runs.weights(whole, "whole"))
    assert summary(tmp_path)["data_fingerprint"] == summary(whole)["data_fingerprint"]


def test_samples_are_shown(tmp_path: Path, shards: Path, s3: s3_server.S3, capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m cramming.data.show``: the same from a folder and from S3; row 25 of the migration table."""
    shown = []
    for number, remote in enumerate((shards, "s3://bucket/corpus")):
        show.command([
            "data=mds", f"data.remote={remote}", "data.seq_length=16", "arch=bert_tiny", "n=3",
            f"data_dir={tmp_path / str(number)}",
        ])  # fmt: skip
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert shown[0].count("--- sequence") == 3
    assert "‹" in shown[0]


def test_texts_need_no_layout(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ``python -m cramming.data.convert`` writes unasked: each document is a row."""
    write_mds(tmp_path / "texts" / "train", {"text": "str"}, ({"text": f"{c} b c"} for c in "axyz"))
    vocabulary = shards / "tokenizer.json"
    show.command([
        "data=mds", f"data.remote={tmp_path / 'texts'}", f"data.tokenizer={vocabulary}", "data.heldout_fraction=0.25",
        "data.seq_length=8", "train.batch_size=2", "arch=bert_tiny", "n=3", f"data_dir={tmp_path / 'data'}",
    ])  # fmt: skip
    assert capsys.readouterr().out.count("--- sequence") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.order=rarity"], "data.order=rarity needs all sequences at hand"),
        (["data.layout=document"], "holds rows of tokens, whose documents are joined; use data.layout=packed"),
        (["data.column=text"], "has the columns tokens; set data.column"),
        (["data.split=test"], "no folder test with one"),
        (["data.shuffle_window=0"], "data.shuffle_window=0 leaves nothing"),
        (["data.cache_limit=lots"], "data.cache_limit=lots is no size"),
        (["data.cache_limit=2kB"], "data.cache_limit=2.0 kB is less than"),
        (["data.max_tokens=100"], "data.max_tokens has no part in data=mds"),
        (["data.streams={a: {remote: x}}"], "and not both"),
        (["data.remote=null"], "data=mds needs data.remote="),
        (["data.remote=null", "data.streams={a: {weight: 1}}"], "data.streams.a needs an address"),
        (["data.remote=null", "data.streams={a: {remote: x, weight: -1}}"], "data.streams.a.weight=-1 is no share"),
        (
            ["data.remote=null", "data.streams={a: {remote: x, wait: 1}}"],
            "data.streams.a.wait is not known; did you mean",
        ),
        (["data.remote=null", "data.streams=[a,b]"], "names no streams; data.streams='{a: {remote:"),
        (["data.format=csv"], "data.format=csv is not known"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, shards: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        show.command([
            "data=mds", f"data.remote={shards}", "data.seq_length=16", "arch=bert_tiny", f"data_dir={tmp_path}",
            *options,
        ])  # fmt: skip
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_how_shards_are_brought_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    """What a message says to do about a full disk, or a slow link, is then taken."""
    before = {"data": {"remote": "s3://a", "cache_dir": None, "fetch_threads": 4, "streams": {"a": {"remote": "x"}}}}
    after = {"data": {"remote": "s3://b", "cache_dir": "/fast", "fetch_threads": 8, "streams": {"a": {"remote": "y"}}}}
    assert folder.differences(before, after) == []
    before["data"]["shuffle_window"], after["data"]["shuffle_window"] = 8, 9
    assert folder.differences(before, after) == [("data.shuffle_window", 8, 9)]
