"""The earlier systems' tokenization, packing and masking (reference cases), each difference of ours by its name.

Encoded with each case's own tokenizer: its training is another one each time, so vocabularies cannot be compared.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file
from torch import Tensor

from cramming.batch import Batch
from cramming.data.masking import Masking
from cramming.data.preparation import prepare
from cramming.data.sources.local import LocalConfig
from cramming.data.store import TokenStore
from cramming.data.stream import slots
from cramming.data.tokenizer import Tokenizer
from cramming.data.tokenizer_normalizing import normalizer_of
from cramming.data.tokenizing import Encoder

#: The study's normalizer in our names.
STUDY = ["quotes", "nfd", "lowercase", "strip_accents", "spaces", "ascii"]
MAP_BATCH = 256  # documents the reference tokenized and packed at a time
SEP, CLS, BERT = range(3)  # variants: [SEP] after each document; [CLS] before it, too; neither, and BERT's own steps


@pytest.fixture
def case(shared: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared / "golden" / "tokenize_pack.json").read_text())
    return content


def tokenizer_of(case: dict[str, Any], variant: int) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(json.dumps(case["variants"][variant]["tokenizer_json"]))
    return Tokenizer(backend)


@pytest.mark.parametrize("variant", [SEP, CLS, BERT])
def test_ids(case: dict[str, Any], variant: int) -> None:
    """Every text, whole and word by word. Difference: special tokens come when documents are packed, not here."""
    expected, tokenizer = case["variants"][variant], tokenizer_of(case, variant)
    encoder = Encoder(tokenizer)
    assert tokenizer.word_rule is not None, "and the fast way is taken"
    before = [tokenizer.cls_id] if variant == CLS else []
    after = [tokenizer.sep_id] if variant != BERT else []
    whole = tokenizer.encode_lists(case["texts"])
    assert [[*before, *ids, *after] for ids in whole][: len(expected["encoded_docs"])] == expected["encoded_docs"]
    assert [len(before + ids + after) for ids in whole] == expected["num_tokens_per_doc"]
    assert [encoder.encode(text).tolist() for text in case["texts"]] == whole
    ids = expected["special_token_ids"]
    assert [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id] == [
        ids[token] for token in ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>")
    ], "a foreign tokenizer keeps its ids, wherever the order of a hash table put them"


def test_the_studys_normalizer(case: dict[str, Any]) -> None:
    """Our steps under our names do what theirs did, and theirs are recognised by these names."""
    tokenizer, ours = tokenizer_of(case, SEP), normalizer_of(STUDY)
    assert tokenizer.normalization == STUDY
    assert tokenizer.normalizes_like(ours)
    for text in [*case["texts"], "``Ünï'' – 漢字  \t x ﬁ ½ İ"]:
        assert ours.normalize_str(text) == tokenizer.normalize(text)
    assert not tokenizer_of(case, BERT).normalizes_like(ours)
    assert tokenizer_of(case, BERT).normalization == ["strip_accents", "lowercase"]


def packed(case: dict[str, Any], variant: int, folder: Path, texts: list[str], row_cls: bool) -> TokenStore:
    """Our store of some texts."""
    folder.mkdir()
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "tokenizer.json").write_text(json.dumps(case["variants"][variant]["tokenizer_json"]))
    config = LocalConfig(
        path=str(folder / "texts.jsonl"),
        tokenizer=str(folder / "tokenizer.json"),
        normalize=None if variant == BERT else STUDY,
        seq_length=case["variants"][variant]["config"]["seq_length"],
        row_cls=row_cls,
    )
    return prepare(config, folder / "data", workers=0)


def rows_of(store: TokenStore) -> list[list[int]]:
    rows: list[list[int]] = store.read(np.arange(store.rows))[0].tolist()
    return rows


def test_packed_rows(case: dict[str, Any], tmp_path: Path) -> None:
    """Row for row, map batch by map batch. Difference: we have no map batches, and drop only the very last tail."""
    expected, texts = case["variants"][SEP], case["texts"]
    stores = [
        packed(case, SEP, tmp_path / str(at), texts[at : at + MAP_BATCH], row_cls=False)
        for at in range(0, len(texts), MAP_BATCH)
    ]
    rows = [row for store in stores for row in rows_of(store)]
    assert rows == expected["packed_input_ids"]
    assert len(rows) == expected["num_packed"]
    sep = stores[0].tokenizer.sep_id
    places = [[at for at, token in enumerate(row) if token == sep] for row in rows]
    assert places == expected["packed_special_tokens_mask_positions"]
    ours = rows_of(packed(case, SEP, tmp_path / "ours", texts, row_cls=False))
    first = rows_of(stores[0])
    assert ours[: len(first)] == first
    assert len(ours) == sum(expected["num_tokens_per_doc"]) // expected["config"]["seq_length"] >= len(rows)


def test_cls_begins_rows_not_documents(case: dict[str, Any], tmp_path: Path) -> None:
    """Difference: where they put [CLS] before each document, we put it before each row. The text is the same."""
    expected, texts = case["variants"][CLS], case["texts"][:MAP_BATCH]
    store = packed(case, CLS, tmp_path / "rows", texts, row_cls=True)
    cls, width = store.tokenizer.cls_id, store.seq_length
    theirs = [token for row in expected["packed_input_ids"] for token in row]
    first = sum(expected["num_tokens_per_doc"][:MAP_BATCH]) // width * width
    theirs = [token for token in theirs[:first] if token != cls]
    rows = rows_of(store)
    assert all(row[0] == cls and cls not in row[1:] for row in rows)
    ours = [token for row in rows for token in row[1:]]
    shorter = min(len(ours), len(theirs))
    assert shorter > len(theirs) - 2 * width
    assert ours[:shorter] == theirs[:shorter]


def test_sep_ends_documents(case: dict[str, Any], tmp_path: Path) -> None:
    """Difference: a corpus without [SEP] cannot be asked for; apart from them the stream is the same."""
    expected, texts = case["variants"][BERT], case["texts"][:MAP_BATCH]
    store = packed(case, BERT, tmp_path / "rows", texts, row_cls=False)
    sep, width = store.tokenizer.sep_id, store.seq_length
    first = sum(expected["num_tokens_per_doc"][:MAP_BATCH]) // width
    theirs = [token for row in expected["packed_input_ids"][:first] for token in row]
    ours = [token for row in rows_of(store) for token in row if token != sep]
    shorter = min(len(ours), len(theirs))
    assert shorter > len(theirs) - 2 * width
    assert ours[:shorter] == theirs[:shorter]


# --- masking

SYSTEMS = ("ntng", "cramming")
SPECIAL = 5  # ids below it are special tokens


def masking_case(shared: Path, system: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = shared / "golden" / f"mlm_masking_{system}"
    return json.loads(path.with_suffix(".json").read_text()), load_file(path.with_suffix(".safetensors"))


def masked(case: dict[str, Any], rows: Tensor, rate: float) -> Batch:
    masking = Masking.of(case["vocab_size"], case["mask_id"], list(range(SPECIAL)), torch.device("cpu"))
    ids = torch.arange(len(rows))
    most = slots(rate, rows.shape[1])
    return masking(rows, ids, torch.zeros_like(ids), None, seed=1, rate=rate, slots=most)


def labels_of(batch: Batch, rows: Tensor) -> Tensor:
    """(B, S), -100 where nothing is predicted, as the earlier systems have it."""
    labels = torch.full_like(rows, -100)
    filled = torch.where(batch.weights > 0, batch.labels, -100)
    return labels.scatter(1, batch.positions, filled)


def laws(inputs: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """What holds in every system: labels are the true ids, and the rest is left alone; (B, S) what is predicted."""
    chosen = labels != -100
    assert torch.equal(labels[chosen], rows[chosen])
    assert torch.equal(inputs[~chosen], rows[~chosen])
    return chosen


@pytest.mark.parametrize("system", SYSTEMS)
def test_masking_of_the_same_rows(shared: Path, system: str) -> None:
    """Difference: positions are a hash's, not a generator's, and special tokens (``cramming``) are left alone.

    Runs without the 80/10/10 rule have no counterpart here: of theirs only what always holds is looked at.
    """
    case, tensors = masking_case(shared, system)
    rows = tensors["input.ids"]
    special = tensors["input.special_tokens_mask"].bool()
    assert torch.equal(special, rows < SPECIAL)
    for run in case["runs"]:
        rate, prefix = run["mlm_probability"], run["prefix"]
        theirs = laws(tensors[f"{prefix}input_ids"], tensors[f"{prefix}labels"], rows)
        batch = masked(case, rows, rate)
        ours = laws(batch.inputs, labels_of(batch, rows), rows)
        assert not (ours & special).any()
        if system == "ntng":
            assert not (theirs & special).any()
        exact = round(rate * rows.shape[1])  # of all positions, whether special or not
        assert (ours.sum(1) == exact).all()
        if system == "cramming":
            assert (theirs.sum(1) == exact).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_masking_shares(shared: Path, system: str) -> None:
    """Within five sigma of the case's large samples, or of the law where the reference rounds another way."""
    case, _ = masking_case(shared, system)
    for run in (run for run in case["runs"] if run["use_80_20_rule"]):
        sample, rate = run["large_sample"], run["mlm_probability"]
        shape = (sample["sequences"], sample["seq"])
        rows = torch.randint(SPECIAL, case["vocab_size"], shape, generator=torch.Generator().manual_seed(3))
        batch = masked(case, rows, rate)
        chosen = laws(batch.inputs, labels_of(batch, rows), rows)
        predicted, true = batch.inputs[chosen], rows[chosen]
        count = len(true)
        mask, kept = predicted == case["mask_id"], predicted == true
        # A random id is the true one now and then. Difference: ours is never a special token, theirs may be.
        assert predicted[~mask].min() >= SPECIAL
        assert sample["random_replacement_min_id"] < SPECIAL
        hit = 0.1 / (case["vocab_size"] - SPECIAL)
        for share, law, name in (
            (mask, 0.8, "selected_mask_fraction"),
            (kept, 0.1 + hit, "selected_unchanged_fraction"),
            (~mask & ~kept, 0.1 - hit, "selected_random_fraction"),
        ):
            sigma = math.sqrt(law * (1 - law) / count)
            ours = share.double().mean().item()
            assert abs(ours - law) < 5 * sigma
            # Difference: the newer system rounds 80/10/10 of each sequence's count (10 -> 8, 1, 1; 16 -> 13, 1, 2).
            if system == "ntng":
                assert abs(ours - sample[name]) < 5 * math.sqrt(2) * sigma
        # Difference: the older system draws for each token, so a sequence's count varies around the share.
        assert (chosen.sum(1) == round(rate * shape[1])).all()
        theirs = sample["selected_fraction_of_non_special"]
        assert abs(chosen.double().mean().item() - theirs) < 0.5 / shape[1] + 5 * math.sqrt(rate / rows.numel())


def test_counts_of_the_newer_system(shared: Path) -> None:
    """How many of S positions are predicted at a rate: the same numbers, halves rounded to even."""
    case, _ = masking_case(shared, "cramming")
    for name, counts in case["counts"].items():
        rate, length = (float(part.split("=")[1]) for part in name.split(","))
        rows = torch.full((3, int(length)), 77)
        batch = masked(case, rows, rate)
        assert (batch.weights.sum(1) == counts["masks"]).all(), name
