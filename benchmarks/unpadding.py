"""What unpadding saves: sequences as long as GLUE's in rows of 128, against the same model computing padding, in pairs.

    python benchmarks/unpadding.py glue=GLUE vocabulary=bert-base-uncased-vocab.txt
    python benchmarks/unpadding.py glue=... vocabulary=... tasks=SST-2 layers=12 hidden=768 heads=12 batch_size=16

Both sides have the same weights and batches, and both compute the last layer and the vocabulary at predicted positions
only; the padded side masks padding in attention and computes it everywhere else. The lengths are those of the tasks'
training examples as models read them ([CLS] a [SEP] b [SEP], cut at ``seq_length``), each task as often as the others.
README.md has the protocol.
"""

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.reporting import asked, circumstances, keep, spread
from cramming import optim
from cramming.architectures.configs.mosaic import MosaicConfig
from cramming.architectures.layers.unpadding import Layout
from cramming.architectures.mosaic import Mosaic
from cramming.batch import Batch
from cramming.cli import run_command
from cramming.data.tokenizer import Tokenizer
from cramming.engine import Engine
from cramming.errors import UserError
from cramming.method import Method
from rst.clock import Clock
from rst.costs import StepsCost

COLUMNS = {"CoLA": (3,), "SST-2": (0,), "MRPC": (3, 4), "RTE": (1, 2)}  # of the text, in train.tsv
HEADLINES = {"CoLA": 0, "SST-2": 1, "MRPC": 1, "RTE": 1}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LOSSES_AGREE_WITHIN = 0.02  # nats; both round to bfloat16, each in its own places


@dataclass
class Options:
    """What the command line may change."""

    glue: str = ""  # folder of GLUE as its authors pack it
    vocabulary: str = ""  # a vocab.txt, or another tokenizer on the disk
    tasks: str = ",".join(COLUMNS)
    pairs: int = 12  # each a training step and a forward pass of either side
    warmup: int = 2  # pairs left out of the statistics
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    vocab_size: int = 8192
    seq_length: int = 128
    mask_rate: float = 0.3
    batch_size: int = 64
    microbatch_size: int = 32
    precision: str = "bfloat16"
    device: str = "cpu"
    threads: int = 0  # 0: as many as torch takes
    out: str = ""  # a JSON file for the result


class Padded(Mosaic):
    """The model without unpadding: every cell is computed, padding is attended to by nothing."""

    def layout(
        self, inputs: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None, starts: Tensor | None = None
    ) -> Layout:
        known = super().layout(inputs, mask, lengths, starts)
        return Layout(known.sequences, known.length, mask=known.mask)


def task_lengths(options: Options) -> dict[str, Tensor]:
    """Tokens of every training example of each task, at most ``seq_length``.

    Raises:
        UserError: an unknown task, or files that are not there.
    """
    names = options.tasks.split(",")
    if not options.glue or not options.vocabulary:
        raise UserError("give glue=FOLDER (with CoLA/train.tsv and so on) and vocabulary=vocab.txt")
    if unknown := [name for name in names if name not in COLUMNS]:
        raise UserError(f"tasks={options.tasks}: {unknown[0]!r} is not one of {', '.join(COLUMNS)}")
    tokenizer = Tokenizer.load(Path(options.vocabulary))
    found = {}
    for name in names:
        path = Path(options.glue) / name / "train.tsv"
        if not path.is_file():
            raise UserError(f"{path} is not there: glue= names the folder that {name} lies in")
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[HEADLINES[name] :]]
        columns = COLUMNS[name]
        rows = [row for row in rows if len(row) > max(columns)]
        texts = [tokenizer.encode_lists([row[column] for row in rows]) for column in columns]
        tokens = torch.tensor([sum(len(ids) for ids in example) for example in zip(*texts, strict=True)])
        found[name] = (tokens + 1 + len(columns)).clamp(max=options.seq_length)
    return found


