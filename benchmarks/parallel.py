"""One rank against several on this machine: tokens/s of the whole, what communication takes of a step, bytes, memory.

    python benchmarks/parallel.py
    python benchmarks/parallel.py size=base sequences=64 microbatch=16 precision=bfloat16 ranks=2 out=parallel.json

All sides train the same model on batches of the same size, in turns, in the same processes, block by block:

* ``one``: rank 0 alone does the whole batch, the others wait;
* ``apart``: every rank does its share of the batch at the same time and tells the others nothing;
* ``ddp``, ``fsdp``: they train together.

A rank has ``threads`` threads whatever the side, by default its part of the cores, so that a rank stands for a device.
``efficiency`` is tokens/s of the whole over those of ``one`` times the ranks. ``communication`` is
1 - apart / together, the share of a step that is there only because ranks talk: what is hidden behind computing does
not count. ``bytes`` are those handed to collectives in a step, by kind. ``memory`` is a rank's: weights, low-precision
copy, the optimizer's state. ``update_s`` is the part of a step of ``apart`` that comes after its passes.

``link`` is what ``python -m cramming.scaling`` wants to know, to predict the same: the seconds of an all-reduce of all
ranks for several sizes, and the hop and the rate of the line through them.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist

from benchmarks.architectures import SIZES, Case
from benchmarks.reporting import asked, circumstances, keep, spread
from cramming.cli import run_command
from cramming.engine import Engine
from cramming.method import Method
from cramming.optim import for_model
from cramming.optim.config import AdamW
from cramming.parallel.ranks import ALONE, Ranks, here, standing_for
from cramming.parallel.spreading import share_out
from cramming.parallel.tensors import own_rows
from cramming.scaling.links import START_S
from rst.clock import Clock
from rst.costs import StepsCost

SIDES = ("one", "apart", "ddp", "fsdp")
_GATHERED, _REDUCED, _SUMMED = "all_gather", "reduce_scatter", "all_reduce"
_MESSAGES = (2**12, 2**20, 2**22, 2**24, 2**26)  # bytes


@dataclass
class ParallelOptions:
    """What the command line may change."""

    arch: str = "bert"
    size: str = "small"  # tiny, small (4x256), base (12x768) or large (24x1024)
    length: int = 128
    sequences: int = 32  # in a step, of all ranks
    microbatch: int = 8  # in a pass
    precision: str = "float32"
    ranks: int = 2  # on GPUs, at most as many as there are
    steps: int = 4  # in a block
    rounds: int = 7  # blocks of each side, after one to warm up
    threads: int = 0  # of a rank; 0: its part of the cores
    device: str = "auto"
    out: str = ""  # a JSON file for the result


class Side:
    """An engine and its steps."""

    def __init__(self, name: str, options: ParallelOptions, where: torch.device) -> None:
        self.name, self.steps, self.microbatch = name, options.steps, options.microbatch
        self.ranks = here() if name in ("ddp", "fsdp") else ALONE
        self.idle = name == "one" and not here().main
        if self.idle:
            return
        sequences = options.sequences // (here().world if name == "apart" else 1)
        case = Case(options.arch, options.length, sequences, SIZES[options.size], mask_rate=0.15)
        parallel = name if name in ("ddp", "fsdp") else "none"
        with standing_for(self.ranks):
            torch.manual_seed(0)
            model: Any = case.arch().build(case.size.vocab_size, options.length)
            model = model.train(False).to(where)
            share_out(model, options.precision, parallel)
            clock = Clock({"main": StepsCost()}, sys.float_info.max)
            optimizer = for_model(AdamW(), model)
            self.engine = Engine(model, optimizer, clock, precision=options.precision, parallel=parallel)
            self.batch = case.batch().to(where).shared()

    def block(self) -> None:
        """So many steps."""
        if self.idle:
            return
        with standing_for(self.ranks):
            for _ in range(self.steps):
                for part in self.batch.split(self.microbatch):
                    self.engine.backward(part, Method().objective)
                self.engine.step(1e-3)
            self.engine.synchronize()

    def update(self) -> float:
        """Seconds of the part of a step that comes after its passes."""
        with standing_for(self.ranks):
            for part in self.batch.split(self.microbatch):
                self.engine.backward(part, Method().objective)
            self.engine.synchronize()
            began = time.perf_counter()
            self.engine.step(1e-3)
            self.engine.synchronize()
            return time.perf_counter() - began

    def memory(self) -> dict[str, int]:
        """Bytes that this rank holds from step to step."""
        if self.idle:
            return {}
        weights = own_rows(self.engine.model.parameters())
        copies = [] if self.engine._compute is self.engine.model else list(self.engine._compute.parameters())
        state = [v for one in self.engine.optimizer.state.values() for v in one.values() if torch.is_tensor(v)]
        sizes = {"weights": weights, "copy": copies, "state": own_rows(state)}
        return {name: sum(t.numel() * t.element_size() for t in tensors) for name, tensors in sizes.items()}


def measure(options: ParallelOptions) -> dict[str, Any]:
    """Start the ranks; the result of rank 0."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="benchmark-parallel-") as folder:
        processes = [context.Process(target=_rank, args=(rank, options, Path(folder))) for rank in range(options.ranks)]
        for process in processes:
            process.start()
        try:
            for process in processes:
                process.join()
        finally:
            for process in processes:
                process.kill()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"ranks ended with {[process.exitcode for process in processes]}")
        result: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    return result


