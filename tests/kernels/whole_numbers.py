"""Operands of ``gated_long_conv`` for which a backend's results are known to the last bit, in 16 bits as well.

Whole numbers are exact in 16 bits until they are large, and so are their products and sums in float32. Of operands of
-1, 0 or 1 nothing is rounded before an output is, once: neither taps nor the gated signal, at most 16, nor what goes
back through it. A number that is missing, counted twice or in the wrong place shows at any size, and in any few sums,
where a bound for rounding errors would have to allow for sums much smaller than their terms.
"""

import torch
from torch import Tensor

from cramming.kernels import gated_long_conv
from tests.kernels.kernel_cases import ConvolutionCase, exactly


def operands(case: ConvolutionCase, dtype: torch.dtype, device: str = "cpu") -> list[Tensor | None]:
    """Those of a case, each number replaced by -1, 0 or 1."""
    made = case.operands(dtype, device)
    draw = torch.Generator().manual_seed(2)
    for part in made[:-1]:
        if part is not None:
            part.data.copy_(torch.randint(-1, 2, part.shape, generator=draw))
    return made


def all_of(given: list[Tensor | None], backend: str, incoming: Tensor) -> list[Tensor]:
    """The output and every gradient."""
    made = gated_long_conv(*given, backend=backend)  # type: ignore[arg-type]
    leaves = [part for part in given if part is not None and part.requires_grad]
    return [made, *torch.autograd.grad(made, leaves, incoming.to(made))]


def hold_exactly(
    case: ConvolutionCase, dtype: torch.dtype, backend: str, device: str = "cpu", oracle: str = "reference"
) -> None:
    """Output and every gradient of a backend are those of the definition, or of ``torch`` in float64, bit by bit."""
    given = operands(case, dtype, device)
    exact = [part if part is None or part.dtype == torch.bool else exactly(part) for part in given]
    draw = torch.Generator().manual_seed(3)
    incoming = torch.randint(-1, 2, (case.channels, case.sequences, case.length), generator=draw)
    found = all_of(given, backend, incoming)
    for place, (one, expected) in enumerate(zip(found, all_of(exact, oracle, incoming), strict=True)):
        wrong = one != expected.round().to(one.dtype)
        assert not wrong.any(), f"result {place}: {int(wrong.sum())} of {wrong.numel()}"
