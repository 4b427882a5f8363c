"""A task of each kind, made up: small, learnable, the same every time."""

from collections.abc import Iterator

from cramming.data.tokenizer import Tokenizer, wordpiece
from cramming.evaluation.tasks.task import Example, Kind, Label, Span, Task, Text
from cramming.hashing import key

PLAIN = ("the", "a", "river", "map", "letter", "bridge", "pilot", "painted", "counted", "found", "under", "near", "old")
GOOD, BAD = ("lovely", "bright", "warm"), ("awful", "dull", "cold")
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_SIGNS = ".,?!'\"*#-:;()"


def letters() -> Tokenizer:
    """A vocabulary of letters, signs and a few whole words; ids 0 to 4 as everywhere here."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *_CHARACTERS, *(f"##{c}" for c in _CHARACTERS), *_SIGNS, *PLAIN, *GOOD, *BAD]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return Tokenizer(wordpiece(vocabulary, lowercase=True))


def words(count: int, *name: int | str) -> list[str]:
    """So many drawn words, none of them good or bad."""
    return [PLAIN[key(*name, place) % len(PLAIN)] for place in range(count)]


def task(kind: Kind, name: str = "small", **more: object) -> Task:
    """A task of that kind: two classes, two independent properties, four choices or a number."""
    labels = {"regression": (), "choice": ("0", "1", "2", "3")}.get(kind, ("bad", "good"))
    metrics = {"regression": ("pearson",), "multilabel": ("f1",)}.get(kind, ("accuracy",))
    choices = 4 if kind == "choice" else 1
    return Task(name, name.upper(), "own", kind, ("text",), labels, metrics, choices=choices, **more)  # type: ignore[arg-type]


def examples(kind: Kind, count: int, seed: int = 0, longest: int = 20, labelled: bool = True) -> list[Example]:
    """Texts in which good and bad words decide: of 3 to ``longest`` words, short ones being more frequent."""
    return list(_examples(kind, count, seed, longest, labelled))


def _examples(kind: Kind, count: int, seed: int, longest: int, labelled: bool) -> Iterator[Example]:
    for number in range(count):
        size = 3 + (key(seed, number, "length") % 1000) ** 2 * (longest - 2) // 10**6
        drawn = words(size, seed, number)
        good, place = key(seed, number, "good") % 2, key(seed, number, "place") % size
        drawn[place] = (BAD, GOOD)[good][number % 3]
        label: Label = good
        texts = (Text((" ".join(drawn),)),)
        if kind == "regression":
            label = 5.0 * good + size / 100
        elif kind == "multilabel":
            label = (1 - good, good)
        elif kind == "tokens":
            label = tuple(good if word in GOOD + BAD else -100 for word in drawn)
            texts = (Text(texts[0].segments, tuple(spans(drawn))),)
        elif kind == "choice":
            label = number % 4
            ends = [(GOOD if choice == label else BAD)[number % 3] for choice in range(4)]
            texts = tuple(Text((" ".join(drawn), f"it is {end}")) for end in ends)
        yield Example(texts, label if labelled else None, {"index": number})


def spans(listed: list[str]) -> Iterator[Span]:
    """Where each word is when blanks join them."""
    at = 0
    for word in listed:
        yield Span(0, at, at + len(word))
        at += len(word) + 1
