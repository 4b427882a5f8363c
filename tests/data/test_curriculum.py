"""Curricula: rows sorted by what is in them, each training row once an epoch, the same after any kill."""

import itertools
import json
import multiprocessing
import random
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from cramming import faults
from cramming.data import curriculum as module
from cramming.data.config import CURRICULA, ORDERS, REVERSED
from cramming.data.curriculum import curriculum
from cramming.data.curriculum_keys import characters, full_stops
from cramming.data.preparation import prepare
from cramming.data.sources.local import LocalConfig
from cramming.data.store import TokenStore
from cramming.data.stream import Split, Stream
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.progress import Silent

HELDOUT = 0.2


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks and ranges in a store of a few hundred rows."""
    monkeypatch.setattr(module, "_TOKENS_AT_A_TIME", 32 * 10)
    monkeypatch.setattr(module, "_KEYS_AT_A_TIME", 37)
    monkeypatch.setattr(module, "_SORTED_ROWS", 100)
    monkeypatch.setattr(module, "_KEPT_EVERY", 3)


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., TokenStore]:
    """The store of a small text, in either layout: documents of 3 to 60 words, sentences of 2 to 12."""

    def make(layout: str = "packed") -> TokenStore:
        draw = random.Random(0)
        syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
        words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(300)]
        documents = []
        for _ in range(300):
            text = draw.choices(words, [1 / (1 + rank) for rank in range(300)], k=draw.randint(3, 60))
            for place in range(draw.randint(2, 12), len(text), draw.randint(2, 12)):
                text[place] += "."
            documents.append(" ".join(text))
        path = tmp_path / "corpus.txt"
        path.write_text("\n\n".join(documents))
        config = LocalConfig(path=str(path), vocab_size=400, seq_length=32, layout=layout)
        return prepare(config, tmp_path / "data", workers=0)

    return make


def rows_of(store: TokenStore, name: str) -> np.ndarray:
    """An epoch of the training rows."""
    split = Split(store.rows, HELDOUT)
    return curriculum(store, split, name, Silent())(0)(np.arange(split.train_rows))


def slow_keys(store: TokenStore, name: str) -> dict[int, float]:
    """The key of every training row, written down as the definition reads."""
    split, tokenizer = Split(store.rows, HELDOUT), store.tokenizer
    training = split.train(np.arange(split.train_rows)).tolist()
    rows = {row: [int(t) for t in store.read(np.array([row]))[0][0] if t != tokenizer.pad_id] for row in training}
    counts = dict.fromkeys(range(tokenizer.vocab_size), 1)  # one more than seen
    for tokens in rows.values():
        for token in tokens:
            counts[token] += token != tokenizer.cls_id
    total = sum(counts.values()) - 2  # [CLS] and [PAD] are no part of the text

    def key(tokens: list[int]) -> float:
        text = [token for token in tokens if token != tokenizer.cls_id]
        if name == "rarity":
            return float(np.mean([np.log2(counts[token] / total) for token in text]))
        if name == "sentence_length":
            return -sum(tokenizer.token(token) == "." for token in text)
        if name == "fragments":
            return -text.count(tokenizer.sep_id)
        words = [token for token in text if token not in tokenizer.special_ids]
        word = tokenizer.encode("ba").tolist()
        return len(tokenizer.decode(word + words)) - len(tokenizer.decode(word))

    return {row: key(tokens) for row, tokens in rows.items()}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("layout", ["packed", "document"])
@pytest.mark.parametrize("name", CURRICULA)
def test_rows_are_sorted_by_the_key_and_ties_by_number(
    name: str, layout: str, make_store: Callable[..., TokenStore]
) -> None:
    if (name, layout) == ("fragments", "document"):
        return
    store = make_store(layout)
    keys = slow_keys(store, name)
    assert len(set(keys.values())) > 2, "nothing to order by"
    for order, sign in ((name, 1), (REVERSED + name, -1)):
        rows = rows_of(store, order).tolist()
        assert sorted(rows) == sorted(keys), "each training row once, no other"
        for earlier, later in itertools.pairwise(rows):
            difference = sign * (keys[later] - keys[earlier])
            assert difference > -1e-5, f"{order}: {earlier} before {later}"
            if keys[earlier] == keys[later] and name != "rarity":
                assert earlier < later
        assert not list(store.folder.glob("*.work"))


def test_the_order_does_not_depend_on_how_much_is_looked_at_together(
    make_store: Callable[..., TokenStore], request: pytest.FixtureRequest
) -> None:
    store = make_store()
    at_once = {name: rows_of(store, name) for name in ORDERS[1:]}
    for file in store.folder.glob("order-*"):
        file.unlink()
    request.getfixturevalue("small_chunks")
    for name, rows in at_once.items():
        assert np.array_equal(rows_of(store, name), rows), name


def stream(store: TokenStore, name: str) -> Stream:
    split = Split(store.rows, HELDOUT)
    order = curriculum(store, split, name, Silent())
    rate: Callable[[], float] = lambda: 0.15  # noqa: E731
    device = torch.device("cpu")
    return Stream(store, split, seed=3, mask_rate=rate, max_mask_rate=0.15, device=device, order=order)


def test_a_stream_repeats_the_order_in_every_epoch_with_other_masks(make_store: Callable[..., TokenStore]) -> None:
    store = make_store()
    source = stream(store, "rarity")
    n = source.split.train_rows
    first, second = source.draw(n), source.draw(n)
    assert first.ids.tolist() == second.ids.tolist() == rows_of(store, "rarity").tolist()
    assert not torch.equal(first.inputs, second.inputs)
    heldout = set(source.split.heldout(np.arange(source.split.heldout_rows)).tolist())
    assert heldout
    assert not heldout & set(first.ids.tolist())


@pytest.mark.parametrize("before", [1, 50, 400])
def test_a_stream_goes_on_behind_what_was_consumed(make_store: Callable[..., TokenStore], before: int) -> None:
    store = make_store("document")
    source, resumed = stream(store, "reverse_word_length"), stream(store, "reverse_word_length")
    source.draw(before)
    state = json.loads(json.dumps(source.state_dict()))
    assert set(state) == {"epoch", "offset"}
    resumed.load_state_dict(state)
    follows, expected = resumed.draw(60), source.draw(60)
    assert follows.ids.tolist() == expected.ids.tolist()
    assert torch.equal(follows.inputs, expected.inputs)


@pytest.mark.usefixtures("small_chunks")
def test_killed_anywhere_the_order_is_the_same(make_store: Callable[..., TokenStore]) -> None:
    store = make_store()
    expected = rows_of(store, "rarity")
    (file,) = store.folder.glob("order-*.npy")
    content = file.read_bytes()
    for point in ("order-counted:8", "order-counts-rename:2", "order-keys:10", "order-keys-fsync:3", "order-sorted:2"):
        file.unlink()
        killed = multiprocessing.get_context("fork").Process(target=computed_until, args=(store, point))
        killed.start()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL, f"{point} was never passed"
        assert not file.exists()
        assert np.array_equal(rows_of(store, "rarity"), expected), point
        assert file.read_bytes() == content, point


def computed_until(store: TokenStore, point: str) -> None:
    faults.arm(point)
    rows_of(store, "rarity")


@pytest.mark.usefixtures("small_chunks")
def test_a_killed_computation_does_not_look_at_rows_again(
    make_store: Callable[..., TokenStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    passed = 0

    def interrupted(name: str) -> None:
        nonlocal passed
        passed += name == "order-keys"
        if passed == 11:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module.faults, "point", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rows_of(store, "word_length")
    read: list[int] = []
    whole = store.read

    def noted(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        read.append(int(rows[0]))
        return whole(rows)

    monkeypatch.setattr(store, "read", noted)
    rows_of(store, "word_length")
    assert min(read) == 90, "9 of the 11 chunks of 10 rows were known to be on the disk"


def test_an_order_that_is_damaged_is_named(make_store: Callable[..., TokenStore]) -> None:
    store = make_store()
    rows_of(store, "rarity")
    (file,) = store.folder.glob("order-*.npy")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"order-rarity.* is damaged; delete it"):
        rows_of(store, "rarity")


def test_another_heldout_part_is_another_order(make_store: Callable[..., TokenStore]) -> None:
    store = make_store()
    for fraction in (0.0, 0.1, 0.5):
        split = Split(store.rows, fraction)
        rows = curriculum(store, split, "fragments", Silent())(0)(np.arange(split.train_rows))
        assert sorted(rows.tolist()) == sorted(split.train(np.arange(split.train_rows)).tolist())


def test_what_is_refused(letters: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.order=rareness is not known; did you mean"):
        LocalConfig(path="x", order="rareness").check()
    with pytest.raises(UserError, match=r"data.layout=document has one in each"):
        LocalConfig(path="x", order="reverse_fragments", layout="document").check()
    (tmp_path / "text.txt").write_text("a b c d e f g h\n\n" * 50)
    config = LocalConfig(path=str(tmp_path / "text.txt"), tokenizer=letters, seq_length=8)
    with pytest.raises(UserError, match=r"no token for one; use data.order=word_length"):
        rows_of(prepare(config, tmp_path / "data", workers=0), "sentence_length")


def byte_level() -> Tokenizer:
    """Every byte a piece, and some pieces of several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    merges = [("ã", "ģ"), ("ãģ", "®"), ("ã", "Ģ"), ("ãĢ", "Ĥ"), ("ãĢĤ", "ãģ"), (".", '"'), (".", ".")]
    pieces = [*special, *alphabet, *("".join(merge) for merge in merges)]
    backend = tokenizers.Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return Tokenizer(backend)


@pytest.mark.parametrize("text", ["the cat, the hat.", "彼の本。彼の目。の", "naïve café 東京"])
def test_characters_of_tokens_add_up_to_those_of_the_text(text: str) -> None:
    """Also where one character is several tokens, or a token holds one character and part of the next."""
    tokenizer = byte_level()
    ids = tokenizer.encode(text)
    assert len(ids) > len(text) / 2
    assert characters(tokenizer)[ids].sum() == len(text)


def test_full_stops_are_told_from_other_points() -> None:
    tokenizer = byte_level()
    found = {tokenizer.decode([number]) for number in full_stops(tokenizer)}
    assert {".", "。", '."'} <= found
    assert ".." not in found
