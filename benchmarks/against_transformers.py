"""Training step of ``bert_small`` against Hugging Face's Trainer on a CPU, in pairs.

    python benchmarks/against_transformers.py pairs=12 steps=2

Same weights, same batches in the same order, same mathematics: bfloat16 passes over float32 weights, clipping, fused
AdamW, no dropout, losses compared after the last step. README.md has the protocol and dated results.
"""

import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.reporting import asked, circumstances, keep, spread
from cramming import optim
from cramming.architectures import from_reference
from cramming.batch import Batch
from cramming.cli import run_command
from cramming.engine import Engine
from cramming.errors import UserError
from cramming.method import Method
from rst.clock import Clock
from rst.costs import StepsCost

LR, CLIP_NORM = 1e-3, 0.5
WEIGHT_DECAY, BETAS, EPS = 0.01, (0.9, 0.98), 1e-12
LOSSES_AGREE_WITHIN = 0.02  # nats; both round to bfloat16, each in its own places


@dataclass
class Options:
    """What the command line may change."""

    pairs: int = 10  # each a block of theirs and one of ours
    steps: int = 2  # optimizer steps in a block
    warmup: int = 2  # pairs left out of the statistics
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    vocab_size: int = 8192
    seq_length: int = 128
    mask_rate: float = 0.15
    batch_size: int = 64
    microbatch_size: int = 32  # ours
    their_microbatch_size: int = 64
    their_attention: str = "sdpa"  # or eager
    compile: bool = False  # our blocks
    out: str = ""  # a JSON file for the result


class Corpus(Dataset[dict[str, Tensor]]):
    """Random tokens with a skewed distribution, masked once; both sides see the same."""

    def __init__(self, options: Options) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = (options.pairs + options.warmup) * options.steps * options.batch_size
        predicted = round(options.mask_rate * options.seq_length)
        shape = (rows, options.seq_length)
        skewed = torch.rand(shape, generator=generator) ** 3  # frequent tokens exist, as in text
        self.tokens = 5 + (skewed * (options.vocab_size - 5)).long()
        order = torch.rand(shape, generator=generator).argsort(1)
        self.positions = order[:, :predicted].sort(1).values
        self.inputs = self.tokens.scatter(1, self.positions, 4)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """One sequence as transformers expects it: labels -100 where nothing is predicted."""
        labels = torch.full_like(self.tokens[row], -100)
        labels[self.positions[row]] = self.tokens[row, self.positions[row]]
        return {"input_ids": self.inputs[row], "labels": labels}

    def batch(self, start: int, size: int) -> Batch:
        """Consecutive sequences as our batch."""
        rows = slice(start, start + size)
        positions = self.positions[rows]
        weights = torch.ones(positions.shape)
        return Batch(
            ids=torch.arange(start, start + size),
            epochs=torch.zeros(size, dtype=torch.int64),
            inputs=self.inputs[rows],
            positions=positions,
            labels=self.tokens[rows].gather(1, positions),
            weights=weights,
            lengths=None,
            normalizer=weights.sum(),
        )


class Ours:
    """Our engine from the same weights."""

    def __init__(self, reference: transformers.PreTrainedModel, corpus: Corpus, options: Options) -> None:
        self.corpus, self.options = corpus, options
        model = from_reference("hf_bert", reference.config.to_dict(), reference.state_dict(), "mlm")
        self.engine = Engine(
            model.train(),  # type: ignore[arg-type]
            optim.build(
                "adamw",
                optim.parameter_groups(model, decay_norms=False),
                lr=LR,
                weight_decay=WEIGHT_DECAY,
                betas=list(BETAS),
                eps=EPS,
            ),
            Clock({"main": StepsCost()}, budget_s=1e9),
            precision="bfloat16",
            microbatch_size=options.microbatch_size,
            clip_norm=CLIP_NORM,
            compile=options.compile,
        )
        self.fast_paths = self.engine.model.fast_paths()
        self.done = 0

    def step(self) -> float:
        """One optimizer step; its loss in nats."""
        batch = self.corpus.batch(self.done * self.options.batch_size, self.options.batch_size)
        for part in batch.split(self.options.microbatch_size):
            self.engine.backward(part, Method().objective)
        self.engine.step(1.0)
        self.done += 1
        return self.engine.loss


@dataclass
class Seconds:
    """Seconds of each block: by the clock, and of this process's threads."""

    wall: list[float]
    cpu: list[float]

    def add(self, started: tuple[float, float]) -> None:
        """What passed since ``started`` belongs to the last block."""
        wall, cpu = now()
        self.wall[-1] += wall - started[0]
        self.cpu[-1] += cpu - started[1]

    def open(self) -> None:
        """A new block."""
        self.wall.append(0.0)
        self.cpu.append(0.0)


