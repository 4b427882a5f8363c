"""From texts to token ids: ``[CLS] first [SEP] second [SEP] ...``, cut to what a model takes.

Shape legend: R texts, M segments of all texts, T tokens of all texts, N spans of all texts.

The longest segment is shortened first, as the tokenizers library does with pairs, and at its end. Where a text asks
about words in it, a segment is shortened on the side that is farther from them, and another one sooner.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.evaluation.encoded import Cut
from cramming.evaluation.tasks.task import Span, Text

# Around the first span, around the second, and so on; T5 takes the first two (https://arxiv.org/abs/1910.10683, 2.4).
_MARKS = ("*", "#", '"', "'", "|", ":", ";", ",", "-", ".")
_AT_ONCE = 4096  # segments are tokenized, and rows written, so many at a time


@dataclass(frozen=True)
class Pieces:
    """Distinct segments, tokenized."""

    numbers: dict[str, int]
    tokens: np.ndarray  # of all of them
    starts: np.ndarray  # where each begins, and the end
    offsets: dict[int, np.ndarray]  # (n, 2) characters of each token, of the segments that have spans

    def span(self, number: int, span: Span) -> tuple[int, int]:
        """The tokens of segment ``number`` with a character of ``span``: first, one past the last; (0, 0): none."""
        offsets = self.offsets[number]
        first = bisect_right(offsets[:, 1], span.start)  # the first that ends behind the span's start
        last = bisect_left(offsets[:, 0], span.end)  # the first that starts behind its end
        return (first, last) if first < last and span.start < span.end else (0, 0)


@dataclass(frozen=True)
class Windows:
    """What is kept of each segment."""

    segments: np.ndarray  # (R + 1,) int64: where each text's segments begin
    numbers: np.ndarray  # (M,) int64: which of the distinct segments each is
    begin: np.ndarray  # (M,) int64: first token kept
    kept: np.ndarray  # (M,) int64: how many


@dataclass(frozen=True)
class Rows:
    """Texts as rows of token ids, which ``written`` writes out.

    Attributes:
        starts: (R + 1,) int64: where each row begins among all tokens.
        span_starts: (R + 1,) int64: where each text's spans begin.
        spans: (N, 2) int32: first token of each and one past the last, within the row; (0, 0): cut off, or of no token.
        cut: what was left out.
    """

    starts: np.ndarray
    span_starts: np.ndarray
    spans: np.ndarray
    cut: Cut
    _pieces: Pieces
    _windows: Windows
    _tokenizer: Tokenizer

    def __len__(self) -> int:
        return len(self.starts) - 1

    def written(self, tokens: np.ndarray, types: np.ndarray) -> None:
        """Fill ``tokens`` (T,) and ``types`` (T,), 1 from the second segment on."""
        for first in range(0, len(self), _AT_ONCE):
            last = min(first + _AT_ONCE, len(self))
            where = slice(self.starts[first], self.starts[last])
            tokens[where], types[where] = self._part(first, last)

    def _part(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and types of the rows ``first`` to before ``last``."""
        bounds = self._windows.segments[first : last + 1]
        segments = slice(bounds[0], bounds[-1])
        kept = self._windows.kept[segments]
        begin = self._windows.begin[segments] + self._pieces.starts[self._windows.numbers[segments]]
        heads, counts = self.starts[first:last] - self.starts[first], np.diff(bounds)
        # Every segment is followed by one [SEP], and every row begins with one [CLS] more.
        before = np.cumsum(kept + 1) - (kept + 1) + np.repeat(np.arange(1, last - first + 1), counts)
        inside = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
        size = int(self.starts[last] - self.starts[first])
        tokens = np.full(size, self._tokenizer.sep_id, dtype=self._pieces.tokens.dtype)
        tokens[heads] = self._tokenizer.cls_id
        tokens[np.repeat(before, kept) + inside] = self._pieces.tokens[np.repeat(begin, kept) + inside]
        types = np.ones(size, dtype=np.uint8)
        types[heads] = 0
        opening = (bounds[:-1] - bounds[0])[counts > 0]  # the first segments
        filled = kept[opening] + 1
        places = np.repeat(before[opening], filled) + np.arange(filled.sum())
        types[places - np.repeat(np.cumsum(filled) - filled, filled)] = 0
        return tokens, types


