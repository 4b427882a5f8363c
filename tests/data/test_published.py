"""Published token rows become a store with their own tokenizer and row order, or are refused in one line."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import published_set
import pyarrow as pa
import pytest
from published_set import ARCHIVE, BLOCK_ROWS, FOLDER, LENGTH, NAME, RUN, make_small, refused, tokens

from cramming.data import download, row_blocks
from cramming.data.cleaning.config import CleanConfig
from cramming.data.config import DataConfig
from cramming.data.preparation import prepare
from cramming.data.published import Origin, import_rows, imported
from cramming.data.sources.published import PublishedConfig

script = published_set.load_script()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``make_small`` says, for one test."""
    for module, name in ((row_blocks, "BLOCK_TOKENS"), (download, "_CHUNK_BYTES"), (download, "_WAITS_S")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    make_small()


@pytest.mark.parametrize("max_rows", [1, BLOCK_ROWS + 1, 450])
def test_the_first_rows_only(
    published: tuple[Path, np.ndarray], published_archive: bytes, tmp_path: Path, max_rows: int
) -> None:
    folder, rows = published
    archive = tmp_path / ARCHIVE
    archive.write_bytes(published_archive)
    for place in (folder, archive):
        data_dir = tmp_path / place.suffix / "data"
        store = import_rows(place, data_dir, NAME, Origin(place.name), max_rows=max_rows)
        np.testing.assert_array_equal(tokens(store), rows[:max_rows])
        assert prepare(PublishedConfig(**RUN, max_rows=max_rows), data_dir).rows == max_rows
        refused(lambda data_dir=data_dir: prepare(PublishedConfig(**RUN), data_dir), "download_c4_subset.py")
        refused(lambda data_dir=data_dir: prepare(PublishedConfig(**RUN, max_rows=7), data_dir), "max_rows=7")


def test_the_order_is_that_of_the_state_not_of_the_names(published: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, rows = published
    spoiled = published_set.copied(folder, tmp_path / FOLDER)
    listed = json.loads((folder / "state.json").read_text())["_data_files"]
    _state(spoiled, _data_files=listed[::-1])
    quarters = [np.array_split(rows, 4)[number] for number in (3, 2, 1, 0)]
    for place in (spoiled, tmp_path / ARCHIVE):
        if place != spoiled:
            place.write_bytes(published_set.archive(spoiled))
        for max_rows in (None, len(quarters[0]) + 1):
            store = import_rows(place, tmp_path / place.suffix / "data", NAME, Origin(place.name), max_rows=max_rows)
            np.testing.assert_array_equal(tokens(store), np.concatenate(quarters)[:max_rows])


def _member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


EVIL = {
    "absolute": _member("/tmp/evil/state.json"),
    "above": _member(f"{FOLDER}/../../evil.json"),
    "backslash": _member(f"{FOLDER}\\..\\evil.json"),
    "symbolic link": _member(f"{FOLDER}/state.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": _member(f"{FOLDER}/data-00000-of-00001.arrow", type=tarfile.LNKTYPE, linkname="x"),
    "pipe": _member(f"{FOLDER}/tokenizer/tokenizer.json", type=tarfile.FIFOTYPE),
    "device": _member(f"{FOLDER}/dataset.arrow", type=tarfile.CHRTYPE),
}


@pytest.mark.parametrize("kind", EVIL)
def test_evil_members_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(EVIL[kind])
    words = [f"from={path}", "md5=none", f"data_dir={tmp_path / 'data'}"]
    refused(lambda: script.command(words), "do not use it")
    assert imported(tmp_path / "data", NAME) is None
    assert {p.name for p in tmp_path.iterdir()} == {"evil.tar", "data"}


def test_other_files_beside_the_set_are_left_alone(published: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, rows = published
    path = tmp_path / "more.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        info = _member(f"{FOLDER}/run_me.py", size=4)
        tar.addfile(info, io.BytesIO(b"evil"))
        tar.add(folder, arcname=f"deep/{FOLDER}")
    script.command([f"from={path}", "md5=none", f"data_dir={tmp_path / 'data'}"])
    np.testing.assert_array_equal(tokens(prepare(PublishedConfig(**RUN), tmp_path / "data")), rows)
    assert not list(tmp_path.rglob("run_me.py"))
    assert path.exists(), "what the user brought is theirs"


def _state(folder: Path, **changes: object) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **changes}))


def _shard(folder: Path, column: pa.Array, name: str = "input_ids") -> None:
    """Replace the last shard by one with this column."""
    batch = pa.record_batch({name: column})
    with pa.ipc.new_stream(str(folder / "data-00003-of-00004.arrow"), batch.schema) as writer:
        writer.write_batch(batch)


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "index": (lambda f: _state(f, _indices_data_files=[{"filename": "indices.arrow"}]), "flatten_indices()"),
    "no state": (lambda f: (f / "state.json").unlink(), "no state.json"),
    "broken state": (lambda f: (f / "state.json").write_text("{"), "state.json of the published set is no JSON"),
    "strange shards": (lambda f: _state(f, _data_files=[{"filename": "../x.arrow"}]), "names no shards"),
    "a missing shard": (lambda f: (f / "data-00002-of-00004.arrow").unlink(), "lacks data-00002-of-00004.arrow"),
    "no tokenizer": (lambda f: (f / "tokenizer" / "tokenizer.json").unlink(), "no tokenizer/tokenizer.json"),
    "half a shard": (lambda f: _cut(f / "data-00001-of-00004.arrow"), "data-00001-of-00004.arrow of the published"),
    "no column": (lambda f: _shard(f, pa.array([[1] * LENGTH]), "ids"), "no column input_ids; it has: ids"),
    "words": (lambda f: _shard(f, pa.array([["a"]])), "not lists of whole numbers"),
    "gaps": (lambda f: _shard(f, pa.array([[None] + [1] * (LENGTH - 1)])), "empty places"),
    "uneven rows": (lambda f: _shard(f, pa.array([[1] * LENGTH, [1] * 5])), "a row of 5 tokens, others have 16"),
    "other rows": (lambda f: _shard(f, pa.array([[1] * 8])), "rows of 8 tokens, the first ones have 16"),
    "an unknown id": (lambda f: _shard(f, pa.array([[300] * LENGTH])), "token id 300, its tokenizer only has 300"),
    "a large id": (lambda f: _shard(f, pa.array([[70_000] * LENGTH])), "token id 70000"),
    "a negative id": (lambda f: _shard(f, pa.array([[-1] * LENGTH])), "holds -1, which is no token id"),
    "another vocabulary": (
        lambda f: (f / "model_config.json").write_text('{"vocab_size": 32768}'),
        "vocab_size=32768, but it is 300",
    ),
    "another set": (lambda f: (f / "model_config.json").write_text('{"name": "pile"}'), "give name=pile"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_set_is_refused(published: tuple[Path, np.ndarray], tmp_path: Path, kind: str) -> None:
    folder = published_set.copied(published[0], tmp_path / FOLDER)
    spoil, said = SPOILED[kind]
    spoil(folder)
    refused(lambda: script.command([f"from={folder}", f"data_dir={tmp_path / 'data'}"]), said)
    assert imported(tmp_path / "data", NAME) is None


def test_ids_before_their_tokenizer_are_held_against_it(published: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder = published_set.copied(published[0], tmp_path / FOLDER)
    _shard(folder, pa.array([[70_000] * LENGTH]))
    names = [f"data-0000{number}-of-00004.arrow" for number in (3, 2, 1, 0)]
    path = tmp_path / ARCHIVE
    path.write_bytes(published_set.archive(folder, [*names, "state.json", "tokenizer"]))
    refused(lambda: script.command([f"from={path}", "md5=none", f"data_dir={tmp_path / 'data'}"]), "token id 70000")


def test_half_an_archive_is_refused(published_archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / ARCHIVE
    path.write_bytes(published_archive[: len(published_archive) // 2])
    refused(lambda: script.command([f"from={path}", "md5=none", f"data_dir={tmp_path / 'data'}"]), "damaged")
    path.write_bytes(b"<html>not found</html>")
    refused(lambda: script.command([f"from={path}", "md5=none", f"data_dir={tmp_path / 'data'}"]), "no tar archive")


def test_a_set_of_ones_own(
    published: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = published_set.copied(published[0], tmp_path / "set")
    (folder / "model_config.json").unlink()
    script.command([f"from={tmp_path / 'set'}", "name=mine", f"data_dir={tmp_path / 'data'}"])
    assert "data=published data.name=mine" in capsys.readouterr().out
    config = PublishedConfig(name="mine", seq_length=LENGTH, vocab_size=300)
    np.testing.assert_array_equal(tokens(prepare(config, tmp_path / "data")), published[1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokenizer": "train"}, "data.tokenizer cannot be chosen"),
        ({"row_cls": True}, "data.row_cls cannot"),
        ({"layout": "document"}, "data.layout cannot"),
        ({"max_tokens": 5}, "data.max_tokens cannot"),
        ({"normalize": ["nfkc"]}, "data.normalize cannot"),
        ({"clean": CleanConfig(duplicates="exact")}, "data.clean cannot"),
        ({"seq_length": 128}, "data.seq_length=128, but c4-subset-random was published with 16"),
        ({"vocab_size": 32768}, "data.vocab_size=32768, but c4-subset-random was published with 300"),
        ({"name": "a/b"}, "data.name='a/b'"),
        ({"max_rows": 0}, "data.max_rows=0"),
    ],
)
def test_a_run_takes_the_rows_as_they_are(
    published: tuple[Path, np.ndarray], tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    import_rows(published[0], tmp_path, NAME, Origin(FOLDER))
    config: DataConfig = PublishedConfig(**{**RUN, **options})
    refused(lambda: prepare(config, tmp_path), said)


def test_before_the_import_the_command_is_named(tmp_path: Path) -> None:
    said = ("python assets/download_c4_subset.py", "offline", "data=python_docs", "data=local")
    refused(lambda: prepare(PublishedConfig(), tmp_path / "data"), *said)
    assert not list(tmp_path.iterdir())


def test_a_run_trains_on_it(published: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    from cramming.cli import pretraining
    from cramming.session import pretrain

    import_rows(published[0], tmp_path / "_data", NAME, Origin(FOLDER))
    words = [
        "name=x", f"base_dir={tmp_path}", "data=c4_subset_published", f"data.seq_length={LENGTH}", "arch=bert_tiny",
        "data.vocab_size=300", "arch.layers=2", "arch.hidden=32", "arch.heads=2", "arch.intermediate=64",
        "train.batch_size=8", "rst=steps", "budget=3", "impl.precision=float32", "impl.microbatch_size=8",
        "impl.threads=1",
    ]  # fmt: skip
    pretraining(pretrain, words)
    summary = json.loads((tmp_path / "x" / "summary.json").read_text())
    store = imported(tmp_path / "_data", NAME)
    assert store is not None
    assert (summary["steps"], summary["data_fingerprint"]) == (3, store.fingerprint)
    assert 0 < summary["loss"] < 20