def now() -> tuple[float, float]:
    """Seconds by the clock and of this process's threads."""
    return time.perf_counter(), time.process_time()


class Alternate(transformers.TrainerCallback):
    """Times their steps, without the loading of data between them, and runs a block of ours after each of theirs."""

    def __init__(self, ours: Ours, options: Options) -> None:
        self.ours, self.options = ours, options
        self.their_s, self.our_s = Seconds([0.0], [0.0]), Seconds([0.0], [0.0])
        self.our_loss, self._started = 0.0, now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Their step starts."""
        self._started = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Their step ended; after the last of a block it is our turn."""
        self.their_s.add(self._started)
        if state.global_step % self.options.steps:
            return
        started = now()
        for _step in range(self.options.steps):
            self.our_loss = self.ours.step()
        self.our_s.add(started)
        self.their_s.open()
        self.our_s.open()


def their_model(options: Options) -> transformers.PreTrainedModel:
    """Their model with fresh weights and no dropout."""
    torch.manual_seed(0)
    config = transformers.BertConfig(  # type: ignore[call-arg]  # it takes any key
        vocab_size=options.vocab_size,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.hidden,
        max_position_embeddings=options.seq_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=options.their_attention,
    )
    return transformers.BertForMaskedLM(config)


def measure(options: Options) -> dict[str, Any]:
    """Run the pairs; what was measured, as plain values.

    Raises:
        UserError: the two losses differ by more than rounding: the two sides did not do the same work.
    """
    corpus, reference = Corpus(options), their_model(options)
    alternate = Alternate(Ours(reference, corpus, options), options)
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=reference,
            train_dataset=corpus,
            callbacks=[alternate],
            args=transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=options.their_microbatch_size,
                gradient_accumulation_steps=options.batch_size // options.their_microbatch_size,
                max_steps=len(corpus) // options.batch_size,
                use_cpu=True,
                bf16=True,
                optim="adamw_torch_fused",
                learning_rate=LR,
                lr_scheduler_type="constant",
                max_grad_norm=CLIP_NORM,
                weight_decay=WEIGHT_DECAY,
                adam_beta1=BETAS[0],
                adam_beta2=BETAS[1],
                adam_epsilon=EPS,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                train_sampling_strategy="sequential",
                disable_tqdm=True,
                log_level="error",
            ),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    reported = [row["loss"] for row in trainer.state.log_history if "loss" in row][-1]
    # For this model their Trainer adds up the means of accumulated microbatches without dividing by their number; with
    # clipping and Adam that changes nothing but the reported loss.
    their_loss = float(reported) * options.their_microbatch_size / options.batch_size
    if abs(their_loss - alternate.our_loss) > LOSSES_AGREE_WITHIN:
        raise UserError(f"losses after the last step differ: theirs {their_loss}, ours {alternate.our_loss}")
    kept = slice(options.warmup, -1)  # the last entry was opened and never used
    ours, theirs = alternate.our_s, alternate.their_s
    tokens = options.steps * options.batch_size * options.seq_length
    return {
        "wall": _ratio(theirs.wall[kept], ours.wall[kept]),
        "cpu": _ratio(theirs.cpu[kept], ours.cpu[kept]),
        "our_tokens_per_s_median": tokens / statistics.median(ours.wall[kept]),
        "their_tokens_per_s_median": tokens / statistics.median(theirs.wall[kept]),
        "our_first_block_s": ours.wall[0],
        "losses_after_last_step": {"ours": alternate.our_loss, "theirs": their_loss},
        "fast_paths": alternate.ours.fast_paths,
        "options": asdict(options),
        **circumstances(),
    }


def _ratio(theirs: list[float], ours: list[float]) -> dict[str, Any]:
    """Their seconds over ours, pair by pair: median, quartiles and all of them."""
    return spread([t / o for t, o in zip(theirs, ours, strict=True)])


def main() -> None:
    """Parse, measure, print."""
    options = asked(Options, __doc__)
    result = measure(options)
    for clock, unit in (("wall", "tokens/s"), ("cpu", "tokens per CPU second")):
        low, high = result[clock]["quartiles"]
        print(f"{result[clock]['median']:.2f}x their {unit} (quartiles {low:.2f} to {high:.2f}, {options.pairs} pairs)")
    print(
        f"ours {result['our_tokens_per_s_median']:.0f}, theirs {result['their_tokens_per_s_median']:.0f} tokens/s; "
        f"first block of ours {result['our_first_block_s']:.1f} s; losses {result['losses_after_last_step']}"
    )
    keep(result, options.out)


if __name__ == "__main__":
    run_command(main)
