"""Runs in memory made of anything a command line can choose, and what a kill and a resume make of them.

``memory.run_of`` takes a method as it is. Here a run has methods by name, any optimizer at its defaults with the method
that it needs, any family of encoders and any layout, put together as ``cramming.build`` does.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import CPU, LAYERS, LENGTH, MASK_RATE, VOCABULARY, parallel, small_model, store
from settings import ACTIVE, NEUTRAL

from cramming import checkpoint, registry
from cramming.build import build_method
from cramming.config import PretrainConfig, TrainConfig
from cramming.data.stream import Split, Stream
from cramming.engine import Engine
from cramming.method import Method
from cramming.model import Model
from cramming.optim import OptimConfig, for_model
from cramming.schedule import Constant
from cramming.train import Run, train
from rst.clock import Clock, CostModel
from rst.costs import StepsCost
from tests.architectures.families import arch

registry.load_plugins()
# Those of this repository: other tests may register some of their own.
METHODS = [
    kind for kind in registry.kinds("method") if registry.lookup("method", kind).__module__.startswith("efficient_")
]
OPTIMIZERS = [
    kind for kind in registry.kinds("train/optim") if registry.lookup("train/optim", kind).__module__[:8] == "cramming"
]
OPTIONS: dict[str, dict[str, Any]] = {"library": {"name": "adabelief"}}  # of optimizers: what has no default
# An optimizer brings the method it needs; such a method runs with no other.
BRINGS = {kind: needed for kind in OPTIMIZERS if (needed := registry.lookup("train/optim", kind).needs_method)}
SEQUENCES = 8  # in a batch
_FREE_PRICES = StepsCost()


def optimizer_for(*names: str) -> str:
    """The optimizer in whose runs these methods can be: AdamW, or the one that brings one of them.

    Raises:
        KeyError: two of them need different ones.
    """
    needed = {next(kind for kind, brought in BRINGS.items() if brought == name) for name in names if name in _BROUGHT}
    if len(needed) > 1:
        raise KeyError(f"{names} are brought by different optimizers")
    return next(iter(needed), "adamw")


_BROUGHT = set(BRINGS.values())


def compatible(*names: str) -> bool:
    """Whether one optimizer has all of these methods."""
    try:
        optimizer_for(*names)
    except KeyError:
        return False
    return True


def run_with(
    methods: Mapping[str, Method],
    *,
    optimizer: str = "adamw",
    needs: bool = True,
    family: str | None = None,
    layout: str = "packed",
    precision: str = "float32",
    budget: float = 6,
    costs: CostModel = _FREE_PRICES,
    free: Collection[str] = (),
    microbatch_size: int = 4,
    batch_size: Callable[[float], int] = lambda progress: SEQUENCES,
    separate_documents: bool = False,
) -> Run:
    """A run at step 0 of batches of 8 sequences; its clock counts steps unless ``costs`` says otherwise.

    Args:
        methods: by name, in order; empty: the baseline.
        optimizer: at its defaults, but for a gentler rate where that is higher.
        needs: append the method the optimizer needs.
        family: file of ``config/arch``; None: the core's two small layers.
        layout: of the token store.
        precision: of passes.
        budget: in the clock's unit.
        costs: of the trained model and of any other.
        free: accounts that are not paid.
        microbatch_size: sequences in a pass.
        batch_size: rows in a step, by progress.
        separate_documents: no token sees another document's.
    """
    optim: OptimConfig = registry.lookup("train/optim", optimizer)(**OPTIONS.get(optimizer, {}))
    method = build_method(methods, optim if needs else None)
    clock = Clock({"main": costs}, budget, free={*free, *method.free})
    model = small_model() if family is None else _small(family)
    engine = Engine(
        model,  # type: ignore[arg-type]
        for_model(optim, model),
        clock,
        precision=precision,
        microbatch_size=microbatch_size,
        clip_norm=0.5,
        parallel=parallel(),
    )
    config = PretrainConfig(seed=0, train=TrainConfig(batch_size=SEQUENCES, optim=optim), method=dict(methods))
    corpus: Any = store(layout)
    decided = [own for own in (m.lengths(LENGTH) for m in methods.values()) if own is not None]
    stream = Stream(
        corpus,
        Split(corpus.rows, 0.1),
        seed=0,
        mask_rate=lambda: MASK_RATE,
        max_mask_rate=MASK_RATE,
        device=CPU,
        lengths=decided[0] if decided else None,
        separate_documents=separate_documents,
    )

    def rows(progress: float) -> int:
        return batch_size(progress) * stream.lengths.pieces(stream.lengths(progress))

    run = Run(config, model, engine, stream, clock, method, Constant(), rows)  # type: ignore[arg-type]
    method.setup(run)
    return run


def _small(family: str) -> Model:
    torch.manual_seed(0)
    model = arch(family).build(VOCABULARY, LENGTH)
    assert isinstance(model, Model)
    assert model.layers == LAYERS
    return model.train(False)


def active(names: Iterable[str]) -> dict[str, Method]:
    """Methods at the settings at which they act, if they have any."""
    return {name: ACTIVE.get(name, NEUTRAL.get(name, registry.lookup("method", name)))() for name in names}


# ---- killed and resumed ----


class Killed(Exception):  # noqa: N818
    """The run ends here."""


def observed(run: Run, until: int | None = None, folder: Path | None = None) -> list[list[float]]:
    """Train and note losses; ``until`` the loop has gone round so often: then save a checkpoint and stop dead."""
    seen: list[list[float]] = run.notes.setdefault("seen", [])
    before = run.step

    def observe(run: Run) -> None:
        nonlocal before
        row = [run.step, run.clock.spent_s, run.engine.grad_norm, *run.method.columns().values()]
        seen.append([*row, run.engine.loss] if run.step > before else row)  # a step that waits has no loss yet
        before = run.step
        if len(seen) == until:
            assert folder is not None
            checkpoint.save(folder, run.step, run.state_dict(), {}, keep=1, kept_at_h=[])
            raise Killed

    if until is None:
        train(run, observe)
    else:
        with pytest.raises(Killed):
            train(run, observe)
    return seen


def resumed(run: Run, folder: Path) -> Run:
    """The state in ``folder``, taken up by a run that has seen nothing, after other work has turned the generators."""
    torch.manual_seed(12345)
    found = checkpoint.newest(folder)
    assert found is not None
    run.load_state_dict(found[1])
    return run


def comparable(run: Run) -> dict[str, Any]:
    """Everything a run is but the global generators, which other tests turn too."""
    return {key: value for key, value in run.state_dict().items() if key != "random"}
