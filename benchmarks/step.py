"""Training steps of every family against their own limit, and against transformers' implementation, in pairs.

    python benchmarks/step.py
    python benchmarks/step.py archs=[bert,modern] lengths=[128,2048] pairs=12
    python benchmarks/step.py size=base lengths=[512,8192] tokens=32768 out=step.json

A block is one optimizer step on the same batch. Ours is the engine as runs use it. ``limit`` is a replay of our step's
matrix products and Fourier transforms and nothing else, so that its ratio is the share of the limit that we reach.
Theirs is the usual step of a training with transformers: labels of -100 where nothing is predicted, clipping, fused
AdamW, and ``autocast`` over float32 weights, which is what their Trainer does, or ``low``, weights of low precision
throughout. ``scoring`` is what a method asks for that judges sequences before it trains on them: the losses of the same
batch, and ``forward_limit`` is a replay of what that multiplies. With ``cuda_graphs=true`` ours replays its compiled
blocks as CUDA graphs, and ``launched`` is our step without them. "Does not fit" is a result: see README.md for the
protocol.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.architectures import Case, dense_labels
from benchmarks.comparison import Mode, Options, run
from benchmarks.grid import Builders, Side
from benchmarks.reporting import asked
from cramming import optim
from cramming.cli import run_command
from cramming.engine import DTYPES, Engine
from cramming.errors import UserError
from cramming.kernels import choice
from cramming.method import Method
from cramming.profiling.replay import Replay, recorded
from rst.clock import Clock
from rst.costs import StepsCost

LR, CLIP_NORM = 1e-4, 0.5
WEIGHT_DECAY, BETAS, EPS = 0.01, (0.9, 0.98), 1e-12
_CACHED_TOKENS = 4096  # of a microbatch on a processor: the steps after one another stay in its caches


@dataclass
class StepOptions(Options):
    """What the command line may change."""

    microbatch_tokens: int = 0  # ours; 0: 4096 on a processor, the whole batch on a GPU
    their_microbatch_tokens: int = 0  # 0: the whole batch, as their Trainer has it
    cuda_graphs: bool = False  # ours, compiled, on a GPU

    def microbatch(self, case: Case, theirs: bool) -> int:
        """Sequences in a pass."""
        whole = case.sequences * case.length
        ours = self.microbatch_tokens or (_CACHED_TOKENS if self.where().type == "cpu" else whole)
        tokens = (self.their_microbatch_tokens or whole) if theirs else ours
        return min(case.sequences, max(1, tokens // case.length))


class Ours:
    """A step of the engine."""

    def __init__(self, case: Case, options: StepOptions) -> None:
        device = options.where()
        model = case.our_model().to(device)
        size = options.microbatch(case, theirs=False)
        choice.use(model, device, DTYPES[options.passes_in()], length=case.length, sequences=size)
        groups = optim.parameter_groups(model, decay_norms=False)
        self.engine = Engine(
            model,
            optim.build("adamw", groups, lr=LR, weight_decay=WEIGHT_DECAY, betas=list(BETAS), eps=EPS),
            Clock({"main": StepsCost()}, budget_s=1e9),
            precision=options.passes_in(),
            microbatch_size=size,
            clip_norm=CLIP_NORM,
            compile=options.compile,
            cuda_graphs=options.cuda_graphs,
        )
        if options.cuda_graphs and self.engine.cuda_graphs != "replayed":
            raise UserError(f"cuda_graphs=true: {self.engine.cuda_graphs}")
        self.batch = case.batch().to(device)
        forward = model.flops(case.length, self.batch.positions.shape[1], model.layers)
        self.flops: float | None = 3 * case.sequences * forward

    @property
    def loss(self) -> float | None:
        """Of the last step, nats."""
        return self.engine.loss

    def block(self) -> None:
        """One optimizer step."""
        for part in self.batch.split(self.engine.microbatch_size):
            self.engine.backward(part, Method().objective)
        self.engine.step(1.0)


class Scoring(Ours):
    """Every sequence's loss, as methods that select sequences ask for it."""

    loss: float | None = None  # type: ignore[assignment]

    def block(self) -> None:
        """The batch once."""
        self.engine.losses(self.batch, "selection")


class Theirs:
    """The usual step of a training with transformers."""

    flops: float | None = None

    def __init__(self, case: Case, options: StepOptions, low: bool) -> None:
        self.device, self.dtype = options.where(), DTYPES[options.passes_in()]
        model: Any = case.counterpart().build(options.their_attention)
        self.model = model.to(self.device, self.dtype if low else torch.float32)
        self.autocast = not low and self.dtype != torch.float32
        groups = optim.parameter_groups(self.model, decay_norms=False)
        self.optimizer = torch.optim.AdamW(groups, lr=LR, weight_decay=WEIGHT_DECAY, betas=BETAS, eps=EPS, fused=True)
        self.forward = torch.compile(self.model) if options.their_compile else self.model
        batch = case.batch()
        size = options.microbatch(case, theirs=True)
        inputs, labels = batch.inputs.to(self.device), dense_labels(batch).to(self.device)
        self.parts = list(zip(inputs.split(size), labels.split(size), strict=True))
        self.sequences = case.sequences
        self._loss = torch.zeros((), device=self.device)

    @property
    def loss(self) -> float | None:
        """Of the last step, nats."""
        return float(self._loss)

    def block(self) -> None:
        """One optimizer step."""
        self._loss = torch.zeros((), device=self.device)
        for inputs, labels in self.parts:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.autocast):
                mean: Tensor = self.forward(input_ids=inputs, labels=labels).loss
            loss = mean * (len(inputs) / self.sequences)
            loss.backward()
            self._loss += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Limit(Replay):
    """A replay as a side of a comparison."""

    loss: float | None = None


def limit(case: Case, options: StepOptions, gradients: bool = True) -> Limit:
    """What our step multiplies, or its passes forward alone."""
    device = options.where()
    model = case.our_model().to(device, DTYPES[options.passes_in()])
    size = options.microbatch(case, theirs=False)
    return Limit(recorded(model, case.batch().to(device), size, gradients), device)


def sides(options: StepOptions, case: Case) -> Builders:
    """Ours, its limit, a scoring pass, and theirs in both ways."""
    theirs: dict[str, Callable[[], Side]] = {
        "autocast": partial(Theirs, case, options, low=False),
        "low": partial(Theirs, case, options, low=True),
    }
    if options.passes_in() == "float32":
        theirs = {"float32": theirs["autocast"]}
    own: dict[str, Callable[[], Side]] = {
        "limit": partial(limit, case, options),
        "scoring": partial(Scoring, case, options),
        "forward_limit": partial(limit, case, options, gradients=False),
    }
    if options.cuda_graphs:
        own["launched"] = partial(Ours, case, replace(options, cuda_graphs=False))
    return options.with_beside(case, partial(Ours, options=options), {**own, **theirs})


def main() -> None:
    """Parse, measure, print."""
    options = asked(StepOptions, __doc__)
    run(options, Mode("step", partial(sides, options)))


if __name__ == "__main__":
    run_command(main)
