"""``block_diagonal_glu`` by Triton: forward in one pass over the tokens where its widths allow, else in two.

Shape legend: ``operands.py``. What bounds each part, for 16-bit operands and M2-BERT's proportions (H = 4 i = 4 m):

* forward, ``through``: 6 H^2 operations a token, 4 H bytes in and out; weights come from the GPU's cache, an operation
  needing 1 / TT bytes of them with TT tokens in a program. Neither gates and values nor the middle reach memory.
* forward, ``between`` and a product of torch's: the middle is written and read, 16 H bytes more. For widths whose sums
  do not fit a program's registers, and for float32, whose products take longer than any traffic.
* backward: ``back`` reads gates, values and the gradient and writes theirs and the middle, 42 H bytes a token; the
  other products, of tall matrices that lie in memory as they are needed, are torch's.

Tiles were chosen by registers, shared memory and traffic as compiled, for no spills and, in ``back``, two programs on a
multiprocessor; nothing is tuned as it runs.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from cramming.kernels.glu_products import blocks_of, gradients_of
from cramming.kernels.operands import Glu, GluGradients
from cramming.kernels.torch_glu import FEW
from cramming.kernels.triton_glu_kernels import back, between, through
from cramming.kernels.triton_products import INTERPRETED, no_device

_WIDEST = 256  # outputs of a block whose sums, with 64 tokens or more, fit into registers
_ASYNCHRONOUS = (9, 10)  # where products read shared memory while they run, so that one tile of weights more is held


class Tiles(NamedTuple):
    """What a program has at a time, and how it is compiled."""

    tokens: int
    hidden: int
    inner: int  # terms of a product; in one pass all of them
    warps: int
    stages: int  # of loads under way


# The first that fits into shared memory is taken.
ONE_PASS = (
    Tiles(128, 32, 0, 8, 3), Tiles(128, 32, 0, 8, 2), Tiles(64, 32, 0, 8, 3), Tiles(64, 32, 0, 8, 2),
    Tiles(64, 16, 0, 8, 2),
)  # fmt: skip
BETWEEN = (Tiles(128, 128, 64, 8, 3), Tiles(128, 64, 32, 8, 3))
BETWEEN_WIDE = (Tiles(64, 32, 32, 8, 2),)
BACK = (Tiles(64, 64, 64, 8, 2),)
BACK_WIDE = (Tiles(64, 32, 32, 8, 2),)
# An interpreter's time goes by operations, not by their sizes: small, so that small operands have several tiles.
AS_INTERPRETED = Tiles(32, 16, 16, 1, 1)


def glu_lacks(given: Glu) -> str | None:
    """Why this cannot do it."""
    if given.x.dtype == torch.float64:
        return "its products are summed in float32 at most"
    return no_device(given.x.device)


def glu_forward(given: Glu, keep: bool) -> tuple[Tensor, Tensor]:
    """-> (T, q m), and gates and values, (T, 2 p o), if they are to be kept."""
    if _few(given):
        return tuple(made.to(given.x.dtype) for made in glu_forward(_wide(given), keep))  # type: ignore[return-value]
    given = _contiguous(given)
    x, w_gate, _, w_out, _ = given
    out = x.new_empty(len(x), w_out.shape[0] * w_out.shape[1])
    kept = x.new_empty((len(x), 2 * w_gate.shape[0] * w_gate.shape[1]) if keep else 0)
    tiles = one_pass(given, keep)
    with torch.cuda.device_of(x):
        if tiles is None:
            _two_passes(given, keep, out, kept)
        else:
            _one_pass(given, keep, out, kept, tiles)
    return out, kept


def one_pass(given: Glu, keep: bool) -> Tiles | None:
    """The tiles of ``through``; None where it would not fit, or would not pay."""
    inputs, outputs = sum(cut(given.w_gate.shape[2])), sum(cut(given.w_out.shape[1]))
    if outputs > _WIDEST or (given.x.dtype == torch.float32 and not INTERPRETED.value):
        return None
    if INTERPRETED.value:
        return AS_INTERPRETED
    asynchronous = torch.cuda.get_device_capability(given.x.device)[0] in _ASYNCHRONOUS
    for tiles in ONE_PASS:
        held = 2 * tiles.tokens * inputs  # x; then weights; then what goes from one layout of registers to another
        held += (tiles.stages - (not asynchronous)) * tiles.hidden * (2 * inputs + outputs)
        held += (keep or not asynchronous) * tiles.tokens * tiles.hidden
        if held * given.x.element_size() + 1024 <= _shared_memory(given.x):
            return tiles
    return None


def cut(width: int) -> tuple[int, int]:
    """A width as two powers of two, 16 or more, that reach it; the second may be 0."""
    first = max(16, 1 << (width.bit_length() - 1))
    return first, max(16, triton.next_power_of_2(width - first)) if width > first else 0


def _one_pass(given: Glu, keep: bool, out: Tensor, kept: Tensor, tiles: Tiles) -> None:
    x, w_gate, w_value, w_out, bias = given
    pairs, _, inputs = w_gate.shape
    blocks, outputs, inner = w_out.shape
    through[(blocks * triton.cdiv(len(x), tiles.tokens),)](
        *(x, w_gate, w_value, w_out, out if bias is None else bias, out, kept if keep else out, len(x)),
        *(pairs, blocks // pairs, inputs, inner, outputs, *cut(inputs), *cut(outputs), tiles.tokens, tiles.hidden),
        *(bias is not None, keep, x.dtype == torch.float32),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def _two_passes(given: Glu, keep: bool, out: Tensor, kept: Tensor) -> None:
    x, w_gate, w_value, w_out, bias = given
    pairs, width, inputs = w_gate.shape
    middle = x.new_empty(len(x), pairs * width)
    tiles = _chosen(BETWEEN, BETWEEN_WIDE, 2, x)
    between[(pairs * triton.cdiv(width, tiles.hidden) * triton.cdiv(len(x), tiles.tokens),)](
        *(x, w_gate, w_value, middle, kept if keep else middle, len(x)),
        *(pairs, inputs, width, tiles.tokens, tiles.hidden, tiles.inner, keep, x.dtype == torch.float32),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    torch.bmm(blocks_of(middle, len(w_out)), w_out.transpose(1, 2), out=blocks_of(out, len(w_out)))
    if bias is not None:
        out += bias


def glu_back(given: Glu, kept: Tensor, gradient: Tensor) -> GluGradients:
    """(T, 2 p o), (T, q m) -> gradients of what was given."""
    if _few(given):
        wide = _wide(given)
        found = glu_back(wide, glu_forward(wide, True)[1], gradient.float())
        return GluGradients(*(None if part is None else part.to(given.x.dtype) for part in found))  # type: ignore[arg-type]
    given, gradient = _contiguous(given), gradient.contiguous()
    with torch.cuda.device_of(given.x):
        of_kept, middle = _through_middle(given, kept, gradient)
    return gradients_of(given, of_kept, middle, gradient)


def _through_middle(given: Glu, kept: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gates and values, (T, 2 p o), and the middle, (T, p o)."""
    x, pairs = given.x, len(given.w_gate)
    blocks, outputs, inner = given.w_out.shape
    of_kept, middle = torch.empty_like(kept), x.new_empty(len(x), blocks * inner)
    tiles = _chosen(BACK, BACK_WIDE, 1, x)
    back[(blocks * triton.cdiv(inner, tiles.hidden) * triton.cdiv(len(x), tiles.tokens),)](
        *(gradient, given.w_out, kept, of_kept, middle, len(x), pairs, blocks // pairs, inner, outputs),
        *(tiles.tokens, tiles.hidden, tiles.inner, x.dtype == torch.float32),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return of_kept, middle


def _chosen(narrow: tuple[Tiles, ...], wide: tuple[Tiles, ...], products: int, x: Tensor) -> Tiles:
    """The first tiles whose ``products`` fit into shared memory; the last where none does."""
    if INTERPRETED.value:
        return AS_INTERPRETED
    every = wide if x.dtype == torch.float32 else narrow
    for tiles in every:
        held = products * tiles.stages * tiles.inner * (tiles.tokens + tiles.hidden)
        if held * x.element_size() + 1024 <= _shared_memory(x):
            return tiles
    return every[-1]


def _shared_memory(x: Tensor) -> int:
    """Bytes of it that a program may have."""
    properties = torch.cuda.get_device_properties(x.device)
    asked = getattr(properties, "shared_memory_per_block_optin", None)  # which only some makers' GPUs tell apart
    return int(properties.shared_memory_per_block if asked is None else asked)


def _contiguous(given: Glu) -> Glu:
    return Glu(*(None if part is None else part.contiguous() for part in given))  # type: ignore[arg-type]


def _few(given: Glu) -> bool:
    """Whether the middle has so few 16-bit values that their roundings need not cancel: then float32 takes no time."""
    return given.x.element_size() < 4 and len(given.x) * given.w_gate.shape[0] * given.w_gate.shape[1] < FEW


def _wide(given: Glu) -> Glu:
    return Glu(*(None if part is None else part.float() for part in given))  # type: ignore[arg-type]
