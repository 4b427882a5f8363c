"""Fine-tuning and evaluation of ``bert_small`` on SST-2 against Hugging Face's Trainer, in pairs.

    python benchmarks/finetuning.py data_dir=GLUE pairs=24
    python benchmarks/finetuning.py data_dir=GLUE pairs=24 their_order=random
    python benchmarks/finetuning.py                                            # random rows, as long as SST-2's
    python benchmarks/finetuning.py device=cuda layers=12 hidden=768 heads=12 vocab_size=30522 batch_size=32

A block of training is ``steps`` optimizer steps, one of evaluation the whole validation split. Both sides begin with
the same weights, which ours exports and theirs loads, and the mathematics is the same: bfloat16 passes over float32
weights (theirs: autocast), dropout, clipping, fused AdamW, a linear schedule, padding to the longest text of a batch.
Unlike ``against_transformers.py``, making batches counts, on both sides: with texts this short it matters.

With ``their_order=grouped`` every batch of training has the same examples on both sides, of similar length, and their
evaluation gets the rows sorted by length: what their options can do at best. With ``their_order=random`` they draw
batches as they do unless told otherwise, and evaluate the rows as they come. Their evaluation is measured with autocast
and with bfloat16 weights.

On a GPU both sides are on the same one; clocks are read once it has done all that was asked of it, and seconds of the
processor say nothing. Memory is the most a side held in its first block of training: weights, gradients, optimizer and
what passes keep. README.md has the protocol and dated results.
"""

import copy
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset

from benchmarks.against_transformers import Seconds, now
from benchmarks.finetuning_case import BETAS, EPS, SEED, WEIGHT_DECAY, Case, Options, case_of
from benchmarks.grid import Measured, busy, forget_peak, memory_mb, peak_mb, synchronize
from benchmarks.presentation import CONTENDED
from benchmarks.reporting import asked, circumstances, keep, spread
from cramming.cli import run_command
from cramming.errors import UserError
from cramming.evaluation import batches, finetune, optimizing, saved
from cramming.evaluation.encoded import Encoded
from cramming.evaluation.updating import Updater

LOGITS_AGREE_WITHIN = 1e-4  # in float32, of the largest
# Nats, means of all steps, where each side draws its own dropout; and where there is none.
LOSSES_AGREE_WITHIN, LOSSES_WITHOUT_DROPOUT = 0.1, 0.01
_CLOCKS = {"cpu": ("wall", "cpu"), "cuda": ("wall",)}  # of a device, those that mean something


