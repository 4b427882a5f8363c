"""What share of its matrix products' speed limit a training step reaches: ``crammed`` against ``bert``, in pairs.

    python benchmarks/crammed_share.py pairs=12
    python benchmarks/crammed_share.py pairs=12 layers=12 hidden=768 heads=12 vocab_size=32768 batch_size=16

The limit is a replay of exactly the matrix products of a step (forward and both of backward, those of attention, the
vocabulary at predicted positions), recorded from a step with their shapes and memory layouts, and nothing between them.
The share is the seconds of the replay over those of the step. README.md has the protocol.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.reporting import asked, keep, spread
from cramming import optim
from cramming.architectures import ArchConfig, BertConfig, CrammedConfig
from cramming.batch import Batch
from cramming.cli import run_command
from cramming.engine import DTYPES, Engine
from cramming.errors import UserError
from cramming.method import Method
from cramming.recording.environment import environment, git_revision
from rst.clock import Clock
from rst.costs import StepsCost

FIRST_FACTOR = {  # its place among the arguments; the second comes next
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.bmm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.baddbmm.default: 1,
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Options:
    """What the command line may change."""

    pairs: int = 12  # each: a step and a replay of either architecture
    warmup: int = 2  # pairs left out of the statistics
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    vocab_size: int = 8192
    seq_length: int = 128
    mask_rate: float = 0.15
    batch_size: int = 64
    microbatch_size: int = 32
    precision: str = "bfloat16"
    compile: bool = False  # the blocks
    device: str = "cpu"
    out: str = ""  # a JSON file for the result

    def batch(self) -> Batch:
        """Random tokens, masked once."""
        random = torch.Generator().manual_seed(0)
        tokens = torch.randint(5, self.vocab_size, (self.batch_size, self.seq_length), generator=random)
        order = torch.rand(tokens.shape, generator=random).argsort(1)
        positions = order[:, : round(self.mask_rate * self.seq_length)]
        rows, weights = torch.arange(self.batch_size), torch.ones(positions.shape)
        inputs, labels = tokens.scatter(1, positions, 4), tokens.gather(1, positions)
        batch = Batch(rows, rows, inputs, positions, labels, weights, None, weights.sum())
        return batch.to(torch.device(self.device))

    def configs(self) -> dict[str, ArchConfig]:
        """The two architectures at one size."""
        sizes = {"layers": self.layers, "hidden": self.hidden, "heads": self.heads, "intermediate": 4 * self.hidden}
        return {"bert": BertConfig(**sizes), "crammed": CrammedConfig(**sizes)}


@dataclass(frozen=True)
class Factor:
    """Shape and memory layout of one side of a product."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> "Factor":
        """A tensor's."""
        return Factor(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def tensor(self, device: torch.device) -> Tensor:
        """Random numbers laid out so."""
        span = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return torch.randn(span, device=device).to(self.dtype).as_strided(self.shape, self.stride)


class Recorder(TorchDispatchMode):
    """Notes the factors of every matrix product that runs, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[Factor, Factor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in FIRST_FACTOR:
            one, other = args[FIRST_FACTOR[func] :][:2]
            if one.shape[-2] > 1:  # else a sum of rows, such as a bias's gradient
                self.products.append((Factor.of(one), Factor.of(other)))
        return func(*args, **(kwargs or {}))

    @property
    def operations(self) -> int:
        """Of all products, a multiply-add counted as 2."""
        return sum(2 * one.shape[-1] * other.shape[-1] * _rows(one.shape) for one, other in self.products)


def _rows(shape: tuple[int, ...]) -> int:
    """Rows of a factor, over all matrices of a batched one."""
    rows = shape[-2]
    for size in shape[:-2]:
        rows *= size
    return rows


class Side:
    """One architecture: its training step, and the replay of that step's products."""

    def __init__(self, config: ArchConfig, options: Options) -> None:
        torch.manual_seed(0)
        device = torch.device(options.device)
        model = config.build(options.vocab_size, options.seq_length).to(device)
        groups = optim.parameter_groups(model)
        self._engine = Engine(
            model,  # type: ignore[arg-type]
            optim.build("adamw", groups, lr=1e-3),
            Clock({"main": StepsCost()}, budget_s=1e9),
            precision=options.precision,
            microbatch_size=options.microbatch_size,
            clip_norm=0.5,
            compile=options.compile,
        )
        self.fast_paths = self._engine.model.fast_paths()
        self._batch = options.batch()
        factors = self._recorded(config, options)
        made = {factor: factor.tensor(device) for factor in {factor for pair in factors for factor in pair}}
        self._products = [(made[one], made[other]) for one, other in factors]

    def step(self) -> None:
        """One optimizer step, as runs do it."""
        for part in self._batch.split(self._engine.microbatch_size):
            self._engine.backward(part, Method().objective)
        self._engine.step(1.0)
        self._engine.synchronize()

    def replay(self) -> None:
        """The products of one step and nothing else."""
        with torch.no_grad():
            for one, other in self._products:
                torch.matmul(one, other)
        self._engine.synchronize()

    def _recorded(self, config: ArchConfig, options: Options) -> list[tuple[Factor, Factor]]:
        """The products of a step, with attention written out whatever form is measured.

        Raises:
            UserError: they are not those that the model says it computes.
        """
        model: Any = config.build(options.vocab_size, options.seq_length)
        model.to(self._engine.device, DTYPES[options.precision]).attention = "math"
        with Recorder() as recorder:
            for part in self._batch.split(options.microbatch_size):
                ((model(part) * part.weights).sum() / part.normalizer).backward()
        slots = self._batch.positions.shape[1]
        expected = 3 * options.batch_size * model.flops(options.seq_length, slots, options.layers)
        if recorder.operations != expected:
            raise UserError(f"{config.kind}: {recorder.operations} operations recorded, its flops say {expected:.0f}")
        return recorder.products


def seconds(work: Callable[[], None]) -> dict[str, float]:
    """By the clock, and of this process's threads."""
    began = {name: clock() for name, clock in CLOCKS.items()}
    work()
    return {name: clock() - began[name] for name, clock in CLOCKS.items()}


def measure(options: Options) -> dict[str, Any]:
    """Run the pairs; what was measured, as plain values."""
    sides = {name: Side(config, options) for name, config in options.configs().items()}
    shares: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in sides} for clock in CLOCKS}
    step_s: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(options.pairs + options.warmup):
        for name in sorted(sides, reverse=bool(pair % 2)):  # neither always comes first
            step, replay = seconds(sides[name].step), seconds(sides[name].replay)
            step_s[name].append(step["wall"])
            for clock in CLOCKS:
                shares[clock][name].append(replay[clock] / step[clock])
    kept = slice(options.warmup, None)
    result: dict[str, Any] = {
        "step_s_median": {name: statistics.median(values[kept]) for name, values in step_s.items()},
        "fast_paths": {name: side.fast_paths for name, side in sides.items()},
        "options": asdict(options),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "revision": git_revision(),
        "environment": environment(options.device),
    }
    for clock, by_name in shares.items():
        ratios = [ours / theirs for ours, theirs in zip(by_name["crammed"][kept], by_name["bert"][kept], strict=True)]
        spreads = {f"{name}_share": spread(values[kept]) for name, values in by_name.items()}
        result[clock] = {"crammed_over_bert": spread(ratios), **spreads}
    return result


def main() -> None:
    """Parse, measure, print."""
    options = asked(Options, __doc__)
    result = measure(options)
    for clock in CLOCKS:
        parts = []
        for name, found in result[clock].items():
            low, high = found["quartiles"]
            parts.append(f"{name} {found['median']:.3f} ({low:.3f} to {high:.3f})")
        print(f"{clock}: {', '.join(parts)}")
    print(f"step_s {result['step_s_median']}, load {result['load_average'][0]:.1f}")
    keep(result, options.out)


if __name__ == "__main__":
    run_command(main)
