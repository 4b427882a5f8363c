"""Duplicates: which pairs are found, in which order documents stay, and how much memory that takes."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cramming.data.cleaning import duplicates as module
from cramming.data.cleaning.config import FOUND, CleanConfig
from cramming.data.cleaning.duplicates import DROPPED, Bits, duplicates, resolve
from cramming.data.cleaning.equality import content_hash
from cramming.data.cleaning.similarity import band_hashes, sequence_hashes, word_hashes
from cramming.data.cleaning.spool import Header, encode_part, part_path
from cramming.progress import Silent

WORDS = 5


def spool(work: Path, documents: list[list[int]], per_part: int) -> int:
    """Parts of documents that are nothing but their hashes; how many parts."""
    work.mkdir()
    starts = range(0, len(documents), per_part)
    for number, start in enumerate(starts):
        some = documents[start : start + per_part]
        hashes = np.array(some, dtype=np.uint64)
        data = encode_part(Header(documents=len(some)), [], list(range(len(some))), hashes)
        part_path(work, number).write_bytes(data)
    return len(starts)


def reference(documents: list[list[int]]) -> list[int]:
    """The rule, spelled out: dropped if an earlier document has one of its hashes."""
    seen: set[int] = set()
    dropped = []
    for number, hashes in enumerate(documents):
        if seen & set(hashes):
            dropped.append(number)
        seen |= set(hashes)
    return dropped


@pytest.mark.parametrize("per_document", [1, 4])
@pytest.mark.parametrize("bucket_records", [1 << 20, 64])
def test_resolved_on_the_disk_as_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_document: int, bucket_records: int
) -> None:
    monkeypatch.setattr(module, "_BUCKET_RECORDS", bucket_records)
    random.seed(3)
    pool = [random.getrandbits(64) for _ in range(1500)]
    documents = [[random.choice(pool) for _ in range(per_document)] for _ in range(900)]
    documents[500:700] = [documents[7]] * 200  # one that comes again and again
    parts = spool(tmp_path / "work", documents, 37)
    resolve(tmp_path / "work", parts, True, Silent())
    dropped = Bits.read(tmp_path / "work" / DROPPED)
    expected = reference(documents)
    assert 250 < len(expected) < 900
    assert np.flatnonzero(dropped.has(np.arange(900))).tolist() == expected
    assert sorted(path.name for path in (tmp_path / "work").iterdir() if path.suffix != ".bin") == []


def test_one_hash_a_million_times_takes_no_memory_for_each() -> None:
    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, 1000, 100):
            records = np.zeros(100, dtype=module._RECORD)
            records["document"] = np.arange(start, start + 100)
            yield records

    found = [number for documents in duplicates(chunks()) for number in documents.tolist()]
    assert found == list(range(1, 1000))


def test_words_are_words_wherever_they_stand() -> None:
    cat, sat = word_hashes("Cat sat.").tolist()
    assert word_hashes("  the (CAT), sat!").tolist()[1:] == [cat, sat]
    assert word_hashes("cats at").tolist() != [cat, sat]
    # Without spaces, each character is a word.
    characters = [word_hashes(c)[0] for c in "吾輩は猫"]
    assert word_hashes("吾輩は猫。").tolist() == characters
    assert len(set(characters)) == 4
    assert word_hashes("x猫y").tolist() == [word_hashes(c)[0] for c in "x猫y"]
    assert len(word_hashes("... !?")) == 0


def test_a_long_text_has_the_words_of_its_parts(english: str) -> None:
    """Also where it is longer than what is looked at in one go."""
    text = " ".join([english] * 12)
    assert len(text) > 2 << 18
    whole, once = word_hashes(text).tolist(), word_hashes(english).tolist()
    # A word that a window's end cuts comes as two others.
    assert 0 <= len(whole) - 12 * len(once) <= 2
    assert sum((Counter(whole) - Counter(once * 12)).values()) <= 4


def test_sequences_are_all_the_runs_of_words() -> None:
    def sequences(text: str) -> set[int]:
        return set(sequence_hashes(text, WORDS).tolist())

    assert len(sequences("a b c d e f g")) == 3
    assert sequences("a b c d e f") & sequences("b, c D e f? g") == sequences("b c d e f")
    assert len(sequences("a b")) == 1
    assert sequences("a b") == sequences("A, b")
    assert sequences("a b") != sequences("b a")
    assert sequences("...") != sequences("?!")
    assert len(sequences("...")) == 1


def test_exact_means_but_for_white_space() -> None:
    text = "吾輩は猫である。 名前はまだ無い。\n\nA cat."
    assert content_hash(text).digest() == content_hash("吾輩は猫である。\n名前はまだ無い。A  cat.").digest()
    assert content_hash(text).digest() != content_hash(text.lower()).digest()


def pairs(similarity: float, count: int, size: int = 60) -> tuple[list[np.ndarray], float]:
    """Pairs of sets of numbers as similar as asked for, nearly, one after the other; and how similar exactly."""
    draw = np.random.default_rng(5)
    common = round(2 * size * similarity / (1 + similarity))
    sets = []
    for _ in range(count):
        values = draw.integers(0, 1 << 64, 2 * size - common, dtype=np.uint64)
        sets += [values[:size], np.concatenate([values[:common], values[size:]])]
    return sets, common / (2 * size - common)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_found_at_the_rate_the_bands_promise(similarity: float, threshold: float) -> None:
    """1 - (1 - s^r)^b; of 1,500 pairs, five standard deviations."""
    config = CleanConfig(duplicates="near", near_threshold=threshold)
    sets, exactly = pairs(similarity, 1500)
    bands = band_hashes(sets, config.bands, config.rows)
    found = (bands[::2] == bands[1::2]).any(axis=1).mean()
    expected = 1 - (1 - exactly**config.rows) ** config.bands
    assert found == pytest.approx(expected, abs=5 * (max(expected * (1 - expected), 0.002) / 1500) ** 0.5)


def test_bands_are_chosen_for_the_threshold() -> None:
    for threshold in (0.2, 0.5, 0.8, 0.95):
        config = CleanConfig(near_threshold=threshold)
        assert config.bands * config.rows <= config.near_hashes
        assert 1 - (1 - threshold**config.rows) ** config.bands >= FOUND
        longer = config.rows + 1
        assert 1 - (1 - threshold**longer) ** (config.near_hashes // longer) < FOUND
    assert CleanConfig(near_threshold=0.8).bands == 16
    assert CleanConfig(near_threshold=0.8, near_bands=9).rows == 14


def test_bands_of_different_places_never_agree() -> None:
    bands = band_hashes([np.array([1], dtype=np.uint64)], 32, 1)
    assert len(set(bands[0].tolist())) == 32


def test_edited_documents_are_found_and_others_are_not(english: str) -> None:
    """On words: an edit of every thirtieth leaves about 5/7 of the sequences; other text shares none."""
    words = english.split()
    config = CleanConfig(duplicates="near", near_threshold=0.6)
    found = strangers = 0
    for at in range(0, 8000, 200):
        original = words[at : at + 200]
        edited = [word if k % 30 else "edited" for k, word in enumerate(original)]
        other = words[at + 200 : at + 400]
        texts = [" ".join(text) for text in (original, edited, other)]
        bands = band_hashes([sequence_hashes(text, WORDS) for text in texts], config.bands, config.rows)
        found += bool((bands[0] == bands[1]).any())
        strangers += bool((bands[0] == bands[2]).any())
    assert found >= 38
    assert strangers == 0


MEASURED = """
import resource, sys
from pathlib import Path
import numpy as np
from cramming.data.cleaning import duplicates as module
from cramming.data.cleaning.duplicates import DROPPED, Bits, resolve
from cramming.data.cleaning.spool import Header, encode_part, part_path
from cramming.progress import Silent
work, documents, bands = Path(sys.argv[1]), int(sys.argv[2]), 16
module._BUCKET_RECORDS = 1 << 16  # a sixteenth of what it is, for a sixteenth of the documents
draw = np.random.default_rng(1)
per_part = 2000
for number in range(documents // per_part):
    hashes = draw.integers(0, 1 << 64, (per_part, bands), dtype=np.uint64)
    hashes[1::2, 3] = hashes[::2, 3]  # every second document is a duplicate
    part_path(work, number).write_bytes(encode_part(Header(documents=per_part), [], list(range(per_part)), hashes))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resolve(work, documents // per_part, True, Silent())
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
dropped = Bits.read(work / DROPPED).has(np.arange(documents))
assert dropped[1::2].all() and not dropped[::2].any()
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Four times the documents take no more memory, but for the bit of each."""
    grown = []
    for documents in (24_000, 96_000):
        work = tmp_path / str(documents)
        work.mkdir()
        command = [sys.executable, "-c", MEASURED, str(work), str(documents)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        before, after = map(int, done.stdout.split())
        grown.append(after - before)  # kB
    assert grown[1] < 30_000
    assert grown[1] < grown[0] + 8_000
