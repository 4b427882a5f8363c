"""Converting a corpus: what each split holds, how documents become samples, and what is refused."""

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from cramming.cli import load_schemas
from cramming.data.config import DataConfig
from cramming.data.convert import command
from cramming.data.converting import options
from cramming.data.converting.options import ConvertOptions
from cramming.data.converting.plan import Plan
from cramming.data.converting.steps import is_held_out
from cramming.data.converting.texts import Joining
from cramming.data.converting.writing import write_plan
from cramming.data.preparation import prepare
from cramming.data.shards.compression import decompressed
from cramming.data.shards.formats import format_of, read_index
from cramming.data.sources.hub import HubConfig
from cramming.data.sources.local import LocalConfig
from cramming.data.sources.shard_text import ShardText
from cramming.data.sources.sharded import StreamedConfig
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.progress import Silent

load_schemas()


def convert(tmp_path: Path, config: DataConfig | Path, out: Path | str, **given: Any) -> None:
    """What the command does after reading its words; a path is a corpus of ``data=local``."""
    if isinstance(config, Path):
        config = LocalConfig(path=str(config))
    options_ = ConvertOptions(out=str(out), **{"splits": ["train"], **given})
    options_.check_values()
    write_plan(Plan(config, options_, tmp_path / "data", Silent()), str(out), tmp_path / "data", Silent())


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def samples(folder: Path, column: str = "text") -> list[Any]:
    index = read_index(folder)
    found = []
    for shard in index.shards:
        path = folder / shard.file.name
        if shard.compression is not None:
            path = folder / f"raw-{shard.raw.name}"
            decompressed(shard, folder / shard.file.name, path)
        reader = index.open(shard, path)
        found += [reader[number][column] for number in range(len(reader))]
        reader.close()
        if shard.compression is not None:
            path.unlink()
    return found


@pytest.fixture
def texts() -> list[str]:
    return [f"document {number} " + "word " * (number % 37) for number in range(400)]


