"""What the earlier systems gave their models (reference cases), and where ours differs, each difference by its name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from cramming.data.tokenizer import Tokenizer
from cramming.evaluation.encoded import Encoded
from cramming.evaluation.encoding import in_memory
from cramming.evaluation.tasks import registry
from cramming.evaluation.tasks.task import Example, Text

ONE_FIELD, TWO_FIELDS = ("cola", "sst2"), ("mrpc", "stsb")


@pytest.fixture
def tokenizer(shared: Path) -> Tokenizer:
    """The reference's."""
    case = json.loads((shared / "golden" / "tokenize_pack.json").read_text())
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(case["variants"][0]["tokenizer_json"])))


@pytest.fixture(params=["cramming", "ntng"])
def case(shared: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared / "golden" / f"downstream_inputs_{request.param}.json").read_text())
    return content


def encoded(case: dict[str, Any], name: str, tokenizer: Tokenizer) -> Encoded:
    """The task's rows with one segment for each field, in the reference's order of them."""
    given = case["tasks"][name]
    fields = [given["fields"][field] for field in given["structure"] if field]
    labels = given["labels"]
    examples = [
        Example((Text(tuple(segments)),), label, {"index": number})
        for number, (*segments, label) in enumerate(zip(*fields, labels, strict=True))
    ]
    return in_memory(registry.find(name), examples, tokenizer, max_length=case["max_seq_length"], spans="pooled")


def rows(made: Encoded) -> list[list[int]]:
    return [row.tolist() for row in np.split(made.tokens, made.starts[1:-1])]


@pytest.mark.parametrize("name", TWO_FIELDS)
def test_pairs_are_the_same(case: dict[str, Any], tokenizer: Tokenizer, name: str) -> None:
    """Difference: the second segment has a type of its own, which the reference's models did not have."""
    made, expected = encoded(case, name, tokenizer), case["tasks"][name]
    assert rows(made) == expected["input_ids"]
    assert made.labels is not None
    assert made.labels.tolist() == expected["labels_out"]
    lengths = [ids.index(tokenizer.sep_id) + 1 for ids in expected["input_ids"]]
    types = np.split(made.types, made.starts[1:-1])
    assert [row.tolist() for row in types] == [
        [0] * first + [1] * (len(ids) - first) for first, ids in zip(lengths, expected["input_ids"], strict=True)
    ]


@pytest.mark.parametrize("name", ONE_FIELD)
def test_a_single_sentence_has_a_cls_and_one_sep(case: dict[str, Any], tokenizer: Tokenizer, name: str) -> None:
    """One reference's had no [CLS] although it read the first position; the other's an empty second segment."""
    no_cls = case["case"] == "downstream_inputs_ntng"
    expected = case["tasks"][name]
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    for ours, theirs in zip(rows(encoded(case, name, tokenizer)), expected["input_ids"], strict=True):
        assert ours[0] == cls
        assert ours.count(sep) == 1
        assert ours[-1] == sep
        assert theirs == (ours[1:] if no_cls else [*ours, sep])


@pytest.mark.parametrize("name", ["copa", "wic", "multirc"])
def test_every_field_is_there(case: dict[str, Any], tokenizer: Tokenizer, name: str) -> None:
    """One reference dropped every field after the second; the other joined all with its separator, as ours does."""
    given = case["tasks"][name]
    structure = [field for field in given["structure"] if field]
    assert len(structure) > 2
    for number, (ours, theirs) in enumerate(zip(rows(encoded(case, name, tokenizer)), given["input_ids"], strict=True)):
        parts = tokenizer.encode_lists([given["fields"][field][number] for field in structure])
        assert ours == [tokenizer.cls_id, *(token for part in parts for token in (*part, tokenizer.sep_id))]
        if case["case"] == "downstream_inputs_ntng":
            assert theirs == ours[: len(parts[0]) + len(parts[1]) + 3], "the others are missing"
        else:
            assert theirs == ours
