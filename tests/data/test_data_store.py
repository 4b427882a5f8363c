"""What is in a token store: checked by hand, and against a few lines that say what it should be."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming.data import fingerprint, tokenizing
from cramming.data.preparation import prepare
from cramming.data.show import show
from cramming.data.sources import source
from cramming.data.sources.local import LocalConfig
from cramming.data.store import TokenStore
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.progress import PlainProgress, ProgressSink, Silent
from tests.data.conftest import LETTERS

TEXT = "a b c\n\nd\ne\n\nf g h i j\n"


def prepared(tmp_path: Path, letters: str, text: str = TEXT, workers: int = 0, **options: object) -> TokenStore:
    path = tmp_path / "corpus.txt"
    path.write_text(text)
    config = LocalConfig(path=str(path), tokenizer=letters, **options)  # type: ignore[arg-type]
    return prepare(config, tmp_path / "data", workers=workers)


def spelled(store: TokenStore) -> list[str]:
    """Rows with a letter for each token: P, U, C, S, M for the special ones."""
    rows, _ = store.read(np.arange(store.rows))
    names = ["P", "U", "C", "S", "M", *LETTERS[5:]]
    return ["".join(names[token] for token in row) for row in rows]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"seq_length": 5}, ["CabcS", "CdeSf", "Cghij"]),
        ({"seq_length": 5, "row_cls": False}, ["abcSd", "eSfgh"]),
        ({"seq_length": 5, "layout": "document"}, ["CabcS", "CdeSP", "CfghS"]),
        ({"seq_length": 8, "layout": "document"}, ["CabcSPPP", "CdeSPPPP", "CfghijSP"]),
        ({"seq_length": 5, "max_documents": 2}, ["CabcS"]),
        ({"seq_length": 5, "max_tokens": 8}, ["CabcS", "CdeSf"]),
        ({"seq_length": 5, "max_tokens": 7}, ["CabcS"]),
        ({"seq_length": 5, "max_tokens": 5, "layout": "document"}, ["CabcS", "CdSPP"]),
        ({"seq_length": 5, "max_tokens": 3, "layout": "document"}, ["CabcS"]),
        ({"seq_length": 4, "max_documents": 1, "document": "line"}, ["CabcS"[:4]]),
    ],
)
def test_by_hand(tmp_path: Path, letters: str, options: dict[str, object], rows: list[str]) -> None:
    store = prepared(tmp_path, letters, **options)
    assert spelled(store) == rows
    tokens, lengths = store.read(np.array([store.rows - 1, 0]))
    assert tokens.dtype == np.uint16
    np.testing.assert_array_equal(tokens, store.read(np.arange(store.rows))[0][[-1, 0]])
    if store.layout == "packed":
        assert lengths is None
    else:
        assert lengths is not None
        assert lengths.tolist() == [len(rows[-1].rstrip("P")), len(rows[0].rstrip("P"))]


def test_manifest(tmp_path: Path, letters: str) -> None:
    store = prepared(tmp_path, letters, seq_length=5)
    manifest = store.manifest
    assert (manifest["documents"], manifest["tokens"], manifest["rows"]) == (3, 13, 3)
    assert manifest["text_bytes"] == len(TEXT.replace("\n\n", "\n"))
    assert manifest["tokenizer_sha256"] == Tokenizer.load(Path(letters)).sha256 == store.tokenizer.sha256
    assert manifest["inputs"][0]["bytes"] == len(TEXT)
    assert store.folder.name == f"store-{store.fingerprint}"
    assert not list((tmp_path / "data").glob("*.work"))


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path) -> None:
    words = [a + b + c + d for a, b, c, d in itertools.product("abcdefghijklmnopq", repeat=4)][:70_000]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*LETTERS[:5], *words]))
    store = prepared(tmp_path, str(vocabulary), f"{words[0]} {words[69_999]}", seq_length=4)
    tokens, _ = store.read(np.array([0]))
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == [[2, 5, 70_004, 3]]


# Zero-width characters are not blank, but leave no token behind.
DOCUMENT = st.lists(st.sampled_from(["a", "b", "c", "z", "\u200b"]), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=50, deadline=None, database=None)
@given(
    documents=st.lists(DOCUMENT, min_size=1, max_size=12),
    seq_length=st.integers(4, 9),
    layout=st.sampled_from(["packed", "document"]),
    row_cls=st.booleans(),
    max_tokens=st.one_of(st.none(), st.integers(1, 60)),
    block=st.integers(1, 40),
    piece=st.integers(3, 30),
)
def test_rows_are_what_they_should_be(  # noqa: PLR0917
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[str],
    seq_length: int,
    layout: str,
    row_cls: bool,
    max_tokens: int | None,
    block: int,
    piece: int,
) -> None:
    """Whatever the sizes of blocks and pieces, the rows are those of the whole text."""
    stream = "".join(text for d in documents if (text := d.replace(" ", "").replace("\u200b", "") + "S") != "S")
    stream = stream[:max_tokens]
    if layout == "packed":
        width = seq_length - row_cls
        starts = range(0, len(stream) - width + 1, width)
        expected = ["C" * row_cls + stream[start : start + width] for start in starts]
    else:
        texts = [text for text in stream.split("S") if text]
        expected = [f"C{text[: seq_length - 2]}S".ljust(seq_length, "P") for text in texts]
    folder = tmp_path_factory.mktemp("rows")
    (folder / "vocab.txt").write_text("\n".join(LETTERS))
    options = {"seq_length": seq_length, "layout": layout, "row_cls": row_cls, "max_tokens": max_tokens}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "BLOCK_CHARACTERS", block)
        for module in (source, source.Assembler.__module__, "cramming.data.sources.formats"):
            patch.setattr(f"{getattr(module, '__name__', module)}.PIECE_CHARACTERS", piece)
        try:
            store = prepared(folder, str(folder / "vocab.txt"), "\n\n".join(documents), **options)
        except UserError:
            assert not expected
            return
    assert spelled(store) == expected
    assert store.manifest["tokens"] == len(stream)
    assert store.manifest["documents"] == len([text for text in stream.split("S") if text])


def test_processes_change_nothing(tmp_path: Path, english: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", 3000)
    stores = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        (folder / "corpus.txt").write_text(english)
        config = LocalConfig(path=str(folder / "corpus.txt"), vocab_size=500, seq_length=32)
        stores.append(prepare(config, folder / "data", workers=workers))
    one, other = ({p.name: p.read_bytes() for p in store.folder.iterdir()} for store in stores)
    assert one == other
    assert stores[0].rows > 100


def test_limits_are_prefixes_and_leave_the_tokenizer_alone(tmp_path: Path, english: str) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text(english)
    config = LocalConfig(path=str(path), vocab_size=500, seq_length=32)
    whole = prepare(config, tmp_path / "data", workers=0)
    config.max_tokens = 31 * 20 + 5
    part = prepare(config, tmp_path / "data", workers=0)
    assert part.rows == 20
    assert part.manifest["tokens"] == config.max_tokens
    assert part.tokenizer.sha256 == whole.tokenizer.sha256
    np.testing.assert_array_equal(part.read(np.arange(20))[0], whole.read(np.arange(20))[0])


def test_made_once(tmp_path: Path, letters: str) -> None:
    first = prepared(tmp_path, letters, seq_length=5)
    before = (first.folder / "tokens.bin").stat().st_mtime_ns
    assert prepared(tmp_path, letters, seq_length=5).folder == first.folder
    assert (first.folder / "tokens.bin").stat().st_mtime_ns == before
    others = [
        prepared(tmp_path, letters, seq_length=6),
        prepared(tmp_path, letters, seq_length=5, row_cls=False),
        prepared(tmp_path, letters, seq_length=5, layout="document"),
        prepared(tmp_path, letters, seq_length=5, max_documents=2),
        prepared(tmp_path, letters, "k l m n o p", seq_length=5),
    ]
    assert len({store.fingerprint for store in [first, *others]}) == 6
    same = prepared(tmp_path, letters, seq_length=5, layout="document", row_cls=False, heldout_fraction=0.1)
    assert same.fingerprint == others[2].fingerprint


def test_damage_is_named(tmp_path: Path, letters: str) -> None:
    store = prepared(tmp_path, letters, seq_length=5)
    store.verify()
    tokens = store.folder / "tokens.bin"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-2] + b"\7\0")
    with pytest.raises(UserError, match="checksum"):
        TokenStore.open(store.folder).verify()
    tokens.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=r"tokens\.bin has 28 bytes, not 30"):
        prepared(tmp_path, letters, seq_length=5)
    tokens.write_bytes(whole)
    (store.folder / "tokenizer.json").write_text("junk")
    with pytest.raises(UserError, match=rf"tokenizer\.json is damaged; delete {store.folder} and"):
        TokenStore.open(store.folder)
    (store.folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        TokenStore.open(store.folder)


@pytest.mark.parametrize("content", ["junk", "[1]", "{}", '{"a": 3}'])
def test_remembered_hashes_are_only_a_memory(tmp_path: Path, letters: str, content: str) -> None:
    store = prepared(tmp_path, letters, seq_length=5)
    (tmp_path / "data" / "hashes.json").write_text(content)
    assert prepared(tmp_path, letters, seq_length=5).folder == store.folder


def test_hashes_learned_by_another_process_meanwhile_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "hashes.json"
    hashed = fingerprint.file_sha256

    def slow(path: Path, progress: ProgressSink) -> str:
        memory.write_text('{"theirs": "1"}')
        return hashed(path, progress)

    monkeypatch.setattr(fingerprint, "file_sha256", slow)
    (tmp_path / "a.txt").write_text("a")
    fingerprint.content_hashes([tmp_path / "a.txt"], tmp_path, Silent())
    assert len(json.loads(memory.read_text())) == 2
    assert "theirs" in memory.read_text()


def test_show(tmp_path: Path, letters: str) -> None:
    store = prepared(tmp_path, letters, seq_length=8, layout="document", max_documents=2)
    rows, _ = store.read(np.arange(2))
    assert list(show(rows, store.tokenizer)) == [
        "--- sequence 0",
        "[CLS] a b c [SEP]",
        "(3 positions of padding)",
        "--- sequence 1",
        "[CLS] d e [SEP]",
        "(4 positions of padding)",
    ]
    masked = rows[:1].copy()
    masked[0, 1], masked[0, 3] = store.tokenizer.mask_id, 30
    lines = list(show(rows[:1], store.tokenizer, [7], masked, [np.array([1, 2, 3])]))
    assert lines[:2] == ["--- sequence 7", "[CLS] ‹a› ‹b=› ‹c→z› [SEP]"]
    packed = prepared(tmp_path, letters, seq_length=6)
    assert list(show(packed.read(np.array([0]))[0], packed.tokenizer))[1:] == ["[CLS] a b c [SEP]", "d ..."]


class Heard(PlainProgress):
    """Progress that counts what it was told."""

    def __init__(self) -> None:
        self.stages: list[list[object]] = []
        self.notes: list[str] = []

    def stage(self, name: str, total: float | None, unit: str) -> None:
        self.stages.append([name, total, unit, 0.0])

    def advance(self, n: float) -> None:
        self.stages[-1][3] += n  # type: ignore[operator]

    def note(self, text: str) -> None:
        self.notes.append(text)

    def done(self) -> None:
        pass


def test_progress_adds_up(tmp_path: Path, english: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage ends where it said it would, and what was expected was said first and is about right."""
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", 3000)
    path = tmp_path / "corpus.txt"
    path.write_text(english)
    heard = Heard()
    store = prepare(LocalConfig(path=str(path), vocab_size=500, seq_length=32), tmp_path / "data", 0, heard)
    assert len(heard.stages) == 5
    for name, total, _, counted in heard.stages:
        assert counted == pytest.approx(total), name
    assert heard.notes[0].startswith("expecting about ")
    expected = float(heard.notes[0].split()[2])
    assert 0.5 * store.rows < expected < 2 * store.rows
