"""The only caller of the model in training: precision, loss scaling, accumulation, clipping, compiling, charging.

Weights live in float32 (the run's model, what optimizers and methods see). Under bfloat16 or float16 the passes run on
a low-precision copy: see ``precision.py``.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cramming import optim
from cramming.batch import Batch
from cramming.compiling import Blocks
from cramming.differentiation import differentiating_twice, hessian_product, twice
from cramming.errors import UserError
from cramming.method import Forward
from cramming.model import Model
from cramming.out_of_memory import is_out_of_memory, largest_halving
from cramming.parallel.ranks import here
from cramming.parallel.spreading import spread
from cramming.parallel.tensors import whole
from cramming.precision import DTYPES, LossScale
from cramming.profiling.phases import OPTIMIZER, UNWATCHED, Phases
from rst.clock import Clock
from rst.work import Kind, Work

# What a Hessian product is charged as. Of a matrix in the model a pass and its way back take three products, this takes
# nine: one forward, two back, four to differentiate these, two to carry that on. Measured: 2.8 to 3.9 of a pass's time.
_PASSES_OF_A_HESSIAN_PRODUCT = 3


class Engine:
    """Runs passes and steps, and charges the clock for each.

    Args:
        model: float32 weights; see the model contract in ``cramming/architectures``.
        optimizer: its parameter groups carry ``base_lr``.
        clock: charged for every pass and step.
        precision: ``float32``, ``bfloat16`` or ``float16`` (with loss scaling).
        microbatch_size: sequences per pass; never changes the result beyond rounding.
        clip_norm: largest L2 norm of a step's gradient, or None.
        compile: compile the model's blocks (not the whole, so that changing depth never recompiles).
        cuda_graphs: replay compiled blocks as CUDA graphs where that can be (``compiling.py``).
        max_skipped_steps: steps in a row that may be skipped for a loss or gradient that is not finite.
        parallel: how several ranks train the model together: ``none``, ``ddp`` or ``fsdp`` (``parallel/spreading.py``).
    """

    def __init__(
        self,
        model: Model,
        optimizer: torch.optim.Optimizer,
        clock: Clock,
        *,
        precision: str = "float32",
        microbatch_size: int = 32,
        clip_norm: float | None = None,
        compile: bool = False,
        cuda_graphs: bool = False,
        max_skipped_steps: int = 20,
        parallel: str = "none",
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.clock = clock
        self.precision = precision
        self.microbatch_size = microbatch_size
        self.clip_norm = clip_norm
        self.parallel = parallel
        self.loss_scale = LossScale(precision, max_skipped_steps)
        self.grad_norm = float("nan")  # of the last step, before clipping
        self.loss = float("nan")  # of the last step: mean over its predicted tokens, of passes charged to ``train``
        self._loss = torch.zeros((), device=next(model.parameters()).device)
        self.trained = 0  # sequences of passes charged to ``train``, of all ranks
        self._own_loss = torch.zeros_like(self._loss)  # this rank's part of a batch under way
        self.phases: Phases = UNWATCHED
        self._copy = spread(model, precision, parallel, once="cast_once" not in model.plain)
        self._compute, self._pairs = self._copy.module, self._copy.pairs
        self._others: dict[str, Model] = {}
        self._blocks = Blocks(self._compute, precision, compile=compile, cuda_graphs=cuda_graphs, parallel=parallel)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self._loss.device

    @property
    def skipped_steps(self) -> int:
        """Steps whose loss or gradient was not finite."""
        return self.loss_scale.skipped_steps

    @property
    def cuda_graphs(self) -> str:
        """What became of ``impl.cuda_graphs``."""
        return self._blocks.cuda_graphs

    def backward(self, batch: Batch, objective: Callable[[Forward, Batch], Tensor], account: str = "train") -> Tensor:
        """Add the gradient of ``objective`` on a microbatch; every forward call in it is charged as both passes.

        Returns:
            The objective's value on this rank, (), detached.

        Raises:
            UserError: out of memory; the message names a microbatch size that fits.
        """
        self._copy.begin(batch.ends_group, batch.ends_batch)
        try:
            with self._blocks.one_pass():
                with self.phases.forward(account, batch, gradients=True):
                    loss = objective(self._forward(account, "forward_backward"), batch)
                with self.phases.backward(account):
                    scale = self.loss_scale.value * here().world  # gradients are averaged over ranks
                    (loss * scale).backward()  # type: ignore[no-untyped-call]
                    self._copy.collect()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = len(batch)
        else:
            if account == "train":  # a second pass, or an estimate between steps, is not the loss that is trained on
                self._own_loss += loss.detach()
                self.trained += batch.sequences
                if batch.ends_batch:
                    self._loss += here().sum_(self._own_loss)
                    self._own_loss.zero_()
            return loss.detach()
        if self.parallel != "none":  # passes that are tried would leave the other ranks waiting
            raise UserError(
                f"out of memory with {size} sequences of {batch.length} tokens in a microbatch of rank {here().rank}; "
                f"try impl.microbatch_size={max(1, size // 2)}"
            )
        # Outside the except clause: the traceback no longer holds the tensors that filled the memory.
        fitting = largest_halving(size // 2, lambda n: self._try_passes(next(batch.split(n))))
        way_out = f"impl.microbatch_size={fitting} fits" if fitting else "one sequence alone does not fit"
        raise UserError(f"out of memory with {size} sequences of {batch.length} tokens in a microbatch; {way_out}")

    def hessian_product(
        self,
        batch: Batch,
        objective: Callable[[Forward, Batch], Tensor],
        vectors: Mapping[nn.Parameter, Tensor],
        account: str,
    ) -> dict[nn.Parameter, Tensor]:
        """The Hessian of ``objective`` on a microbatch times a vector, by differentiating twice.

        In the engine's precision; in float32 where that is float16, whose range has room for gradients at a loss scale
        and none for their derivatives. Gradients that were gathered stay as they are. A forward call in it is charged
        as three passes with their way back, which is what it takes.

        Args:
            batch: a microbatch.
            objective: as for ``backward``.
            vectors: for each of the model's parameters, float32, what its part of the Hessian is multiplied with.
            account: what pays.

        Returns:
            The product, float32, for each parameter that the microbatch uses, of this rank alone.

        Raises:
            UserError: out of memory, or a model that cannot be differentiated twice.
        """
        wide = self.precision == "float16"
        pairs = [(p, p if wide else computed) for p, computed in self._pairs if computed.requires_grad]
        forward = self._forward(account, "forward_backward", passes=_PASSES_OF_A_HESSIAN_PRODUCT, wide=wide)
        try:
            with self.phases(account), differentiating_twice():
                loss = objective(forward, batch)
                directions = [vectors[parameter].to(computed.dtype) for parameter, computed in pairs]
                products = hessian_product(loss, [computed for _, computed in pairs], directions)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"out of memory with {len(batch)} sequences of {batch.length} tokens in a product with the Hessian, "
                f"which keeps more than a training pass; give impl.microbatch_size={max(1, len(batch) // 2)} or less"
            ) from error
        return {parameter: h.float() for (parameter, _), h in zip(pairs, products, strict=True) if h is not None}

    @torch.no_grad()
    def losses(self, batch: Batch, account: str) -> Tensor:
        """Mean loss over each sequence's predicted tokens, (T,) float32; no gradient, no dropout; charged.

        Each rank computes its share, and all know all of them.
        """
        batch = batch.shared()
        forward = self._forward(account, "forward")
        with self._without_dropout(), self.phases.forward(account, batch, gradients=False):
            parts = self._each(batch, lambda part: (forward(part) * part.weights).sum(1))
        return batch.gathered(torch.cat(parts) / batch.weights.sum(1).clamp(min=1))

    @torch.no_grad()
    def logits(self, batch: Batch, account: str, of: str = "main") -> Tensor:
        """Logits at the predicted positions, (B, P, V), no gradients, no dropout; charged as forward.

        Args:
            batch: what to predict.
            account: what pays.
            of: the model asked: the one that is trained, or one that ``add_model`` added.
        """
        with self._without_dropout(), self.phases(account):
            forward = self._forward(account, "forward", of)
            return torch.cat(self._each(batch, lambda part: forward(part, logits=True)))

    @torch.no_grad()
    def uncharged_logits(self, batch: Batch) -> Tensor:
        """Logits at the predicted positions, (B, P, V), for validation, which is never charged."""
        with self._without_dropout():
            return self._call(batch, True, replayed=False)

    @torch.no_grad()
    def uncharged_hidden(self, batch: Batch) -> Tensor:
        """Final hidden states, (B, S, H), for probes, which are never charged."""
        with self._without_dropout():
            self._refresh()
            self._blocks.choose(None)
            return self._copy.hidden(batch)

    def add_model(self, name: str, model: Model) -> None:
        """Another model to ask, such as a teacher: as it is for good, in the engine's precision.

        The clock must have a cost model of that name. It is no part of the engine's state.
        """
        assert name in self.clock.costs, f"nothing prices model {name!r}"
        self._others[name] = model.to(self.device, DTYPES[self.precision]).eval().requires_grad_(False)

    def spend_gradients(self, use: Callable[[], None]) -> bool:
        """Hand the gradients gathered so far to ``use`` instead of a step, unscaled and clipped, and drop them.

        For estimates between steps, such as of curvature: nothing is charged but the passes, no weight moves.

        Returns:
            Whether they were finite; ``use`` is not called with others.
        """
        parameters, norm = self._unscaled()
        finite = bool(torch.isfinite(norm))
        if finite:
            self._clip(parameters, norm)
            use()
        self.optimizer.zero_grad(set_to_none=True)
        return finite

    def average(self, batches: int) -> None:
        """Say that what was gathered since the last step is of so many batches: its loss becomes their mean.

        For a method that defers steps and hands the mean of the batches' gradients over itself.
        """
        self._loss /= batches

    def step(self, factor: float) -> int:
        """Clip, set the learning rates to ``base_lr x factor``, take the optimizer's step, drop the gradients.

        A step whose loss or gradient is not finite is skipped and counted.

        Returns:
            1, a step taken (also one that was skipped: its budget is spent).

        Raises:
            UserError: more steps in a row were skipped than allowed.
        """
        parameters, norm = self._unscaled()
        self.grad_norm, self.loss = float(norm), float(self._loss)
        self._loss.zero_()
        finite = self.grad_norm < float("inf") and self.loss == self.loss and abs(self.loss) < float("inf")
        if finite:
            self._clip(parameters, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            self.optimizer.step()
            self._copy.written()
        self.optimizer.zero_grad(set_to_none=True)
        self.clock.charge(Work("update"), "optimizer")
        self.loss_scale.count(finite)
        return 1

    def probe(self, kind: Kind, batch: Batch, active_layers: tuple[int, ...]) -> Callable[[], None]:
        """A callable that does one piece of work, to measure what it costs; passes leave no trace and charge nothing.

        Args:
            kind: ``forward``, ``forward_backward``, or ``update``: a step at learning rate 0 and zero gradients, with
                the refresh of the low-precision copy that follows it; it charges the clock and moves the optimizer's
                state, so it is for engines that are no part of a run. Of an optimizer that does some of its work every
                ``period`` steps only, so many steps, which an attribute ``times`` of the callable says.
            batch: what to work on; an update needs none of it.
            active_layers: the depth to work at; an update writes every parameter.
        """

        def passes() -> None:
            self._copy.begin(ends_group=True, ends_batch=True)
            before = self.model.active_layers
            self.model.active_layers = active_layers
            with torch.set_grad_enabled(kind != "forward"), self._blocks.one_pass():
                loss = (self._call(batch, False, replayed=False) * batch.weights).sum()
                if kind != "forward" and loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
                    self._copy.collect()
            self.model.active_layers = before
            self.optimizer.zero_grad(set_to_none=True)
            self.synchronize()

        def update() -> None:
            for _ in range(period):
                for (parameter, _), gradient in zip(self._pairs, gradients, strict=True):
                    parameter.grad = gradient
                self.step(0.0)
                self._refresh()
            self.synchronize()

        period: int = getattr(self.optimizer, "period", 1)
        update.times = period  # type: ignore[attr-defined]
        gradients = [torch.zeros_like(parameter) for parameter, _ in self._pairs] if kind == "update" else []
        return update if kind == "update" else passes

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, loss scale, counts of skipped steps, and gradients that wait for a deferred step."""
        return {
            "optimizer": self.optimizer.state_dict(),
            **self.loss_scale.state_dict(),
            "grad_norm": self.grad_norm,
            # Of a step that a method has deferred; else there are none.
            "gradients": {i: p.grad for i, (p, _) in enumerate(self._pairs) if p.grad is not None},
            "pending_loss": self._loss,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them up."""
        optim.load(self.optimizer, state["optimizer"])
        self.loss_scale.load_state_dict(state)
        self.grad_norm = state["grad_norm"]
        for index, gradient in state["gradients"].items():
            self._pairs[index][0].grad = gradient.to(self.device)
        self._loss = state["pending_loss"].to(self.device)

    def _forward(self, account: str, kind: Kind, of: str = "main", passes: int = 1, wide: bool = False) -> Forward:
        model = self._others.get(of, self.model)

        def forward(batch: Batch, logits: bool = False) -> Tensor:
            output: Tensor = model(batch, logits=logits) if wide or of in self._others else self._call(batch, logits)
            for _ in range(passes):
                self.clock.charge(model.work(kind, batch, of), account)
            return output

        return forward

    def _each(self, batch: Batch, ask: Callable[[Batch], Tensor]) -> list[Tensor]:
        """What is asked about every microbatch, each a pass of its own."""
        found = []
        for part in batch.split(self.microbatch_size):
            with self._blocks.one_pass():
                found.append(ask(part))
        return found

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        training = self._compute.training
        self._compute.eval()
        try:
            yield
        finally:
            self._compute.train(training)

    def _unscaled(self) -> tuple[list[Tensor], Tensor]:
        """Parameters that have a gradient, now without the loss scale, and the gradients' L2 norm, ()."""
        parameters: list[Tensor] = [p for p, _ in self._pairs if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.loss_scale.value != 1.0:
            torch._foreach_mul_(gradients, 1 / self.loss_scale.value)
        return parameters, whole(torch.nn.utils.get_total_norm(gradients))

    def _clip(self, parameters: list[Tensor], norm: Tensor) -> None:
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)

    def _call(self, batch: Batch, logits: bool, replayed: bool = True) -> Tensor:
        self._refresh()
        self._blocks.choose(batch if replayed and not twice() else None)
        return self._copy(batch, logits)

    def _refresh(self) -> None:
        """Bring the low-precision copy up to date: which layers it runs, and its weights."""
        if self._compute is not self.model:
            self._compute.active_layers, self._compute.layer_scales = self.model.active_layers, self.model.layer_scales
            with self.phases(OPTIMIZER):
                self._copy.refresh()

    def _try_passes(self, batch: Batch) -> None:
        """A training pass that leaves no trace, into memory that holds nothing of another."""
        self.optimizer.zero_grad(set_to_none=True)
        for _, computed in self._pairs:
            computed.grad = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.probe("forward_backward", batch, self.model.active_layers)()
