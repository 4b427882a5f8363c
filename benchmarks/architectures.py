"""What is compared with what: every family at one size, and transformers' model beside it.

A family's counterpart is transformers' own implementation of the same model, from the config that our exporter writes,
with the weights that our importer reads: the same sizes and, checked before anything is timed, the same logits. A
family that transformers does not have is compared with its BERT of the same width and depth, and every row says so.

Shape legend: B sequences, S positions, P predicted, H hidden, V vocabulary.
"""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import Tensor

from cramming.architectures import ArchConfig, from_reference
from cramming.architectures.references import WRITERS
from cramming.batch import Batch
from cramming.cli import CONFIG_DIR, compose
from cramming.errors import UserError
from cramming.model import Model
from cramming.suggest import nearest

FAMILIES = ("bert", "crammed", "mosaic", "m2", "24hbert", "roberta", "albert", "deberta", "modern", "neobert")
IN_TRANSFORMERS = ("bert", "24hbert", "roberta", "albert", "deberta", "modern")  # the same model, of the same sizes
LENGTHS = (128, 512, 1024, 2048, 4096, 8192)
PUBLISHED_BATCHES = {  # sequences at each length, as the M2 study timed them on a 40 GB card; nothing: did not fit
    "m2": {512: 32, 1024: 32, 2048: 16, 4096: 8, 8192: 4},
    "flash": {512: 32, 1024: 32, 2048: 8, 4096: 4, 8192: 2},
    "hf": {512: 32, 1024: 16, 2048: 4, 4096: 1},
}
MASK, FIRST_WORD = 4, 5  # token ids of vocabularies trained here
LOGITS_AGREE_WITHIN = 1e-3  # of their norm, in float32
CHECKED_TOKENS = 256
_THEIR_NAMES = {  # of the sizes, in the configs of transformers
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
}
# Of vocabularies trained here; the defaults of some configs lie outside small ones.
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
_SEED = 0


@dataclass(frozen=True)
class Size:
    """The sizes every family is given; a feed-forward part keeps its family's proportion to ``hidden``."""

    layers: int
    hidden: int
    heads: int
    vocab_size: int
    files: tuple[str, ...]  # of ``config/arch``, with the family's name in them; the first that exists is taken


SIZES = {
    "tiny": Size(2, 64, 2, 512, ("{}_tiny", "{}_small", "{}")),
    "small": Size(4, 256, 4, 8192, ("{}_small", "{}")),
    "base": Size(12, 768, 12, 30528, ("{}_base", "{}")),
    "large": Size(24, 1024, 16, 30528, ("{}_large", "{}")),
}


@dataclass(frozen=True)
class Case:
    """One row of a table: a family at a length, and the batch both sides see."""

    family: str
    length: int
    sequences: int
    size: Size
    mask_rate: float
    dropout: float = 0.0

    def arch(self) -> ArchConfig:
        """Our options.

        Raises:
            UserError: there is no such family, or it cannot have these sizes.
        """
        known = {file.stem for file in (CONFIG_DIR / "arch").glob("*.yaml")}
        names = [pattern.format(self.family) for pattern in self.size.files]
        found = [name for name in names if name in known]
        if not found:
            raise UserError(f"config/arch has no {self.family!r}{nearest(self.family, known)}")
        arch = _sized(_composed(found[0]), self.size)
        return _with_dropout(_reaching(arch, self.length), self.dropout)

    def batch(self) -> Batch:
        """Random tokens with a skewed distribution, as text has it, masked once."""
        random = torch.Generator().manual_seed(_SEED)
        shape = (self.sequences, self.length)
        skewed = torch.rand(shape, generator=random) ** 3
        tokens = FIRST_WORD + (skewed * (self.size.vocab_size - FIRST_WORD)).long()
        predicted = max(1, round(self.mask_rate * self.length))
        positions = torch.rand(shape, generator=random).argsort(1)[:, :predicted].sort(1).values
        rows, weights = torch.arange(self.sequences), torch.ones(positions.shape)
        inputs, labels = tokens.scatter(1, positions, MASK), tokens.gather(1, positions)
        return Batch(rows, torch.zeros_like(rows), inputs, positions, labels, weights, None, weights.sum())

    def counterpart(self) -> "Counterpart":
        """Transformers' model to compare with.

        Raises:
            UserError: as ``arch``, or no exporter expresses these options.
        """
        if self.family in IN_TRANSFORMERS:
            arch = self.arch()
            if arch.kind not in WRITERS:
                raise UserError(f"nothing writes arch kind {arch.kind!r} as a config of transformers")
            family, config = WRITERS[arch.kind](arch, self.size.vocab_size, self.length)
            return Counterpart(config["model_type"], config, family)
        config = {
            "vocab_size": self.size.vocab_size,
            "max_position_embeddings": self.length,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout,
            "intermediate_size": 4 * self.size.hidden,
            **{theirs: getattr(self.size, ours) for ours, theirs in _THEIR_NAMES.items() if ours != "intermediate"},
        }
        return Counterpart("bert", config, None)

    def our_model(self) -> Model:
        """Our model on the processor, in training mode, with the weights of the counterpart where it is the same one.

        Raises:
            UserError: as ``counterpart``; or its logits are not ours.
        """
        counterpart = self.counterpart()
        if counterpart.family is None:
            torch.manual_seed(_SEED)
            fresh: Any = self.arch().build(self.size.vocab_size, self.length)
            return fresh.train()  # type: ignore[no-any-return]
        theirs = counterpart.build()
        ours: Any = from_reference(counterpart.family, theirs.config.to_dict(), theirs.state_dict(), "mlm")
        difference = _difference(ours.eval(), theirs.eval(), self.batch())
        if difference > LOGITS_AGREE_WITHIN:
            raise UserError(
                f"the logits differ from those of {counterpart.model_type} by {difference:.1e} of their norm"
            )
        return ours.train()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Counterpart:
    """Transformers' model: its kind and config; ``family``, whose importer reads it, None: another model than ours."""

    model_type: str
    config: Mapping[str, Any]
    family: str | None

    @property
    def named(self) -> str:
        """For a table."""
        return self.model_type if self.family else f"{self.model_type} (another model)"

    def build(self, attention: str = "") -> transformers.PreTrainedModel:
        """With fresh weights, always the same, in training mode; attention by default as the library chooses it.

        Raises:
            UserError: the model does not have that attention.
        """
        keys = {name: value for name, value in self.config.items() if name not in ("model_type", "architectures")}
        config = transformers.AutoConfig.for_model(self.model_type, **{**_SPECIAL, **keys})
        torch.manual_seed(_SEED)
        chosen = {"attn_implementation": attention} if attention else {}
        try:
            model = transformers.AutoModelForMaskedLM.from_config(config, **chosen)
        except ValueError as error:
            raise UserError(f"{self.model_type} with their_attention={attention}: {error}") from error
        return model.train()  # type: ignore[no-any-return]


