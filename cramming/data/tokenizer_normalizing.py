"""What a tokenizer does to a text before it cuts it: ``data.normalize``, a list of steps in the order they are done.

The steps become the tokenizer's own normalizer, so whoever uses the tokenizer later (fine-tuning, other libraries) gets
them without asking. The names of a given tokenizer's steps are read back from its ``tokenizer.json``.
"""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Regex
from tokenizers.normalizers import (
    NFC,
    NFD,
    NFKC,
    NFKD,
    BertNormalizer,
    Lowercase,
    Normalizer,
    Replace,
    StripAccents,
)
from tokenizers.normalizers import Sequence as Steps
from tokenizers.normalizers import Strip as StripEnds

from cramming.data.config import NORMALIZATIONS
from cramming.errors import UserError

if TYPE_CHECKING:
    from cramming.data.tokenizer import Tokenizer

_STEPS: dict[str, Normalizer] = {
    "nfc": NFC(),
    "nfd": NFD(),
    "nfkc": NFKC(),
    "nfkd": NFKD(),
    "lowercase": Lowercase(),
    # Marks can be dropped only where they are characters of their own. What has none is put together again: a Korean
    # syllable is no letter with marks.
    "strip_accents": Steps([NFD(), StripAccents(), NFC()]),
    "quotes": Steps([Replace("``", '"'), Replace("''", '"')]),
    "spaces": Replace(Regex(" {2,}"), " "),
    "ascii": Replace(Regex(r"[^\x00-\x7F]+"), ""),
}
assert set(_STEPS) == set(NORMALIZATIONS)

# Texts that show what a normalizer does. No Korean: BERT's way to drop accents takes syllables apart, ours does not.
_PROBES = ("Ab É e\u0301", "\ufb01 \u2460 \uff21", "``x'' \u201cy\u201d", "漢é\u2013z", "が", "ß \u0130")
_LOOKED_AT = 1_000_000  # characters of a sample
_LEAST_LEFT = 0.5
_BLANK = str.maketrans("", "", " \t\n\u2581")  # where words are separated is not what is compared


def normalizer_of(names: Sequence[str]) -> Normalizer:
    """The normalizer that does these steps (``NORMALIZATIONS`` has the names), one after the other."""
    return Steps([_STEPS[name] for name in names])


def for_wordpiece(names: Sequence[str] | None) -> Normalizer:
    """These steps (``None``: BERT's), then BERT's cleaning: no control characters, Chinese characters stand alone."""
    bert = names is None
    cleaning = BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=bert, lowercase=bert)
    return cleaning if not names else Steps([*(_STEPS[name] for name in names), cleaning])


def for_unigram(names: Sequence[str]) -> Normalizer:
    """These steps, then every run of white space becomes one space and none is left at the ends."""
    return Steps([*(_STEPS[name] for name in names), Replace(Regex(r"[\s▁]+"), " "), StripEnds()])


def json_of(part: Any) -> Any:
    """A normalizer or pre-tokenizer as in ``tokenizer.json``."""
    return json.loads(part.__getstate__())


def leaves(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer's JSON, without the sequences they are in: saving flattens those."""
    if normalizer is None:
        return []
    if normalizer["type"] != "Sequence":
        return [normalizer]
    return [leaf for step in normalizer["normalizers"] for leaf in leaves(step)]


_LEAVES = sorted(((name, leaves(json_of(step))) for name, step in _STEPS.items()), key=lambda item: -len(item[1]))


def described(normalizer: dict[str, Any] | None) -> list[str]:
    """The names of a normalizer's steps, from its JSON; a step without one of ours is named by its type.

    Steps that only say where words end are left out.
    """
    steps = leaves(normalizer)
    names: list[str] = []
    while steps:
        for name, step in _LEAVES:
            if steps[: len(step)] == step:
                names.append(name)
                del steps[: len(step)]
                break
        else:
            names += _foreign(steps.pop(0))
    return names


def _foreign(step: dict[str, Any]) -> Iterator[str]:
    """Names for a step that is not written as one of ours is."""
    kind = step["type"]
    if kind == "BertNormalizer":
        if step["strip_accents"] or (step["strip_accents"] is None and step["lowercase"]):
            yield "strip_accents"
        if step["lowercase"]:
            yield "lowercase"
    elif kind == "StripAccents":
        yield "strip_accents"
    elif kind not in ("Strip", "Prepend", "ByteLevel") and step.get("content") not in (" ", "\u2581"):
        yield kind


def same_effect(one: Normalizer | None, other: Normalizer | None) -> bool:
    """Whether two normalizers do the same to texts that tell all steps of ours apart, but for white space."""
    return all(_shown(one, probe) == _shown(other, probe) for probe in _PROBES)


def check_normalization(tokenizer: "Tokenizer", name: str, wanted: Sequence[str] | None) -> None:
    """Refuse a ready tokenizer that does something else to a text than ``wanted``, if anything is.

    Raises:
        UserError: it does.
    """
    if wanted is not None and not tokenizer.normalizes_like(normalizer_of(wanted)):
        does = ",".join(tokenizer.normalization)
        raise UserError(
            f"data.normalize=[{','.join(wanted)}] is not what data.tokenizer={name} does: its vocabulary belongs to "
            f"[{does}]; set data.normalize=null, or train one with data.tokenizer=train"
        )


def check_leaves_text(texts: Sequence[str], what: str, names: Sequence[str] | None) -> None:
    """Refuse steps that are not for this text: those of an English recipe drop all of a Japanese one.

    Raises:
        UserError: less than half of the text is left.
    """
    normalizer = normalizer_of(names or ())
    each = _LOOKED_AT // max(1, len(texts)) + 1
    looked_at = [text[:each] for text in texts]
    before = sum(len(text.translate(_BLANK)) for text in looked_at)
    left = sum(len(_shown(normalizer, text)) for text in looked_at)
    if left < _LEAST_LEFT * before:
        raise UserError(
            f"data.normalize=[{','.join(names or ())}] leaves {left / before:.0%} of the characters of {what}; "
            "set data.normalize=null, or leave out the step that is for another language"
        )


def _shown(normalizer: Normalizer | None, text: str) -> str:
    return (text if normalizer is None else str(normalizer.normalize_str(text))).translate(_BLANK)
