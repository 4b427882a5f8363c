"""Minimal pairs of our own: 128 pairs of sentences of which one is grammatical, in eight phenomena of English.

After the idea of BLiMP (Warstadt et al. 2020, https://arxiv.org/abs/1912.00582), whose 67,000 pairs say more: give them
with ``probe.pairs=``. Words are common ones. Pairs come in twos: what is wrong in one is right in the other, so that a
model which knows words but not what is beside them gets exactly half of each phenomenon right.
"""

from collections.abc import Iterator
from typing import NamedTuple


class Pair(NamedTuple):
    """Two sentences that differ in what makes one of them wrong."""

    good: str
    bad: str
    phenomenon: str


_NOUNS = (("boy", "boys"), ("girl", "girls"), ("teacher", "teachers"), ("king", "kings"))
_THINGS = (("book", "books"), ("story", "stories"), ("picture", "pictures"), ("letter", "letters"))
_VERBS = (("comes", "come"), ("goes", "go"))
_PLACES = (("city", "cities"), ("river", "rivers"), ("king", "kings"), ("school", "schools"))
# Of each verb: the past tense, the participle.
_PARTS = (("wrote", "written"), ("took", "taken"), ("gave", "given"), ("saw", "seen"), ("knew", "known"),
          ("began", "begun"), ("ate", "eaten"), ("chose", "chosen"))  # fmt: skip
_CONSONANTS = ("book", "house", "letter", "city", "river", "school", "king", "tree")
_VOWELS = ("apple", "island", "army", "animal", "egg", "artist", "office", "answer")
_OTHERS = ("the teacher", "the king", "a friend", "the doctor")


def pairs() -> list[Pair]:
    """All of them, always the same: 16 of each phenomenon."""
    made: list[Pair] = []
    for phenomenon, swaps in _PHENOMENA.items():
        for first, second in swaps():
            made += [Pair(*first, phenomenon), Pair(*second, phenomenon)]
    return made


_Swap = tuple[tuple[str, str], tuple[str, str]]  # (good, bad) and (good, bad); wrong words change places


def _swapped(frame: str, one: str, other: str, form: str, wrong: str) -> _Swap:
    """Of a frame with {0} for who decides and {1} for the form that must fit: one and its form, other and its."""
    return (
        (frame.format(one, form), frame.format(one, wrong)),
        (frame.format(other, wrong), frame.format(other, form)),
    )


def _simple() -> Iterator[_Swap]:
    for singular, plural in _NOUNS:
        for verb, bare in _VERBS:
            yield _swapped("The {0} {1} to the city every day.", singular, plural, verb, bare)


def _across_a_phrase() -> Iterator[_Swap]:
    for (singular, plural), (near, nears) in zip(_THINGS, _PLACES, strict=True):
        for attractor in (near, nears):  # next to the verb, and not what it agrees with
            yield _swapped(f"The {{0}} about the {attractor} {{1}} very old.", singular, plural, "was", "were")


def _across_a_clause() -> Iterator[_Swap]:
    for singular, plural in _NOUNS:
        for attractor in ("man", "men"):
            yield _swapped(f"The {{0}} who saw the {attractor} {{1}} here now.", singular, plural, "is", "are")


def _determiner() -> Iterator[_Swap]:
    for singular, plural in (*_THINGS, *_NOUNS):
        yield _swapped("We have seen {0} {1} before.", "this", "these", singular, plural)


def _article() -> Iterator[_Swap]:
    for consonant, vowel in zip(_CONSONANTS, _VOWELS, strict=True):
        yield _swapped("There was {0} {1} in the old picture.", "a", "an", consonant, vowel)


def _reflexive() -> Iterator[_Swap]:
    for (she, he), verb in zip((("girl", "boy"), ("woman", "man"), ("mother", "father"), ("queen", "king")),
                               ("saw", "knew", "called", "asked"), strict=True):  # fmt: skip
        yield _swapped(f"The {{0}} {verb} {{1}} in the end.", she, he, "herself", "himself")
    for singular, plural in (("boy", "boys"), ("man", "men"), ("king", "kings"), ("father", "fathers")):
        yield _swapped("The {0} could not help {1} at first.", singular, plural, "himself", "themselves")


def _case() -> Iterator[_Swap]:
    for other in _OTHERS:
        for subject, object_ in (("we", "us"), ("they", "them")):
            yield (
                (f"After that {subject} called {other}.", f"After that {object_} called {other}."),
                (f"After that {other} called {object_}.", f"After that {other} called {subject}."),
            )


def _participle() -> Iterator[_Swap]:
    for past, participle in _PARTS:
        yield (
            (f"They have {participle} it many times.", f"They have {past} it many times."),
            (f"They {past} it many times.", f"They {participle} it many times."),
        )


_PHENOMENA = {
    "agreement": _simple,
    "agreement_across_phrase": _across_a_phrase,
    "agreement_across_clause": _across_a_clause,
    "determiner_noun": _determiner,
    "article": _article,
    "reflexive": _reflexive,
    "pronoun_case": _case,
    "participle": _participle,
}
