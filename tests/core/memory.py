"""A whole run in memory: rows of random tokens, a model of two small layers, no file and no preparation.

The laws of the core do not depend on where text comes from, so these tests build a ``Run`` from its parts as
``cramming.build`` does, with a stand-in for the token store.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cramming import optim
from cramming.architectures import BertConfig
from cramming.batch import Batch
from cramming.config import PretrainConfig
from cramming.data.stream import Split, Stream
from cramming.engine import Engine
from cramming.method import Method
from cramming.parallel.ranks import here
from cramming.schedule import Constant
from cramming.train import Run, train
from rst.clock import Clock, CostModel
from rst.costs import StepsCost
from rst.work import Work

CPU = torch.device("cpu")
VOCABULARY, LENGTH, LAYERS = 64, 24, 2
MASK_RATE = 0.25
FLAT = Constant()


@dataclass(frozen=True)
class FakeTokenizer:
    """What the stream asks of a tokenizer: ids 0 to 4 are special, the others are real tokens."""

    vocab_size: int = VOCABULARY
    pad_id: int = 0
    unk_id: int = 1
    cls_id: int = 2
    sep_id: int = 3
    mask_id: int = 4
    special_ids: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    sha256: str = "fake"


class MemoryStore:
    """A token store: ``packed`` rows are [CLS] and random tokens with a [SEP] here and there, ``document`` rows are
    [CLS] tokens [SEP] and padding, between 3 tokens and the whole row."""

    def __init__(self, rows: int, seq_length: int = LENGTH, layout: str = "packed") -> None:
        random = np.random.default_rng(rows)
        self.rows, self.seq_length, self.layout = rows, seq_length, layout
        self.tokenizer = FakeTokenizer()
        self.fingerprint = "memory"
        self._lengths: NDArray[np.int64] | None = None
        self.tokens = random.integers(5, VOCABULARY, (rows, seq_length)).astype(np.uint16)
        self.tokens[:, 0] = self.tokenizer.cls_id
        if layout == "packed":
            self.tokens[:, 1:][random.random((rows, seq_length - 1)) < 0.05] = self.tokenizer.sep_id
        else:
            self._lengths = random.integers(3, seq_length + 1, rows)
            for row, length in zip(self.tokens, self._lengths, strict=True):
                row[length - 1], row[length:] = self.tokenizer.sep_id, self.tokenizer.pad_id

    def read(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint16], NDArray[np.int64] | None]:
        """Rows by number."""
        return self.tokens[ids], None if self._lengths is None else self._lengths[ids]


@cache
def store(layout: str = "packed", rows: int = 120) -> MemoryStore:
    """The same corpus for every test."""
    return MemoryStore(rows, layout=layout)


def stream(corpus: MemoryStore | None = None, seed: int = 0, rate: Callable[[], float] = lambda: MASK_RATE) -> Stream:
    """A stream of a tenth held out; slots for rates up to a half."""
    corpus = corpus or store()
    split = Split(corpus.rows, 0.1)
    return Stream(corpus, split, seed=seed, mask_rate=rate, max_mask_rate=0.5, device=CPU)  # type: ignore[arg-type]


def batch_of(n: int, layout: str = "packed") -> Batch:
    """The first ``n`` sequences of the stream; in the document layout no two need predict equally many tokens."""
    return stream(store(layout)).draw(n)


def small_model(dropout: float = 0.0, seed: int = 0) -> torch.nn.Module:
    """BERT with two layers of width 32."""
    torch.manual_seed(seed)
    config = BertConfig(
        layers=LAYERS, hidden=32, heads=2, intermediate=64, dropout=dropout, attention_dropout=dropout, init_std=0.1
    )
    return config.build(VOCABULARY, LENGTH).train(dropout > 0)


class PassCost:
    """A price list that is easy to add up: a layer of a sequence costs 1 forward and 3 with the way back, a step 1."""

    def seconds(self, work: Work) -> float:
        """Whole numbers, so that sums are exact."""
        return {"forward": 1.0, "forward_backward": 3.0, "update": 0.0}[work.kind] * work.sequences * (
            1 + work.layers
        ) + (work.kind == "update")


def endless_clock(costs: CostModel | None = None, free: Collection[str] = ()) -> Clock:
    """A clock that only counts."""
    return Clock({"main": costs or PassCost()}, 1e9, free=free)


def engine_of(
    model: torch.nn.Module | None = None,
    optimizer: str = "sgd",
    *,
    clock: Clock | None = None,
    hyperparameters: dict[str, Any] | None = None,
    lr: float = 0.1,
    **options: Any,
) -> Engine:
    """An engine by itself, without clipping unless asked for; that of one of several ranks by DDP."""
    model = model or small_model()
    built = optim.build(optimizer, optim.parameter_groups(model), lr=lr, **(hyperparameters or {}))
    return Engine(model, built, clock or endless_clock(), **{"parallel": parallel(), **options})


def parallel() -> str:
    """How ranks, if there are several, train together unless a test says otherwise."""
    return "ddp" if here().world > 1 else "none"


def run_of(
    method: Method | None = None,
    *,
    budget: float = 12,
    costs: CostModel | None = None,
    free: Collection[str] = (),
    stop_at: float | None = None,
    seed: int = 0,
    batch_size: Callable[[float], int] = lambda progress: 8,
    schedule: Callable[[float], float] = FLAT,
    layout: str = "packed",
    dropout: float = 0.0,
    microbatch_size: int = 4,
    optimizer: str = "adamw",
    precision: str = "float32",
    lr: float = 1e-3,
    mask_rate: Callable[[float], float] = lambda progress: MASK_RATE,
) -> Run:
    """A run at step 0. Its clock counts optimizer steps unless ``costs`` says otherwise."""
    method = method or Method()
    clock = Clock({"main": costs or StepsCost()}, budget, stop_at, {*free, *method.free})
    model = small_model(dropout)
    engine = engine_of(
        model, optimizer, lr=lr, clock=clock, precision=precision, microbatch_size=microbatch_size, clip_norm=0.5
    )
    source = stream(store(layout), seed, lambda: mask_rate(clock.progress))
    run = Run(PretrainConfig(seed=seed), model, engine, source, clock, method, schedule, batch_size)
    method.setup(run)
    return run


def trained(run: Run, observe: Callable[[Run], None] = lambda run: None) -> Run:
    """The run at the end of its budget."""
    train(run, observe)
    return run


def weights(model: torch.nn.Module) -> torch.Tensor:
    """All weights as one vector, a copy."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradients(model: torch.nn.Module) -> torch.Tensor:
    """All gradients as one vector; zero where there is none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the last bit: types, shapes, NaN equal to NaN, zero unequal to minus zero."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))
    if isinstance(a, dict):
        return {(type(k), k) for k in a} == {(type(k), k) for k in b} and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, Batch):
        return same(vars(a), vars(b))
    return bool(a == b)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)
