"""The study's published irreducible losses: fetched, read without being run, and put to the rows they are of."""

import hashlib
import importlib.util
import json
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import published_losses
import published_set
import pytest
from loopback import Publisher
from published_losses import ARCHIVE, CHUNK, pickled
from published_set import NAME, RUN, make_small, refused

from cramming import faults
from cramming.cli import pretraining
from cramming.data import download, row_blocks
from cramming.data.number_dicts import read_numbers
from cramming.data.published import Origin, import_rows
from cramming.data.published_split import study_split
from cramming.data.sources.published import PublishedConfig
from cramming.data.store import TokenStore
from cramming.session import pretrain
from efficient_training.irreducible_losses import IrreducibleLosses

FRACTION = 0.2
_CONTEXT = multiprocessing.get_context("forkserver")


def load_script() -> Any:
    """The command's module."""
    path = published_set.SCRIPT.with_name("download_irreducible_losses.py")
    spec = importlib.util.spec_from_file_location("download_irreducible_losses", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["download_irreducible_losses"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces a download, and no waiting."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for module, name in ((row_blocks, "BLOCK_TOKENS"), (download, "_CHUNK_BYTES"), (download, "_WAITS_S")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back afterwards
    make_small()


@pytest.fixture(scope="module")
def store(published: tuple[Path, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The published rows, imported."""
    return import_rows(published[0], tmp_path_factory.mktemp("outputs") / "_data", NAME, Origin("set"))


@pytest.fixture(scope="module")
def losses(store: TokenStore) -> np.ndarray:
    """Of every place in the order of the study's training rows; two had nothing masked."""
    made = np.random.default_rng(1).uniform(0.5, 9, store.rows - int(store.rows * FRACTION)).astype(np.float32)
    made[[4, 99]] = np.nan
    return made


@pytest.fixture(scope="module")
def chunks(losses: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the chunks."""
    folder = tmp_path_factory.mktemp("losses") / "chunks"
    published_losses.make(folder, losses)
    assert len(list(folder.iterdir())) > 3
    return folder


@pytest.fixture
def publisher(chunks: Path) -> Iterator[Publisher]:
    """A server that publishes the archive."""
    server = Publisher({ARCHIVE: published_losses.archive(chunks), "il_losses_mp.tar": b"others"})
    yield server
    server.close()


def words(store: TokenStore, tmp_path: Path, *more: str) -> list[str]:
    """Of the command, for a folder of runs of its own and the data of all."""
    return [f"base_dir={tmp_path}", f"data_dir={store.folder.parent}", *more]


def array_of(tmp_path: Path) -> IrreducibleLosses:
    return IrreducibleLosses.described(tmp_path / "il_losses_c4" / "irreducible")


def expected(store: TokenStore, losses: np.ndarray) -> np.ndarray:
    """By row: place p of the study's training rows is the p-th of the permutation behind those held out."""
    order = np.random.default_rng(0).permutation(store.rows)
    by_row = np.full(store.rows, np.nan, dtype=np.float32)
    by_row[order[int(store.rows * FRACTION) :]] = np.where(np.isnan(losses), np.inf, losses)
    return by_row


def test_the_split_is_the_one_of_the_studys_library(store: TokenStore) -> None:
    import datasets

    datasets.disable_progress_bars()
    numbered = datasets.Dataset.from_dict({"row": range(store.rows)})
    for fraction in (FRACTION, 0.005, 0.333):
        split = study_split(store, fraction)
        theirs = numbered.train_test_split(test_size=int(store.rows * fraction), shuffle=True, seed=0)
        assert split.train(np.arange(split.train_rows)).tolist() == theirs["train"]["row"][:]
        assert split.heldout(np.arange(split.heldout_rows)).tolist() == theirs["test"]["row"][:]
    ours = PublishedConfig(**RUN, heldout_fraction=FRACTION).split_of(store)
    assert (ours.name, study_split(store, FRACTION).name) == ("keyed", "study")
    by_option = PublishedConfig(**RUN, heldout_fraction=FRACTION, heldout="study").split_of(store)
    assert (by_option.name, by_option.heldout_rows) == ("study", int(store.rows * FRACTION))
    refused(lambda: PublishedConfig(**RUN, heldout="studie").check(), "did you mean 'study'?")


def test_a_damaged_split_is_named(store: TokenStore) -> None:
    study_split(store, FRACTION)
    file = store.folder / "split-study.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refused(lambda: study_split(store, FRACTION), "split-study.bin is damaged")
    file.write_bytes(whole)


def test_a_part_of_the_set_cannot_be_split_like_the_whole(published: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    part = import_rows(published[0], tmp_path, NAME, Origin("set"), max_rows=100)
    refused(lambda: study_split(part, FRACTION), "the first 100 of them", "leave data.max_rows= out")


def test_every_loss_is_at_its_row(
    store: TokenStore, losses: np.ndarray, publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publisher.cuts = [3000, 0, 7]  # a bad line
    script.command(words(store, tmp_path, f"url={publisher.record}"))
    assert publisher.asked == [None, "bytes=3000-", "bytes=3000-", "bytes=3007-"]
    array = array_of(tmp_path)
    np.testing.assert_array_equal(np.load(array.folder / "losses.npy"), expected(store, losses))
    manifest = array.manifest
    md5 = hashlib.md5(publisher.files[ARCHIVE]).hexdigest()
    assert manifest["made_by"] == {"name": "published", "file": ARCHIVE, "md5": md5, "record": publisher.record}
    assert (manifest["mask"], manifest["rows_without_loss"], manifest["cost"]["total"]) == (None, 2, 43200)
    assert array.misfit(store, study_split(store, FRACTION)) is None
    array.verify(study_split(store, FRACTION))
    said = array.misfit(store, PublishedConfig(**RUN, heldout_fraction=FRACTION).split_of(store))
    assert said is not None
    assert "as study says" in said
    assert not list(store.folder.parent.glob("downloads/*.tar"))
    printed = capsys.readouterr().out
    assert "2 of them of sequences of which nothing was masked" in printed
    assert "method.rho_loss.foreign_masks=true" in printed
    script.command(words(store, tmp_path, f"url={publisher.record}"))
    assert len(publisher.asked) == 4, "what is there is not fetched again"


@pytest.mark.parametrize("point", ["download-chunk:2", "irreducible-manifest-write:1", "irreducible-rename:1"])
def test_killed_and_continued(
    store: TokenStore, losses: np.ndarray, publisher: Publisher, tmp_path: Path, point: str
) -> None:
    given = words(store, tmp_path, f"url={publisher.record}")
    process = _CONTEXT.Process(target=_run, args=(given, point))
    process.start()
    process.join(600)  # a guard against hanging, not a limit
    assert process.exitcode == -signal.SIGKILL, f"{point} was never passed"
    assert not (tmp_path / "il_losses_c4" / "irreducible").exists()
    script.command(given)
    np.testing.assert_array_equal(np.load(array_of(tmp_path).folder / "losses.npy"), expected(store, losses))
    assert [path.name for path in (tmp_path / "il_losses_c4").iterdir()] == ["irreducible"]


def _run(given: list[str], point: str) -> None:
    make_small()
    faults.arm(point)
    script.command(given)


def test_from_a_folder_or_an_archive_that_is_here(
    store: TokenStore, losses: np.ndarray, chunks: Path, publisher: Publisher, tmp_path: Path
) -> None:
    script.command(words(store, tmp_path / "a", f"from={chunks}"))
    path = tmp_path / ARCHIVE
    path.write_bytes(publisher.files[ARCHIVE][:-1])
    given = words(store, tmp_path / "b", f"from={path}", f"url={publisher.record}")
    refused(lambda: script.command(given), "delete it and download it again")
    path.write_bytes(publisher.files[ARCHIVE])
    script.command(given)
    assert publisher.asked == []
    for place in ("a", "b"):
        found = np.load(array_of(tmp_path / place).folder / "losses.npy")
        np.testing.assert_array_equal(found, expected(store, losses))
    renamed = path.rename(tmp_path / "losses.tar")
    refused(lambda: script.command(words(store, tmp_path / "c", f"from={renamed}")), "give md5=")
    refused(lambda: script.command(words(store, tmp_path / "c", "from=nowhere")), "from=nowhere does not exist")


def test_what_cannot_be_used_is_refused(
    store: TokenStore, losses: np.ndarray, chunks: Path, publisher: Publisher, tmp_path: Path
) -> None:
    def spoiled(name: str, content: bytes, file: str = "dict_chunk_0.pkl") -> list[str]:
        folder = published_set.copied(chunks, tmp_path / name)
        (folder / file).write_bytes(content)
        return words(store, tmp_path / "out", f"from={folder}")

    for name, corpus in (("il_losses_mp.tar", "MiniPile"), ("il_losses_bcwk.tar", "BookCorpus and Wikipedia")):
        for way in (f"file={name}", f"from={tmp_path}/{name}"):
            given = words(store, tmp_path, f"url={publisher.record}", way)
            refused(lambda given=given: script.command(given), f"own copy of {corpus}, which was not published")
    refused(lambda: script.command([f"base_dir={tmp_path}"]), "c4-subset-random, are not in", "download_c4_subset.py")
    first = (chunks / "dict_chunk_0.pkl").read_bytes()
    twice, few, far, negative = pickled(
        *((v, 4) for v in ("{3: 1.0, 75: 2.0}", "{3: 1.0}", "{100000: 1.0}", "{-1: 1.0}"))
    )
    number = len(list(chunks.iterdir()))
    cases = [
        (spoiled("cut", first[:-20]), "dict_chunk_0.pkl is damaged"),
        (spoiled("text", b"hello"), "dict_chunk_0.pkl holds a BINGET"),
        (spoiled("twice", twice), "places that had one before"),
        (spoiled("few", few), f"has {len(losses) - CHUNK + 1:,} losses, and of the", "another split"),
        (spoiled("far", far), "has a loss of place 100,000, and of the"),
        (spoiled("more", negative, f"dict_chunk_{number}.pkl"), "has a loss of place -1"),
        (words(store, tmp_path / "out", f"from={chunks}", "heldout_fraction=0.1"), "at heldout_fraction=0.1"),
        (words(store, tmp_path / "out", f"from={chunks}", "heldout_fraction=1"), "must lie between 0 and 1"),
        (words(store, tmp_path / "out", f"from={tmp_path / 'none'}"), "holds no dict_chunk_0.pkl"),
    ]
    (tmp_path / "none").mkdir()
    for given, *said in cases:
        refused(lambda given=given: script.command(given), *said)
    assert not (tmp_path / "out" / "il_losses_c4" / "irreducible").exists()


def test_a_run_on_the_published_rows_uses_them(store: TokenStore, chunks: Path, tmp_path: Path) -> None:
    script.command(words(store, tmp_path, f"from={chunks}"))
    run = [
        *words(store, tmp_path), "data=c4_subset_published", "data.seq_length=16", "data.vocab_size=300",
        "data.heldout_fraction=0.2", "arch=bert_tiny", "arch.hidden=32", "arch.heads=2", "arch.intermediate=64",
        "train.batch_size=8", "rst=steps", "budget=2", "impl.threads=1", "impl.precision=float32",
        "impl.microbatch_size=8", "method=rho_loss", "method.rho_loss.irreducible=il_losses_c4",
    ]  # fmt: skip
    refused(lambda: pretraining(pretrain, [*run, "name=a"]), "they are of another split", "as study says")
    refused(lambda: pretraining(pretrain, [*run, "name=b", "data.heldout=study"]), "method.rho_loss.foreign_masks=true")
    pretraining(pretrain, [*run, "name=c", "data.heldout=study", "method.rho_loss.foreign_masks=true"])
    used = json.loads((tmp_path / "c" / "summary.json").read_text())["irreducible_losses"]
    assert (used["foreign_masks"], used["mask"], used["made_by"]["name"]) == (True, None, "published")


# ---- the reader ----


def test_numbers_of_every_protocol() -> None:
    numbers = {**{i * 97: i / 7 for i in range(3000)}, 255: 0.0, 65535: -1.5, 2**31: 2.0, 2**40: 5e300}
    protocols = (2, 3, 4, 5)
    for data in pickled(*((repr(numbers), protocol) for protocol in protocols)):
        keys, values = read_numbers(data, "chunk")
        assert list(zip(keys.tolist(), values.tolist(), strict=True)) == list(numbers.items())
    for data in pickled(*(("{}", protocol) for protocol in protocols)):
        assert [len(part) for part in read_numbers(data, "chunk")] == [0, 0]


def test_nothing_but_numbers_is_read_and_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases = {
        "Calls()": "posix.mkdir",
        "{1: 2.0, 3: Calls()}": "posix.mkdir",
        "{1: numpy.float32(2)}": ".multiarray.scalar",
        "collections.OrderedDict({1: 2.0})": "collections.OrderedDict",
        "{1: 'a'}": "the text 'a'",
        "{'a': 1.0}": "the text 'a'",
        "{1: 2}": "a BININT1 where there is no place for one",
        "{1.0: 2.0}": "a BINFLOAT where there is no place for one",
        "{1: True}": "a NEWTRUE",
        "{1: {2: 3.0}}": "a EMPTY_DICT",
        "[1, 2.0]": "a EMPTY_LIST",
        "(1, 2.0)": "a TUPLE2",
        "{2**80: 1.0}": "a LONG1 where there is no place for one",
        "3.0": "a BINFLOAT where there is no place for one",
        "3": "no dict of numbers",
    }
    for protocol in (2, 4):
        for data, (value, said) in zip(pickled(*((value, protocol) for value in cases)), cases.items(), strict=True):
            refused(lambda data=data: read_numbers(data, "dict_chunk_3.pkl"), "dict_chunk_3.pkl", said)
            assert not list(tmp_path.iterdir()), value
    tensor = b"\x80\x02}K\x01ctorch._utils\n_rebuild_tensor_v2\n."
    refused(lambda: read_numbers(tensor, "chunk"), "chunk holds torch._utils._rebuild_tensor_v2")


def test_a_pickle_that_was_cut_is_damaged() -> None:
    (data,) = pickled(("{1: 2.0, 300: 4.0, 70000: 8.0}", 4))
    assert read_numbers(data, "chunk")[0].tolist() == [1, 300, 70000]
    for end in range(len(data)):
        refused(lambda end=end: read_numbers(data[:end], "chunk"), "chunk is damaged")