def _rank(rank: int, options: ParallelOptions, folder: Path) -> None:
    gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(options.threads or max(1, cores // options.ranks))
    backend = "gloo"
    if gpu:
        torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl"
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=options.ranks)
    with standing_for(Ranks(rank, options.ranks, rank, options.ranks)):
        found = _measured(options, torch.device("cuda", rank) if gpu else torch.device("cpu"))
        if rank == 0:
            (folder / "result.json").write_text(json.dumps(found))
        here().wait()
    dist.destroy_process_group()


def _measured(options: ParallelOptions, where: torch.device) -> dict[str, Any]:
    sides = {name: Side(name, options, where) for name in SIDES}
    walls: dict[str, list[float]] = {name: [] for name in SIDES}
    sizes: dict[str, dict[str, int]] = {}
    for round_ in range(options.rounds + 1):
        for name in SIDES if round_ % 2 else reversed(SIDES):
            if round_ == 0:
                with _counted() as handed:
                    sides[name].block()
                sizes[name] = {kind: count // options.steps for kind, count in handed.items()}
                continue
            here().wait()
            began = time.perf_counter()
            sides[name].block()
            here().wait()
            walls[name].append((time.perf_counter() - began) / options.steps)
    tokens = options.sequences * options.length
    result: dict[str, Any] = {"options": asdict(options), **circumstances(where)}
    result["parameters"] = sum(p.numel() for p in sides["one"].engine.model.parameters()) if here().main else 0
    for name in SIDES:
        one = {"tokens_per_s": spread([tokens / wall for wall in walls[name]]), "memory": sides[name].memory()}
        if name in ("ddp", "fsdp"):
            pairs = list(zip(walls["one"], walls["apart"], walls[name], strict=True))
            one["efficiency"] = spread([alone / wall / options.ranks for alone, _, wall in pairs])
            one["communication"] = spread([1 - apart / wall for _, apart, wall in pairs])
            one["bytes"] = sizes[name]
        result[name] = one
    here().wait()
    result["apart"]["update_s"] = spread([sides["apart"].update() for _ in range(options.rounds)])
    result["link"] = _link(options, where)
    return result


def _link(options: ParallelOptions, where: torch.device) -> dict[str, Any]:
    """Seconds of all-reduces by their bytes, and the hop and the rate that they say.

    After the start come 2 (p - 1) hops and 2 (p - 1) / p bytes for each byte (``cramming.scaling.formulae``). The rate
    is that of the two largest, the hop what is left of the smallest: a fit of equal weights would leave the hop to the
    noise of the largest.
    """
    seconds = {}
    for size in _MESSAGES:
        message = torch.zeros(size // 4, device=where)
        walls = []
        for _ in range(3 * options.rounds):
            here().wait()
            began = time.perf_counter()
            dist.all_reduce(message)
            if message.is_cuda:
                torch.cuda.synchronize()
            walls.append(time.perf_counter() - began)
        seconds[size] = spread(walls[options.rounds :])
    smallest, last, largest = _MESSAGES[0], *_MESSAGES[-2:]
    others = options.ranks - 1
    sent = 2 * others / options.ranks
    rate = sent * (largest - last) / (seconds[largest]["median"] - seconds[last]["median"])
    hop = (seconds[smallest]["median"] - START_S - sent * smallest / rate) / (2 * others)
    return {"seconds": seconds, "gb_s": rate / 1e9, "hop_us": 1e6 * max(hop, 0.0)}


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Bytes handed to FSDP's collectives inside, whole on one rank, by kind."""
    handed: Counter[str] = Counter()

    def counting(kind: str, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            tensor = options[name] if name in options else args[("output", "input").index(name)]
            handed[kind] += tensor.numel() * tensor.element_size()
            return real(*args, **options)

        return call

    with ExitStack() as patched:
        for kind, name in ((_GATHERED, "output"), (_REDUCED, "input")):
            for function in (f"{kind}_single", f"{kind}_tensor", f"{kind}_into_tensor"):  # by versions of torch
                if hasattr(dist, function):
                    patched.enter_context(patch.object(dist, function, counting(kind, name, getattr(dist, function))))
        yield handed


def table(result: dict[str, Any]) -> str:
    """For people."""
    rows = ["| side | step, ms | tokens/s | efficiency | communication | MB a step | MB of a rank |"]
    rows.append("|---|---:|---:|---:|---:|---:|---:|")
    tokens = result["options"]["sequences"] * result["options"]["length"]
    for name in SIDES:
        one = result[name]
        rate = one["tokens_per_s"]["median"]
        known = {key: f"{one[key]['median']:.2f}" if key in one else "" for key in ("efficiency", "communication")}
        megabytes = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in one.get("bytes", {}).items())
        memory = f"{sum(one['memory'].values()) / 1e6:.1f}"
        rows.append(
            f"| {name} | {1e3 * tokens / rate:.1f} | {rate:.0f} | {known['efficiency']} | {known['communication']} | "
            f"{megabytes} | {memory} |"
        )
    link, update_ms = result["link"], 1e3 * result["apart"]["update_s"]["median"]
    said = f"link_gb_s={link['gb_s']:.3f} hop_us={link['hop_us']:.1f}"
    rows += ["", f"An update takes {update_ms:.1f} ms; all-reduces say {said}:", "", "| MB | ms |", "|---:|---:|"]
    rows += [f"| {int(size) / 1e6:.1f} | {1e3 * one['median']:.2f} |" for size, one in link["seconds"].items()]
    return "\n".join(rows) + "\n"


def main() -> None:
    """Parse, measure, print."""
    options = asked(ParallelOptions, __doc__)
    result = measure(options)
    result["ddp"]["bytes"] = {_SUMMED: 4 * result["parameters"]}  # float32 gradients of all parameters, once
    print(json.dumps(result))
    print(table(result))
    keep(result, options.out, table(result))


if __name__ == "__main__":
    run_command(main)
