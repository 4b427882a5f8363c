"""Ranks in processes of their own that train the same small runs by another engine each."""

import copy
import json
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import whole_runs
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from whole_runs import active, optimizer_for, run_with

from cramming.architectures.layers import kept_filters
from cramming.errors import UserError
from cramming.optim import for_model
from cramming.parallel import replicas
from cramming.parallel.ranks import here
from cramming.parallel.spreading import share_out
from cramming.parallel.tensors import whole
from cramming.train import Run, train
from rst.costs import StepsCost
from tests.parallel.laws import met

_CONTEXT = multiprocessing.get_context("forkserver")
_TOGETHER_S = 200  # until ranks that hang are killed; nothing is measured
STEPS = 30
Work = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A small run.

    Attributes:
        parallel: the engine of several ranks.
        family: file of ``config/arch``; None: the core's two small layers.
        methods: at the settings at which they act.
        optimizer: empty: the one in whose runs the methods can be.
        precision: of the passes.
        layout: of the store.
        checkpointing: layers are computed again on the way back.
        compile: blocks are compiled.
        steps: how many.
    """

    parallel: str
    family: str | None = None
    methods: tuple[str, ...] = ()
    optimizer: str = ""
    precision: str = "float32"
    layout: str = "packed"
    checkpointing: bool = False
    compile: bool = False
    steps: int = STEPS

    def run(self) -> Run:
        """At its beginning."""
        with engine_of(self.parallel, self.precision, self.compile, self.checkpointing):
            return run_with(
                active(self.methods),
                optimizer=self.optimizer or optimizer_for(*self.methods),
                family=self.family,
                layout=self.layout,
                precision=self.precision,
                budget=self.steps,
                costs=StepsCost(),
                microbatch_size=2,
            )


@contextmanager
def engine_of(parallel: str, precision: str, compile: bool, checkpointing: bool) -> Iterator[None]:
    """Runs built inside have this engine, if they have several ranks."""
    chosen = parallel if here().world > 1 else "none"

    def shared_out(options: Any, model: Any) -> torch.optim.Optimizer:
        model.gradient_checkpointing = checkpointing
        share_out(model, precision, chosen)
        return for_model(options, model)

    def engine(*args: Any, **options: Any) -> Any:
        return real(*args, **{**options, "parallel": chosen, "compile": compile})

    real = whole_runs.Engine
    with patch.object(whole_runs, "for_model", shared_out), patch.object(whole_runs, "Engine", engine):
        yield


def trained(case: Case) -> dict[str, Any]:
    """What a run of the case was like: a refusal, or losses, norms and what its weights became."""
    try:
        run = case.run()
    except UserError as error:
        return {"refused": str(error)}
    rows: list[dict[str, Any]] = []
    none: list[list[str]] = []
    step = run.engine.step

    def stepping(factor: float) -> int:
        none.append([name for name, p in run.model.named_parameters() if p.grad is None])
        return step(factor)

    def observe(run: Run) -> None:
        rows.append({"step": run.step, "loss": run.engine.loss, "norm": run.engine.grad_norm})

    run.engine.step = stepping  # type: ignore[method-assign]

    train(run, observe)
    state = [value for one in run.engine.optimizer.state.values() for value in one.values()]
    return {
        "rows": rows,
        "weights": {name: float(whole(p.detach()).double().norm()) for name, p in run.model.named_parameters()},
        "none": none,
        "shared": sum(isinstance(value, DTensor) for value in state),
        "skipped": run.engine.skipped_steps,
    }


def together(world: int, folder: Path, work: Work, *args: Any) -> list[Any]:
    """What ``work(*args)`` gives on each of so many ranks, as JSON; it is found by name."""
    if world == 1:
        return [work(*args)]
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting-{os.urandom(4).hex()}"
    calls = [(rank, world, folder, meeting, (work, args)) for rank in range(world)]
    processes = [_CONTEXT.Process(target=_rank, args=call) for call in calls]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(_TOGETHER_S)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * world, f"ranks ended with {codes}"
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def _rank(rank: int, world: int, folder: Path, meeting: Path, call: tuple[Work, Sequence[Any]]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    work, args = call
    with met(rank, world, meeting):
        found = work(*args)
    (folder / f"{rank}.json").write_text(json.dumps(found))


def each(calls: Sequence[tuple[Work, Sequence[Any]]]) -> list[Any]:
    """What calls give, one after the other in the same processes."""
    return [work(*args) for work, args in calls]


def all_of(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """One after the other."""
    return [trained(case) for case in cases]


def one_overflow(parallel: str) -> dict[str, Any]:
    """A step of float16 in which the last rank's loss is beyond its range, and then one that fits."""
    run = Case(parallel, precision="float16").run()
    engine, before = run.engine, _weights(run)
    batch = run.draw(8).shared()
    last = here().rank == here().world - 1

    def step(factor: float) -> None:
        for part in batch.split(2):
            engine.backward(part, lambda forward, b: run.method.objective(forward, b) * factor)
        engine.step(1.0)

    scale = engine.loss_scale.value
    step(float("inf") if last else 1.0)
    unmoved = torch.equal(_weights(run), before)
    halved = engine.loss_scale.value == scale / 2
    step(1.0)
    return {"unmoved": unmoved, "halved": halved, "skipped": engine.skipped_steps, "moved": not _same(run, before)}