def rows(texts: Sequence[Text], tokenizer: Tokenizer, max_length: int, *, from_start: bool = False) -> Rows:
    """Texts as rows of at most ``max_length`` tokens.

    Args:
        texts: R of them.
        tokenizer: gives the token ids.
        max_length: tokens of a row, special tokens included.
        from_start: keep the beginning of every segment, wherever the spans are (those of token classification are
            everywhere).

    Raises:
        UserError: a text has more segments than ``max_length`` has room for, or a span outside of its segment.
    """
    pieces = tokenized(texts, tokenizer)
    counts = np.array([len(text.segments) for text in texts], dtype=np.int64)
    if len(counts) and counts.max() + 1 > max_length:
        raise UserError(
            f"max_length={max_length} is too short for texts of {counts.max()} parts: give {counts.max() + 2} or more, "
            "usually 128"
        )
    segments = _starts(counts)
    numbers = np.array([pieces.numbers[segment] for text in texts for segment in text.segments], dtype=np.int64)
    begin, kept = np.zeros_like(numbers), np.diff(pieces.starts)[numbers]
    wanted = _sums(kept, segments) + 1 + counts
    for row in np.flatnonzero(wanted > max_length).tolist():
        where = slice(segments[row], segments[row + 1])
        spans = [] if from_start else _tokens_of(texts[row].spans, numbers[where].tolist(), pieces)
        ends = truncated(kept[where].tolist(), spans, int(max_length - 1 - counts[row]))
        begin[where] = [first for first, _ in ends]
        kept[where] = [last - first for first, last in ends]
    lost = wanted - np.minimum(wanted, max_length)
    span_starts = _starts(np.array([len(text.spans) for text in texts], dtype=np.int64))
    windows = Windows(segments, numbers, begin, kept)
    spans_of_all, lost_spans = _placed(texts, pieces, windows)
    return Rows(
        starts=_starts(wanted - lost),
        span_starts=span_starts,
        spans=spans_of_all,
        cut=Cut(int((lost > 0).sum()), int(lost.sum()), lost_spans),
        _pieces=pieces,
        _windows=windows,
        _tokenizer=tokenizer,
    )


def tokenized(texts: Iterable[Text], tokenizer: Tokenizer) -> Pieces:
    """Every distinct segment once.

    Raises:
        UserError: a span outside of its segment.
    """
    numbers: dict[str, int] = {}
    asked: set[str] = set()  # segments whose tokens' places are needed
    for text in texts:
        for segment in text.segments:
            numbers.setdefault(segment, len(numbers))
        for span in text.spans:
            inside = 0 <= span.segment < len(text.segments)
            if not inside or not 0 <= span.start <= span.end <= len(text.segments[span.segment]):
                raise UserError(f"{tuple(span)} (part, from, to) is no place in the text {_shown(text)}")
            asked.add(text.segments[span.segment])
    offsets: dict[int, np.ndarray] = {}
    tokens: list[np.ndarray] = []
    sizes: list[int] = []
    distinct = list(numbers)
    for first in range(0, len(distinct), _AT_ONCE):
        part = distinct[first : first + _AT_ONCE]
        with_places = [segment for segment in part if segment in asked]
        placed = dict(zip(with_places, tokenizer.encode_offsets(with_places), strict=True))
        others = [segment for segment in part if segment not in asked]
        ids = dict(zip(others, tokenizer.encode_lists(others), strict=True))
        for segment, (found, where) in placed.items():
            ids[segment] = found
            offsets[numbers[segment]] = where
        listed = [ids[segment] for segment in part]
        sizes += [len(one) for one in listed]
        tokens.append(np.array([token for one in listed for token in one], dtype=tokenizer.dtype))
    joined = np.concatenate([np.zeros(0, dtype=tokenizer.dtype), *tokens])
    return Pieces(numbers, joined, _starts(np.array(sizes, dtype=np.int64)), offsets)


def truncated(lengths: Sequence[int], spans: Sequence[tuple[int, int, int]], capacity: int) -> list[tuple[int, int]]:
    """What to keep of each segment of a text: first token, one past the last.

    Args:
        lengths: tokens of the segments, more than ``capacity`` in all.
        spans: segment, first token and one past the last, of what is asked about. Where not all fit, the last ones go.
        capacity: tokens to keep.
    """
    asked = [span for span in spans if span[1] < span[2]]
    hulls = _hulls(asked, len(lengths))
    while sum(last - first for first, last in hulls) > capacity and len(asked) > 1:
        asked = asked[:-1]
        hulls = _hulls(asked, len(lengths))
    hulls = [(first, min(last, first + capacity)) for first, last in hulls]  # a single span may be too long by itself
    sizes = shares(lengths, [last - first for first, last in hulls], capacity)
    return [_window(length, size, *hull) for length, size, hull in zip(lengths, sizes, hulls, strict=True)]