def dense_labels(batch: Batch) -> Tensor:
    """Labels as transformers takes them: -100 wherever nothing is predicted, (B, S)."""
    return torch.full_like(batch.inputs, -100).scatter(1, batch.positions, batch.labels)


def their_head(model: Any, states: Tensor) -> Tensor:
    """Logits of some rows of hidden states, by the head of a transformers model: (N, H) -> (N, V)."""
    if hasattr(model, "lm_predictions"):  # DeBERTa as published: the decoder is the embedding matrix
        return model.lm_predictions(states, model.base_model.embeddings.word_embeddings)  # type: ignore[no-any-return]
    for name in ("cls", "lm_head", "predictions"):
        if hasattr(model, name):
            return getattr(model, name)(states)  # type: ignore[no-any-return]
    return model.decoder(model.head(states))  # type: ignore[no-any-return]


@torch.inference_mode()
def _difference(ours: Model, theirs: Any, batch: Batch) -> float:
    """Largest relative difference of the two models' logits on the beginning of a batch's first sequence."""
    inputs = batch.inputs[:1, :CHECKED_TOKENS]
    every = torch.arange(inputs.shape[1])[None]
    weights = torch.ones(every.shape)
    rows = torch.zeros(1, dtype=torch.int64)
    with torch.autocast("cpu", enabled=False):
        found = ours(Batch(rows, rows, inputs, every, inputs, weights, None, weights.sum()), logits=True)
        due = theirs(input_ids=inputs).logits
    return float((found - due).norm() / due.norm())


@functools.cache
def _composed(name: str) -> ArchConfig:
    """The options of a file of ``config/arch``."""
    return compose([f"arch={name}"]).arch  # type: ignore[no-any-return]


def _sized(arch: ArchConfig, size: Size) -> ArchConfig:
    """The architecture at another size; sizes that it does not have are left out."""
    wanted = {name: getattr(size, name) for name in ("layers", "hidden", "heads")}
    own = {field.name for field in fields(arch)}
    if "hidden" not in own and "config" in own:  # the sizes are in a config of transformers
        before = dict(arch.config or {})  # type: ignore[attr-defined]
        theirs = {_THEIR_NAMES[name]: value for name, value in wanted.items()}
        if {"intermediate_size", "hidden_size"} <= before.keys():
            theirs["intermediate_size"] = _scaled(before["intermediate_size"], before["hidden_size"], size.hidden)
        return replace(arch, config={**before, **theirs})  # type: ignore[call-arg]
    if "intermediate" in own:
        wanted["intermediate"] = _scaled(arch.intermediate, arch.hidden, size.hidden)  # type: ignore[attr-defined]
    return replace(arch, **{name: value for name, value in wanted.items() if name in own})


def _scaled(intermediate: int, hidden: int, wanted: int) -> int:
    """The width of the feed-forward part in proportion, a multiple of 16."""
    return intermediate if wanted == hidden else max(16, round(intermediate * wanted / hidden / 16) * 16)


def _reaching(arch: ArchConfig, length: int) -> ArchConfig:
    """The architecture with a position table for sequences of ``length``, if it has one that is shorter."""
    rows = getattr(arch, "max_positions", None)
    return arch if rows is None or rows >= length else replace(arch, max_positions=length)  # type: ignore[call-arg]


def _with_dropout(arch: ArchConfig, dropout: float) -> ArchConfig:
    """The architecture with dropout, of attention as well where it has that."""
    try:
        return replace(arch, dropout=dropout, attention_dropout=dropout)
    except UserError:
        return replace(arch, dropout=dropout)
