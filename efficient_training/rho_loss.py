"""RHO-loss: train on what is learnable and not yet learnt (Mindermann et al. 2022, https://arxiv.org/abs/2206.07137).

Of every mega-batch the sequences with the highest reducible holdout loss train (equation 3): the loss of the model now
minus the irreducible loss, that of a small model trained on held-out sequences. Noise is hard for both, what is learnt
is easy for the first, so neither is chosen. As in No Train No Gain (https://arxiv.org/abs/2307.06440) the irreducible
losses are computed once beforehand (``python -m efficient_training.irreducible``) and looked up by row number. Both
losses see one mask, the scoring mask that the array of irreducible losses says; what is chosen trains in stream order
under the epoch's own masks.

Costs a forward pass for every sequence of the mega-batch, on account ``selection`` (``free=[selection]`` is the study's
ablation). What the irreducible losses cost stands once on account ``irreducible``: free, as in the study, which counts
them as shared by all later runs, or paid at the first step with ``charge_irreducible=true``.

Shape legend: B sequences scored together, M of a mega-batch.
"""

import logging
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cramming.batch import Batch
from cramming.data.stream import slots
from cramming.errors import UserError
from cramming.method import Draw, Method
from cramming.registry import register
from efficient_training.irreducible_losses import IrreducibleLosses, fitting, named
from rst.costs import StepsCost

if TYPE_CHECKING:
    from cramming.train import Run

ACCOUNT = "irreducible"
AUTO = "auto"
_SHORT = "its irreducible losses are of whole rows, and a part of a row is another sequence"
_log = logging.getLogger(__name__)


