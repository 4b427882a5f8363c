"""Encoded splits on the disk: made once, whole or absent, made again when damaged; parts of them."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tasks import examples, letters, task

from cramming import faults
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.evaluation import encoding
from cramming.evaluation.encoded import Encoded
from cramming.evaluation.encoding import MANIFEST, encode, in_memory, open_encoded, select, split
from cramming.evaluation.tasks.task import Example, Span, Text

Split = Callable[..., Encoded]
KINDS = ("classification", "regression", "multilabel", "tokens", "choice")
# Processes begin without threads: a fork of this one may find tokenizers' threads in the middle of something.
CONTEXT = multiprocessing.get_context("forkserver")
ARRAYS = ("tokens", "types", "starts", "span_starts", "spans", "labels")


def same(one: Encoded, other: Encoded) -> bool:
    """Whether two splits hold the same, down to the types of their numbers."""
    for name in ARRAYS:
        a, b = getattr(one, name), getattr(other, name)
        if (a is None) != (b is None) or (a is not None and (a.dtype != b.dtype or not np.array_equal(a, b))):
            return False
    plain = [(e.choices, list(e.keys), e.cut, e.pad_id, e.per_span) for e in (one, other)]
    return plain[0] == plain[1]


def made(cache: Path, kind: Any = "classification", count: int = 30, **how: Any) -> Encoded:
    asked = {"max_length": 16, "spans": "pooled"} | how
    return encode(task(kind), examples(kind, count), letters(), cache=cache, **asked)


def folders(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labelled", [True, False])
def test_the_disk_holds_what_memory_does(tmp_path: Path, tokenizer: Tokenizer, kind: Any, labelled: bool) -> None:
    given = examples(kind, 30, labelled=labelled)
    kept = encode(task(kind), given, tokenizer, max_length=16, spans="pooled", cache=tmp_path)
    assert same(kept, in_memory(task(kind), given, tokenizer, max_length=16, spans="pooled"))
    assert isinstance(kept.tokens, np.memmap)
    assert not kept.tokens.flags.writeable
    assert len(kept) == 30
    assert kept.cut.texts > 0
    (folder,) = folders(tmp_path)
    again = open_encoded(folder)
    assert same(again, kept)
    assert again.sha256 == kept.sha256 != ""


@pytest.mark.parametrize(
    ("kind", "dtype", "shape"),
    [
        ("classification", "int64", (30,)),
        ("regression", "float32", (30,)),
        ("multilabel", "float32", (30, 2)),
        ("choice", "int64", (30,)),
    ],
)
def test_labels_are_those_of_the_examples(encoded_split: Split, kind: Any, dtype: str, shape: tuple[int, ...]) -> None:
    labels = encoded_split(kind, 30).labels
    assert labels is not None
    assert labels.dtype == dtype
    assert labels.shape == shape
    assert labels.tolist() == np.array([e.label for e in examples(kind, 30)], dtype=dtype).tolist()


def test_labels_of_words_stand_beside_their_spans(encoded_split: Split) -> None:
    encoded = encoded_split("tokens", 30)
    labels = [label for example in examples("tokens", 30) for label in example.label]  # type: ignore[union-attr]
    assert encoded.per_span
    assert encoded.labels is not None
    assert encoded.labels.tolist() == labels
    assert len(encoded.spans) == len(labels) == encoded.span_starts[-1]


def test_the_second_call_does_not_tokenize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(tmp_path)
    monkeypatch.setattr(encoding, "rows", None)  # calling it would fail
    second = made(tmp_path)
    assert same(first, second)
    assert first.sha256 == second.sha256


def test_whatever_decides_the_content_has_a_folder_of_its_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """And what does not decide it has none."""
    base = examples("classification", 10)
    cased = Tokenizer(type(tokenizer._backend).from_str(tokenizer.to_json().replace("lovely", "lovesome")))

    def text(one: Example, **changed: Any) -> list[Example]:
        return [*base[:-1], replace(one, **changed)]

    longer = replace(base[-1].texts[0], segments=(*base[-1].texts[0].segments, "more"))
    asking = replace(base[-1].texts[0], spans=(Span(0, 0, 3),))
    settings: list[tuple[list[Example], Tokenizer, int, str]] = [
        (base, tokenizer, 16, "pooled"),
        (base, tokenizer, 17, "pooled"),
        (base, cased, 16, "pooled"),
        (base[:-1], tokenizer, 16, "pooled"),
        (base[::-1], tokenizer, 16, "pooled"),
        (text(base[-1], label=1 - int(base[-1].label)), tokenizer, 16, "pooled"),  # type: ignore[arg-type]
        (text(base[-1], key={"index": 77}), tokenizer, 16, "pooled"),
        (text(base[-1], texts=(longer,)), tokenizer, 16, "pooled"),
        (text(base[-1], texts=(asking,)), tokenizer, 16, "pooled"),
        (text(base[-1], texts=(asking,)), tokenizer, 16, "marked"),
    ]
    hashes = set()
    for number, (given, with_, length, spans) in enumerate(settings, 1):
        hashes.add(encode(task("classification"), given, with_, max_length=length, spans=spans, cache=tmp_path).sha256)
        assert len(folders(tmp_path)) == number
    # Another maximum that cuts nothing differently would be the same content; here all differ but two.
    assert len(hashes) >= len(settings) - 2
    encode(task("classification"), base, tokenizer, max_length=16, spans="marked", cache=tmp_path)
    assert len(folders(tmp_path)) == len(settings), "nothing is asked about, so nothing is marked"


def test_marks_take_the_place_of_spans(tokenizer: Tokenizer) -> None:
    text = Text(("the map of the river",), (Span(0, 4, 7), Span(0, 15, 20)))
    given = [Example((text,), 1, {"index": 0})]

    def encoded(spans: str) -> Encoded:
        return in_memory(task("classification"), given, tokenizer, max_length=16, spans=spans)

    pooled, marked = encoded("pooled"), encoded("marked")
    assert pooled.spans.shape == (2, 2)
    assert pooled.span_starts.tolist() == [0, 2]
    assert marked.spans.shape == (0, 2)
    assert marked.span_starts.tolist() == [0, 0]
    assert tokenizer.decode(marked.tokens).count("*") == tokenizer.decode(marked.tokens).count("#") == 2
    assert "*" not in tokenizer.decode(pooled.tokens)


def test_words_to_classify_are_never_marked(tokenizer: Tokenizer) -> None:
    given = examples("tokens", 5)
    one = in_memory(task("tokens"), given, tokenizer, max_length=16, spans="marked")
    assert same(one, in_memory(task("tokens"), given, tokenizer, max_length=16, spans="pooled"))


@pytest.mark.parametrize("damage", ["shortened", "changed", "removed", "manifest", "no manifest", "other manifest"])
def test_what_is_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    whole = made(tmp_path)
    expected = {name: np.array(getattr(whole, name)) for name in ARRAYS}
    (folder,) = folders(tmp_path)
    tokens, manifest = folder / "tokens.npy", folder / MANIFEST
    content = bytearray(tokens.read_bytes())
    content[-1] ^= 1
    {
        "shortened": lambda: os.truncate(tokens, len(content) - 2),
        "changed": lambda: tokens.write_bytes(content),
        "removed": (folder / "keys.json").unlink,
        "manifest": lambda: manifest.write_text('{"files": {'),
        "no manifest": manifest.unlink,
        "other manifest": lambda: manifest.write_text("[]"),
    }[damage]()
    with pytest.raises(UserError, match=r"delete .* and run the same command again"):
        open_encoded(folder)
    again = made(tmp_path)
    assert all(np.array_equal(getattr(again, name), array) for name, array in expected.items())
    assert same(open_encoded(folder), again)
    assert folders(tmp_path) == [folder]


def test_a_folder_that_was_never_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing: there is no whole encoded split"):
        open_encoded(tmp_path / "nothing")


def _killed(cache: Path, point: str) -> None:
    faults.arm(point)
    made(cache)


@pytest.mark.parametrize("point", ["encoded-fsync:1", "encoded-fsync:3", "encoded-rename:1"])
def test_a_killed_process_leaves_nothing_half(tmp_path: Path, point: str) -> None:
    process = CONTEXT.Process(target=_killed, args=(tmp_path, point))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert all(path.name.startswith(".") for path in folders(tmp_path))
    assert same(made(tmp_path), made(tmp_path / "elsewhere"))
    assert len([path for path in folders(tmp_path) if path.name != "elsewhere"]) == 1, "what was left is gone"


def _counted(cache: Path, start: Any, times: Any) -> None:
    original = encoding.rows

    def rows(*args: Any, **options: Any) -> Any:
        with times.get_lock():
            times.value += 1
        return original(*args, **options)

    encoding.rows = rows
    start.wait()
    made(cache)


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    start, times = CONTEXT.Barrier(2), CONTEXT.Value("i", 0)
    processes = [CONTEXT.Process(target=_counted, args=(tmp_path, start, times)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert times.value == 1
    assert len(folders(tmp_path)) == 1


def test_no_examples(tmp_path: Path) -> None:
    empty = made(tmp_path, count=0)
    assert len(empty) == 0
    assert empty.labels is None
    assert len(empty.keys) == 0


def test_keys_are_a_sequence(tmp_path: Path) -> None:
    keys = made(tmp_path).keys
    assert len(keys) == 30
    assert keys[3] == {"index": 3}
    assert [key["index"] for key in keys[1:3]] == [1, 2]
    assert [key["index"] for key in keys] == list(range(30))


def test_examples_that_do_not_fit_together(tmp_path: Path) -> None:
    labelled, unlabelled = examples("classification", 3), examples("classification", 2, labelled=False)
    with pytest.raises(UserError, match="small: 2 of 5 rows have no label"):
        encode(task("classification"), labelled + unlabelled, letters(), max_length=9, spans="pooled", cache=tmp_path)
    choices = examples("choice", 3)
    choices[1] = replace(choices[1], texts=choices[1].texts[:3])
    with pytest.raises(UserError, match="small: row 1 has 3 choices, others have 4"):
        encode(task("choice"), choices, letters(), max_length=9, spans="pooled", cache=tmp_path)
    tokens = examples("tokens", 3)
    tokens[2] = replace(tokens[2], label=(0,))
    with pytest.raises(UserError, match=r"small: row 2 has \d+ words and 1 labels"):
        encode(task("tokens"), tokens, letters(), max_length=9, spans="pooled", cache=tmp_path)
    assert not tmp_path.joinpath("cache").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_what_encoding_those_examples_gives(tokenizer: Tokenizer, kind: Any) -> None:
    given, chosen = examples(kind, 30), [3, 29, 0, 4]
    whole = in_memory(task(kind), given, tokenizer, max_length=16, spans="pooled")
    alone = in_memory(task(kind), [given[i] for i in chosen], tokenizer, max_length=16, spans="pooled")
    part = select(whole, np.array(chosen))
    assert same(replace(part, cut=alone.cut), alone)
    assert part.sha256 != select(whole, np.array(chosen[::-1])).sha256 != ""


def test_a_split_divides_and_is_the_same_every_time(encoded_split: Split) -> None:
    encoded = encoded_split(count=200)

    def members(part: Encoded) -> list[int]:
        return [key["index"] for key in part.keys]

    rest, held = split(encoded, 0.1, seed=0)
    assert len(held) == 20
    assert sorted(members(rest) + members(held)) == list(range(200))
    assert members(rest) == sorted(members(rest))
    assert members(held) == sorted(members(held))
    assert members(split(encoded, 0.1, seed=0)[1]) == members(held)
    assert members(split(encoded, 0.1, seed=1)[1]) != members(held)
    assert set(members(held)) < set(members(split(encoded, 0.3, seed=0)[1])), "a larger share holds the smaller one"


def test_groups_stay_together(encoded_split: Split) -> None:
    keys = [{"index": number, "idx": {"paragraph": number // 5}, "other": number} for number in range(60)]
    encoded = replace(encoded_split(count=60), keys=keys)
    rest, held = split(encoded, 0.25, seed=0, groups=("idx",))
    sides = [{json.dumps(key["idx"]) for key in part.keys} for part in (rest, held)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 3
    assert len(held) == 15


def test_both_parts_have_something(encoded_split: Split) -> None:
    two = encoded_split(count=2)
    assert [len(part) for share in (0.01, 0.99) for part in split(two, share, seed=0)] == [1, 1, 1, 1]
    with pytest.raises(UserError, match="1 examples cannot be divided in two: give more training rows"):
        split(encoded_split(count=1), 0.5, seed=0)
