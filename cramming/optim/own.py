"""What the optimizers written here have in common: state by parameter, begun with a parameter's first gradient.

Every parameter counts its own steps. A layer that is grown or dropped gets its first gradient later than others, and
what an optimizer knows of it is then as young as the layer; one count for a whole group, as libraries keep it, would
correct its means as if they were old and let its first steps be too long or too short. Updates go over lists of tensors
at once (torch's ``_foreach`` operations, one kernel for many tensors on a GPU), with scalars of their own for each.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


class Own(torch.optim.Optimizer):
    """An optimizer whose parameters do not see one another; a parameter without a gradient is left as it is.

    ``period`` is the number of steps after which the work of a step repeats itself: what is done in one of them only is
    in the price of all.
    """

    @property
    def period(self) -> int:
        """Steps."""
        return max(int(group.get("update_every", 1)) for group in self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the gradients there are.

        ``state["step"]`` is the number of a parameter's steps, this one included.
        """
        assert closure is None, "the engine calls the model, an optimizer does not"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                states = [self.stepped(p, group) for p in parameters]
                self.update(group, parameters, [p.grad for p in parameters], states)

    def stepped(self, parameter: Tensor, group: State) -> State:
        """A parameter's state, begun if there is none, with its step counted."""
        state: State = self.state[parameter]
        if not state:
            state.update(step=0, **self.begin(parameter, group))
        state["step"] += 1
        return state

    def begin(self, parameter: Tensor, group: State) -> State:
        """The state of a parameter before its first step; its gradient is there."""
        raise NotImplementedError

    def update(self, group: State, parameters: list[Tensor], gradients: list[Tensor], states: list[State]) -> None:
        """Move the parameters of a group that have a gradient. Gradients may be overwritten."""
        raise NotImplementedError


def moments(parameter: Tensor) -> State:
    """Running means of the gradient and of its square, at zero."""
    return {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def update_moments(
    states: list[State], gradients: list[Tensor], beta1: list[float] | float, beta2: list[float] | float
) -> tuple[list[Tensor], list[Tensor]]:
    """m <- beta1 m + (1 - beta1) g and v <- beta2 v + (1 - beta2) g^2; betas of each tensor or of all.

    Returns:
        The means, which are the state itself: not to be written.
    """
    first, second = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
    torch._foreach_lerp_(first, gradients, _lacking(beta1))
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, gradients, gradients, _lacking(beta2))
    return first, second


def _lacking(beta: list[float] | float) -> Any:
    return [1.0 - value for value in beta] if isinstance(beta, list) else 1.0 - beta


def corrections(states: list[State], beta: float) -> list[float]:
    """1 - beta^t, what a running mean that began at zero holds of its t values."""
    return [1.0 - beta ** state["step"] for state in states]


def adam_directions(
    states: list[State], gradients: list[Tensor], betas: tuple[float, float], eps: float, corrected: bool = True
) -> list[Tensor]:
    """Adam's m / (sqrt(v) + eps), with both means corrected for their beginning or not; new tensors."""
    first, second = update_moments(states, gradients, *betas)
    roots = torch._foreach_sqrt(second)
    if corrected:
        torch._foreach_div_(roots, [value**0.5 for value in corrections(states, betas[1])])
    torch._foreach_add_(roots, eps)
    found = list(torch._foreach_div(first, roots))
    if corrected:
        torch._foreach_div_(found, corrections(states, betas[0]))
    return found


def norms(tensors: list[Tensor]) -> list[Tensor]:
    """The L2 norm of each tensor, ()."""
    return list(torch._foreach_norm(tensors))


def decay(parameters: list[Tensor], factor: float) -> None:
    """p <- p (1 - factor): weight decay apart from the gradient."""
    if factor:
        torch._foreach_mul_(parameters, 1.0 - factor)
