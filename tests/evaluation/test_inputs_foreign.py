"""Tokenizers of other families, and long articles: roles of special tokens, places of words, what is cut."""

from collections.abc import Iterator

import numpy as np
import pytest
import tokenizers
from small_tasks import letters, spans, words
from tokenizers import decoders, models, pre_tokenizers, trainers

from cramming.data.tokenizer import Tokenizer
from cramming.evaluation.encoding import in_memory
from cramming.evaluation.inputs import Rows, marked, marks, rows
from cramming.evaluation.tasks import forms, registry
from cramming.evaluation.tasks.task import Example, Span, Text

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # in RoBERTa's order
SENTENCES = [
    "They watch the river; the watch is old.",
    "Caf\u00e9 na\u00efve \u2014 a watch, a \U0001f600 smile.",
    "(watch) the  watch  now",
]


def trained(kind: str) -> Tokenizer:
    """A tokenizer like RoBERTa's (bytes) or like ALBERT's and XLM-R's (pieces with a mark for the blank)."""
    if kind == "bytes":
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
    else:
        backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator([*SENTENCES * 20, " * # "], trainer)
    return Tokenizer(backend)


@pytest.fixture(params=["bytes", "blanks"])
def foreign(request: pytest.FixtureRequest) -> Tokenizer:
    return trained(request.param)


def tokens_of(made: Rows) -> list[list[int]]:
    tokens, types = np.empty(made.starts[-1], dtype=np.uint16), np.empty(made.starts[-1], dtype=np.uint8)
    made.written(tokens, types)
    return [part.tolist() for part in np.split(tokens, made.starts[1:-1])]


def occurrences(sentence: str, word: str) -> Iterator[Span]:
    at = sentence.find(word)
    while at >= 0:
        yield Span(0, at, at + len(word))
        at = sentence.find(word, at + 1)


def test_rows_begin_and_end_with_their_own_special_tokens(foreign: Tokenizer) -> None:
    assert (foreign.cls_id, foreign.sep_id, foreign.pad_id) == (0, 2, 1)
    for ids in tokens_of(rows([Text((sentence, "a watch")) for sentence in SENTENCES], foreign, 64)):
        assert ids[0] == 0
        assert ids[-1] == 2
        assert ids.count(0) == 1
        assert ids.count(2) == 2
    written = "<s> </s>"
    ids = tokens_of(rows([Text((written,))], foreign, 64))[0]
    assert (ids.count(0), ids.count(2)) == (1, 1), "what a text writes out is text"


def test_words_are_found_wherever_their_blank_belongs(foreign: Tokenizer) -> None:
    """The blank before a word is of its first piece: places overlap, they need not agree."""
    for sentence in SENTENCES:
        for span in occurrences(sentence, "watch"):
            made = rows([Text((sentence,), (span,))], foreign, 64)
            first, last = made.spans[0]
            assert foreign.decode(tokens_of(made)[0][first:last]).strip(" (,)") == "watch"


def test_characters_of_many_bytes_keep_their_places() -> None:
    foreign = trained("bytes")
    for word in ("Caf\u00e9", "na\u00efve", "\u2014", "\U0001f600", "smile"):
        (span,) = occurrences(SENTENCES[1], word)
        made = rows([Text(("one", SENTENCES[1]), (span._replace(segment=1),))], foreign, 64)
        first, last = made.spans[0]
        assert foreign.decode(tokens_of(made)[0][first:last]).strip() == word


def test_every_word_has_its_tokens_and_no_token_two_words(foreign: Tokenizer) -> None:
    listed = SENTENCES[0].split()
    made = rows([Text((" ".join(listed),), tuple(spans(listed)))], foreign, 64, from_start=True)
    ids = tokens_of(made)[0]
    assert made.spans[0, 0] == 1
    assert made.spans[-1, 1] == len(ids) - 1
    assert made.spans[1:, 0].tolist() == made.spans[:-1, 1].tolist(), "side by side, nothing left between"
    assert [foreign.decode(ids[first:last]).strip() for first, last in made.spans] == listed


def test_marks_are_pieces_of_their_own(foreign: Tokenizer) -> None:
    around = marks(foreign, 2)
    assert around == ["*", "#"]
    text = marked(Text((SENTENCES[0],), tuple(occurrences(SENTENCES[0], "watch"))), around)
    ids = tokens_of(rows([text], foreign, 64))[0]
    assert foreign.unk_id not in ids
    assert foreign.decode(ids[1:-1]).split() == text.segments[0].split()


def race(article: str) -> Example:
    row = {
        "article": article,
        "question": "what was near the old bridge",
        "options": ["a map", "the river", "a letter near the pilot", "a pilot"],
        "answer": "B",
        "example_id": "high1",
    }
    (example,) = forms.to_examples(registry.find("race"), [row])
    return example


@pytest.mark.parametrize("max_length", [32, 128])
def test_a_long_article_is_what_is_cut(max_length: int) -> None:
    """Question and option stay whole."""
    tokenizer, article = letters(), " ".join(words(700, "article"))
    example = race(article)
    assert len(example.texts) == 4
    made = in_memory(registry.find("race"), [example], tokenizer, max_length=max_length, spans="pooled")
    assert made.cut.texts == 4
    assert np.diff(made.starts).tolist() == [max_length] * 4
    rest = tokenizer.encode_lists([" ".join(text.segments[1:]) for text in example.texts])
    for text, ids, wanted in zip(example.texts, np.split(made.tokens, made.starts[1:-1]), rest, strict=True):
        parts = tokenizer.encode_lists(text.segments)
        tail = [token for part in parts[1:] for token in (*part, tokenizer.sep_id)]
        assert ids[-len(tail) :].tolist() == tail, "all of the question and the option"
        kept = max_length - 2 - len(tail)
        assert ids[1 : 1 + kept].tolist() == parts[0][:kept], "and the beginning of the article"
        assert len(wanted) < max_length


def test_a_long_beginning_is_cut_before_short_endings() -> None:
    tokenizer = letters()
    row = {"startphrase": " ".join(words(90, "start")), "label": 2, "sent2": "the pilot"}
    row |= {f"ending{number}": f"found a map {'near ' * number}" for number in range(4)}
    (example,) = forms.to_examples(registry.find("swag"), [row])
    made = in_memory(registry.find("swag"), [example], tokenizer, max_length=24, spans="pooled")
    assert made.labels is not None
    assert made.labels.tolist() == [2]
    assert made.choices == 4
    for number, ids in enumerate(np.split(made.tokens, made.starts[1:-1])):
        ending = tokenizer.encode_lists([f"found a map {'near ' * number}"])[0]
        assert len(ids) == 24
        assert ids[-len(ending) - 1 : -1].tolist() == ending
