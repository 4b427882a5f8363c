"""Models whose answers are known, as probes ask them."""

from collections.abc import Callable

import torch
from torch import Tensor

from cramming.batch import Batch
from cramming.data.tokenizer import Tokenizer, wordpiece
from cramming.evaluation.probes.grammar import pairs
from cramming.evaluation.probes.reader import Reader
from cramming.model import Model

CPU = torch.device("cpu")
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class Told(Model):
    """A model of two layers that answers what it is told to."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.active_layers = (0, 1)
        self.vocab_size, self.max_positions = vocab_size, 64


def whole_words(*more: str) -> Tokenizer:
    """Every word of the embedded pairs is a token; ids 0 to 4 as everywhere here."""
    known = {word.strip(".") for pair in pairs() for word in f"{pair.good} {pair.bad}".lower().split()}
    pieces = [*_SPECIAL, ".", *sorted(known | set(more))]
    return Tokenizer(wordpiece({piece: number for number, piece in enumerate(pieces)}, lowercase=True))


def letters() -> Tokenizer:
    """Every letter is a token, at the beginning of a word and within one."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*_SPECIAL, *alphabet, *(f"##{letter}" for letter in alphabet), "."]
    return Tokenizer(wordpiece({piece: number for number, piece in enumerate(pieces)}, lowercase=True))


def reader_of(
    tokenizer: Tokenizer,
    *,
    logits: Callable[[Batch], Tensor] | None = None,
    hidden: Callable[[Batch], Tensor] | None = None,
) -> Reader:
    """A reader of what these functions say; by default the states are zeros and all tokens equally likely."""

    def equal(batch: Batch) -> Tensor:
        return torch.zeros(*batch.positions.shape, tokenizer.vocab_size)

    def zeros(batch: Batch) -> Tensor:
        return torch.zeros(*batch.inputs.shape, 4)

    return Reader(hidden or zeros, logits or equal, Told(tokenizer.vocab_size), tokenizer, CPU)


def shown(batch: Batch, width: int) -> Tensor:
    """States that say which token is at each place: (B, S, width), one-hot of the id."""
    return torch.nn.functional.one_hot(batch.inputs % width, width).float()
