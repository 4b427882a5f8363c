"""The published set over a bad line: cut, refused, damaged, killed at any moment; in the end the same store."""

import hashlib
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import published_set
import pytest
from loopback import Publisher
from published_set import ARCHIVE, BLOCK_ROWS, FOLDER, NAME, RUN, SCRIPT, make_small, refused, tokens

from cramming import faults
from cramming.data import download, row_blocks
from cramming.data.preparation import prepare
from cramming.data.published import Origin, import_rows, imported, store_folder
from cramming.data.sources.published import PublishedConfig
from cramming.data.tokenizer import Tokenizer

script = published_set.load_script()
_CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture
def publisher(published_archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """A server that publishes the archive."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Publisher({ARCHIVE: published_archive, "il_losses.tar": b"others"})
    yield server
    server.close()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``make_small`` says, for one test."""
    for module, name in ((row_blocks, "BLOCK_TOKENS"), (download, "_CHUNK_BYTES"), (download, "_WAITS_S")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    make_small()


def killed(words: list[str], point: str) -> None:
    """Run the command in a process of its own, which ends at ``point``."""
    process = _CONTEXT.Process(target=_run, args=(words, point))
    process.start()
    process.join(600)  # a guard against hanging, not a limit
    assert process.exitcode == -signal.SIGKILL, f"{point} was never passed"


def _run(words: list[str], point: str) -> None:
    make_small()
    faults.arm(point)
    script.command(words)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_order_and_tokenizer_are_the_published_ones(
    published: tuple[Path, np.ndarray], publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rows = published
    words = [f"url={publisher.record}", f"data_dir={tmp_path}"]
    script.command(words)
    store = prepare(PublishedConfig(**RUN), tmp_path)
    assert store.rows == len(rows) > 6 * BLOCK_ROWS
    np.testing.assert_array_equal(tokens(store), rows)
    store.verify()
    assert store.tokenizer.sha256 == Tokenizer.load(folder / "tokenizer").sha256
    assert store.tokenizer.token(store.tokenizer.mask_id) == "<mask>"
    assert {store.tokenizer.token(number) for number in store.tokenizer.special_ids} == {
        *published_set.SPECIAL.values()
    }
    origin = store.manifest["published"]
    assert (origin["name"], origin["file"], origin["record"]) == (NAME, ARCHIVE, publisher.record)
    assert origin["folder"] == FOLDER
    assert (store.manifest["row_cls"], store.manifest["layout"]) == (False, "packed")
    assert store.manifest["documents"] == (rows == store.tokenizer.sep_id).sum()
    assert not list(tmp_path.rglob("*.tar.bz2*[!k]")), "the archive is not needed any more"
    assert "data=c4_subset_published data.seq_length=16 data.vocab_size=300" in capsys.readouterr().out
    publisher.close()
    script.command(words)
    assert len(publisher.asked) == 1, "what is imported is not fetched again"


def test_a_cut_connection_is_continued_where_it_was_cut(
    published: tuple[Path, np.ndarray], publisher: Publisher, published_archive: bytes, tmp_path: Path
) -> None:
    publisher.cuts = [10_000, 0, 7]
    script.command([f"url={publisher.record}", f"data_dir={tmp_path}", "keep_archive=true"])
    assert publisher.asked == [None, "bytes=10000-", "bytes=10000-", "bytes=10007-"]
    assert (tmp_path / "downloads" / ARCHIVE).read_bytes() == published_archive
    np.testing.assert_array_equal(tokens(prepare(PublishedConfig(**RUN), tmp_path)), published[1])


def test_a_server_without_ranges_begins_anew(publisher: Publisher, published_archive: bytes, tmp_path: Path) -> None:
    publisher.cuts = [10_000]
    publisher.gives_parts = False
    remote = download.from_record(publisher.record, ARCHIVE)
    assert download.fetch(remote, tmp_path, script.progress_for()).read_bytes() == published_archive


def test_a_server_that_fails_for_good(publisher: Publisher, tmp_path: Path) -> None:
    words = [f"url={publisher.record}", f"data_dir={tmp_path}"]
    publisher.cuts = [5000] + [0] * 50
    refused(lambda: script.command(words), "3 times in a row", "run the same command again", "behind 5.0 kB")
    publisher.cuts = []
    script.command(words)
    assert publisher.asked[-1] == "bytes=5000-"
    publisher.status = 403
    refused(lambda: script.command([*words, "max_rows=5"]), "cannot be fetched (Forbidden)")


def test_a_server_that_always_begins_anew_and_is_cut_is_given_up(publisher: Publisher, tmp_path: Path) -> None:
    publisher.cuts, publisher.gives_parts = [5000] * 50, False
    refused(lambda: script.command([f"url={publisher.record}", f"data_dir={tmp_path}"]), "3 times in a row")


def test_another_checksum_imports_nothing_and_exits_with_2(publisher: Publisher, tmp_path: Path) -> None:
    publisher.checksums = {ARCHIVE: "0" * 32}
    command = [sys.executable, str(SCRIPT), f"url={publisher.record}", f"data_dir={tmp_path}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    part = tmp_path / "downloads" / f"{ARCHIVE}.part"
    for words in ("0" * 32, str(part), "delete it and download it again"):
        assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]
    assert not (tmp_path / "downloads" / ARCHIVE).exists()
    part.unlink()
    publisher.checksums = {}
    script.command(command[2:])
    assert imported(tmp_path, NAME) is not None


def test_a_damaged_archive_that_is_there_is_not_unpacked(
    publisher: Publisher, published_archive: bytes, tmp_path: Path
) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / ARCHIVE).write_bytes(published_archive[:-1] + b"x")
    refused(lambda: script.command([f"url={publisher.record}", f"data_dir={tmp_path}"]), "delete it and download")
    assert imported(tmp_path, NAME) is None


def test_only_safe_addresses(publisher: Publisher, tmp_path: Path) -> None:
    for url in ("http://zenodo.org/api/records/8279728", "ftp://zenodo.org/x", "file:///etc/passwd"):
        refused(lambda url=url: script.command([f"url={url}", f"data_dir={tmp_path}"]), "HTTPS only", url)
    publisher.redirect = "http://elsewhere.example/archive"
    refused(
        lambda: script.command([f"url={publisher.record}", f"data_dir={tmp_path}"]), "elsewhere.example", "HTTPS only"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["file=c4-subset-randon.tar.bz2"], ["has no file 'c4-subset-randon.tar.bz2'", ARCHIVE]),
        (["md5=" + "1" * 32], ["lists", "1" * 32]),
        (["md5=12"], ["no MD5"]),
        (["from=nowhere.tar.bz2"], ["nowhere.tar.bz2 does not exist"]),
        (["max_rows=0"], ["max_rows=0"]),
        (["name=../up"], ["../up"]),
        (["max_row=5"], ["unknown option max_row", "max_rows"]),
        (["please"], ["'please' is not an option"]),
    ],
)
def test_what_cannot_be_asked_for(publisher: Publisher, tmp_path: Path, words: list[str], said: list[str]) -> None:
    refused(lambda: script.command([f"url={publisher.record}", f"data_dir={tmp_path}", *words]), *said)
    assert publisher.asked == []


