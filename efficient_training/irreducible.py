"""``python -m efficient_training.irreducible name=il ...``: the small model, and its losses, that RHO-loss needs.

Two steps, one command. ``train`` trains a model on what the runs to come hold out (``data.train_on=heldout``): an
ordinary run, with every option of ``pretrain_bert.py``. ``score`` writes its loss of every sequence they train on,
under the scoring mask, to ``<base_dir>/<name>/irreducible/``. Killed in either, the same command goes on.

Shape legend: N rows of the store, B of them scored together.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cramming import faults
from cramming.cli import compose, load_schemas, parse, repeated, run_command, stored_config
from cramming.config import PretrainConfig, check, typed
from cramming.data.config import HELDOUT
from cramming.data.fingerprint import fingerprint
from cramming.durable import room_for, sync, write_file
from cramming.errors import UserError
from cramming.parallel.environment import launched
from cramming.progress import ProgressSink, progress_for
from cramming.text import amount
from efficient_training import irreducible_losses as files
from efficient_training.irreducible_losses import IrreducibleLosses, Mask

if TYPE_CHECKING:
    from cramming.data.stream import Split
    from cramming.train import Run

_USAGE = """\
Train a small model on what other runs hold out, and write its loss of every sequence they train on: the irreducible
losses of method=rho_loss.

  python -m efficient_training.irreducible name=il data=python_docs arch=bert_small budget=10m data.heldout_fraction=0.2
  python pretrain_bert.py name=rho method=rho_loss data=python_docs arch=bert_small budget=10m data.heldout_fraction=0.2
  python -m efficient_training.irreducible name=il from_run=rho     with the options of a run that needs them

Data, tokenizer and data.heldout_fraction must be those of the runs to come; arch=, budget= and the rest may be others.
The same command again goes on where it was.

