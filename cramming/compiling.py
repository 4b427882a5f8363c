"""How the engine's blocks run: as they are written, compiled, or compiled and replayed as CUDA graphs.

Blocks are compiled one by one: layers alike share what was compiled, whatever the depth and whichever of them is last.

``impl.cuda_graphs`` hands recording and replaying to torch (``mode="reduce-overhead"``): a block's kernels are recorded
once and started by one call from then on, which is worth most where starting them takes longer than they do. They write
to the same memory in every pass, so that what a pass made is gone with the next one:

* ``one_pass`` says where a pass begins. All that is called inside is part of it: the way back, a second forward call of
  an objective, a pass without gradients in the middle of it.
* Gradients leave that memory with ``WorkingCopy.collect``. In float32 there is no copy, ``p.grad`` itself would lie
  there, and the next microbatch would be added to what it has just overwritten.
* Losses and logits are made by the head, outside of the blocks, in memory of their own. Hidden states are not: passes
  that hand them out, and the others that are not charged, come in many shapes and are never replayed.
* A recording is of one shape and of one sequence of blocks, because a block reads where the one before it has written.
  Each such path is another recording of every block in it, kept for good. Layers that are drawn anew are therefore not
  recorded, and of depths (the first layers) and shapes at most ``PATHS``; which run without then, depends on which came
  first, and rounding with it, as it may where a run was continued.
* What recordings hold comes on top of what ``impl.microbatch_size=auto`` has found to fit, which is tried without.
"""

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cramming.batch import Batch
from cramming.model import Model

_log = logging.getLogger(__name__)
PATHS = 16
# Shapes that change (lengths, sizes of a growing batch) double the variants of a block that there are for its place and
# for gradients. Past the limit blocks would run uncompiled, and which, would depend on when.
_VARIANTS = 64
COMPILED: dict[str, Any] = {}
REPLAYED: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}


def lacking(model: Model, precision: str, compile: bool, parallel: str = "none") -> str | None:
    """Why no pass of a model, where and as it is, can be replayed as CUDA graphs; None if some can."""
    where = next(model.parameters()).device.type
    if where != "cuda":
        return f"there are none on a {where}"
    if not compile:
        return "blocks are not compiled (impl.compile=false)"
    if parallel != "none":
        return "ranks exchange gradients in the middle of the way back"
    if precision == "float32":
        return "in float32 there is no copy of the weights whose gradients could be taken out of the graphs' memory"
    if model.gradient_checkpointing:
        return "impl.gradient_checkpointing computes blocks again in the middle of the way back"
    return None


class Blocks:
    """The blocks of the model that passes run on.

    Args:
        model: theirs.
        precision: of the passes.
        compile: compile them.
        cuda_graphs: replay them as CUDA graphs where that can be; where it cannot, a line of the log says why.
        parallel: how ranks train together.
    """

    def __init__(
        self, model: Model, precision: str, *, compile: bool, cuda_graphs: bool, parallel: str = "none"
    ) -> None:
        self._model = model
        self._asked = cuda_graphs
        self._lacking = lacking(model, precision, compile, parallel) if cuda_graphs else None
        self._without: list[str] = []  # which passes ran without, though they were asked for
        self._paths: set[Hashable] = set()
        self._inside = 0  # passes that have begun and not ended, one in another
        self._calls: dict[bool, list[Callable[..., Any] | None]] = {}  # by whether they are replayed
        self._replayed = False
        if self._lacking is not None:
            _log.warning("impl.cuda_graphs=true: blocks run without: %s", self._lacking)
        if compile:
            torch._dynamo.config.recompile_limit = max(_VARIANTS, torch._dynamo.config.recompile_limit)
            if cuda_graphs and self._lacking is None:
                self._calls[True] = self._compile(REPLAYED)
            self._calls[False] = self._compile(COMPILED)

    @property
    def cuda_graphs(self) -> str:
        """What became of ``impl.cuda_graphs``, for the run's summary."""
        if not self._asked:
            return "not asked for"
        if self._lacking is not None:
            return f"none: {self._lacking}"
        return "replayed" + (f", but not {' and not '.join(self._without)}" if self._without else "")

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Around a pass with its way back. Nothing that blocks returned in it may be looked at after the next began."""
        if True in self._calls and not self._inside:
            torch.compiler.cudagraph_mark_step_begin()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def choose(self, batch: Batch | None) -> None:
        """Before a forward call: decide whether its blocks are replayed, as deep as they are and with gradients or not.

        Args:
            batch: what the call is about; None: something that is not to be recorded.
        """
        if True not in self._calls:
            return
        replayed = batch is not None and self._recorded(batch)
        if replayed != self._replayed:
            for block, call in zip(self._model.blocks, self._calls[replayed], strict=True):
                block._compiled_call_impl = call  # type: ignore[assignment]
            self._replayed = replayed

    def _compile(self, options: dict[str, Any]) -> list[Callable[..., Any] | None]:
        """Every block's call, which compiles when it is first made; they hold for the blocks from now on."""
        for block in self._model.blocks:
            block.compile(**options)
        return [block._compiled_call_impl for block in self._model.blocks]

    def _recorded(self, batch: Batch) -> bool:
        """Whether the path is recorded, or there is room to do so."""
        if batch.lengths is not None:
            return self._refused("of batches without their padding, no two of which have the same shape")
        if batch.starts is not None:
            return self._refused("of documents that are kept apart, of which every batch has others")
        model, depth = self._model, len(self._model.active_layers)
        if model.layer_scales or tuple(model.active_layers) != tuple(range(depth)):
            return self._refused("of layers that are drawn anew, each draw being a recording of its own")
        kept = None if batch.kept is None else (batch.kept.shape, batch.kept_depth)
        shapes = batch.inputs.shape, batch.positions.shape, kept
        path = depth, torch.is_grad_enabled(), model.training, shapes
        if path not in self._paths and len(self._paths) >= PATHS:
            return self._refused(f"at more than {PATHS} depths and shapes, each of which is recorded for itself")
        self._paths.add(path)
        return True

    def _refused(self, which: str) -> bool:
        if which not in self._without:
            self._without.append(which)
            _log.warning("impl.cuda_graphs=true: no graphs for passes %s", which)
        return False
