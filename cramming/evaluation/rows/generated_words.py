"""Small sentences of common words, for rows that are made here. Every draw is a function of what it is for."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

WHO = ("the dog", "the cat", "a man", "a woman", "my friend", "the teacher", "our son", "the old king")
DID = (("went", "goed"), ("ran", "runned"), ("slept", "sleeped"), ("came", "comed"), ("stood", "standed"),
       ("sat", "sitted"), ("fell", "falled"), ("spoke", "speaked"))  # fmt: skip
WHERE = ("in the house", "at the river", "on the road", "under a tree", "near the town", "by the sea")
GOOD = ("good", "great", "happy", "beautiful", "strong", "clear", "best", "funny")
BAD = ("bad", "poor", "sad", "ugly", "weak", "slow", "worst", "boring")
WORKS = ("the film", "this story", "the book", "the play", "her song", "this show")
NAMES = ("Anna", "Peter", "Maria", "Thomas", "Julia", "Robert")
CITIES = ("London", "Paris", "Berlin", "Rome", "Madrid", "Vienna")


class Said(NamedTuple):
    """A sentence in its parts."""

    who: str
    did: str
    wrong: str  # the verb as no one says it
    where: str

    def __str__(self) -> str:
        return sentence(self.who, self.did, self.where)


def draw(*what: object) -> int:
    """A number that depends on ``what`` alone, the same on any machine."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "little")


def pick(options: Sequence[T], *what: object) -> T:
    """One of ``options``, by ``what`` it is for."""
    return options[draw(*what) % len(options)]


def said(*what: object) -> Said:
    """Someone did something somewhere."""
    did, wrong = pick(DID, "did", *what)
    return Said(pick(WHO, "who", *what), did, wrong, pick(WHERE, "where", *what))


def sentence(*parts: str) -> str:
    """The parts in a row, with a capital letter and a full stop."""
    text = " ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