@pytest.fixture
def corpus(tmp_path: Path, texts: list[str]) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_splits_share_no_document_and_lose_none(
    tmp_path: Path, corpus: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(options.SPLITS, "train_small", (False, 100))
    monkeypatch.setitem(options.SPLITS, "val_small", (True, 3))
    splits = ["train", "train_small", "val", "val_small"]
    convert(tmp_path, corpus, tmp_path / "out", splits=splits, val_share=0.05)
    train, val = samples(tmp_path / "out/train"), samples(tmp_path / "out/val")
    held_out = [text for number, text in enumerate(texts) if is_held_out(number, 20)]
    assert val == held_out
    assert len(val) == 20
    assert train == [text for text in texts if text not in held_out]
    assert samples(tmp_path / "out/train_small") == train[:100]
    assert samples(tmp_path / "out/val_small") == val[:3]
    assert not list((tmp_path / "data").glob("*.jsonl"))  # nothing is left that would go on


def test_one_of_every_so_many_documents_is_held_out() -> None:
    drawn = [number for number in range(20_000) if is_held_out(number, 100)]
    assert drawn[0] == 0
    assert [number // 100 for number in drawn] == list(range(200))
    assert len({number % 100 for number in drawn}) > 60  # not in step with sources that take turns


def test_train_alone_has_all_documents(tmp_path: Path, corpus: Path, texts: list[str]) -> None:
    convert(tmp_path, corpus, tmp_path / "out")
    assert samples(tmp_path / "out/train") == texts
    with pytest.raises(UserError, match="has the split train, made of the same documents; convert both"):
        convert(tmp_path, corpus, tmp_path / "out", splits=["val"])


def test_a_split_that_is_there_is_refused_before_any_work(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    (out / "val").mkdir(parents=True)
    (out / "val" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out/val has files already"):
        convert(tmp_path, corpus, out, splits=["train", "val"])
    assert not (out / "train").exists()
    assert (out / "val" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("format_", "compression"),
    [("mds", None), ("mds", "zstd:3"), ("mds", "br"), ("parquet", None), ("parquet", "gz"), ("parquet", "snappy")],
)
def test_formats_and_compressions(
    tmp_path: Path, corpus: Path, texts: list[str], format_: str, compression: str
) -> None:
    how = {"format": format_, "compression": compression, "size_limit": "10KiB", "hashes": ["xxh64"]}
    convert(tmp_path, corpus, tmp_path / "out", **how)
    folder = tmp_path / "out/train"
    assert format_of(folder) == format_
    assert len(read_index(folder).shards) > 3
    assert samples(folder) == texts
    command([f"check={tmp_path / 'out'}"])


def test_options_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    path.write_text("id,said\n1,one one\n2,one one\n3,two\n4,three\n")
    words = ["source=local", f"data.path={path}", "data.text_column=said", "splits=[train]", "max_characters=4"]
    words.append(f"data_dir={tmp_path / 'data'}")
    command([*words, f"out={tmp_path / 'a'}", "data.max_documents=3"])
    assert samples(tmp_path / "a/train") == ["one ", "one ", "two"]
    command([*words, f"out={tmp_path / 'b'}", "data.clean.duplicates=exact"])
    assert samples(tmp_path / "b/train") == ["one ", "two", "thre"]


def test_a_dataset_with_a_validation_split_of_its_own(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for split in ("train", "validation"):
        (dataset / f"{split}.jsonl").write_text("".join(f'{{"text": "{split} {n}"}}\n' for n in range(5)))
    config = HubConfig(dataset=str(dataset))
    convert(tmp_path, config, tmp_path / "out", splits=["train", "val"])
    assert samples(tmp_path / "out/train") == [f"train {n}" for n in range(5)]
    assert samples(tmp_path / "out/val") == [f"validation {n}" for n in range(5)]
    convert(tmp_path, config, tmp_path / "out", splits=["val_small"])  # shares no document with what is there


def test_mixture(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a1\n\na2\n\na3")
    (tmp_path / "b.txt").write_text("b1\n\nb2\n\nb3")
    sources = f"data.sources={{a: {{kind: local, path: {tmp_path}/a.txt}}, b: {{kind: local, path: {tmp_path}/b.txt}}}}"
    command(
        [
            "source=mixture",
            "data.mix=[a,b]",
            sources,
            f"out={tmp_path / 'out'}",
            "splits=[train]",
            f"data_dir={tmp_path / 'data'}",
        ]
    )
    assert [text.strip() for text in samples(tmp_path / "out/train")] == ["a1", "a2", "a3", "b1", "b2", "b3"]


# --- token ids, joined -------------------------------------------------------------------------------------------


def joined(texts: list[str], tokenizer: Tokenizer, n: int, around: list[list[int]], wrap: bool) -> list[list[int]]:
    """The earlier tools' rule, as slowly as it reads."""
    buffer: list[int] = []
    out = []
    for text in texts:
        buffer = buffer + around[0] + tokenizer.encode(text).tolist() + around[1]
        while len(buffer) >= n:
            out.append(buffer[:n])
            buffer = buffer[n:] if wrap else []
    return out


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize(("bos", "eos"), [("[CLS]", "[SEP]"), ("", "[SEP]"), ("ab", "")])
def test_concat_tokens(tmp_path: Path, letters: str, bos: str, eos: str, wrap: bool) -> None:
    texts = ["a b c", "d " * 30, "e", "[SEP] f", "g h i j k", "z " * 100]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    around = {"bos_text": bos, "eos_text": eos}
    convert(tmp_path, path, tmp_path / "out", concat_tokens=8, tokenizer=letters, no_wrap=not wrap, **around)
    tokenizer = Tokenizer.load(Path(letters))
    ids = [tokenizer.encode(text, special_tokens=True).tolist() for text in (bos, eos)]
    found = samples(tmp_path / "out/train", "tokens")
    assert [np.frombuffer(one, np.int64).tolist() for one in found] == joined(texts, tokenizer, 8, ids, wrap)
    assert Tokenizer.load(tmp_path / "out/train").sha256 == tokenizer.sha256


class Notes(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_what_separates_documents(letters: str) -> None:
    tokenizer = Tokenizer.load(Path(letters))
    with pytest.raises(UserError, match=r"nothing separates documents: .* give eos_text="):
        Joining.of(tokenizer, 8, ("", ""), True, Silent())
    notes = Notes()
    joining = Joining.of(tokenizer, 8, ("", "[SEP] a"), True, notes)
    assert (joining.bos, joining.eos) == ([], [3, 5])
    assert notes.said == ["warning: eos_text='[SEP] a' is not one token, but 2: [3, 5]"]


def test_a_tokenizer_that_separates_documents_itself(letters: str) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    backend = Backend.from_str(Tokenizer.load(Path(letters)).to_json())
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    notes = Notes()
    joining = Joining.of(Tokenizer(backend), 8, ("", ""), True, notes)
    assert (joining.bos, joining.eos, notes.said) == ([2], [3], [])
    joining = Joining.of(Tokenizer(backend), 8, ("[CLS]", ""), True, notes)
    assert (joining.bos, joining.eos) == ([2, 2], [3])
    assert len(notes.said) == 1
    assert "they may be doubled" in notes.said[0]


# --- rows, shards as a source, other storages ---------------------------------------------------------------------


def test_rows_are_those_of_the_store(tmp_path: Path, corpus: Path, letters: str) -> None:
    config = LocalConfig(path=str(corpus), tokenizer=letters, seq_length=16, heldout_fraction=0.1)
    convert(tmp_path, config, tmp_path / "out", format="rows", splits=["train", "val"])
    store = prepare(config, tmp_path / "data", workers=0)
    split = config.split_of(store)
    for name, rows in (
        ("train", split.train(np.arange(split.train_rows))),
        ("val", split.heldout(np.arange(split.heldout_rows))),
    ):
        found = np.stack(samples(tmp_path / "out" / name, "tokens"))
        assert np.array_equal(found, store.read(rows)[0])
        assert (tmp_path / "out" / name / "tokenizer.json").is_file()
    command([f"check={tmp_path / 'out'}"])


def test_shards_are_a_source(tmp_path: Path, corpus: Path, texts: list[str]) -> None:
    convert(tmp_path, corpus, tmp_path / "a", size_limit="4KiB", compression="zstd")
    folder = tmp_path / "a/train"
    source = ShardText(folder, "text", tmp_path / "data", Silent())
    pieces = list(source.pieces())
    assert [piece.text for piece in pieces] == texts
    for number in (0, 57, 399):
        assert [piece.text for piece in source.pieces(pieces[number].cursor)] == texts[number + 1 :]
    assert pieces[-1].position == pytest.approx(source.total)
    for kind, config in (("local", LocalConfig(path=str(folder))), ("mds", StreamedConfig(remote=str(folder)))):
        convert(tmp_path, config, tmp_path / kind)
        assert samples(tmp_path / kind / "train") == texts
    store = prepare(LocalConfig(path=str(folder), vocab_size=140), tmp_path / "data", workers=0)
    assert store.manifest["documents"] == len(texts)
    with pytest.raises(UserError, match=r"has no column 'words' of text; its columns are: {'text': 'str'}"):
        LocalConfig(path=str(folder), text_column="words").source(tmp_path / "data", 0, Silent())
    with pytest.raises(UserError, match="its splits are folders, name one: train"):
        LocalConfig(path=str(tmp_path / "a")).source(tmp_path / "data", 0, Silent())


def test_a_damaged_shard_of_a_source_is_said(tmp_path: Path, corpus: Path) -> None:
    convert(tmp_path, corpus, tmp_path / "a")
    path = tmp_path / "a/train/shard.00000.mds"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    for use in (lambda: convert(tmp_path, path.parent, tmp_path / "b"), lambda: command([f"check={path.parent}"])):
        with pytest.raises(UserError, match=r"shard.00000.mds is damaged: its sha1"):
            use()


def test_a_storage_of_fsspec(tmp_path: Path, corpus: Path, texts: list[str]) -> None:
    convert(tmp_path, corpus, "memory://bucket/corpus")
    fs = fsspec.filesystem("memory")
    try:
        fs.get("/bucket/corpus/train", str(tmp_path / "fetched"), recursive=True)
        assert samples(tmp_path / "fetched") == texts
        with pytest.raises(UserError, match="memory://bucket/corpus/train has files already"):
            convert(tmp_path, corpus, "memory://bucket/corpus")
        fs.pipe_file("/bucket/parquets/b.parquet", _parquet(texts[200:]))
        fs.pipe_file("/bucket/parquets/a.parquet", _parquet(texts[:200]))
        command(["index=memory://bucket/parquets"])
        fs.get("/bucket/parquets", str(tmp_path / "parquets"), recursive=True)
        assert samples(tmp_path / "parquets") == texts
    finally:
        fs.rm("/bucket", recursive=True)


def _parquet(texts: list[str]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "when": [None] * len(texts)}), out, row_group_size=30)
    return bytes(out.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["source=local"], "out=<folder or address> is missing"),
        (["out=x"], "source=<what data= takes> is missing"),
        (["source=lokal", "out=x"], "did you mean 'local'"),
        (["source=local", "out=x"], "needs data.path"),
        (["source=local", "out=x", "format=mdz"], "format=mdz is not known; did you mean 'mds'"),
        (["source=local", "out=x", "splits=[trian]"], "splits has 'trian', which is not known; did you mean 'train'"),
        (["source=local", "out=x", "splits=[train,train]"], "names none, or one twice"),
        (["source=local", "out=x", "splits=[]"], "names none"),
        (["source=local", "out=x", "compression=lzma"], "'lzma' is not known"),
        (["source=local", "out=x", "hashes=[sha2]"], "'sha2' is not known"),
        (["source=local", "out=x", "size_limit=64"], "data.path"),
        (["source=local", "out=x", "size_limit=64mb"], "is no size of a shard; write it like 64MiB"),
        (["source=local", "out=x", "size_limit=4GiB"], "below 4GiB"),
        (["source=local", "out=x", "val_share=0"], "val_share=0"),
        (["source=local", "out=x", "val_share=x"], "val_share=x"),
        (["source=local", "out=x", "concat_tokens=8"], "concat_tokens needs tokenizer="),
        (["source=local", "out=x", "concat_tokens=0", "tokenizer=t"], "concat_tokens=0 leaves nothing"),
        (["source=local", "out=x", "eos_text=[SEP]"], "eos_text= is for joined token ids"),
        (["source=local", "out=x", "tokenizer=t"], "tokenizer= is for token ids"),
        (["source=local", "out=x", "format=rows", "concat_tokens=8", "tokenizer=t"], "rows have data.seq_length"),
        (["source=local", "out=x", "format=parquet", "compression=bz2", "data.path=CORPUS"], "not one of parquet's"),
        (["source=local", "out=x", "data.path=CORPUS", "data.max_tokens=9"], "use data.max_documents"),
        (
            ["source=local", "out=x", "data.path=CORPUS", "data.layout=document", "format=rows", "tokenizer=LETTERS"],
            "pads",
        ),
        (["source=local", "out=sftpx://y/z", "data.path=CORPUS"], "sftpx"),
        (["source=mds", "out=x", "data.remote=CORPUS"], "has no index of shards"),
        (["source=local", "ouch=x"], "unknown option ouch; did you mean 'out'"),
        (["source=local", "out"], "'out' is not an option"),
        (["check=x", "out=y"], "check= and index= take no other options"),
        (["check=nowhere"], "nowhere has no index"),
        (["index=."], "no files that end in .parquet"),
    ],
)
@pytest.mark.usefixtures("inside")
def test_bad_input_is_one_line(tmp_path: Path, corpus: Path, letters: str, words: list[str], said: str) -> None:
    words = [word.replace("CORPUS", str(corpus)).replace("LETTERS", letters) for word in words]
    with pytest.raises(UserError, match=said.replace("[", r"\[").replace("(", r"\(")) as refused:
        command(words)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "x").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out=.*; choose another folder"):
        convert(tmp_path, corpus, tmp_path / "file")


def test_nothing_left_for_a_split(tmp_path: Path) -> None:
    one, out = tmp_path / "one.txt", tmp_path / "out"
    one.write_text("the only document")
    with pytest.raises(UserError, match="gives no sample for train"):
        convert(tmp_path, one, out, splits=["train", "val"])
    convert(tmp_path, one, out)  # nothing was written that would have to be deleted
    assert samples(out / "train") == ["the only document\n"]
