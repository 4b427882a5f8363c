"""Filters on single documents: each says whether a document stays, by itself, whatever the others are."""

import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cramming.data.cleaning.config import JUDGED_CHARACTERS
from cramming.data.cleaning.letters import Letters
from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizing import Encoder

_SPECIAL_TOKENS = 2  # the study counted the two that its tokenizer put around a text
ZLIB_LEVEL = 6


class Filters:
    """The filters of ``CleanConfig.stages``, in their order.

    Args:
        stages: the stages that are on, with their options.
        tokenizer: folder of the tokenizer that counts tokens, where the stage ``tokens`` is on.
    """

    def __init__(self, stages: dict[str, dict[str, Any]], tokenizer: Path | None) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)  # of this process's time, by stage
        self._filters: list[tuple[str, Callable[[str], bool]]] = []
        if options := stages.get("length"):
            self._filters.append(("length", _length(options)))
        if options := stages.get("charset"):
            self._filters.append(("charset", _charset(options)))
        if options := stages.get("compression"):
            self._filters.append(("compression", _compression(options)))
        if options := stages.get("tokens"):
            assert tokenizer is not None, "the stage tokens needs a tokenizer"
            self._filters.append(("tokens", _tokens(options, tokenizer)))

    def objection(self, text: str) -> str | None:
        """The first stage that removes this document; ``None``: it stays.

        Only the first ``JUDGED_CHARACTERS`` of it are looked at, except for its length.
        """
        for name, keeps in self._filters:
            begun = time.process_time()
            kept = keeps(text)
            self.seconds[name] += time.process_time() - begun
            if not kept:
                return name
        return None


def _length(options: dict[str, Any]) -> Callable[[str], bool]:
    low: float = options.get("min_characters", 0)
    high: float = options.get("max_characters", float("inf"))
    return lambda text: low <= len(text) <= high


def _charset(options: dict[str, Any]) -> Callable[[str], bool]:
    letters, least = Letters(options["charset"]), options["min_charset_share"]
    return lambda text: letters.share(text[:JUDGED_CHARACTERS]) >= least


def compression_ratio(text: str) -> float:
    """How many times smaller zlib makes the UTF-8 bytes of a text; about 2 for 2,000 characters of any language."""
    data = text.encode()
    return len(data) / len(zlib.compress(data, ZLIB_LEVEL))


def _compression(options: dict[str, Any]) -> Callable[[str], bool]:
    low: float = options.get("min_compression_ratio", 0)
    high: float = options.get("max_compression_ratio", float("inf"))
    return lambda text: low <= compression_ratio(text[:JUDGED_CHARACTERS]) <= high


def _tokens(options: dict[str, Any], tokenizer: Path) -> Callable[[str], bool]:
    """The earlier study's filter of trash: tokens, special ones included, below a share of the characters."""
    encoder, most = Encoder(Tokenizer.load(tokenizer)), options["max_tokens_per_character"]

    def keeps(text: str) -> bool:
        text = text[:JUDGED_CHARACTERS]
        return len(encoder.encode(text)) + _SPECIAL_TOKENS < most * len(text)

    return keeps
