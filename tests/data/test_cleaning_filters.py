"""Filters on single documents: a document stays if and only if what its option measures is within bounds."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from cramming.data.cleaning.config import JUDGED_CHARACTERS, CleanConfig
from cramming.data.cleaning.filters import Filters, compression_ratio
from cramming.data.cleaning.letters import Letters
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError

JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"


def objection(text: str, tokenizer: str | None = None, **options: Any) -> str | None:
    config = CleanConfig(**options)
    config.check()
    return Filters(config.stages(), None if tokenizer is None else Path(tokenizer)).objection(text)


def test_everything_is_off_by_default() -> None:
    assert CleanConfig().stages() == {}
    # What belongs to an option that is off is not part of what decides.
    assert CleanConfig(min_charset_share=0.5, near_threshold=0.1, tokenizer="x").stages() == {}


@pytest.mark.parametrize("letter", ["a", "猫", "\U0001f600"])
def test_length_counts_characters_of_any_script(letter: str) -> None:
    for length, expected in ((4, "length"), (5, None), (7, None), (8, "length")):
        assert objection(letter * length, min_characters=5, max_characters=7) == expected
    assert objection(letter * 4, max_characters=4) is None
    assert objection(letter * 4, min_characters=4) is None


@pytest.mark.parametrize(
    ("text", "charset", "share"),
    [
        ("abc ÄÖ 12.!", "ascii", 3 / 5),
        ("abc ÄÖ 12.!", "latin", 1.0),
        ("абв abc", "cyrillic", 1 / 2),
        ("абв abc αβ", "greek", 2 / 8),
        (JAPANESE, "japanese", 1.0),
        (JAPANESE, "latin", 0.0),
        ("コーヒー ｺｰﾋｰ 人々", "japanese", 1.0),
        ("猫は cat", "han", 1 / 5),
        ("고양이 cat", "korean", 3 / 6),
        ("สวัสดี", "thai", 1.0),
        ("हिन्दी", "devanagari", 1.0),
        ("ＡＢＣ", "latin", 1.0),
        ("12345 !!! 😀", "latin", 0.0),
    ],
)
def test_share_of_letters(text: str, charset: str, share: float) -> None:
    assert Letters([charset]).share(text) == pytest.approx(share)
    if share > 0:
        assert objection(text, charset=[charset], min_charset_share=share) is None
    if share < 1:
        assert objection(text, charset=[charset], min_charset_share=min(1.0, share + 0.01)) == "charset"


def test_several_charsets_add_up() -> None:
    assert Letters(["latin", "greek"]).share("abc αβ где") == pytest.approx(5 / 8)
    assert Letters(["greek", "latin"]).share("abc αβ где") == pytest.approx(5 / 8)


def test_compression_tells_repetition_and_noise_from_text(english: str) -> None:
    text = english[:4000]
    noise = base64.b64encode(b"".join(hashlib.sha256(bytes([n])).digest() for n in range(100))).decode()
    repeated = "click here to win. " * 200
    ratios = [compression_ratio(sample) for sample in (noise, text, repeated)]
    assert ratios == sorted(ratios)
    assert ratios[0] < 1.5
    assert 2 < ratios[1] < 5
    assert ratios[2] > 20
    bounds = {"min_compression_ratio": 1.5, "max_compression_ratio": 5.0}
    assert [objection(sample, **bounds) for sample in (noise, text, repeated)] == ["compression", None, "compression"]
    # The bounds themselves are inside.
    assert objection(text, min_compression_ratio=ratios[1], max_compression_ratio=ratios[1]) is None
    assert objection(text, min_compression_ratio=ratios[1] + 1e-9) == "compression"


def test_tokens_per_character_counts_as_the_study_did(letters: str) -> None:
    """Kept if and only if tokens, two special ones included, are fewer than the share of the characters."""
    text = "a " * 10  # 10 tokens, 20 characters
    assert len(Tokenizer.load(Path(letters)).encode(text)) == 10
    assert objection(text, letters, max_tokens_per_character=0.6) == "tokens"  # 12 is not below 12
    assert objection(text, letters, max_tokens_per_character=0.6001) is None


def test_the_first_stage_that_objects_is_named() -> None:
    options: dict[str, Any] = {"min_characters": 10, "charset": ["latin"], "max_compression_ratio": 2.0}
    assert objection("猫", **options) == "length"
    assert objection("猫" * 100, **options) == "charset"
    assert objection("a" * 100, **options) == "compression"
    assert objection("The quick brown fox jumps.", **options) is None


def test_of_a_long_document_the_beginning_is_judged() -> None:
    beginning = "а" * JUDGED_CHARACTERS
    assert objection(beginning + "a" * JUDGED_CHARACTERS, charset=["cyrillic"]) is None
    assert objection("a" + beginning, charset=["cyrillic"], min_charset_share=1.0) == "charset"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"min_characters": 0}, "data.clean.min_characters=0"),
        ({"max_characters": JUDGED_CHARACTERS}, f"data.clean.max_characters={JUDGED_CHARACTERS}"),
        ({"min_characters": 10, "max_characters": 9}, "nothing is left"),
        ({"min_compression_ratio": 3.0, "max_compression_ratio": 2.0}, "nothing is left"),
        ({"max_tokens_per_character": 0.0}, "max_tokens_per_character=0.0"),
        ({"charset": []}, "data.clean.charset=\\[\\]"),
        ({"charset": ["latn"]}, "latn is not known.*latin"),
        ({"min_charset_share": 1.5}, "min_charset_share=1.5 is not a share"),
        ({"duplicates": "exakt"}, "exakt is not known.*exact"),
        ({"near_threshold": 0.0}, "near_threshold=0.0"),
        ({"near_bands": 200}, "near_bands=200"),
        ({"near_hashes": 0}, "near_hashes=0"),
        ({"near_words": 0}, "near_words=0"),
        ({"tokenizer": ""}, "data.clean.tokenizer is empty"),
    ],
)
def test_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        CleanConfig(**options).check()
    assert "\n" not in str(caught.value)
