"""Whether a backend computes on this device what it should: small random cases against the definition in float64.

A driver, a compiler or a card that nobody has tried may turn a kernel that is right elsewhere into one that is wrong,
so that before a GPU is trusted with a run each backend is asked for cases of many kinds. Memory that it allocates is
filled with NaN, so that what it does not write shows; and it must give the same bits twice. What fails is refused for
the rest of the process (``backends.refuse``), whoever asks.

Shape legend: ``operands.py``.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cramming.errors import UserError
from cramming.kernels import backends, reference, torch_convolution
from cramming.kernels.operands import Convolution, Glu
from cramming.out_of_memory import is_out_of_memory

# ||found - exact|| / ||exact||, of the output and of each gradient: what tests hold backends to, and half as much more
# in 16 bits, whose rounding alone is nearly all of that (3.9e-3 in bfloat16, of the 4e-3 that tests allow): a kernel
# that is wrong is further away, and one that is right must not be refused for its luck with these draws.
BOUNDS = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 6e-3, torch.float16: 1.5e-3}
# Positions up to which the definition is asked, which takes O(S^2); beyond, transforms in float64, which tests hold to
# it within 1e-12.
_WRITTEN_OUT = 400
# Of a run's own sizes at most so many are tried: enough for the tiles that a kernel takes for many.
_CHANNELS, _SEQUENCES, _POSITIONS, _TOKENS = 8, 65, 1 << 14, 257


class ConvolutionSizes(NamedTuple):
    """Of operands of ``gated_long_conv``."""

    channels: int
    sequences: int
    length: int
    taps: int
    directions: int = 2
    residual: bool = True
    masked: bool = False
    kept: bool = False  # transforms of the filters are given

    @property
    def tokens(self) -> int:
        """Positions of all sequences."""
        return self.sequences * self.length

    def small(self) -> "ConvolutionSizes":
        """As long, of fewer channels and sequences."""
        sequences = min(self.sequences, _SEQUENCES, max(2, _POSITIONS // self.length))
        return self._replace(channels=min(self.channels, _CHANNELS), sequences=sequences, masked=True)

    def operands(self, dtype: torch.dtype, device: torch.device) -> Convolution:
        """Random ones, the same every time."""
        c, b, s, r = self.channels, self.sequences, self.length, self.taps
        wide = torch.promote_types(dtype, torch.float32)
        draw = _Draw(device)
        decay = torch.exp(-3 * torch.arange(r, device=device, dtype=wide) / r)  # as filters do
        taps = [draw(self.directions, c, r, scale=0.3, dtype=wide) * decay for _ in range(1 + self.residual)]
        skips = [draw(c, dtype=wide) for _ in range(1 + self.residual)]
        mask = None
        if self.masked:
            mask = draw(b, s, dtype=torch.float32) < 0.85  # true of four tokens in five
            mask[-1] &= b == 1  # and a sequence without any, where there are others
        given = Convolution(
            draw(3 * c, b, s, dtype=dtype),
            draw(c, b, s, dtype=dtype) if self.residual else None,
            taps[0],
            taps[1] if self.residual else None,
            skips[0],
            skips[1] if self.residual else None,
            draw(3 * c, reference.SHORT, scale=0.5, dtype=wide),
            draw(3 * c, scale=0.5, dtype=wide),
            mask,
        )
        if not self.kept:
            return given
        spectra = torch_convolution.spectra_of(given, torch_convolution.points_of(given))
        return given._replace(spectra=torch.view_as_real(spectra))


class GluSizes(NamedTuple):
    """Of operands of ``block_diagonal_glu``."""

    tokens: int
    inputs: int  # i
    width: int  # o
    outputs: int  # m
    pairs: int = 2
    blocks: int = 4
    biased: bool = True

    def small(self) -> "GluSizes":
        """As wide, of fewer tokens."""
        return self._replace(tokens=min(self.tokens, _TOKENS))

    def operands(self, dtype: torch.dtype, device: torch.device) -> Glu:
        """Random ones, the same every time."""
        inner = self.pairs * self.width // self.blocks
        draw = _Draw(device)
        return Glu(
            draw(self.tokens, 2 * self.pairs * self.inputs, dtype=dtype),
            draw(self.pairs, self.width, self.inputs, scale=self.inputs**-0.5, dtype=dtype),
            draw(self.pairs, self.width, self.inputs, scale=self.inputs**-0.5, dtype=dtype),
            draw(self.blocks, self.outputs, inner, scale=inner**-0.5, dtype=dtype),
            draw(self.blocks * self.outputs, dtype=dtype) if self.biased else None,
        )


Sizes = ConvolutionSizes | GluSizes
CASES: dict[str, tuple[Sizes, ...]] = {
    "gated_long_conv": (
        ConvolutionSizes(48, 9, 1, 4),
        ConvolutionSizes(16, 5, 37, 64, masked=True),
        ConvolutionSizes(8, 17, 128, 128),
        ConvolutionSizes(9, 3, 129, 40, directions=1, residual=False),
        ConvolutionSizes(6, 3, 331, 331, masked=True),
        ConvolutionSizes(5, 2, 1100, 1100, kept=True),
        ConvolutionSizes(3, 2, 2500, 700, masked=True),
    ),
    "block_diagonal_glu": (
        GluSizes(1, 96, 128, 80),
        GluSizes(67, 24, 40, 12),
        GluSizes(129, 7, 18, 11, pairs=1, blocks=2, biased=False),
        GluSizes(200, 64, 128, 64, pairs=2, blocks=2),
    ),
}


class _Tried(NamedTuple):
    """What became of a case.

    Attributes:
        lacks: what the backend lacks for it; None: nothing.
        wrong: what it did wrong; None: nothing.
    """

    lacks: str | None = None
    wrong: str | None = None


_tried: dict[tuple[str, str, torch.device, torch.dtype, Sizes], _Tried] = {}


def self_test(
    op: str, backend: str, device: torch.device, dtype: torch.dtype, sizes: Sizes | None = None
) -> str | None:
    """Why a backend is not to be trusted with an operation here; None: it passed. Each case is tried once in a process.

    Never while a CUDA graph is recorded: it waits for the device. Where memory does not suffice for a case the backend
    is not taken, but it is asked again the next time.

    Args:
        op: ``gated_long_conv`` or ``block_diagonal_glu``.
        backend: of ``backends.FALLBACKS``.
        device: where.
        dtype: of the passes.
        sizes: of the run, which are tried, too, with fewer sequences, channels and tokens: a backend that lacks them is
            not for it.

    Raises:
        UserError: the backend left the device in a state in which nothing more can be computed.
    """
    found, why = backends.of(op, backend)
    if found is None:
        return why
    cases = (*CASES[op], *(() if sizes is None else (sizes.small(),)))
    lacks: list[str | None] = []
    for case in cases:
        key = op, backend, device, dtype, case
        if key not in _tried:
            try:
                _tried[key] = _try(op, backend, found, case.operands(dtype, device), device)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                return "its test did not fit into memory"
        if _tried[key].wrong is not None:
            return _tried[key].wrong
        lacks.append(_tried[key].lacks)
    return lacks[-1] if sizes is not None or None not in lacks else None


def check_alive(op: str, backend: str, device: torch.device, why: str) -> None:
    """After an error: whether a GPU still computes, which after some it does not before the process has ended.

    Raises:
        UserError: it does not.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise UserError(
            f"{op} by {backend} left the GPU in a state in which nothing more can be computed ({why}): start again "
            "with impl.kernels=torch"
        ) from error