@register("method", "rho_loss")
@dataclass
class RhoLoss(Method):
    """Train on the sequences of a mega-batch whose loss exceeds their irreducible loss the most.

    With a mega-batch as large as the batch every sequence trains, in its order. While the batch grows
    (``train.batch_size_initial``) the mega-batch grows in proportion. Ties go to the sequence that came first. A
    sequence whose loss is not finite, or of which the scoring mask hides nothing, comes last. Irreducible losses that
    were priced in another unit than the run's (steps, seconds) are not written into its ledger.

    Attributes:
        mega_batch_size: sequences scored for a full batch; null: twice ``train.batch_size``, the study's 3072 at 1536
            (its ablation with free selection: ten times).
        irreducible: the irreducible losses: of a run by its name, in a folder, a file, or ``auto``: those under
            ``base_dir`` that are of the same data, tokenizer and split (the newest, if there are several).
        foreign_masks: accept losses that others computed under masks nobody knows; sequences are then scored under the
            masks they train with.
        charge_irreducible: pay from the budget what the irreducible losses cost.

    Raises:
        UserError: an option outside its range.
    """

    mega_batch_size: int | None = None
    irreducible: str = AUTO
    foreign_masks: bool = False
    charge_irreducible: bool = False

    selects: ClassVar[bool] = True
    excludes: ClassVar[dict[str, str]] = {"length_warmup": f"it shortens sequences, and for RHO-loss {_SHORT}"}
    accounts: ClassVar[tuple[str, ...]] = ("selection", ACCOUNT)

    def __post_init__(self) -> None:
        if self.mega_batch_size is not None and self.mega_batch_size < 1:
            raise UserError(
                f"method.rho_loss.mega_batch_size={self.mega_batch_size} must be at least train.batch_size; null is "
                "twice that"
            )
        if not self.irreducible.strip():
            raise UserError("method.rho_loss.irreducible is empty; give a run, a folder, a file, or auto")
        self.free = () if self.charge_irreducible else (ACCOUNT,)
        self._arrays: list[IrreducibleLosses] = []  # that fit the run; known when it is
        self._losses: IrreducibleLosses | None = None  # the one in use
        self._asked = 0  # sequences the step under way trains on; 0: none is under way
        self._parts: list[Batch] = []  # of its mega-batch, scored so far
        self._scores: list[Tensor] = []  # (B,) each
        self._columns: dict[str, float] = {}

    def setup(self, run: "Run") -> None:
        """Find the irreducible losses.

        Raises:
            UserError: there are none, or they are not those of this run's training rows; a mega-batch smaller than the
                batch; sequences shorter than the rows; a price above the budget.
        """
        full = run.batch_size(1.0)
        if self.mega_batch_size is not None and self.mega_batch_size < full:
            raise UserError(
                f"method.rho_loss.mega_batch_size={self.mega_batch_size} is smaller than train.batch_size={full}, and "
                f"batches are chosen from it; give {full} or more, such as {2 * full}"
            )
        if run.stream.lengths.shorter:
            raise UserError(f"method=rho_loss cannot train on shorter sequences at first (train.lengths): {_SHORT}")
        self._split, self._unit = run.stream.split, "steps" if _counts_steps(run) else "s"
        self._budget_s = run.clock.budget_s
        self._arrays = self._found(run)
        self._use(self._arrays[0])
        others = [array.title for array in self._arrays[1:]]
        assert self._losses is not None
        _log.info(
            "method=rho_loss uses the irreducible losses of %s%s",
            self._losses.title,
            f"; these fit as well: {', '.join(others)}" if others else "",
        )

    def next_batch(self, run: "Run", draw: Draw, n: int) -> Batch | None:
        """The best ``n`` sequences of a mega-batch, in stream order; None if the budget ended while scoring.

        What was scored until then is kept, so that a run that goes on (``stop_at``) loses nothing.
        """
        assert self._losses is not None, "setup() finds them"
        cost = self._losses.manifest["cost"]
        if ACCOUNT not in run.clock.ledger and cost["unit"] == self._unit:
            run.clock.pay(cost["total"], ACCOUNT)
        self._asked = n = self._asked or n
        full = run.batch_size(1.0)
        wanted = max(n, round((self.mega_batch_size or 2 * full) * n / full)) - sum(map(len, self._parts))
        while wanted > 0:
            if run.clock.exhausted:
                return None
            part = draw(min(n, wanted))
            if part is None:
                return None
            self._parts.append(part.whole())
            self._scores.append(self._score(run, part))
            wanted -= part.sequences
        if run.clock.exhausted:
            return None
        pool = Batch.concatenate([part.to(run.stream.device) for part in self._parts])  # a checkpoint's are on the CPU
        scores = torch.cat([part.to(run.stream.device) for part in self._scores])
        chosen = best(scores, n)
        self._asked, self._parts, self._scores = 0, [], []
        self._columns = {
            "kept_share": n / len(scores),
            "reducible_loss": _mean(scores),
            "reducible_loss_kept": _mean(scores[chosen]),
        }
        return pool.select(chosen)

    def columns(self) -> dict[str, float]:
        """The share of the mega-batch kept, and its mean reducible loss: of all, and of what was kept."""
        return self._columns

    def about(self) -> dict[str, Any]:
        """Which irreducible losses were used, and what they cost."""
        if self._losses is None:
            return {}
        manifest = self._losses.manifest
        said = {"folder": str(self._losses.folder), "losses_sha256": self._losses.sha256}
        said |= {key: manifest[key] for key in ("made_by", "mask", "cost")}
        return {"irreducible_losses": {**said, "foreign_masks": self._losses.mask is None, "charged": not self.free}}

    def state_dict(self) -> dict[str, Any]:
        """Which losses they are, what was scored for the step under way, and what was logged."""
        used = None if self._losses is None else {"folder": str(self._losses.folder), "sha256": self._losses.sha256}
        return {
            "irreducible": used,
            "asked": self._asked,
            "parts": [dict(vars(part)) for part in self._parts],
            "scores": list(self._scores),
            "columns": dict(self._columns),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up.

        Raises:
            UserError: the run began with other irreducible losses, and those are gone.
        """
        self._asked, self._columns = state["asked"], state["columns"]
        self._parts, self._scores = [Batch(**fields) for fields in state["parts"]], state["scores"]
        used = state["irreducible"]
        if self._losses is None or self._losses.sha256 == used["sha256"]:
            return
        own = next((array for array in self._arrays if array.sha256 == used["sha256"]), None)
        if own is None:
            raise UserError(
                f"this run began with the irreducible losses in {used['folder']}, and they are not there any more "
                f"({self._losses.title} has others): put them back, or start over with resume=false"
            )
        self._use(own)  # ``auto`` has come to mean newer ones

    def _found(self, run: "Run") -> list[IrreducibleLosses]:
        """The arrays to choose from, held against the run; at least one.

        Raises:
            UserError: there are none.
        """
        store, split, base_dir = run.stream.store, run.stream.split, Path(run.config.base_dir)
        option = f"method.rho_loss.irreducible={self.irreducible}"
        if self.irreducible == AUTO:
            arrays = fitting(base_dir, store, split, self.foreign_masks)
            if not arrays:
                raise UserError(
                    f"{option}: there are no irreducible losses of this data, tokenizer and split "
                    f"({split.heldout_rows:,} of {store.rows:,} rows held out) under {base_dir}; {_way_out(run)}"
                )
            return arrays
        array = named(self.irreducible, base_dir)
        misfit = array.misfit(store, split)
        if misfit is not None:
            raise UserError(f"{option}: {misfit}; {_way_out(run)}")
        if array.mask is None and not self.foreign_masks:
            raise UserError(
                f"{option}: they were computed under masks that nobody knows, so both losses of a sequence see "
                "different masks; accept that with method.rho_loss.foreign_masks=true"
            )
        return [array]

    def _use(self, array: IrreducibleLosses) -> None:
        """Score with these from here on.

        Raises:
            UserError: they are damaged or have holes, or cannot be paid from the budget.
        """
        array.verify(self._split)
        total, unit = array.manifest["cost"]["total"], array.manifest["cost"]["unit"]
        asked = f"method.rho_loss.charge_irreducible=true: {array.title} cost {total:g} {unit}"
        if self.charge_irreducible and unit != self._unit:
            raise UserError(
                f"{asked}, and this run's budget counts {self._unit}; make them with the same rst=, or leave "
                "charge_irreducible out"
            )
        if self.charge_irreducible and total >= self._budget_s:
            raise UserError(
                f"{asked}, and the whole budget is {self._budget_s:g}; make them with a smaller budget, or leave "
                "charge_irreducible out"
            )
        self._losses = array

    def _score(self, run: "Run", part: Batch) -> Tensor:
        """The reducible loss of each sequence, (B,) float32: higher is better, -inf where there is none to speak of.

        Of a rank's share (B of all ranks): it masks and looks up its own, and all know all of them.
        """
        assert self._losses is not None
        seen, mask = part, self._losses.mask
        if mask is not None:
            rows = part.ids.cpu().numpy()
            places = slots(run.stream.store.seq_length, mask.rate)
            seen = run.stream.masked(rows, np.zeros_like(rows), seed=mask.seed, rate=mask.rate, slots=places)
            seen = seen if part.share is None else seen.as_share(part.share)
        reducible = run.engine.losses(seen, "selection") - part.gathered(self._losses(part.ids))
        predicts = part.gathered(seen.weights.sum(1)) > 0
        return reducible.masked_fill(~reducible.isfinite() | ~predicts, -math.inf)


def best(scores: Tensor, n: int) -> Tensor:
    """Scores (M,) -> the places of the ``n`` highest, ascending, (n,) int64; of equal scores the first."""
    return scores.sort(descending=True, stable=True).indices[:n].sort().values


def _mean(scores: Tensor) -> float:
    return float(scores[scores.isfinite()].mean())


def _counts_steps(run: "Run") -> bool:
    return isinstance(run.clock.costs["main"], StepsCost)


def _way_out(run: "Run") -> str:
    """How to get irreducible losses that fit the run."""
    config, base_dir = run.config, Path(run.config.base_dir)
    words = ["python", "-m", "efficient_training.irreducible"]
    words += [f"name={f'{config.name}-il' if (base_dir / 'il').exists() else 'il'}", f"from_run={config.name}"]
    if config.base_dir != "outputs":
        words.append(f"base_dir={config.base_dir}")
    command = f"make them with `{shlex.join(words)}`"
    if run.stream.split.of_heldout().train_rows >= run.batch_size(1.0):
        return command
    return (
        "that is too little to train a small model on: hold out more in this run and in all that are compared (the "
        f"earlier study: data.heldout_fraction=0.2), then {command}"
    )