def batches(options: Options, lengths: dict[str, Tensor]) -> list[Batch]:
    """One batch of random tokens of those lengths for every pair, padded to ``seq_length``."""
    random = torch.Generator().manual_seed(0)
    made = []
    for _ in range(options.pairs + options.warmup):
        chosen = list(lengths.values())
        parts = [chosen[i % len(chosen)] for i in range(options.batch_size)]
        drawn = torch.stack([part[torch.randint(len(part), (), generator=random)] for part in parts])
        tokens = torch.randint(5, options.vocab_size, (options.batch_size, options.seq_length), generator=random)
        inside = torch.arange(options.seq_length) < drawn[:, None]
        slots = round(options.mask_rate * options.seq_length)
        positions = torch.rand(tokens.shape, generator=random).masked_fill_(~inside, 2.0).argsort(1)[:, :slots]
        weights = (torch.arange(slots) < (drawn * options.mask_rate).round()[:, None]).float()
        rows, labels = torch.arange(options.batch_size), tokens.gather(1, positions)
        inputs = tokens.scatter(1, positions, torch.where(weights > 0, 4, labels)).where(inside, 0)
        batch = Batch(rows, rows, inputs, positions, labels, weights, drawn, weights.sum())
        made.append(batch.to(torch.device(options.device)))
    return made


class Side:
    """A model with its engine."""

    def __init__(self, model: Mosaic, options: Options) -> None:
        self.engine = Engine(
            model.to(options.device),
            optim.build("adamw", optim.parameter_groups(model), lr=1e-4),
            Clock({"main": StepsCost()}, budget_s=1e9),
            precision=options.precision,
            microbatch_size=options.microbatch_size,
        )

    def step(self, batch: Batch) -> float:
        """One optimizer step, as runs do it; its loss in nats."""
        for part in batch.split(self.engine.microbatch_size):
            self.engine.backward(part, Method().objective)
        self.engine.step(1.0)
        self.engine.synchronize()
        return self.engine.loss

    def forward(self, batch: Batch) -> float:
        """Losses without gradients, as selection has them; their mean over sequences in nats."""
        loss = self.engine.losses(batch, "selection").mean()
        self.engine.synchronize()
        return float(loss)


def seconds(work: Callable[[Batch], float], batch: Batch) -> tuple[dict[str, float], float]:
    """By the clock and of this process's threads; and what the work gave."""
    began = {name: clock() for name, clock in CLOCKS.items()}
    value = work(batch)
    return {name: clock() - began[name] for name, clock in CLOCKS.items()}, value


def measure(options: Options) -> dict[str, Any]:
    """Run the pairs; what was measured, as plain values.

    Raises:
        UserError: the two losses differ by more than rounding: the two sides did not do the same work.
    """
    lengths = task_lengths(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    hidden = options.hidden
    config = MosaicConfig(layers=options.layers, hidden=hidden, heads=options.heads, intermediate=4 * hidden)
    padded, unpadded = Padded(config, options.vocab_size), Mosaic(config, options.vocab_size)
    unpadded.load_state_dict(copy.deepcopy(padded.state_dict()))
    sides = {"padded": Side(padded, options), "unpadded": Side(unpadded, options)}
    ratios: dict[str, dict[str, list[float]]] = {clock: {"step": [], "forward": []} for clock in CLOCKS}
    filled = []
    for pair, batch in enumerate(batches(options, lengths)):
        assert batch.lengths is not None
        for work in ("step", "forward"):
            took, gave = {}, {}
            for name in sorted(sides, reverse=bool(pair % 2)):  # neither always comes first
                took[name], gave[name] = seconds(getattr(sides[name], work), batch)
            if not abs(gave["padded"] - gave["unpadded"]) < LOSSES_AGREE_WITHIN:
                raise UserError(f"the two sides of a {work} differ by more than rounding: {gave}")
            if pair >= options.warmup:
                for clock in CLOCKS:
                    ratios[clock][work].append(took["padded"][clock] / took["unpadded"][clock])
        filled.append(float(batch.lengths.float().mean() / options.seq_length))
    return {
        **{clock: {f"{work}_speed": spread(values) for work, values in by.items()} for clock, by in ratios.items()},
        "tokens_share": sum(filled) / len(filled),
        "mean_tokens": {name: float(found.float().mean()) for name, found in lengths.items()},
        "options": {key: value for key, value in asdict(options).items() if key not in ("glue", "vocabulary", "out")},
        **circumstances(torch.device(options.device)),
    }


def main() -> None:
    """Parse, measure, print."""
    options = asked(Options, __doc__)
    result = measure(options)
    print(f"{result['tokens_share']:.1%} of the cells hold tokens; sequences/s, padded = 1:")
    for clock in CLOCKS:
        for work in ("step", "forward"):
            found = result[clock][f"{work}_speed"]
            low, high = found["quartiles"]
            print(f"  {work:7} {clock:4} {found['median']:.2f} ({low:.2f} to {high:.2f})")
    print(f"load {result['load_average'][0]:.1f}")
    keep(result, options.out)


if __name__ == "__main__":
    run_command(main)
