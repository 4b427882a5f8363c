"""Backends that are pretended: torch's own functions with something changed."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cramming.kernels import torch_convolution, torch_glu
from cramming.kernels.selftest import ConvolutionSizes, GluSizes

CONVOLUTION, GLU = "gated_long_conv", "block_diagonal_glu"
CPU = torch.device("cpu")
HERE: dict[str, Any] = {CONVOLUTION: ConvolutionSizes(24, 4, 40, 64), GLU: GluSizes(160, 16, 32, 16)}
Pretend = Callable[..., None]


def right(**changed: Any) -> SimpleNamespace:
    """A backend that computes as torch's does, but for what is given."""
    parts = {name: getattr(torch_convolution, name) for name in ("convolution_lacks", "convolve", "convolve_back")}
    parts |= {name: getattr(torch_glu, name) for name in ("glu_lacks", "glu_forward", "glu_back")}
    return SimpleNamespace(**{**parts, **changed})


def changed(place: int | str, by: Callable[[Tensor], Tensor]) -> SimpleNamespace:
    """A backend whose output (``out``) or gradient of that number is changed."""

    def gradients(found: Any) -> Any:
        return found if isinstance(place, str) else found._replace(**{found._fields[place]: by(found[place])})

    def forward(given: Any, keep: bool) -> tuple[Tensor, Tensor]:
        made, kept = torch_glu.glu_forward(given, keep)
        return (by(made) if place == "out" else made), kept

    return right(
        convolve=lambda given: (by if place == "out" else torch.clone)(torch_convolution.convolve(given)),
        convolve_back=lambda given, slope: gradients(torch_convolution.convolve_back(given, slope)),
        glu_forward=forward,
        glu_back=lambda given, kept, slope: gradients(torch_glu.glu_back(given, kept, slope)),
    )


def without_the_last(full: Tensor) -> Tensor:
    """In new memory, whose last value is never written."""
    made = torch.empty_like(full)
    made.flatten()[:-1] = full.flatten()[:-1]
    return made
