"""Passes and optimizer steps of fine-tuning, none of which waits for the device.

Whether a step was finite, by how much its gradient is clipped and float16's loss scale are numbers on the device, which
the fused optimizer reads there.
"""

import torch
from torch import Tensor

from cramming.architectures.encoder import Classifier
from cramming.architectures.layers.embedding import Embeddings
from cramming.errors import UserError
from cramming.evaluation.batches import Inputs
from cramming.evaluation.finetuned import FineTuned, judged, loss
from cramming.out_of_memory import is_out_of_memory
from cramming.precision import DTYPES, FIRST_SCALE, SCALE_GROWS_EVERY, WorkingCopy

MAX_SKIPPED = 20  # steps in a row
_WORDS = "encoder.embeddings.word.weight"  # of our own families


class Updater:
    """A model, its optimizer, and a copy of the model in the precision of the passes.

    Args:
        model: float32 weights.
        optimizer: a fused one, whose groups carry ``base_lr``.
        precision: ``float32``, ``bfloat16`` or ``float16``.
        microbatch_size: examples of a pass; None: the whole batch.
        clip_norm: largest L2 norm of a step's gradient; None: any.
    """

    def __init__(
        self,
        model: FineTuned,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str = "float32",
        microbatch_size: int | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.microbatch_size, self.clip_norm = microbatch_size, clip_norm
        self.device = next(model.parameters()).device
        words = _WORDS if isinstance(model.encoder, Classifier) else None
        self._copy = WorkingCopy(model, precision, () if words is None else (words,), own_gradients=True)
        self._rows = None if words is None else _Rows(model, self._copy.module, precision)
        self._parameters = list(model.parameters())
        self._watched = [p for p in self._parameters if p.dim() < 2] or self._parameters
        self._scale = torch.tensor(FIRST_SCALE, device=self.device) if precision == "float16" else None
        self._good_steps = torch.zeros((), dtype=torch.int32, device=self.device)
        self._skipped_in_a_row = torch.zeros((), device=self.device)
        self._most_skipped = torch.zeros((), device=self.device)

    @property
    def module(self) -> FineTuned:
        """What to evaluate: the model in the precision of the passes, as it is now."""
        self._copy.refresh()
        return self._copy.module

    def step(self, inputs: Inputs, factor: float) -> Tensor:
        """One optimizer step at ``base_lr * factor``: the loss before it, (), on the device.

        It is skipped where loss or gradient is not finite.

        Raises:
            UserError: out of memory.
        """
        total = self._backward(inputs)
        # Of gradients that are not clipped it is enough to look at the short ones, such as those of biases: each is
        # the sum of what a matrix beside it is multiplied with, and so not finite wherever that matrix's is not.
        watched = self._watched if self.clip_norm is None and self._scale is None else self._parameters
        norm = torch.nn.utils.get_total_norm([p.grad for p in watched if p.grad is not None], foreach=True)
        finite = torch.isfinite(norm) & torch.isfinite(total)
        self._skipped_in_a_row = (self._skipped_in_a_row + 1) * ~finite
        self._most_skipped = torch.maximum(self._most_skipped, self._skipped_in_a_row)
        # The kernel divides gradients by this.
        divisor = self._scale
        if self.clip_norm is not None:
            unscaled = norm if divisor is None else norm / divisor
            shrink = ((unscaled + 1e-6) / self.clip_norm).clamp(min=1.0)  # torch.nn.utils.clip_grad_norm_
            divisor = shrink if divisor is None else shrink * divisor
        self.optimizer.grad_scale = divisor  # type: ignore[attr-defined]
        self.optimizer.found_inf = found_inf = (~finite).float()  # type: ignore[attr-defined]
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._rows is not None:
            self._rows.clear(inputs)
        self._copy.written()
        if self._scale is not None:
            torch._amp_update_scale_(self._scale, self._good_steps, found_inf, 2.0, 0.5, SCALE_GROWS_EVERY)
        return total

    def check(self) -> None:
        """Wait for the device and see whether it goes well.

        Raises:
            UserError: too many steps in a row were skipped.
        """
        skipped = int(self._most_skipped)
        if skipped > MAX_SKIPPED:
            task = self.model.task.name
            raise UserError(
                f"the loss was not finite in more than {MAX_SKIPPED} steps in a row: give a smaller "
                f"eval.per_task.{task}.lr, or eval.per_task.{task}.clip_norm=1"
            )

    def _backward(self, inputs: Inputs) -> Tensor:
        """The gradient of the batch's mean loss; that loss."""
        assert inputs.labels is not None
        task = self.model.task
        normalizer = max(1, judged(task, inputs.labels))
        module, total = self.module, None
        if not module.training:
            module.train()
        if self._rows is not None:
            self._rows.lend()
        size = (0, 0)
        try:
            for part in inputs.split(self.microbatch_size):
                size = (len(part), part.tokens.shape[1])
                here = part.to(self.device)
                assert here.labels is not None
                value = loss(task, module(here), here.labels) / normalizer
                (value if self._scale is None else value * self._scale).backward()  # type: ignore[no-untyped-call]
                self._copy.collect()
                total = value.detach() if total is None else total + value.detach()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            way_out = f"give impl.microbatch_size={size[0] // 2}" if size[0] > 1 else "give a shorter eval.max_length"
            raise UserError(f"out of memory with {size[0]} examples of {size[1]} tokens in a pass: {way_out}") from None
        assert total is not None
        return total


class _Rows:
    """The gradient of the table of words, most of whose rows a batch does not look up.

    One buffer serves all steps: what a batch wrote is set to zero again after its step, nothing else is touched. Passes
    look up in the float32 table itself, so that it needs no copy in 16 bits.
    """

    def __init__(self, model: FineTuned, module: FineTuned, precision: str) -> None:
        self._table = model.get_parameter(_WORDS)
        self._buffer = torch.zeros_like(self._table)
        embeddings = module.encoder.embeddings
        assert isinstance(embeddings, Embeddings)
        embeddings.row_gradients = self._buffer
        embeddings.dtype = None if precision == "float32" else DTYPES[precision]

    def lend(self) -> None:
        """Before a step's passes."""
        self._table.grad = self._buffer

    def clear(self, inputs: Inputs) -> None:
        """After a step on ``inputs``."""
        self._buffer.index_fill_(0, inputs.tokens.flatten().to(self._buffer.device), 0.0)
