"""Tokenizers: the same every time, special tokens where they belong, the fast way equal to the slow one."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers.pre_tokenizers import Whitespace

from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizer_counting import count_words
from cramming.data.tokenizer_kinds import choose
from cramming.data.tokenizer_training import sample, train
from cramming.data.tokenizing import Encoder
from cramming.errors import UserError
from cramming.progress import Silent

KINDS = ("wordpiece", "bpe", "unigram")
TRAIN = """
import sys
from pathlib import Path
from cramming.data.tokenizer_training import train
for kind in sys.argv[2:]:
    print(train([Path(sys.argv[1]).read_text()], 700, "it", kind).sha256)
"""


def test_training_is_reproducible(tmp_path: Path, english: str) -> None:
    """Other hash seeds, other numbers of threads: one tokenizer. (The library by itself gives a new one each time.)"""
    path = tmp_path / "corpus.txt"
    path.write_text(english + " ünïcödé 漢字 and ångström " * 3)
    found = set()
    for seed, threads in (("1", "1"), ("2", "2"), ("3", "3")):
        command = [sys.executable, "-c", TRAIN, str(path), *KINDS]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found.add(done.stdout)
    assert len(found) == 1
    assert found.pop().split() == [train([path.read_text()], 700, "it", kind).sha256 for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_and_size(kind: str, english: str, tmp_path: Path) -> None:
    tokenizer = train([english], 500, "it", kind)
    assert tokenizer.kind == kind
    assert [tokenizer.token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    assert ids == tokenizer.special_ids == [0, 1, 2, 3, 4]
    assert tokenizer.vocab_size == 500
    assert len({tokenizer.token(i) for i in range(500)}) == 500
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).sha256 == tokenizer.sha256
    text = "a [MASK] b [SEP] <0x41> \u2581x"
    for encode in (tokenizer.encode, Encoder(tokenizer).encode):
        assert not set(tokenizer.special_ids) - {tokenizer.unk_id} & set(encode(text).tolist())
    assert tokenizer.encode("a [MASK] b", special_tokens=True).tolist().count(tokenizer.mask_id) == 1
    with pytest.raises(UserError, match=r"data\.vocab_size=90000 is more than it supports \((\d+) pieces\)") as refused:
        train([english], 90_000, "it", kind)
    most = int(re.search(r"\((\d+) pieces", str(refused.value)).group(1))  # type: ignore[union-attr]
    assert train([english], most, "it", kind).vocab_size == most, "what the message says is so"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_everything_can_be_spelled(kind: str, english: str) -> None:
    """No [UNK]: what has no piece of its own is spelled in bytes, and decodes back to the normalized text."""
    tokenizer = train([english], 500, "it", kind)
    text = "Kati, lomu: FADÉ! 日本語の文 🙂 (twice) it's 1,234"
    ids = tokenizer.encode(text)
    assert tokenizer.unk_id not in ids.tolist()
    assert tokenizer.decode(ids) == tokenizer.normalize(text) == text
    spaced = tokenizer.normalize("  two  spaces\nand a line ")
    assert spaced == ("  two  spaces\nand a line " if kind == "bpe" else "two spaces and a line")
    assert tokenizer.decode(tokenizer.encode(spaced)) == spaced


def test_unigram_has_frequent_words_and_no_worse_segmentation(english: str) -> None:
    """Words that are frequent are pieces, and pieces are likelier than what they could be cut into."""
    texts = [f"the cat of whichever {word} from which" for word in english.split()]
    tokenizer = train(texts, 600, "it", "unigram")
    assert [tokenizer.token(i) for i in tokenizer.encode("the from which")] == ["▁the", "▁from", "▁which"]
    scores = dict(json.loads(tokenizer._json)["model"]["vocab"][261:])
    for piece, score in scores.items():
        halves = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        parts = [scores[left] + scores[right] for left, right in halves if left in scores and right in scores]
        if len(piece) > 1 and score > min(scores.values()):  # seen in the sample's best segmentations
            assert score >= max(parts, default=score), piece
    total = sum(math.exp(score) for score in scores.values())
    assert total == pytest.approx(1.0, abs=1e-6)


def test_kind_is_chosen_by_script() -> None:
    assert choose(["Ein Wort, ένα λεξικό, одно слово. 日本"], None)[0] == "wordpiece"
    assert choose(["日本語の文です。Python も。"], None)[0] == "unigram"
    assert choose(["हिन्दी में लिखा हुआ"], None)[0] == "unigram"
    assert choose(["12 34"], None)[0] == "wordpiece"
    assert choose(["日本語の文です。Python も。"], ["ascii"])[0] == "wordpiece", "nothing but Python is left"


def test_trained_here(english: str, tmp_path: Path) -> None:
    tokenizer = train([english], 500, "it")
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


def test_a_source_may_offer_another_order_to_sample_from() -> None:
    class Backwards(Numbered):
        def sample_pieces(self):  # type: ignore[no-untyped-def]
            return reversed(list(self.pieces()))

    backwards = sample(Backwards(500, shuffled=True), Silent())  # type: ignore[arg-type]
    assert [int(text) for text in backwards] == list(range(999, 949, -1))


def test_words_to_train_on_are_bounded() -> None:
    """All frequent words, a fair part of the next, no more characters than asked for; with room for all, all."""
    text = " ".join([*(f"f{number:02}" for number in range(50)), *(f"r{number:03}" for number in range(600))])
    texts = [text, " ".join(f"f{number:02}" for number in range(50))]
    whole = count_words(texts, Whitespace(), 10_000)
    assert len(whole.texts) == 650
    assert sum(whole.counts) == 700
    some = count_words(texts, Whitespace(), 3 * 50 + 4 * 300)
    rare = [int(word[1:]) for word in some.texts if word.startswith("r")]
    assert {word for word in some.texts if word.startswith("f")} == {f"f{number:02}" for number in range(50)}
    assert 230 < len(rare) < 370
    assert 100 < sum(number < 300 for number in rare) < 200, "from anywhere in the text"
    assert some == count_words(reversed(texts), Whitespace(), 3 * 50 + 4 * 300)
