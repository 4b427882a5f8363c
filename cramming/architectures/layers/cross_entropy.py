"""Vocabulary projection and cross entropy in one step, with float32 losses from logits of any precision.

Shape legend: N predicted tokens, H hidden, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cramming.differentiation import twice

# float32 values worked on at a time: small enough to stay in a core's cache on CPU, large enough to fill a GPU.
CHUNK_VALUES = {"cpu": 1 << 19}
CHUNK_VALUES_ELSEWHERE = 1 << 26


class _LinearCrossEntropy(torch.autograd.Function):
    """The logits' gradient up to the incoming scale, softmax - onehot, takes the logits' place during forward.

    The incoming gradient is one number per token, so backward scales the (N, H) side of its products and never passes
    over an (N, V) matrix again; no float32 copy of all logits ever exists.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        """(N, H), (V, H), (V,) or None, (N,) -> (N,)."""
        logits = F.linear(x, weight)  # the bias joins in float32 below, where it needs no pass of its own
        wide = torch.promote_types(logits.dtype, torch.float32)
        losses = torch.empty(labels.shape, dtype=wide, device=x.device)
        differentiate = any(ctx.needs_input_grad[:3])
        rows = max(1, CHUNK_VALUES.get(x.device.type, CHUNK_VALUES_ELSEWHERE) // logits.shape[1])
        for start in range(0, logits.shape[0], rows):
            part = slice(start, start + rows)
            chosen = labels[part, None]
            scores = logits[part].to(wide)
            log_probabilities = F.log_softmax(scores if bias is None else scores.add_(bias), dim=-1)
            at_label = log_probabilities.gather(1, chosen)
            losses[part] = -at_label.squeeze(1)
            if differentiate:
                slope = log_probabilities.exp_().scatter_(1, chosen, torch.expm1(at_label))
                logits[part] = slope
        if differentiate:
            ctx.save_for_backward(x, weight, logits)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """(N,) -> (N, H), (V, H), (V,)."""
        x, weight, slope = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        by_row = scale[:, None]
        of_x = ((slope @ weight) * by_row).to(x.dtype) if needs_x else None
        of_weight = slope.t() @ (x * by_row).to(x.dtype) if needs_weight else None
        of_bias = (scale.to(x.dtype) @ slope) if needs_bias else None
        return of_x, of_weight, of_bias, None


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, plain: bool = False
) -> Tensor:
    """Natural-log cross entropy of softmax(x weight^T + bias) at ``labels``: (N, H), (V, H), (V,), (N,) -> (N,).

    A bias of None is none. Losses are float32 (float64 for float64 inputs) whatever the precision of the logits.
    ``plain``: float32 logits, and torch's own function on them.
    """
    if plain or twice():
        scores = F.linear(x, weight)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return F.cross_entropy(scores if bias is None else scores + bias, labels, reduction="none")
    if not torch.is_grad_enabled():  # of which a function's forward knows nothing
        x, weight, bias = x.detach(), weight.detach(), None if bias is None else bias.detach()
    losses: Tensor = _LinearCrossEntropy.apply(x, weight, bias, labels)  # type: ignore[no-untyped-call]
    return losses
