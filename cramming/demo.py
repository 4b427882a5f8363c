"""``make demo``: a small model, trained, stopped, resumed and looked at, on text that is already on this machine."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cramming.build import Parts
from cramming.cli import compose, load_schemas, run_command
from cramming.data.store import TokenStore
from cramming.evaluation.trained import load_run
from cramming.fill_mask import fill
from cramming.folder import find
from cramming.session import pretrain
from cramming.train import Run
from cramming.validation import MASK_RATE, MASK_SEED, VALIDATION_SEQUENCES, validate

_OPTIONS = ["name=demo", "experiment=demo"]
_SENTENCES = ("This function returns the [MASK] of the array.", "If the file does not [MASK], an error is raised.")


def unigram_loss(run: Run) -> float:
    """Cross entropy of guessing every held-out predicted token by its frequency in the training part, in nats."""
    store, split, vocabulary = run.stream.store, run.stream.split, run.stream.store.tokenizer.vocab_size
    counts = np.ones(vocabulary)  # one more than seen, so that no token is impossible
    for start in range(0, split.train_rows, 4096):
        rows = split.train(np.arange(start, min(start + 4096, split.train_rows)))
        counts += np.bincount(_tokens(store, rows), minlength=vocabulary)
    counts[store.tokenizer.special_ids] = 0
    surprise = torch.from_numpy(-np.log(counts / counts.sum(), where=counts > 0, out=np.full(vocabulary, math.inf)))
    total, predicted = 0.0, 0.0
    for batch in run.stream.heldout(256, mask_rate=MASK_RATE, mask_seed=MASK_SEED, limit=VALIDATION_SEQUENCES):
        total += float(surprise[batch.labels[batch.weights > 0]].sum())
        predicted += float(batch.weights.sum())
    return total / predicted


def demo(argv: list[str]) -> None:
    """Train to half the budget, go on to the end, and print what came out.

    Args:
        argv: overrides of the demo's options, such as ``budget=20s``.
    """
    config = compose([*_OPTIONS, *argv])
    console = Console()
    console.rule("training, to half of the budget")
    half = compose([*_OPTIONS, *argv, f"stop_at={config.budget_s / 2:g}{'s' * (config.rst.unit_s > 1)}"])
    pretrain(half)
    console.rule("the same command again: it goes on from its checkpoint")
    pretrain(config)
    console.rule("what came out")
    console.print(_table(Path(config.base_dir), str(config.name)))


def _table(base_dir: Path, name: str) -> Table:
    found = find(str(base_dir), name)
    summary = json.loads((found.run_dir / "summary.json").read_text())
    run = load_run(found)
    trained = validate(run)
    assert trained is not None
    tokenizer = run.stream.store.tokenizer
    answers = [(sentence, fill(run.model.eval(), tokenizer, sentence, top=3)[0]) for sentence in _SENTENCES]
    _reset(run)
    untrained = validate(run)
    assert untrained is not None
    predicted_s, wall_s = sum(summary["ledger"].values()), summary["train_wall_s"]
    title = f"{name}: {run.config.arch.name}, {summary['steps']} steps"
    table = Table(show_header=False, title=title, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    table.add_row("held-out loss before training", f"{untrained.loss:.3f}")
    table.add_row("guessing by word frequency", f"{unigram_loss(run):.3f}")
    table.add_row("held-out loss after training", f"{trained.loss:.3f}", style="bold")
    table.add_row("right guesses at predicted positions", f"{trained.accuracy:.1%}")
    table.add_row("tokens/s", f"{summary['tokens_per_s']:,.0f}")
    table.add_row("reference system time / wall time of steps", f"{predicted_s:.1f}s / {wall_s:.1f}s")
    for sentence, best in answers:
        table.add_row(sentence, ", ".join(f"{token} {p:.0%}" for token, p in best))
    table.add_row("learning curve", str(found.run_dir / "curves.png"))
    return table


def _reset(run: Run) -> None:
    """Give the model the weights it started from."""
    run.model.load_state_dict(Parts(run.config, run.model.vocab_size, run.engine.device).model().state_dict())


def _tokens(store: TokenStore, rows: np.ndarray) -> np.ndarray:
    tokens, lengths = store.read(rows)
    return tokens.ravel() if lengths is None else tokens[np.arange(tokens.shape[1]) < lengths[:, None]]


if __name__ == "__main__":
    load_schemas()
    run_command(lambda: demo(sys.argv[1:]))