def looked_at(parallel: str, precision: str, family: str | None) -> dict[str, Any]:
    """What passes without gradients give, before and after a step, and what the model's parameters are then."""
    run = Case(parallel, family, optimizer="adam", precision=precision).run()
    engine, batch = run.engine, run.draw(8)
    found: dict[str, Any] = {}
    for when in ("first", "then"):
        share = batch.shared()
        found[when] = {
            "losses": engine.losses(batch, "selection").tolist(),
            "logits": share.gathered(engine.logits(share, "selection")).float().flatten().tolist()[:500],
            "uncharged": share.gathered(engine.uncharged_logits(share)).float().flatten().tolist()[:500],
            "hidden": share.gathered(engine.uncharged_hidden(share)).float().flatten().tolist()[:500],
        }
        for kind in ("forward", "forward_backward"):
            engine.probe(kind, share, tuple(run.model.active_layers))()  # type: ignore[arg-type]
        for part in share.split(2):
            engine.backward(part, run.method.objective)
        engine.step(1.0)
    engine.probe("update", batch.shared(), tuple(run.model.active_layers))()
    spread = [isinstance(p, DTensor) for p in run.model.parameters()]
    return found | {"spread": all(spread) if parallel == "fsdp" and here().world > 1 else not any(spread)}


def resumed(cases: Sequence[Case]) -> list[bool]:
    """Whether a run that takes up the state of another one goes on as that one does, to the last bit."""
    found = []
    for case in cases:
        first, second = replace(case, steps=6).run(), replace(case, steps=6).run()
        state: dict[str, Any] = {}

        def keep(run: Run, state: dict[str, Any] = state) -> None:
            if run.step == 3:
                state.update(copy.deepcopy(run.state_dict()))

        train(first, keep)
        second.load_state_dict(state)
        train(second, lambda run: None)
        found.append(_same(second, _weights(first)))
    return found


def reductions(parallel: str, methods: tuple[str, ...], family: str | None) -> dict[str, Any]:
    """How often ranks average gradients in each step, by the event that it falls into."""
    events: list[str] = []

    def scattering(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            events.append("reduced")
            return real(*args, **options)

        return call

    def averaging(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """What DistributedDataParallel does by itself."""
        events.append("reduced")
        tensor = bucket.buffer().div_(here().world)
        work: Any = dist.all_reduce(tensor, async_op=True)
        averaged: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda done: done.value()[0])
        return averaged

    with ExitStack() as patched:
        small = partial(DistributedDataParallel, bucket_cap_mb=0.01)
        patched.enter_context(patch.object(replicas, "DistributedDataParallel", small))
        for name in ("reduce_scatter_tensor", "reduce_scatter_single"):  # by versions of torch
            if hasattr(dist, name):
                patched.enter_context(patch.object(dist, name, scattering(getattr(dist, name))))
        run = Case(parallel, family, methods, steps=4).run()
        if parallel == "ddp":
            replica: Any = run.engine._copy._replica  # type: ignore[union-attr]
            replica.register_comm_hook(None, averaging)
            word = next(p for name, p in run.model.named_parameters() if "word" in name)
            word.register_hook(lambda gradient: events.append("last gradient"))
        backward = run.engine.backward

        def passing(*args: Any) -> Any:
            events.append("pass")
            return backward(*args)

        run.engine.backward = passing  # type: ignore[method-assign]
        train(run, lambda run: events.append("step"))
    units = sum(isinstance(module, FSDPModule) for module in run.model.modules())
    return {"events": events, "units": units}


def made_filters(parallel: str, precision: str) -> list[int]:
    """How often M2's filters are made in each of some steps of several microbatches."""
    run = Case(parallel, "m2_tiny", precision=precision, steps=3).run()
    made, steps = [0], []
    generate = kept_filters.generate

    def counted(*args: Any) -> Any:
        made[0] += 1
        return generate(*args)

    with patch.object(kept_filters, "generate", counted):
        train(run, lambda run: steps.append(made[0]))
    return [after - before for before, after in pairwise([0, *steps])]


def _weights(run: Run) -> torch.Tensor:
    return torch.cat([whole(p.detach()).flatten() for p in run.model.parameters()])


def _same(run: Run, weights: torch.Tensor) -> bool:
    return torch.equal(_weights(run), weights)
