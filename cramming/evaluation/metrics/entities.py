"""Named entities: spans of words that carry BIO tags (Ramshaw and Marcus, 1995), judged as CoNLL's script does."""

from collections.abc import Sequence
from typing import NamedTuple


class Entity(NamedTuple):
    """Words ``start`` to ``end`` (exclusive) of a text, and what they are."""

    text: int
    start: int
    end: int
    kind: str


def entities(tags: Sequence[str], text: int = 0) -> set[Entity]:
    """The entities of one text's tags.

    ``B-x`` begins one; ``I-x`` goes on with one of its kind, or begins one where there is none, as ``conlleval`` reads
    it; any other tag than ``O`` counts as ``I-`` of its own name.
    """
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-") if tag[:2] in ("B-", "I-") else ("I", "", "" if tag == "O" else tag)
        if kind and (prefix == "B" or own != kind):
            found.add(Entity(text, start, place, kind))
            kind = ""
        if own and not kind:
            start, kind = place, own
    return found


def entity_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """F1 of entities that are found with the right words and the right kind; 0 where there are none.

    Args:
        predictions: the tags of each text's words.
        references: the right ones.
    """
    found = {entity for text, tags in enumerate(predictions) for entity in entities(tags, text)}
    wanted = {entity for text, tags in enumerate(references) for entity in entities(tags, text)}
    shared = len(found & wanted)
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0
