"""A tokenizer and splits small enough to fine-tune on in a test."""

from collections.abc import Callable

import pytest
import small_tasks

from cramming.data.tokenizer import Tokenizer
from cramming.evaluation.encoded import Encoded
from cramming.evaluation.encoding import in_memory
from cramming.evaluation.tasks.task import Kind


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Letters, signs and a few words: about 110 pieces, ids 0 to 4 as everywhere here."""
    return small_tasks.letters()


@pytest.fixture(scope="session")
def encoded_split(tokenizer: Tokenizer) -> Callable[..., Encoded]:
    """``encoded_split(kind, count, seed=0, ...)``: ``small_tasks.examples`` encoded."""

    def make(kind: Kind = "classification", count: int = 64, seed: int = 0, **more: int) -> Encoded:
        made = small_tasks.examples(kind, count, seed, **more)
        return in_memory(small_tasks.task(kind), made, tokenizer, max_length=64, spans="pooled")

    return make


@pytest.fixture
def splits(encoded_split: Callable[..., Encoded]) -> dict[str, Encoded]:
    """Train and validation of a task of two classes that a word decides."""
    return {"train": encoded_split(count=64), "validation": encoded_split(count=32, seed=1)}