def shares(lengths: Sequence[int], needed: Sequence[int], capacity: int) -> list[int]:
    """How many tokens each segment keeps: all the same number, where they have as many and do not need more.

    For pairs and nothing needed this is ``longest_first`` of the tokenizers library: what is left over goes to the
    longest, and of equals to the last.

    Args:
        lengths: tokens of the segments, more than ``capacity`` in all.
        needed: of each, at least; no more than ``capacity`` in all.
        capacity: tokens to keep, all of which are used.
    """

    def kept(level: int) -> list[int]:
        return [min(max(level, least), length) for length, least in zip(lengths, needed, strict=True)]

    low, high = 0, max(lengths)  # kept(low) fits, kept(high) does not
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if sum(kept(level)) <= capacity else (low, level)
    result, more = kept(low), kept(high)
    rising = [(lengths[segment], segment) for segment in range(len(lengths)) if more[segment] > result[segment]]
    for _, segment in sorted(rising, reverse=True)[: capacity - sum(result)]:
        result[segment] += 1
    return result


def marks(tokenizer: Tokenizer, spans: int) -> list[str]:
    """A mark for each of so many spans that the vocabulary has a token for.

    Raises:
        UserError: it has fewer.
    """
    ids = dict(zip(_MARKS, tokenizer.encode_lists(_MARKS), strict=True))
    known = [mark for mark, found in ids.items() if found and tokenizer.unk_id not in found]
    if len(known) < spans:
        raise UserError(
            f"spans=marked needs {spans} of the marks {' '.join(_MARKS)}, and the tokenizer knows {len(known)}; "
            "use spans=pooled"
        )
    return known[:spans]


def marked(text: Text, around: Sequence[str]) -> Text:
    """The text with the mark ``around[i]`` before and after span i; the spans now reach from mark to mark."""
    segments, moved = list(text.segments), list(text.spans)
    for place, segment in enumerate(text.segments):
        events: list[tuple[int, int, int, int]] = []  # character, 1 where a span opens, order, span
        for number, span in enumerate(text.spans):
            if span.segment == place and span.start < span.end:  # outer spans open first and close last
                events += [(span.start, 1, -span.end, number), (span.end, 0, -span.start, number)]
        done, written = 0, ""
        for character, opens, _, number in sorted(events):
            written += segment[done:character]
            done = character
            if opens:
                moved[number] = moved[number]._replace(start=len(written))
                written += f"{around[number]} "
            else:
                written += f" {around[number]}"
                moved[number] = moved[number]._replace(end=len(written))
        segments[place] = written + segment[done:]
    return Text(tuple(segments), tuple(moved))


def _placed(texts: Sequence[Text], pieces: Pieces, windows: Windows) -> tuple[np.ndarray, int]:
    """Where the spans are in the rows, (N, 2), and how many were cut, if only in part."""
    segments, numbers = windows.segments.tolist(), windows.numbers.tolist()
    begin, kept = windows.begin.tolist(), windows.kept.tolist()
    found: list[tuple[int, int]] = []
    lost = 0
    for row, text in enumerate(texts):
        for span in text.spans:
            place = segments[row] + span.segment
            first, last = pieces.span(numbers[place], span)
            shown = max(first, begin[place]), min(last, begin[place] + kept[place])
            lost += shown != (first, last) and first < last
            # [CLS], and for each segment before this one its tokens and a [SEP]
            ahead = 1 + sum(kept[segments[row] : place]) + span.segment - begin[place]
            found.append((shown[0] + ahead, shown[1] + ahead) if shown[0] < shown[1] else (0, 0))
    return np.array(found, dtype=np.int32).reshape(-1, 2), lost


def _tokens_of(spans: Sequence[Span], numbers: Sequence[int], pieces: Pieces) -> list[tuple[int, int, int]]:
    """Segment, first token and one past the last, of each span."""
    return [(span.segment, *pieces.span(numbers[span.segment], span)) for span in spans]


def _hulls(spans: Sequence[tuple[int, int, int]], segments: int) -> list[tuple[int, int]]:
    """From the first token of any span to past the last, in each segment; (0, 0): none is there."""
    hulls = [(0, 0)] * segments
    for segment, first, last in spans:
        known = hulls[segment]
        hulls[segment] = (first, last) if known == (0, 0) else (min(known[0], first), max(known[1], last))
    return hulls


def _window(length: int, size: int, first: int, last: int) -> tuple[int, int]:
    """``size`` of ``length`` tokens, in which those from ``first`` to ``last`` have about as many on either side."""
    if first == last:
        return 0, size
    around = size - (last - first)
    before = min(first, max(around // 2, around - (length - last)))
    return first - before, first - before + size


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Of each stretch, empty ones included."""
    return np.diff(np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(values)])[starts])


def _shown(text: Text) -> str:
    joined = " | ".join(text.segments)
    return repr(joined if len(joined) <= 60 else f"{joined[:57]}...")
