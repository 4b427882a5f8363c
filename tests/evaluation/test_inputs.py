"""Texts as rows: what goes where, what is cut, and that what a text asks about stays."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from small_tasks import letters, spans, words
from tokenizers import models, pre_tokenizers, processors

from cramming.data.tokenizer import Tokenizer, wordpiece
from cramming.errors import UserError
from cramming.evaluation.inputs import Rows, marked, marks, rows, shares, truncated
from cramming.evaluation.tasks.task import Span, Text

LETTERS = letters()  # hypothesis takes no fixtures


def read(made: Rows, tokenizer: Tokenizer = LETTERS) -> list[tuple[list[str], list[int]]]:
    """Pieces and types of every row."""
    tokens, types = np.empty(made.starts[-1], dtype=np.uint16), np.full(made.starts[-1], 9, dtype=np.uint8)
    made.written(tokens, types)
    return [
        ([tokenizer.token(token) for token in tokens[first:last]], types[first:last].tolist())
        for first, last in zip(made.starts[:-1], made.starts[1:], strict=True)
    ]


def row(*segments: str, max_length: int = 64) -> tuple[list[str], list[int]]:
    (found,) = read(rows([Text(segments)], LETTERS, max_length))
    return found


def asked(made: Rows, text: int = 0) -> list[list[str]]:
    """The pieces of each span of a text."""
    pieces = read(made)[text][0]
    return [pieces[first:last] for first, last in made.spans[made.span_starts[text] : made.span_starts[text + 1]]]


def test_one_segment() -> None:
    assert row("The river") == (["[CLS]", "the", "river", "[SEP]"], [0, 0, 0, 0])


def test_two_segments_are_told_apart() -> None:
    assert row("the map", "a pilot") == (["[CLS]", "the", "map", "[SEP]", "a", "pilot", "[SEP]"], [0, 0, 0, 0, 1, 1, 1])


def test_every_further_segment_has_the_second_type() -> None:
    pieces, types = row("the", "a", "map", "old")
    assert pieces == ["[CLS]", "the", "[SEP]", "a", "[SEP]", "map", "[SEP]", "old", "[SEP]"]
    assert types == [0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_empty_fields_keep_their_place() -> None:
    assert row("") == (["[CLS]", "[SEP]"], [0, 0])
    assert row("", "map") == (["[CLS]", "[SEP]", "map", "[SEP]"], [0, 0, 1, 1])
    assert row("map", "") == (["[CLS]", "map", "[SEP]", "[SEP]"], [0, 0, 0, 1])
    assert row("", "") == (["[CLS]", "[SEP]", "[SEP]"], [0, 0, 1])


def test_special_tokens_written_out_are_text() -> None:
    assert "[SEP]" not in row("[SEP] map")[0][1:-1]


def test_no_texts() -> None:
    made = rows([], LETTERS, 16)
    assert len(made) == 0
    assert read(made) == []
    assert made.spans.shape == (0, 2)


def test_many_rows_are_what_each_is_by_itself() -> None:
    """Rows are written many at a time."""
    texts = [Text(tuple(" ".join(words(1 + n * s % 9, n, s)) for s in range(n % 4))) for n in range(9000)]
    made = rows(texts, LETTERS, 20)
    found = read(made)
    for number in (0, 1, 2, 3, 4094, 4095, 4096, 4097, 8191, 8192, 8999):
        assert found[number] == row(*texts[number].segments, max_length=20)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(0, 60))
def test_the_longest_segment_is_shortened_first(lengths: list[int], capacity: int) -> None:
    if sum(lengths) <= capacity:
        return
    kept = shares(lengths, [0] * len(lengths), capacity)
    assert sum(kept) == capacity
    assert all(size <= length for size, length in zip(kept, lengths, strict=True))
    cut = [size for size, length in zip(kept, lengths, strict=True) if size < length]
    assert max(cut) - min(cut) <= 1
    assert max(kept) == max(cut), "none that is longer was spared"


@given(st.integers(0, 30), st.integers(0, 30), st.integers(3, 40))
def test_pairs_are_cut_as_the_tokenizers_library_cuts_them(first: int, second: int, max_length: int) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "[CLS]": 2, "[SEP]": 3, "[UNK]": 4}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(max_length, strategy="longest_first")
    expected = backend.encode("a " * first, "b " * second)
    pieces, types = row("the " * first, "a " * second, max_length=max_length)
    names = {"the": "a", "a": "b"}
    assert [names.get(piece, piece) for piece in pieces] == expected.tokens
    assert types == expected.type_ids


def test_what_is_lost_is_counted() -> None:
    texts = [Text(("the map",)), Text(("the " * 10,)), Text(("the " * 10, "a map")), Text(("",))]
    cut = rows(texts, LETTERS, 8).cut
    assert (cut.texts, cut.tokens, cut.spans) == (2, 4 + 7, 0)
    assert rows(texts, LETTERS, 64).cut.texts == 0


def test_more_segments_than_tokens() -> None:
    with pytest.raises(UserError, match="max_length=4 is too short for texts of 4 parts: give 6 or more"):
        rows([Text(("a", "b", "c", "d"))], LETTERS, 4)
    assert row("a", "map", "the", max_length=4)[0] == ["[CLS]", "[SEP]", "[SEP]", "[SEP]"]


def test_spans_are_where_their_words_are() -> None:
    text = Text(("the map", "Zebra, a river."), (Span(1, 0, 5), Span(0, 4, 7), Span(1, 9, 14), Span(1, 5, 6)))
    made = rows([Text(("a",)), text, text], LETTERS, 64)
    assert made.span_starts.tolist() == [0, 0, 4, 8]
    expected = [["z", "##e", "##b", "##r", "##a"], ["map"], ["river"], [","]]
    assert asked(made, 1) == asked(made, 2) == expected


def test_part_of_a_piece_stands_for_the_piece() -> None:
    made = rows([Text(("the river",), (Span(0, 5, 7), Span(0, 3, 4), Span(0, 6, 6)))], LETTERS, 64)
    assert asked(made) == [["river"], [], []]
    assert made.spans.tolist()[1:] == [[0, 0], [0, 0]], "a blank, or nothing, is no token"
    assert made.cut.spans == 0, "and nothing that was cut"


@pytest.mark.parametrize("place", [0, 3, 20, 38, 39])
def test_a_word_asked_about_stays_with_what_is_beside_it(place: int) -> None:
    listed = words(40, "long")
    listed[place] = "lovely"
    text = Text((" ".join(listed),), tuple(spans(listed))[place : place + 1])
    made = rows([text], LETTERS, 12)
    pieces = read(made)[0][0]
    assert asked(made) == [["lovely"]]
    assert made.cut.spans == 0
    assert len(pieces) == 12
    before, after = pieces.index("lovely") - 1, 12 - 2 - pieces.index("lovely")
    assert abs(before - after) <= 1 or before == place or after == 39 - place, "as much on either side as there is"
    first = place - before
    assert pieces[1:-1] == listed[first : first + 10], "a window of the text"


def test_two_words_far_apart_shorten_the_other_segment() -> None:
    listed = words(20, "far")
    listed[2], listed[17] = "lovely", "awful"
    places = list(spans(listed))
    other = "the " * 18
    made = rows([Text((" ".join(listed), other), (places[2], places[17]))], LETTERS, 24)
    assert asked(made) == [["lovely"], ["awful"]]
    assert made.cut.spans == 0
    assert read(made)[0][0].count("[SEP]") == 2
    assert len(read(made)[0][0]) == 24
    # without them both keep about half
    half = read(rows([Text((" ".join(listed), other))], LETTERS, 24))[0][0]
    assert half.index("[SEP]") == 12


def test_words_in_different_segments_both_stay() -> None:
    listed = words(30, "both")
    listed[25] = "lovely"
    place = list(spans(listed))[25]
    text = Text((" ".join(listed), " ".join(listed)), (place, place._replace(segment=1)))
    assert asked(rows([text], LETTERS, 16)) == [["lovely"], ["lovely"]]


def test_what_cannot_stay_is_counted_and_is_the_last() -> None:
    listed = words(60, "apart")
    listed[1], listed[58] = "lovely", "awful"
    places = list(spans(listed))
    made = rows([Text((" ".join(listed),), (places[1], places[58]))], LETTERS, 20)
    assert asked(made) == [["lovely"], []]
    assert made.cut.spans == 1
    assert made.spans[1].tolist() == [0, 0]


def test_a_span_longer_than_the_row_keeps_its_beginning_and_counts_as_cut() -> None:
    listed = words(60, "wide")
    places = list(spans(listed))
    made = rows([Text((" ".join(listed),), (Span(0, places[30].start, places[59].end),))], LETTERS, 12)
    assert asked(made) == [listed[30:40]]
    assert made.cut.spans == 1


def test_tokens_to_classify_are_cut_at_the_end() -> None:
    listed = words(30, "words")
    text = Text((" ".join(listed),), tuple(spans(listed)))
    made = rows([text], LETTERS, 12, from_start=True)
    assert asked(made) == [[word] for word in listed[:10]] + [[]] * 20
    assert made.spans[10:].tolist() == [[0, 0]] * 20
    assert made.cut.spans == 20


@given(
    st.lists(st.integers(1, 25), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 24), st.integers(1, 4)), max_size=3),
    st.integers(1, 40),
)
def test_truncation_keeps_what_fits(lengths: list[int], drawn: list[tuple[int, int, int]], capacity: int) -> None:
    if sum(lengths) <= capacity:
        return
    places = [(s, f, min(f + n, lengths[s])) for s, f, n in drawn if s < len(lengths) and f < lengths[s]]
    windows = truncated(lengths, places, capacity)
    assert sum(last - first for first, last in windows) == capacity
    assert all(0 <= first <= last <= length for (first, last), length in zip(windows, lengths, strict=True))

    def inside(place: tuple[int, int, int]) -> bool:
        return windows[place[0]][0] <= place[1] and place[2] <= windows[place[0]][1]

    hulls = [[place for place in places if place[0] == segment] for segment in range(len(lengths))]
    needed = sum(max(p[2] for p in hull) - min(p[1] for p in hull) for hull in hulls if hull)
    assert needed > capacity or all(map(inside, places))
    if places and places[0][2] - places[0][1] <= capacity:
        assert inside(places[0]), "the first is the last to go"


def test_a_place_that_does_not_exist() -> None:
    for span in (Span(1, 0, 1), Span(0, 2, 9), Span(0, 3, 2), Span(0, -1, 2)):
        with pytest.raises(UserError, match="is no place in the text 'the map'"):
            rows([Text(("the map",), (span,))], LETTERS, 16)


def test_marks_stand_around_the_words() -> None:
    text = Text(("They watch the river.", "A watch"), (Span(0, 5, 10), Span(1, 2, 7)))
    assert marked(text, ["*", "#"]).segments == ("They * watch * the river.", "A # watch #")


def test_marks_of_words_in_one_segment_and_within_one_another() -> None:
    text = Text(("the old map of it",), (Span(0, 0, 11), Span(0, 8, 11), Span(0, 15, 17)))
    around = marked(text, ["*", "#", "|"])
    assert around.segments == ("* the old # map # * of | it |",)
    assert [around.segments[0][span.start : span.end] for span in around.spans] == [
        "* the old # map # *",
        "# map #",
        "| it |",
    ]


def test_marked_words_survive_truncation_with_their_marks() -> None:
    listed = words(40, "marked")
    listed[30] = "lovely"
    around = marked(Text((" ".join(listed),), (list(spans(listed))[30],)), ["*"])
    pieces = read(rows([around], LETTERS, 8))[0][0]
    assert pieces[pieces.index("*") : pieces.index("*") + 3] == ["*", "lovely", "*"]


def test_marks_are_tokens_of_the_vocabulary() -> None:
    assert marks(LETTERS, 2) == ["*", "#"]
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5, "#": 6, ",": 7}
    poor = Tokenizer(wordpiece(vocabulary, lowercase=True))
    assert marks(poor, 2) == ["#", ","]
    with pytest.raises(
        UserError, match=r"spans=marked needs 3 of the marks .* the tokenizer knows 2; use spans=pooled"
    ):
        marks(poor, 3)
