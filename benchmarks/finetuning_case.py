"""What both sides of ``finetuning.py`` are given: rows, tokenizer, a model to begin with, and the order of examples."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cramming import resolve
from cramming.architectures.configs.bert import BertConfig
from cramming.data import tokenizer_training
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.evaluation import batches, encoding, finetuned, material
from cramming.evaluation.config import EvalConfig, Setting
from cramming.evaluation.encoded import Encoded
from cramming.evaluation.tasks.task import Task
from cramming.exchange.weights import Weights
from cramming.suggest import nearest

BETAS, EPS, WEIGHT_DECAY = [0.9, 0.999], 1e-8, 0.01
SEED = 0
ORDERS = ("grouped", "random")
DEVICES = ("auto", "cpu", "cuda")
_ROWS = {"train": 8192, "dev": 872}  # that are made here; as many to evaluate on as SST-2 has
_WORDS = 20000  # different ones in them
_LONGEST = 52  # words, as SST-2's


@dataclass
class Options:
    """What the command line may change."""

    data_dir: str = ""  # folder with SST-2 as its authors pack it; nothing: random words and labels
    words_mean: float = 9.4  # in a row of random words; SST-2's mean
    pairs: int = 12  # each a block of theirs and one of ours
    steps: int = 20  # optimizer steps in a block
    warmup: int = 2  # pairs left out of the statistics
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    vocab_size: int = 8192  # at most; of random rows, whose tokenizer has fewer pieces, the model's
    max_length: int = 128
    batch_size: int = 16
    dropout: float = 0.1
    lr: float = 4e-5
    clip_norm: float = 1.0
    device: str = "auto"  # a GPU if there is one; or cpu, cuda
    precision: str = "auto"  # bfloat16 where the device computes in it
    their_order: str = "grouped"  # as ours; or random
    their_attention: str = "sdpa"  # or eager
    their_evaluation_batch_size: int = 64
    threads: int = 0  # 0: as many as torch takes
    out: str = ""  # a JSON file for the result

    def __post_init__(self) -> None:
        if self.their_order not in ORDERS:
            raise UserError(f"their_order={self.their_order} is not one of {', '.join(ORDERS)}")
        if self.device not in DEVICES:
            raise UserError(f"device={self.device} is unknown{nearest(self.device, DEVICES)}")
        if self.pairs < 2:
            raise UserError(f"pairs={self.pairs}: quartiles take two or more")
        if not self.words_mean >= 1:
            raise UserError(f"words_mean={self.words_mean:g} must be 1 or more")

    def where(self) -> torch.device:
        """The device of both sides.

        Raises:
            UserError: there is no GPU.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda: there is no NVIDIA GPU here that torch can use; use device=auto")
        return resolve.device() if self.device == "auto" else torch.device(self.device)


@dataclass
class Case:
    """What both sides are given.

    Attributes:
        task: SST-2.
        setting: how it is fine-tuned.
        tokenizer: of both.
        model: the one to begin with, on the processor; nobody trains it.
        device: where both sides compute.
        train: encoded.
        validation: encoded.
        order: examples of each optimizer step.
        precision: of the passes.
    """

    task: Task
    setting: Setting
    tokenizer: Tokenizer
    model: finetuned.FineTuned
    device: torch.device
    train: Encoded
    validation: Encoded
    order: list[np.ndarray]
    precision: str


def case_of(options: Options, folder: Path) -> Case:
    """Rows, tokenizer, model and batches.

    Raises:
        UserError: no rows at ``data_dir``, no such device, or sizes that no model can have.
    """
    device = options.where()
    rows_in = options.data_dir or str(random_rows(folder / "rows", options.words_mean))
    config = EvalConfig(name="finetuning", suite="finetuning", tasks=["sst2"], data_dir=rows_in)
    (task,) = material.tasks_of(config, folder)
    rows = {split: material.examples_of(config, task, split, folder, []) for split in ("train", "validation")}
    texts = [segment for example in rows["train"] for text in example.texts for segment in text.segments]
    tokenizer = tokenizer_training.throwaway(texts, options.vocab_size, "wordpiece", None)
    encoded = {
        split: encoding.encode(
            task, examples, tokenizer, max_length=options.max_length, spans="pooled", cache=folder / "encoded"
        )
        for split, examples in rows.items()
    }
    setting = Setting(
        lr=options.lr,
        batch_size=options.batch_size,
        schedule="linear",
        warmup=float(_steps(options) // 10),  # whole steps, as theirs
        betas=BETAS,
        eps=EPS,
        weight_decay=WEIGHT_DECAY,
        clip_norm=options.clip_norm,
        max_length=options.max_length,
        dropout=options.dropout,
    )
    vocab_size = tokenizer.vocab_size if options.data_dir else max(tokenizer.vocab_size, options.vocab_size)
    arch = BertConfig(
        layers=options.layers,
        hidden=options.hidden,
        heads=options.heads,
        intermediate=4 * options.hidden,
        vocab_size=vocab_size,
    )
    torch.manual_seed(SEED)
    state = arch.build(vocab_size, options.max_length).state_dict()
    weights = Weights("fresh", arch, vocab_size, options.max_length, state, tokenizer, {})
    precision = options.precision
    if precision == "auto":
        precision = "float32" if resolve.lacking("bfloat16", device) else "bfloat16"
    return Case(
        task=task,
        setting=setting,
        tokenizer=tokenizer,
        model=finetuned.build(finetuned.Start(weights), task, setting, SEED),
        device=device,
        train=encoded["train"],
        validation=encoded["validation"],
        order=list(_order(encoded["train"], options)),
        precision=precision,
    )


def random_rows(folder: Path, words_mean: float) -> Path:
    """Files as SST-2's authors pack it, of random made-up words with random labels.

    A row has 1 + X words, X exponential and rounded down, at most 52: SST-2's phrases are distributed much like that.
    The n-th commonest word comes about 1/n as often as the commonest.

    Args:
        folder: made, for the files.
        words_mean: about so many words in a row.

    Returns:
        The folder.
    """
    draw = random.Random(SEED)
    syllables = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "s")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(_WORDS)]
    often = list(itertools.accumulate(1 / n for n in range(1, _WORDS + 1)))
    where = folder / "SST-2"
    where.mkdir(parents=True)
    for name, count in _ROWS.items():
        lines = ["sentence\tlabel"]
        for _ in range(count):
            more = int(draw.expovariate(1 / (words_mean - 0.5)))  # rounding down takes half a word in the mean
            row = draw.choices(words, cum_weights=often, k=min(_LONGEST, 1 + more))
            lines.append(f"{' '.join(row)}\t{draw.randrange(2)}")
        (where / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def _steps(options: Options) -> int:
    """Optimizer steps of either side."""
    return (options.pairs + options.warmup) * options.steps


def _order(train: Encoded, options: Options) -> Iterator[np.ndarray]:
    """The examples of each step: as many epochs as that takes."""
    left, epoch = _steps(options), 0
    while left:
        for examples in batches.order(train, options.batch_size, SEED, epoch, drop_last=True):
            yield examples
            left -= 1
            if not left:
                return
        epoch += 1
        if len(train) < options.batch_size:
            raise UserError(f"batch_size={options.batch_size} is more than the {len(train)} training rows there are")
