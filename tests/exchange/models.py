"""A tiny model of every kind of architecture, and what they are asked."""

import dataclasses
import re
from functools import cache

import torch
from torch import Tensor

from cramming.architectures.configs import ArchConfig
from cramming.architectures.configs.hf import HfConfig
from cramming.architectures.references import WRITERS
from cramming.batch import Batch
from cramming.cli import CONFIG_DIR, compose
from cramming.data.tokenizer import Tokenizer, wordpiece
from cramming.exchange.weights import Weights, sha256
from cramming.model import Model

POSITIONS = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Sizes that no family minds; a family takes those it has.
_SMALL = {"layers": 2, "hidden": 32, "heads": 2, "intermediate": 64, "embedding_dim": 16}
_NETWORK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@cache
def tokenizer() -> Tokenizer:
    """The special tokens, and every letter at the beginning of a word and within one."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return Tokenizer(wordpiece({piece: number for number, piece in enumerate(pieces)}, lowercase=True))


@cache
def kinds() -> dict[str, str]:
    """A name for every architecture that another system has -> the smallest option of ``arch`` of it."""
    tiny = {file.stem.removesuffix("_tiny"): file for file in sorted((CONFIG_DIR / "arch").glob("*_tiny.yaml"))}
    covered = {found[1] for file in tiny.values() if (found := re.search(r"schema_(\w+)", file.read_text()))}
    rest = {kind: kind for kind in sorted(set(WRITERS) - covered)}  # composes by its own name
    return {name: file.stem for name, file in tiny.items()} | rest


@cache
def arch_of(kind: str) -> ArchConfig:
    """A tiny architecture."""
    arch: ArchConfig = compose(["data=local", "data.path=none", f"arch={kinds()[kind]}"]).arch
    if isinstance(arch, HfConfig):
        return dataclasses.replace(arch, config=_NETWORK)
    known = {field.name for field in dataclasses.fields(arch)}
    return dataclasses.replace(arch, **{key: value for key, value in _SMALL.items() if key in known})


def weights_of(arch: ArchConfig, positions: int = POSITIONS, words: Tokenizer | None = None) -> Weights:
    """Random weights, large enough that every part of a model matters to what it says."""
    words = words or tokenizer()
    torch.manual_seed(0)
    model = arch.build(words.vocab_size, positions)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Weights("random", arch, words.vocab_size, positions, state, words, {"weights_sha256": sha256(state)})


def padded_batch() -> tuple[Batch, Tensor, Tensor]:
    """Two sequences, one with padding: a batch that asks at every token; its ids and mask, 2 x (B, S)."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(5, tokenizer().vocab_size, (2, 12), generator=random)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    ids = ids.where(mask.bool(), tokenizer().pad_id)
    positions = torch.arange(7).expand(2, 7)
    used, rows = torch.ones(2, 7), torch.arange(2)
    batch = Batch(rows, torch.zeros_like(rows), ids, positions, ids.gather(1, positions), used, mask.sum(1), used.sum())
    return batch, ids, mask


@torch.no_grad()
def logits(model: Model) -> Tensor:
    """What a model says to that batch: (2, 7, V)."""
    return model(padded_batch()[0], logits=True)
