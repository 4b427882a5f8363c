"""Which pieces of text a tokenizer treats each by itself: those are the ones whose ids can be remembered.

Two laws of pre-tokenizers are known here. *Apart*: words between white space are independent and the space between them
leaves no trace (BERT's kind; ours of Unigram, whose every word begins with its own mark). *Spaced*: a word takes the
space before it along, and the rest of the text does not matter, because no token goes on from something that is not
white space to a space (byte-level BPE).
"""

from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from cramming.data.config import NORMALIZATIONS
from cramming.data.tokenizer_normalizing import for_unigram, json_of, leaves, normalizer_of

APART, SPACED = "apart", "spaced"

# GPT-2's way to cut text, with the marks of a letter as parts of its word: without that, Hindi falls to pieces.
_SPACED_WORDS = r"'(?:s|t|re|ve|m|ll|d)(?![\p{L}\p{M}])| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"
_MARKED_WORDS = r"▁?[\p{L}\p{M}]+|▁?\p{N}+|▁?[^▁\p{L}\p{M}\p{N}]+|▁"


def byte_level() -> PreTokenizer:
    """Words, numbers and runs of signs, each with the space before it, as bytes."""
    cut = Split(Regex(_SPACED_WORDS), "isolated")
    return Steps([cut, ByteLevel(add_prefix_space=False, use_regex=False)])


def marked() -> PreTokenizer:
    """Words, numbers and runs of signs, with a mark for the space before them, which the first of a text has, too."""
    return Steps([Metaspace(prepend_scheme="always", split=False), Split(Regex(_MARKED_WORDS), "isolated")])


_BYTE_LEVEL, _MARKED = json_of(byte_level()), json_of(marked())
_ENDS_OF_WORDS = leaves(json_of(for_unigram([])))
# Steps that treat words between white space each by itself.
_WORDWISE = leaves(json_of(normalizer_of(NORMALIZATIONS)))


def word_rule(parts: dict[str, Any]) -> str | None:
    """``APART``, ``SPACED`` or, where neither is sure, ``None``, from the content of a ``tokenizer.json``."""
    if any(not token["special"] for token in parts["added_tokens"]) or parts["model"].get("dropout"):
        return None
    pre = parts["pre_tokenizer"] or {"type": None}
    steps = leaves(parts["normalizer"])
    if pre["type"] in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit"):
        return APART if all(map(_keeps_words, steps)) else None
    if pre == _MARKED:
        return APART if steps[-2:] == _ENDS_OF_WORDS and all(map(_keeps_words, steps[:-2])) else None
    gpt2 = pre["type"] == "ByteLevel" and pre["use_regex"] and not pre["add_prefix_space"]
    return SPACED if gpt2 or pre == _BYTE_LEVEL else None


def _keeps_words(step: dict[str, Any]) -> bool:
    return step["type"] == "BertNormalizer" or step in _WORDWISE
