"""Text without spaces: a tokenizer, rows that decode back to it, a model that trains on it."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from cramming.cli import pretraining
from cramming.data.preparation import prepare
from cramming.data.show import show
from cramming.data.sources.local import LocalConfig
from cramming.data.store import TokenStore
from cramming.data.tokenizing import Encoder
from cramming.session import pretrain

WORKS = 3  # of the corpus, the shortest of its beginning


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A file of a few whole works of Japanese literature, and their texts."""
    corpus = Path(__file__).resolve().parents[3] / "shared" / "data" / "text_ja" / "aozora_ja.txt.xz"
    if not corpus.is_file():
        pytest.skip("../shared (reference tensors, real data) is not here")
    with lzma.open(corpus, "rt", encoding="utf-8") as file:
        beginning = file.read(300_000)
    documents = sorted(beginning.split("\n\n")[:-1], key=len)[:WORKS]
    path = tmp_path_factory.mktemp("japanese") / "works.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path, documents


def prepared(path: Path, **options: object) -> TokenStore:
    config = LocalConfig(path=str(path), seq_length=64, **options)  # type: ignore[arg-type]
    return prepare(config, path.parent / "data", workers=0)


def documents_of(store: TokenStore) -> list[str]:
    """The text of all rows, joined and cut at [SEP] again; the last document lacks what filled no row."""
    ids = store.read(np.arange(store.rows))[0][:, 1:].ravel()
    ends = np.flatnonzero(ids == store.tokenizer.sep_id)
    texts = [store.tokenizer.decode(part[part != store.tokenizer.sep_id]) for part in np.split(ids, ends)]
    return [text.rstrip("\n") for text in texts]


@pytest.mark.parametrize("kind", ["auto", "unigram", "bpe"])
def test_rows_decode_to_the_source(works: tuple[Path, list[str]], kind: str) -> None:
    path, documents = works
    store = prepared(path, tokenizer_kind=kind, vocab_size=1600)
    assert store.tokenizer.kind == ("unigram" if kind == "auto" else kind)
    assert store.manifest["tokenizer"]["kind"] == store.tokenizer.kind
    assert store.manifest["unknown_share"] == 0.0
    found = documents_of(store)
    expected = [store.tokenizer.normalize(document) for document in documents]
    assert found[:-1] == expected[: len(found) - 1]
    assert len(found) >= len(expected)
    assert expected[len(found) - 1].startswith(found[-1].rstrip("\ufffd")), "the last one as far as there are rows"
    # The marks that make a syllable another one stay, and width is all that is evened out.
    assert "が" in found[0]
    assert "で" in found[0]
    assert ("\n" in found[0]) == (kind == "bpe"), "byte-level BPE keeps lines"


def test_pieces_are_words(works: tuple[Path, list[str]]) -> None:
    """More than a character to a token, though rare characters are spelled in bytes at so small a vocabulary."""
    path, documents = works
    tokenizer = prepared(path, vocab_size=1600).tokenizer
    ids = tokenizer.encode(documents[-1])
    spelled = ((ids >= 5) & (ids < 261)).mean()
    assert len(documents[-1]) / len(ids) > 1
    assert spelled < 0.15
    np.testing.assert_array_equal(Encoder(tokenizer).encode(documents[-1]), ids)


def test_wordpiece_has_unknown_text(works: tuple[Path, list[str]]) -> None:
    """Why it is not the choice: BERT's normalization drops the marks of syllables, and rare characters are [UNK]."""
    path, documents = works
    store = prepared(path, tokenizer_kind="wordpiece", vocab_size=1600)
    assert store.manifest["unknown_share"] > 0.005
    assert "が" not in documents_of(store)[0]
    assert "が" in documents[0]


def test_a_model_trains_on_it(works: tuple[Path, list[str]]) -> None:
    path, documents = works
    words = f"name=ja base_dir={path.parent / 'outputs'} data=local data.path={path} data.tokenizer=train"
    model = "arch=bert_tiny data.vocab_size=1600 data.seq_length=64 data.heldout_fraction=0.02"
    loop = "rst=steps budget=12 train.batch_size=8 impl.precision=float32 impl.threads=1"
    pretraining(pretrain, [*words.split(), *model.split(), *loop.split()])
    rows = (path.parent / "outputs" / "ja" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row)["loss"] for row in rows]
    assert losses[-1] < losses[0]
    store = prepared(path, vocab_size=1600)
    shown = " ".join(show(store.read(np.arange(1))[0], store.tokenizer))
    assert documents[0][:2] in shown.replace(" ", ""), "what the model sees can be read"
