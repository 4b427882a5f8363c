"""Tokenizers: the same every time, special tokens where they belong, the fast way equal to the slow one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizer_training import sample, train
from cramming.data.tokenizing import Encoder
from cramming.errors import UserError
from cramming.progress import Silent

TRAIN = """
import sys
from pathlib import Path
from cramming.data.tokenizer_training import train
print(train([Path(sys.argv[1]).read_text()], 700, "it").sha256)
"""


def test_training_is_reproducible(tmp_path: Path, english: str) -> None:
    """Two processes, two hash seeds: one tokenizer. (The library by itself gives a new one each time.)"""
    path = tmp_path / "corpus.txt"
    path.write_text(english + " ünïcödé 漢字 and ångström " * 3)
    hashes = set()
    for seed in ("1", "2", "3"):
        command = [sys.executable, "-c", TRAIN, str(path)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        hashes.add(done.stdout)
    assert len(hashes) == 1
    assert hashes.pop().strip() == train([path.read_text()], 700, "it").sha256


def test_trained_here(english: str, tmp_path: Path) -> None:
    tokenizer = train([english], 500, "it")
    assert [tokenizer.token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    assert ids == tokenizer.special_ids == [0, 1, 2, 3, 4]
    assert tokenizer.vocab_size == 500
    assert len({tokenizer.token(i) for i in range(500)}) == 500
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.sha256 == tokenizer.sha256
    text = "Kati, lomu: FADÉ!"
    assert again.decode(again.encode(text)) == "kati, lomu : fade!"
    np.testing.assert_array_equal(again.encode(text), tokenizer.encode_batch([text])[0])


def test_special_tokens_written_in_a_text_are_text(letters: str) -> None:
    tokenizer = Tokenizer.load(Path(letters))
    text = "a [MASK] b [SEP]"
    assert not {tokenizer.mask_id, tokenizer.sep_id} & set(tokenizer.encode(text).tolist())
    assert tokenizer.encode(text, special_tokens=True).tolist() == [5, 4, 6, 3]
    assert not {tokenizer.mask_id, tokenizer.sep_id} & set(Encoder(tokenizer).encode(text).tolist())


def test_foreign_vocabulary_keeps_its_ids(shared: Path) -> None:
    tokenizer = Tokenizer.load(shared / "data" / "vocab" / "bert-base-uncased-vocab.txt")
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (
        0,
        100,
        101,
        102,
        103,
    )
    assert tokenizer.vocab_size == 30522
    # The published example of the original implementation.
    assert tokenizer.encode("Hello, my dog is cute").tolist() == [7592, 1010, 2026, 3899, 2003, 10140]
    assert 1 in tokenizer.special_ids, "[unused0] is no word to predict or to insert"


def test_the_folder_of_a_published_vocabulary(tmp_path: Path, letters: str) -> None:
    """Published vocabularies are called for their model: bert-base-uncased-vocab.txt."""
    one = Path(letters).rename(tmp_path / "letters" / "small-vocab.txt")
    assert Tokenizer.load(one.parent).sha256 == Tokenizer.load(one).sha256
    (one.parent / "other-vocab.txt").write_text("a")
    with pytest.raises(UserError, match=r"no tokenizer\.json or vocab\.txt"):
        Tokenizer.load(one.parent)


def test_cased_vocabulary_keeps_case(tmp_path: Path) -> None:
    path = tmp_path / "cased.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nParis\nparis\nÉ")
    assert Tokenizer.load(path).encode("Paris paris É").tolist() == [5, 6, 7]


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.text(
        alphabet=st.one_of(
            st.sampled_from(" \t\n\r\x0b\x0c\x1c\x85\xa0\u3000abAB.'-[]é́漢🙂ßİ"), st.characters(codec="utf-8")
        )
    )
)
def test_word_by_word_equals_whole(text: str) -> None:
    np.testing.assert_array_equal(ENCODER.encode(text), TOKENIZER.encode_batch([text])[0])


TOKENIZER = train(["a b ab aB a.b bab 漢 é ß i̇ abba baab' -- [a] " * 3, "ab ba bb aa " * 20], 115, "it")
ENCODER = Encoder(TOKENIZER)


class Numbered:
    """A source of a thousand documents."""

    name, fingerprint, unit, shuffled, inputs = "numbered", "f", "B", False, []
    total = 1000.0

    def __init__(self, sample_bytes: int, shuffled: bool = False) -> None:
        self.sample_bytes = sample_bytes
        self.shuffled = shuffled

    def pieces(self):  # type: ignore[no-untyped-def]
        from cramming.data.sources.source import Piece

        for number in range(1000):
            yield Piece(f"{number:010d}", True, number + 1.0)


@pytest.mark.parametrize("shuffled", [False, True])
def test_sample_is_bounded_and_nested(shuffled: bool) -> None:
    """A larger sample holds the smaller; 500 bytes take 50 documents of 10; order is the corpus's."""
    small = sample(Numbered(500, shuffled), Silent())  # type: ignore[arg-type]
    large = sample(Numbered(2000, shuffled), Silent())  # type: ignore[arg-type]
    assert (len(small), len(large)) == (50, 200)
    assert set(small) < set(large)
    assert large == sorted(large)
    spread = int(large[-1]) - int(large[0])
    assert spread == 199 if shuffled else spread > 900


def test_everything_is_the_sample_of_a_small_corpus() -> None:
    assert len(sample(Numbered(10**6), Silent())) == 1000  # type: ignore[arg-type]