Options: those of pretrain_bert.py, and
  steps=[train,score]     either alone: steps=[score] takes name=, base_dir= and data_dir= only
  mask_rate=0.15          share of the positions predicted when sequences are scored     [train.mask_rate]
  mask_seed=220607137     of the mask they are scored under, here and in the runs to come"""

BLOCK_ROWS = 4096  # scored between two notes of how far it is
_STEPS = ("train", "score")
_MASK_SEED = 220607137  # the paper's number: a seed that no run's masks have by chance
_ACCOUNT = "scoring"


@dataclass
class Options:
    """What this command has beside the options of a run."""

    steps: list[str] = field(default_factory=lambda: list(_STEPS))
    mask_rate: float | None = None
    mask_seed: int = _MASK_SEED


def command(argv: list[str]) -> None:
    """Train the small model and write its losses, as far as that is not done yet.

    Raises:
        UserError: what is wrong with the command line, or with the run.
        SystemExit: after ``--help``.
    """
    own = [word for word in argv if re.match(r"(steps|mask_rate|mask_seed)=|(-h|--help)$", word)]
    options, _ = parse(own, Options, _USAGE)
    words = [word for word in argv if word not in own]
    if not options.steps or set(options.steps) - set(_STEPS):
        raise UserError(f"steps=[{','.join(options.steps)}] is not understood; there are: {', '.join(_STEPS)}")
    if options.mask_rate is not None and not 0 < options.mask_rate < 1:
        raise UserError(f"mask_rate={options.mask_rate} must lie between 0 and 1, such as 0.15")
    if (world := launched().world) > 1:
        raise UserError(
            f"irreducible losses are made by one process, and these are {world}: start it without torchrun; to train "
            "the model on several, torchrun pretrain_bert.py ... data.train_on=heldout first, then steps=[score] here"
        )
    load_schemas()
    if "train" in options.steps:
        config = training(words)
        from cramming.session import pretrain

        pretrain(config)
    else:
        config = trained(words)
    if "score" in options.steps:
        array = score(config, options, progress_for())
        print(f"{array.folder}: {_summary(array)}")
        print(f"use them: python pretrain_bert.py ... method=rho_loss method.rho_loss.irreducible={config.name}")


def training(words: list[str]) -> PretrainConfig:
    """The configuration of the small model's run, from the words of the run that is to use its losses.

    Methods that choose sequences are left out, and so is a curriculum: both are about the sequences of the other part.

    Raises:
        UserError: an option that does not exist or cannot be used.
    """
    for word in words:
        if word.startswith("-"):
            raise UserError(f"{word}: this command makes one array; give it options as key=value only")
    again = any(word.startswith("from_run=") for word in words)
    config = repeated(words) if again else compose(words)
    config.name = config.name or "il"
    config.method = {name: method for name, method in config.method.items() if not method.selects}
    config.data = replace(config.data, train_on=HELDOUT, order="random")
    check(config)
    return config


def trained(words: list[str]) -> PretrainConfig:
    """The stored configuration of a run that was trained before.

    Raises:
        UserError: there is no such run, or another option than where it is.
    """
    given = dict(word.partition("=")[::2] for word in words)
    for key in given:
        if key not in ("name", "base_dir", "data_dir"):
            raise UserError(f"steps=[score] takes a run as it was trained: leave {key}= out")
    places: dict[str, Any] = {key: given[key] for key in ("base_dir", "data_dir") if key in given}
    config = typed(stored_config(Path(given.get("base_dir", "outputs")), given.get("name", "il")))
    return replace(config, **places)


def score(config: PretrainConfig, options: Options, progress: ProgressSink) -> IrreducibleLosses:
    """Write the losses of a trained run on the rows that other runs train on, unless they are there.

    Raises:
        UserError: the run was trained on those rows, is not finished, or has losses under another mask.
    """
    from cramming import folder
    from cramming.recording.logfile import logging_to

    run_dir = Path(config.base_dir) / str(config.name)
    if config.data.train_on != HELDOUT:
        raise UserError(
            f"{config.name} was trained on the sequences it would score; choose another name, and train one on those "
            "that are held out: steps=[train,score]"
        )
    with folder.held(run_dir), logging_to(run_dir / "run.log"):
        run, weights = _finished(config, run_dir, progress)
        mask = Mask(options.mask_seed, options.mask_rate or config.train.mask_rate)
        split = config.data.split_of(run.stream.store)
        key = {**files.identity(run.stream.store, split), "weights_sha256": weights, "mask": asdict(mask)}
        target = run_dir / files.FOLDER
        if (target / files.MANIFEST).is_file():
            there = IrreducibleLosses.described(target)
            if all(there.manifest[name] == value for name, value in key.items()):
                return there
            if there.manifest["weights_sha256"] == weights:
                raise UserError(
                    f"{target} holds losses under another mask ({there.mask}; now {mask}), which runs may be using: "
                    "train one under another name, or delete that folder"
                )
        with room_for(target), run.method.evaluating(run):
            return _Scoring(run, split, mask, key, run.clock.spent_s, target, progress).write()


def _finished(config: PretrainConfig, run_dir: Path, progress: ProgressSink) -> tuple["Run", str]:
    """The run as it ended, and the checksum of its weights.

    Raises:
        UserError: it is not finished.
    """
    from cramming import checkpoint, resolve
    from cramming.build import build_run
    from cramming.data.preparation import prepare
    from cramming.exchange import initializing
    from cramming.identity import about, check_fits

    found = checkpoint.newest(run_dir / "checkpoints")
    if found is not None:
        store = prepare(initializing.data_of(config, run_dir), Path(config.data_dir), progress=progress)
        run, _ = build_run(config, store, resolve.resolve(config.impl, resolve.read(run_dir)), run_dir)
        saved, state = found
        check_fits(saved, about(run))
        run.load_state_dict(state)
        if run.clock.spent_s >= run.clock.budget_s or "ended" in run.notes:
            return run, saved.weights_sha256()
    raise UserError(f"{config.name} is not trained to its end; train it first: the same command with steps=[train]")


@dataclass
class _Written:
    """How far scoring is; kept beside the unfinished array."""

    key: str  # of what the losses depend on
    rows: int = 0
    cost: float = 0.0  # of scoring them
    sum: float = 0.0  # of their losses
    head_bytes: int = 0  # in front of the numbers


@dataclass
class _Scoring:
    """Scoring every training row of a split with a run's model, in the order of the rows."""

    run: "Run"
    split: "Split"
    mask: Mask
    key: dict[str, Any]  # what the losses depend on
    trained_for: float  # what training has cost
    target: Path
    progress: ProgressSink

    def write(self) -> IrreducibleLosses:
        """The whole array; what a killed process wrote is kept."""
        work = self.target.with_name(f".{self.target.name}.work")
        work.mkdir(exist_ok=True)
        noted, losses = work / "progress.json", work / files.LOSSES
        state = _Written(fingerprint(self.key))
        if noted.is_file() and losses.is_file():
            before = _Written(**json.loads(noted.read_text()))
            state = before if before.key == state.key else state
        rows = self.run.stream.store.rows
        self.progress.stage(f"scoring the {self.split.train_rows:,} training sequences", rows, "sequences")
        self.progress.advance(state.rows)
        with open(losses, "r+b" if state.rows else "wb") as file:
            if not state.rows:
                head = {"descr": "<f4", "fortran_order": False, "shape": (rows,)}
                np.lib.format.write_array_header_1_0(file, head)
                state.head_bytes = file.tell()
            file.seek(state.head_bytes + 4 * state.rows)
            file.truncate()
            self.run.clock.restart()
            for block, cost in self._blocks(state.rows):
                file.write(block.tobytes())
                file.flush()
                faults.point("irreducible-block")
                sync(losses, "irreducible-block")
                state.rows += len(block)
                state.cost += cost
                state.sum += float(np.nansum(block, dtype=np.float64))
                write_file(noted, [json.dumps(asdict(state)).encode()], "irreducible-progress")
                self.progress.advance(len(block))
        self.progress.done()
        return files.complete(work, self.target, self._facts(state))

    def _blocks(self, start: int) -> Iterator[tuple[NDArray[np.float32], float]]:
        """The losses of ``BLOCK_ROWS`` rows at a time, from ``start`` on, NaN where held out; and what they cost."""
        run = self.run
        held_out = np.zeros(run.stream.store.rows, dtype=bool)
        for first in range(0, self.split.heldout_rows, 1 << 22):
            held_out[self.split.heldout(np.arange(first, min(first + (1 << 22), self.split.heldout_rows)))] = True
        for first in range(start, len(held_out), BLOCK_ROWS):
            trains = ~held_out[first : first + BLOCK_ROWS]
            block, before = np.full(len(trains), np.nan, dtype="<f4"), run.clock.ledger.get(_ACCOUNT, 0.0)
            if trains.any():
                block[trains] = self._losses(first + np.flatnonzero(trains))
            yield block, run.clock.ledger.get(_ACCOUNT, 0.0) - before

    def _losses(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Row numbers (B,) -> losses (B,).

        Raises:
            UserError: one of them is not finite.
        """
        from cramming.data.stream import slots

        stream = self.run.stream
        places = slots(stream.store.seq_length, self.mask.rate)
        batch = stream.masked(rows, np.zeros_like(rows), seed=self.mask.seed, rate=self.mask.rate, slots=places)
        losses = self.run.engine.losses(batch, _ACCOUNT).cpu().numpy()
        if not np.isfinite(losses).all():
            wrong = int(rows[~np.isfinite(losses)][0])
            raise UserError(
                f"the loss of {self.run.config.name} on row {wrong} is not finite: it did not train well enough to "
                "score with; train another, with a lower train.optim.lr"
            )
        return losses

    def _facts(self, state: "_Written") -> dict[str, Any]:
        """What the manifest says."""
        from cramming.recording.environment import git_revision

        run, config = self.run, self.run.config
        return {
            **self.key,
            "made_by": {"name": config.name, "arch": config.arch.name, "steps": run.step, "seed": config.seed},
            "heldout_fraction": config.data.heldout_fraction,
            "trained_rows": run.stream.split.train_rows,
            "training_rows": self.split.train_rows,
            "mean_loss": state.sum / self.split.train_rows,
            "cost": {
                "total": self.trained_for + state.cost,
                "training": self.trained_for,
                "scoring": state.cost,
                "unit": "steps" if config.rst.unit_s == 1 else "s",
                "rst": config.rst.kind,
            },
            "git_revision": git_revision(),
        }


def _summary(array: IrreducibleLosses) -> str:
    manifest = array.manifest
    cost = manifest["cost"]
    return (
        f"{manifest['training_rows']:,} irreducible losses, {manifest['mean_loss']:.4f} on average, of a model trained "
        f"on {manifest['trained_rows']:,} held-out sequences; cost {amount(cost['total'], cost['unit'])}"
    )


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