def test_a_record_that_is_none_or_cannot_be_reached(publisher: Publisher, tmp_path: Path) -> None:
    publisher.listing = lambda: b"[1]"  # type: ignore[method-assign]
    refused(lambda: script.command([f"url={publisher.record}", f"data_dir={tmp_path}"]), "check url=")
    publisher.close()
    refused(lambda: script.command([f"url={publisher.record}", f"data_dir={tmp_path}"]), "cannot be reached", "from=")


def test_an_archive_by_its_own_address(publisher: Publisher, published_archive: bytes, tmp_path: Path) -> None:
    words = [f"url={publisher.record}/files/{ARCHIVE}/content", f"data_dir={tmp_path}"]
    publisher.files["a.tar.bz2"] = published_archive
    address = f"{publisher.address}/api/records/1/files/a.tar.bz2"
    refused(lambda: script.command([f"url={address}", *words[1:]]), "give md5=")
    refused(lambda: download.from_address(address, "0" * 32), "cannot be reached")  # 404: the content lies deeper
    remote = download.from_address(words[0].removeprefix("url="), "0" * 32)
    assert remote.size == len(published_archive)


POINTS = [
    "download-chunk:1",
    "download-chunk:3",
    "download-fsync:1",
    "download-rename:1",
    "source-rename:1",
    "rows-fsync:2",
    "rows-rename:3",
    "rows-written:5",
    "tokenizer-rename:1",
    "contents-write:1",
    "contents-rename:1",
    "join-fsync:1",
    "block-joined:1",
    "block-joined:4",
    "manifest-fsync:1",
    "store-rename:1",
    "store-renamed:1",
]


