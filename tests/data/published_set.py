"""A miniature of a published token set, made with the libraries the original was made with."""

import bz2
import importlib.util
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from cramming.data import download, row_blocks
from cramming.data.store import TokenStore
from cramming.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "assets" / "download_c4_subset.py"
NAME = "c4-subset-random"
FOLDER = f"{NAME}_WordPiecex300_0123456789abcdef0123456789abcdef"
ARCHIVE = f"{NAME}.tar.bz2"
LENGTH = 16
BLOCK_ROWS = 100
#: What a run says of the miniature.
RUN: dict[str, Any] = {"name": NAME, "seq_length": LENGTH, "vocab_size": 300}
SPECIAL = {
    "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<cls>",
    "sep_token": "<sep>", "mask_token": "<mask>",
}  # fmt: skip


def tokenizer_of(text: str) -> tokenizers.Tokenizer:
    """A WordPiece tokenizer with 300 pieces, its special tokens at the ids training gave them."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(prefix="##")
    special = list(SPECIAL.values())
    made.train_from_iterator([text], trainers.WordPieceTrainer(vocab_size=300, special_tokens=special[::-1]))
    ends = [(token, made.token_to_id(token)) for token in ("<cls>", "<sep>")]
    pair = "<cls>:0 $A:0 <sep>:0 $B:0 <sep>:0"
    made.post_processor = processors.TemplateProcessing(single="$A <sep>", pair=pair, special_tokens=ends)
    return made


def make(folder: Path, text: str) -> np.ndarray:
    """Write the set into ``folder``: four shards of shuffled rows. Returns them, (N, S)."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    backend = tokenizer_of(text)
    ids = [number for document in text.split("\n\n") for number in backend.encode(document).ids]
    rows = np.array(ids[: len(ids) // LENGTH * LENGTH], np.int32).reshape(-1, LENGTH)
    masks = np.isin(rows, [backend.token_to_id(token) for token in SPECIAL.values()]).astype(np.int8)
    columns = {"input_ids": list(rows), "attention_mask": list(np.ones_like(masks)), "special_tokens_mask": list(masks)}
    dataset = datasets.Dataset.from_dict(columns).shuffle(seed=233)  # the rows now stand in the order of an index
    dataset.save_to_disk(str(folder), num_shards=4)
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=LENGTH, **SPECIAL).save_pretrained(
        str(folder / "tokenizer")
    )
    settings = {"name": NAME, "vocab_size": 300, "seq_length": LENGTH, "include_cls_token_in_corpus": False}
    (folder / "model_config.json").write_text(json.dumps(settings))
    return np.array(datasets.load_from_disk(str(folder)).with_format("numpy")["input_ids"][:])


def archive(folder: Path, names: list[str] | None = None) -> bytes:
    """The set as a tar.bz2, its files in the order of ``names``, by default one in which shards are mixed up."""
    if names is None:
        shards = sorted(path.name for path in folder.glob("data-*"))
        rest = ["dataset_info.json", "model_config.json", "state.json"]
        names = [shards[2], shards[0], *rest[:2], shards[3], "tokenizer", rest[2], shards[1]]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(folder, arcname=FOLDER, recursive=False)
        for name in names:
            tar.add(folder / name, arcname=f"{FOLDER}/{name}")
    return bz2.compress(packed.getvalue())


def copied(folder: Path, to: Path) -> Path:
    """A set to spoil."""
    shutil.copytree(folder, to)
    return to


def load_script() -> Any:
    """The command's module."""
    spec = importlib.util.spec_from_file_location("download_c4_subset", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["download_c4_subset"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_small() -> None:
    """Several blocks a shard, several pieces a download, and no waiting."""
    row_blocks.BLOCK_TOKENS = BLOCK_ROWS * LENGTH
    download._CHUNK_BYTES = 4096
    download._WAITS_S = (0.0, 0.0)


def tokens(store: TokenStore) -> np.ndarray:
    """Every row, (N, S)."""
    return store.read(np.arange(store.rows))[0]


def refused(call: Callable[[], Any], *said: str) -> None:
    """The call ends in one line with these words."""
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for words in said:
        assert words in message, message