def _try(op: str, backend: str, found: Any, given: Convolution | Glu, device: torch.device) -> _Tried:
    """A case; a backend that gets it wrong is refused.

    Raises:
        RuntimeError: out of memory.
        UserError: the device cannot be used any more.
    """
    try:
        lacks = getattr(found, backends.LACKS[op])(given)
        if lacks is not None:
            return _Tried(lacks=lacks)
        wrong = _mistake(found, given, device)
    except Exception as error:  # whatever it is: another backend does the work, and the log says why
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        first = str(error).strip().partition("\n")[0]
        wrong = f"{type(error).__name__}: {first}" if first else type(error).__name__
        check_alive(op, backend, device, wrong)
    if wrong is not None:
        wrong = f"its test failed: {wrong}"
        backends.refuse(op, backend, device, given[0].dtype, wrong)
    return _Tried(wrong=wrong)


def _mistake(found: Any, given: Convolution | Glu, device: torch.device) -> str | None:
    """What is wrong with a backend's output or gradients for these operands; None: nothing."""
    dtype = given[0].dtype
    if isinstance(given, Convolution):
        shape: tuple[int, ...] = (given.z.shape[0] // 3, *given.z.shape[1:])
    else:
        shape = (given.x.shape[0], given.w_out.shape[0] * given.w_out.shape[1])
    incoming = _Draw(device, seed=1)(*shape, dtype=dtype)
    there = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with there, torch.no_grad(), _poisoned_memory():
        once, again = (_computed(found, given, incoming) for _ in range(2))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    names = ("output", *(f"gradient of {name}" for name in given._fields))
    for name, ours, same, exact in zip(names, once, again, _definition(given, incoming), strict=False):
        if exact is None:
            continue
        if ours is None or ours.shape != exact.shape:
            return f"{name} is {None if ours is None else tuple(ours.shape)} and not {tuple(exact.shape)}"
        far = _distance(ours, exact)
        if not far <= BOUNDS[dtype]:
            said = str(dtype).removeprefix("torch.")
            return f"{name} is {far:.1e} from the definition in {said}, {BOUNDS[dtype]:.0e} is allowed"
        if same is None or not torch.equal(ours, same):
            return f"{name} is another when computed again"
    return None


def _computed(found: Any, given: Convolution | Glu, incoming: Tensor) -> list[Tensor | None]:
    """Output and gradients by a backend's module."""
    if isinstance(given, Convolution):
        return [found.convolve(given), *found.convolve_back(given, incoming)]
    made, kept = found.glu_forward(given, True)
    return [made, *found.glu_back(given, kept, incoming)]


def _definition(given: Convolution | Glu, incoming: Tensor) -> list[Tensor | None]:
    """Output and gradients in float64, on the processor."""
    with torch.inference_mode(False), torch.enable_grad():
        parts = [part if part is None else part.detach().cpu() for part in given]
        leaves = [p.double().requires_grad_() if p is not None and p.is_floating_point() else p for p in parts]
        slope = incoming.cpu().double()
        if isinstance(given, Convolution):
            leaves[-1] = None  # transforms have no gradient, and these are not exact
            exact = Convolution(*leaves)  # type: ignore[arg-type]
            if exact.z.shape[-1] > _WRITTEN_OUT:
                with torch.no_grad():
                    return [torch_convolution.convolve(exact), *torch_convolution.convolve_back(exact, slope)]
            out = reference.convolve(exact)
        else:
            out = reference.glu(Glu(*leaves))  # type: ignore[arg-type]
        wanted = [part for part in leaves if part is not None and part.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, slope))
        return [out.detach(), *(next(found) if p is not None and p.requires_grad else None for p in leaves)]


def _distance(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||; NaN and infinity as they are."""
    size = float(exact.norm())
    difference = float((found.detach().cpu().double() - exact).norm())
    return difference / size if size else difference


class _Draw:
    """Normal random numbers on a device, the same every time."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self._source = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        made = torch.randn(shape, generator=self._source, device=self._source.device, dtype=wide)
        return made.mul_(scale).to(dtype)


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """New tensors are NaN all over until they are written."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other operations that do not repeat themselves
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