SAMPLE = [pytest.param(point, marks=pytest.mark.full if number % 3 else ()) for number, point in enumerate(POINTS)]


@pytest.mark.parametrize("point", SAMPLE)
def test_killed_and_continued(publisher: Publisher, published_archive: bytes, tmp_path: Path, point: str) -> None:
    words = [f"url={publisher.record}", f"data_dir={tmp_path / 'killed'}"]
    killed(words, point)
    script.command(words)
    origin = Origin(ARCHIVE, hashlib.md5(published_archive).hexdigest(), publisher.record)
    (tmp_path / ARCHIVE).write_bytes(published_archive)
    undisturbed = import_rows(tmp_path / ARCHIVE, tmp_path / "whole", NAME, origin)
    found = files_of(store_folder(tmp_path / "killed", NAME))
    assert set(found) == {"tokens.bin", "tokenizer.json", "manifest.json"}
    assert found == files_of(undisturbed.folder)
    assert not [path for path in (tmp_path / "killed").rglob("*") if path.suffix in (".work", ".part", ".bz2")]


def test_killed_again_and_again_nothing_is_done_twice(
    publisher: Publisher, published_archive: bytes, tmp_path: Path
) -> None:
    words = [f"url={publisher.record}", f"data_dir={tmp_path}"]
    work = tmp_path / f"published-{NAME}.work"
    killed(words, "download-chunk:2")
    have = (tmp_path / "downloads" / f"{ARCHIVE}.part").stat().st_size
    assert have > 0
    killed(words, "rows-written:4")
    assert publisher.asked == [None, f"bytes={have}-"]
    blocks = {path: path.stat().st_mtime_ns for path in work.glob("data-*")}
    assert len(blocks) == 4
    killed(words, "contents-rename:1")
    assert all(path.stat().st_mtime_ns == before for path, before in blocks.items())
    killed(words, "block-joined:2")
    killed(words, "block-joined:3")
    left = len(list(work.glob("data-*")))
    killed(words, "store-rename:1")
    assert left > 0
    assert not list(work.glob("data-*"))
    script.command(words)
    store = prepare(PublishedConfig(**RUN), tmp_path)
    store.verify()
    assert len(publisher.asked) == 2


def test_another_source_does_not_mix_with_what_is_left_of_one(
    published: tuple[Path, np.ndarray], published_archive: bytes, tmp_path: Path
) -> None:
    folder, rows = published
    first = tmp_path / "first.tar.bz2"
    first.write_bytes(published_archive)
    killed([f"from={first}", "md5=none", f"data_dir={tmp_path / 'data'}"], "rows-written:5")
    other = published_set.copied(folder, tmp_path / "other")
    for number, name in enumerate(("data-00001-of-00004.arrow", "data-00002-of-00004.arrow")):
        (other / name).write_bytes((folder / f"data-0000{2 - number}-of-00004.arrow").read_bytes())
    script.command([f"from={other}", f"data_dir={tmp_path / 'data'}"])
    store = prepare(PublishedConfig(**RUN), tmp_path / "data")
    quarter = -(-len(rows) // 4)
    assert not np.array_equal(tokens(store), rows)
    np.testing.assert_array_equal(tokens(store)[:quarter], rows[:quarter])
    assert sorted(map(bytes, tokens(store))) == sorted(map(bytes, rows.astype(np.uint16)))


def test_an_archive_that_is_here_is_held_against_the_record(
    publisher: Publisher, published_archive: bytes, tmp_path: Path
) -> None:
    path = tmp_path / ARCHIVE
    path.write_bytes(published_archive[:-1])
    words = [f"from={path}", f"url={publisher.record}", f"data_dir={tmp_path / 'data'}"]
    refused(lambda: script.command(words), "delete it and download it again")
    path.write_bytes(published_archive)
    renamed = path.rename(tmp_path / "c4.tar.bz2")
    refused(lambda: script.command([f"from={renamed}", *words[1:]]), "give md5=")
    renamed.rename(path)
    script.command(words)
    store = imported(tmp_path / "data", NAME)
    assert store is not None
    assert store.manifest["published"]["record"] == publisher.record
    assert publisher.asked == []