class Examples(Dataset[dict[str, Any]]):
    """Rows in memory as transformers expects them, in a given order."""

    def __init__(self, encoded: Encoded, order: Sequence[int]) -> None:
        assert encoded.labels is not None
        starts, tokens = encoded.starts.tolist(), np.asarray(encoded.tokens).tolist()
        self.rows = [
            {"input_ids": tokens[starts[row] : starts[row + 1]], "labels": int(encoded.labels[row])} for row in order
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """An example."""
        return self.rows[row]


class Padded:
    """Their padding to the longest of a batch; counts cells."""

    def __init__(self, reads: Any) -> None:
        self.collate, self.cells = transformers.DataCollatorWithPadding(reads), 0

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        """Examples as a batch."""
        batch = self.collate(rows)
        self.cells += batch["input_ids"].numel()
        return batch


class Ours:
    """Our loop's step on the batches of ``case``, with weights of its own."""

    def __init__(self, case: Case) -> None:
        self.case, self.done = case, 0
        self.factor = optimizing.factors(case.setting, len(case.order))
        self.model = copy.deepcopy(case.model).to(case.device)
        self.updater = Updater(
            self.model,
            optimizing.optimizer(self.model, case.setting),
            precision=case.precision,
            clip_norm=case.setting.clip_norm,
        )
        self.losses: list[torch.Tensor] = []
        self.cells = 0

    def block(self, steps: int) -> None:
        """So many optimizer steps."""
        for _ in range(steps):
            inputs = batches.gather(self.case.train, self.case.order[self.done])
            self.losses.append(self.updater.step(inputs, self.factor(self.done)))
            self.cells += inputs.tokens.numel()
            self.done += 1
        self.updater.check()

    def evaluate(self) -> np.ndarray:
        """Logits of the validation split."""
        return finetune.evaluate(self.updater.module, self.case.validation)


class Alternate(transformers.TrainerCallback):
    """Runs a block of ours after each of theirs, which reaches from the end of ours to the end of their last step.

    Args:
        ours: our side.
        steps: of a block.
        held_mb: what each side holds before it has trained; what its first block takes is added to it.
    """

    def __init__(self, ours: Ours, steps: int, held_mb: dict[str, float]) -> None:
        self.ours, self.steps, self.held_mb = ours, steps, held_mb
        self.peak_mb: dict[str, float] = {}
        self.device = ours.case.device
        self.their_s, self.our_s = Seconds([0.0], [0.0]), Seconds([0.0], [0.0])
        self._started, self._before_mb = (0.0, 0.0), 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Their first block starts; there is one epoch."""
        self._watch_memory("theirs")
        self._started = done_at(self.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Their step ended; after the last of a block it is our turn."""
        if state.global_step % self.steps:
            return
        synchronize(self.device)
        self.their_s.add(self._started)
        self._note_memory("theirs")
        self._watch_memory("ours")
        started = done_at(self.device)
        self.ours.block(self.steps)
        synchronize(self.device)
        self.our_s.add(started)
        self._note_memory("ours")
        self.their_s.open()
        self.our_s.open()
        self._started = done_at(self.device)

    def _watch_memory(self, side: str) -> None:
        """Before a side's block: the peak is counted from here, in its first block."""
        if side not in self.peak_mb:
            self._before_mb = memory_mb(self.device)
            forget_peak(self.device)

    def _note_memory(self, side: str) -> None:
        """After it."""
        if side not in self.peak_mb:
            self.peak_mb[side] = self.held_mb[side] + peak_mb(self.device) - self._before_mb


def done_at(device: torch.device) -> tuple[float, float]:
    """The clocks, once the device has done all that was asked of it."""
    synchronize(device)
    return now()


def their_trainer(
    case: Case, exported: Path, options: Options, callbacks: Sequence[transformers.TrainerCallback], **changed: Any
) -> transformers.Trainer:
    """Their Trainer with the model that ours exported, as fast as its options make it, on one device."""
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        exported, attn_implementation=options.their_attention
    )
    reads: Any = transformers.AutoTokenizer.from_pretrained(exported)
    args = transformers.TrainingArguments(
        output_dir=str(exported / "trainer"),
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.their_evaluation_batch_size,
        num_train_epochs=1,
        use_cpu=case.device.type == "cpu",
        bf16=case.precision == "bfloat16",
        optim="adamw_torch_fused",
        learning_rate=options.lr,
        lr_scheduler_type="linear",
        warmup_steps=int(case.setting.warmup),
        max_grad_norm=options.clip_norm,
        weight_decay=WEIGHT_DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        # The rows lie in the order of our batches.
        train_sampling_strategy="sequential" if options.their_order == "grouped" else "random",
        dataloader_pin_memory=case.device.type == "cuda",
        disable_tqdm=True,
        log_level="error",
        seed=SEED,
        **changed,
    )
    if case.device.type == "cuda":
        args._n_gpu = 1  # else it would spread batches over all GPUs there are
    trainer = transformers.Trainer(
        model=model,
        processing_class=reads,
        data_collator=Padded(reads),
        train_dataset=Examples(case.train, [int(row) for step in case.order for row in step]),
        callbacks=list(callbacks),
        args=args,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def measure(options: Options) -> dict[str, Any]:
    """Run the pairs; what was measured, as plain values.

    Raises:
        UserError: the two sides did not do the same work, or accelerate, which Trainer needs, is not installed.
    """
    if not transformers.utils.is_accelerate_available():
        raise UserError("Trainer needs accelerate, which is not installed: poetry install --extras benchmarks")
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        case = case_of(options, Path(folder))
        exported = Path(folder) / "exported"
        library = saved.save(case.model, exported, tokenizer=case.tokenizer, setting=case.setting)
        assert library == "BertForSequenceClassification", library
        held_mb, before_mb = dict[str, float](), memory_mb(case.device)
        ours = Ours(case)
        held_mb["ours"] = memory_mb(case.device) - before_mb
        alternate = Alternate(ours, options.steps, held_mb)
        before_mb = memory_mb(case.device)
        trainer = their_trainer(case, exported, options, [alternate])
        held_mb["theirs"] = memory_mb(case.device) - before_mb
        _check_same(case, trainer)
        training_loss = float(trainer.train().training_loss)
        collator: Any = trainer.data_collator
        evaluation = _evaluations(case, ours, exported, options)
    losses = {"ours": float(torch.stack(ours.losses).mean()), "theirs": training_loss}
    exact = options.dropout == 0 and options.their_order == "grouped"
    within = LOSSES_WITHOUT_DROPOUT if exact else LOSSES_AGREE_WITHIN
    if not math.isclose(losses["ours"], losses["theirs"], abs_tol=within):
        raise UserError(f"mean losses of training differ: {losses}")
    kept = slice(options.warmup, -1)  # the last entry was opened and never used
    their_s, our_s = alternate.their_s, alternate.our_s
    examples = options.steps * options.batch_size
    trained = ours.done * options.batch_size
    return {
        "training": {
            **_ratios(their_s, our_s, kept, case.device),
            "peak_mb": alternate.peak_mb,
            "our_examples_per_s_median": examples / statistics.median(our_s.wall[kept]),
            "their_examples_per_s_median": examples / statistics.median(their_s.wall[kept]),
            "losses_mean": losses,
        },
        "evaluation": evaluation,
        "rows": {"train": len(case.train), "validation": len(case.validation)},
        "tokens_mean": float(batches.lengths(case.train).mean()),
        "width_mean": {"ours": ours.cells / trained, "theirs": collator.cells / trained},  # tokens a row, with padding
        "precision": case.precision,
        "options": {key: value for key, value in asdict(options).items() if key not in ("data_dir", "out")},
        "vocab_size": ours.model.encoder.vocab_size,
        "generated_rows": options.data_dir in ("", "generated"),
        **circumstances(case.device),
    }


def _check_same(case: Case, trainer: transformers.Trainer) -> None:
    """The two models compute the same before anything is trained."""
    some = np.arange(min(32, len(case.validation)))
    inputs = batches.gather(case.validation, some)
    mask = None if inputs.mask is None else inputs.mask.long()
    theirs: Any = trainer.model.eval().cpu()  # type: ignore[union-attr]
    with torch.no_grad():
        expected = theirs(input_ids=inputs.tokens, attention_mask=mask).logits
        found = case.model.eval()(inputs)
    theirs.to(case.device)
    if not torch.allclose(found, expected, atol=LOGITS_AGREE_WITHIN * float(expected.abs().max()), rtol=0):
        raise UserError(
            f"logits differ by up to {float((found - expected).abs().max())}: these are not the same models"
        )


def _evaluations(case: Case, ours: Ours, exported: Path, options: Options) -> dict[str, Any]:
    """Evaluation of the whole validation split: ours, theirs with autocast, theirs with weights of low precision."""
    saved.save(copy.deepcopy(ours.model).cpu().eval(), exported, tokenizer=case.tokenizer, setting=case.setting)
    order = np.arange(len(case.validation))
    if options.their_order == "grouped":
        order = np.argsort(-batches.lengths(case.validation), kind="stable")
    rows = Examples(case.validation, order.tolist())
    sides: dict[str, Callable[[], np.ndarray]] = {"ours": ours.evaluate}
    for name, low in {"autocast": False, "low": True}.items() if case.precision == "bfloat16" else [("float32", False)]:
        sides[name] = _predicting(their_trainer(case, exported, options, [], bf16_full_eval=low), rows)
    seconds = {name: Seconds([], []) for name in sides}
    logits: dict[str, np.ndarray] = {}
    names = list(sides)
    for pair in range(options.warmup + options.pairs):
        for name in names[pair % len(names) :] + names[: pair % len(names)]:  # none always comes first
            seconds[name].open()
            started = done_at(case.device)
            logits[name] = sides[name]()
            synchronize(case.device)
            seconds[name].add(started)
    kept = slice(options.warmup, None)
    result: dict[str, Any] = {
        "our_examples_per_s_median": len(rows) / statistics.median(seconds["ours"].wall[kept]),
    }
    for name in names[1:]:
        same = (logits["ours"][order].argmax(1) == logits[name].argmax(1)).mean()
        result[name] = {
            **_ratios(seconds[name], seconds["ours"], kept, case.device),
            "their_examples_per_s_median": len(rows) / statistics.median(seconds[name].wall[kept]),
            "same_answers": float(same),
        }
    return result


def _predicting(trainer: transformers.Trainer, rows: Examples) -> Callable[[], np.ndarray]:
    return lambda: np.asarray(trainer.predict(rows).predictions)


def _ratios(theirs: Seconds, ours: Seconds, kept: slice, device: torch.device) -> dict[str, Any]:
    """Their seconds over ours, pair by pair and by each clock; and whether these are to be trusted."""
    clocks: dict[str, Any] = {}
    for clock in _CLOCKS[device.type]:
        pairs = zip(getattr(theirs, clock)[kept], getattr(ours, clock)[kept], strict=True)
        clocks[clock] = spread([their_s / our_s for their_s, our_s in pairs])
    return {**clocks, "busy": busy(clocks, Measured())}


def main() -> None:
    """Parse, measure, print."""
    options = asked(Options, __doc__)
    result = measure(options)
    compared = {"training": result["training"]}
    compared |= {f"evaluation, {k}": v for k, v in result["evaluation"].items() if isinstance(v, dict)}
    for what, found in compared.items():
        said = []
        for clock in (clock for clock in _CLOCKS["cpu"] if clock in found):
            low, high = found[clock]["quartiles"]
            said.append(f"{found[clock]['median']:.2f}x ({low:.2f} to {high:.2f}) by {clock}")
        print(f"{what}: {f'{CONTENDED}, measure again: ' if found['busy'] else ''}{', '.join(said)}")
    ours, theirs = (result["training"][f"{side}_examples_per_s_median"] for side in ("our", "their"))
    print(
        f"training: ours {ours:.0f}, theirs {theirs:.0f} examples/s; losses {result['training']['losses_mean']}; "
        f"{result['tokens_mean']:.1f} tokens a row, with padding {result['width_mean']}; {result['precision']}; "
        f"MB {result['training']['peak_mb']}"
    )
    keep(result, options.out)


if __name__ == "__main__":
    run_command(main)
