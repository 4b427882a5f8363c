"""Sophia's curvature: the gradient at labels that the model itself sampled (https://arxiv.org/abs/2305.14342, alg. 2).

After every k-th step fresh sequences are drawn, labels are sampled at the predicted positions from the softmax over the
vocabulary, and the optimizer gets the gradient of their mean loss: B tokens' g, of which B g g estimates the diagonal
of the Gauss-Newton matrix without bias. The authors' code estimates after steps k, 2k, ... as well; the paper's
pseudocode also before the first, where weights are still random.

Cost: a forward and backward pass of ``hessian_sequences`` every k steps, account ``hessian``: with half a batch every
10 steps 5 % of the training. The sequences are consumed and not trained on. Depth is that of the active layers, none of
them dropped; layers that are not active get no estimate.

The earlier study's code (https://arxiv.org/abs/2307.06440) sampled from hidden features instead of the vocabulary and
kept the last microbatch only; here all of an estimate counts.

Shape legend: n sequences, P prediction slots, N = n P, V vocabulary.
"""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cramming.batch import Batch
from cramming.errors import UserError
from cramming.hashing import key, mix
from cramming.method import Forward, Method
from cramming.registry import register

if TYPE_CHECKING:
    from cramming.train import Run

_BITS = 24  # of a uniform number: all that a float32 below 1 holds
# float32 probabilities worked on at a time, so that no second copy of all logits in float32 ever exists.
_CHUNK_VALUES = {"cpu": 1 << 19}
_CHUNK_VALUES_ELSEWHERE = 1 << 26


@register("method", "hessian")
@dataclass
class Hessian(Method):
    """Give an optimizer that has ``update_hessian`` the gradient at sampled labels.

    Attributes:
        hessian_every_steps: k, optimizer steps from one estimate to the next.
        hessian_sequences: of an estimate, in rows of the data; None: half of a batch (of the study's 1536: 768).
    """

    hessian_every_steps: int = 10
    hessian_sequences: int | None = None

    accounts: ClassVar[tuple[str, ...]] = ("hessian",)

    def __post_init__(self) -> None:
        for name in ("hessian_every_steps", "hessian_sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"method.hessian.{name}={value} must be a whole number from 1")
        self.estimated_at = 0  # step
        self._columns: dict[str, float] = {}

    def setup(self, run: "Run") -> None:
        if not hasattr(run.engine.optimizer, "update_hessian"):
            raise UserError(
                f"method=hessian: {type(run.engine.optimizer).__name__} has no use for an estimate of the curvature; "
                "use train/optim=sophiag, or leave the method out"
            )
        if "logits" not in inspect.signature(run.model.forward).parameters:
            raise _without_logits(run)

    def after_step(self, run: "Run") -> None:
        due = run.step % self.hessian_every_steps == 0 and run.step > self.estimated_at  # else: a step is deferred
        if not due or run.clock.progress >= 1.0:  # no step would use it
            return
        self.estimated_at = run.step
        batch = self._draw(run)
        numbers = uniforms(batch, run.config.seed, run.step, run.stream.lengths.pieces(batch.length))
        done = 0
        for microbatch in run.microbatches(batch):
            own = numbers[done : done + len(microbatch)]
            done += len(microbatch)

            def sampled(forward: Forward, part: Batch, own: Tensor = own) -> Tensor:
                scores = forward(part, logits=True)
                if scores.shape != (*part.positions.shape, run.model.vocab_size):
                    raise _without_logits(run)
                losses = sampled_losses(scores.flatten(0, 1), own.flatten())
                return (losses * part.weights.flatten()).sum() / part.normalizer

            run.engine.backward(microbatch, sampled, "hessian")
        optimizer: Any = run.engine.optimizer
        predicted = float(batch.normalizer)
        if run.engine.spend_gradients(lambda: optimizer.update_hessian(predicted)):
            self._columns = optimizer.curvature() if hasattr(optimizer, "curvature") else {}

    def _draw(self, run: "Run") -> Batch:
        """Fresh sequences, as long as those of the next step will be."""
        progress = run.clock.progress
        run.stream.begin_step(progress)
        if self.hessian_sequences is None:
            return run.draw(max(1, run.batch_size(progress) // 2))
        return run.draw(self.hessian_sequences * run.stream.lengths.pieces(run.stream.length))

    def columns(self) -> dict[str, float]:
        return self._columns

    def state_dict(self) -> dict[str, Any]:
        return {"estimated_at": self.estimated_at, "columns": self._columns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.estimated_at, self._columns = state["estimated_at"], state["columns"]


def uniforms(batch: Batch, seed: int, step: int, pieces: int = 1) -> Tensor:
    """A number in [0, 1) for each prediction slot, a hash of (seed, step, epoch, id, position): -> (n, P) float32.

    Args:
        batch: all sequences of an estimate, or this rank's share of them.
        seed: the run's.
        step: the estimate's.
        pieces: sequences that a row was cut into, which follow one another; positions are those in the row.
    """
    piece = batch.places % pieces
    sequence = mix(mix(batch.epochs + key("labels", seed, step)) ^ mix(batch.ids)) + piece * batch.length
    hashes = mix(sequence[:, None] + batch.positions)
    return ((hashes >> (64 - _BITS)) & ((1 << _BITS) - 1)).to(torch.float32) / (1 << _BITS)


def sample(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """The outcome at which the cumulative probability passes the number: (N, V), (N,) in [0, 1) -> (N,) int64."""
    cumulative = probabilities.cumsum(-1)
    aims = numbers.to(cumulative.dtype) * cumulative[:, -1]  # rounding keeps the sum from being 1
    return torch.searchsorted(cumulative, aims[:, None], right=True).squeeze(1).clamp_(max=probabilities.shape[1] - 1)


def sampled_losses(scores: Tensor, numbers: Tensor) -> Tensor:
    """Cross entropy at labels sampled from the scores' softmax: (N, V), (N,) in [0, 1) -> (N,), at least float32."""
    losses: Tensor = _SampledLosses.apply(scores, numbers)  # type: ignore[no-untyped-call]
    return losses


class _SampledLosses(torch.autograd.Function):
    """Keeps one matrix like the scores, softmax - onehot(sampled), which is their gradient up to a factor for a row."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, numbers: Tensor) -> Tensor:
        """(N, V), (N,) -> (N,)."""
        wide = torch.promote_types(scores.dtype, torch.float32)
        slopes, losses = torch.empty_like(scores), torch.empty(scores.shape[:1], dtype=wide, device=scores.device)
        rows = max(1, _CHUNK_VALUES.get(scores.device.type, _CHUNK_VALUES_ELSEWHERE) // scores.shape[1])
        for start in range(0, scores.shape[0], rows):
            part = slice(start, start + rows)
            logs = F.log_softmax(scores[part].to(wide), dim=-1)
            probabilities = logs.exp()
            labels = sample(probabilities, numbers[part])[:, None]
            losses[part] = -logs.gather(1, labels).squeeze(1)
            slopes[part] = probabilities.scatter_add_(1, labels, probabilities.new_full(labels.shape, -1.0))
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        """(N,) -> (N, V)."""
        (slopes,) = ctx.saved_tensors
        return slopes.mul_(scale[:, None]), None


def _without_logits(run: "Run") -> UserError:
    return UserError(
        f"method=hessian samples labels from a model's logits over the vocabulary, and {type(run.model).__name__} "
        "gives none; use another arch, or an optimizer other than sophiag"
    )
