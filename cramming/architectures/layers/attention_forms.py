"""The forms attention can be computed in, which of them is taken where, and those that read tokens as rows.

On a grid, all sequences of a batch or of a group: ``math`` (the definition), ``blocks`` (``blockwise.py``) and ``sdpa``
(torch's fused kernels). On rows, without padding or groups: ``varlen`` (torch's variable-length flash attention),
``flash_attn`` (the package of that name) and ``flex`` (torch's compiled attention over a block mask).

Shape legend: D sequences apart from one another, T tokens (rows), Q rows of queries, A heads, W width of a head, K keys
seen on each side, n blocks of rows.
"""

import functools
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cramming.architectures.layers.unpadding import Layout
from cramming.config import ATTENTION
from cramming.differentiation import twice

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

ROWS = ("varlen", "flash_attn", "flex")
# On CPU the fused kernel's backward is slower than the plain products while a sequence's scores fit the caches. Beyond
# this length it is better in float32, and in 16 bits the plain products are, a block at a time (``blockwise.py``;
# benchmarks/attention_forms.py).
CPU_MATH_UP_TO = 256
BLOCK = 128  # rows of queries, and of keys, that flex skips or reads together
_WITHOUT_DROPOUT = ("blocks", "varlen", "flex")
_IN_16_BITS = ("varlen", "flash_attn")
_WIDEST, _MULTIPLE = 256, 8  # of a head, for flash kernels
_NARROWEST = 16  # for flex
_AMPERE = (8, 0)

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Asked:
    """What a layer needs of a form.

    Attributes:
        width: of a head.
        window: a token sees the keys at most so many positions away; None: all.
        alibi: scores fall with distance.
        dropout: of probabilities, in what is computed now.
    """

    width: int
    window: int | None = None
    alibi: bool = False
    dropout: float = 0.0


def resolve_form(form: str, device: torch.device, length: int, dtype: torch.dtype = torch.float32) -> str:
    """``math``, ``blocks`` or ``sdpa``: what ``form`` means on a grid of this length on this device in this precision.

    Raises:
        ValueError: there is no such form.
    """
    if form not in ATTENTION:
        raise ValueError(f"attention={form!r} is not one of {', '.join(ATTENTION)}")
    if form not in ("auto", *ROWS):
        return form
    if device.type != "cpu":
        return "sdpa"
    if length <= CPU_MATH_UP_TO:
        return "math"
    return "blocks" if dtype.itemsize == 2 else "sdpa"


def chosen(
    form: str,
    asked: Asked,
    device: torch.device,
    dtype: torch.dtype,
    length: int,
    *,
    unpadded: bool,
    by_ends: bool = True,
) -> str:
    """The form that is taken: the one place where ``auto`` is decided.

    On a CPU a grid or groups, as ``resolve_form`` has it. On a GPU ``varlen``, or ``flash_attn`` where that cannot, for
    tokens without padding (padded batches, documents apart) and for windows narrower than the sequence, of which it
    skips what is not seen; ``sdpa`` for full grids, and wherever neither can: in float32, with dropout of attention in
    training, for ALiBi without the package, under derivatives of second order.

    A form that was asked for gives way only where it cannot: where ends do not tell who sees whom, under second
    derivatives, and in whatever ``lacking`` refuses before a run.

    Args:
        form: as asked for.
        asked: what the layer needs.
        device: of the tokens.
        dtype: theirs.
        length: of the longest sequence.
        unpadded: some cells of the grid hold no row.
        by_ends: where sequences end says all about who sees whom (``Layout.told_by_ends``).
    """
    if form != "auto" and form not in ROWS:
        return form
    if twice():
        return resolve_form("auto", device, length, dtype)
    if form == "auto":
        narrow = asked.window is not None and asked.window < length - 1
        if device.type == "cuda" and by_ends and (unpadded or narrow):
            for kernel in ("varlen", "flash_attn"):
                if lacking(kernel, asked, device, dtype) is None:
                    return kernel
        return resolve_form("auto", device, length, dtype)
    if _beyond(form, asked, dtype) is not None or not (by_ends or form == "flex"):
        return resolve_form("auto", device, length, dtype)
    return form


def lacking(form: str, asked: Asked, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a form cannot compute what a layer asks for, on a device in a precision; None if it can.

    Raises:
        ValueError: there is no such form.
    """
    resolve_form(form, device, 1, dtype)
    missing = machine_lacks(form, device.type) if form in ROWS else None
    return missing or _beyond(form, asked, dtype)


def _beyond(form: str, asked: Asked, dtype: torch.dtype) -> str | None:
    """What a form cannot do on any machine."""
    if form in _WITHOUT_DROPOUT and asked.dropout:
        return f"it has no dropout of attention, which is {asked.dropout} here"
    if form == "varlen" and asked.alibi:
        return "it has no linear biases (ALiBi)"
    if form in _IN_16_BITS and dtype.itemsize != 2:
        return f"it computes in 16 bits, not in {str(dtype).removeprefix('torch.')}"
    if form in _IN_16_BITS and (asked.width % _MULTIPLE or asked.width > _WIDEST):
        return f"heads must be a multiple of {_MULTIPLE} wide, at most {_WIDEST}, and are {asked.width}"
    if form == "flex" and asked.width < _NARROWEST:
        return f"heads must be at least {_NARROWEST} wide, and are {asked.width}"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def machine_lacks(form: str, device: str) -> str | None:
    """Why this machine and what is installed on it have no such form of attention to rows; None if they have."""
    return _machine_lacks(form, device)


@functools.cache
def _machine_lacks(form: str, device: str) -> str | None:
    if device != "cuda":
        return f"it runs on NVIDIA GPUs, and this device is {device}"
    if form == "flex":
        return None if importlib.util.find_spec("triton") else "triton, which compiles it, is not installed"
    if torch.cuda.get_device_capability() < _AMPERE:
        return f"{torch.cuda.get_device_name()} is older than Ampere"
    if form == "flash_attn":
        known = importlib.util.find_spec("flash_attn") is not None
        return None if known else "the package flash-attn is not installed: poetry install --extras flash"
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} does not have it"
    from torch.nn.attention.varlen import varlen_attn

    windows = "window_size" in inspect.signature(varlen_attn).parameters
    return None if windows else f"that of torch {torch.__version__} knows no windows"


@dataclass(frozen=True)
class Ends:
    """Where sequences end, among rows of queries and among rows of keys: (D+1,) int32 from 0 on."""

    queries: Tensor
    keys: Tensor
    longest_query: int  # at most so many rows of a sequence
    longest_key: int

    @staticmethod
    def of(layout: Layout, device: torch.device, wanted: int | None = None) -> "Ends":
        """Of all tokens of a layout; or of so many wanted queries of each sequence, in order."""
        keys = layout.rows_end(device)
        if wanted is None:
            return Ends(keys, keys, layout.length, layout.length)
        queries = torch.arange(layout.sequences + 1, device=device, dtype=torch.int32) * wanted
        return Ends(queries, keys, wanted, layout.length)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, ends: Ends, window: int | None) -> Tensor:
    """Each sequence by itself: (Q, A, W), 2 x (T, A, W) -> (Q, A, W), through torch's kernel for rows."""
    from torch.nn.attention.varlen import varlen_attn

    found: Any = varlen_attn(
        q, k, v, ends.queries, ends.keys, ends.longest_query, ends.longest_key, window_size=_sides(window)
    )
    assert isinstance(found, Tensor)  # with nothing asked for beside it
    return found


@torch.compiler.disable  # releases of the package differ in what a compiler can make of them
def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends: Ends,
    *,
    window: int | None = None,
    slopes: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The same through the package flash-attn, which also knows ALiBi, by slopes (A,) float32, and dropout."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found,unused-ignore]

    found: Tensor = flash_attn_varlen_func(
        q,
        k,
        v,
        ends.queries,
        ends.keys,
        ends.longest_query,
        ends.longest_key,
        dropout_p=dropout,
        window_size=_sides(window),
        alibi_slopes=slopes,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return found


def _sides(window: int | None) -> tuple[int, int]:
    return (-1, -1) if window is None else (window, window)


@dataclass(frozen=True)
class Sight:
    """What each query reads, for flex: which blocks of keys, which keys of those, and how scores change."""

    mask: "BlockMask"
    score: ScoreMod | None

    @staticmethod
    def of(
        layout: Layout, device: torch.device, window: int | None, slopes: Tensor | None, rows: Tensor | None
    ) -> "Sight":
        """Tokens see those of their own sequence, within the window.

        Args:
            layout: of the tokens.
            device: theirs.
            window: K; None: no bound.
            slopes: (A,) float32, what a score loses for each position of distance; None: nothing.
            rows: (Q,) int64, which tokens are queries; None: all.
        """
        total = layout.sequences * layout.length if layout.cells is None else layout.cells.shape[0]
        every = torch.arange(total, device=device)
        own = layout.sequences_of(every)
        known = layout.positions()
        places = every % layout.length if known is None else known
        ends = layout.rows_end(device)
        of_queries, at = (own, places) if rows is None else (own[rows], places[rows])
        of_keys = own
        if layout.mask is not None and layout.cells is None:  # padding is computed; nothing reads it
            of_keys = own.where(layout.mask.flatten(), -1)

        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            """Whether query i reads key j."""
            inside = of_queries[i] == of_keys[j]
            return inside if window is None else inside & ((at[i] - places[j]).abs() <= window)

        def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            """The further a key, the lower."""
            assert slopes is not None
            return value - slopes[h] * (at[i] - places[j]).abs()

        # Rows of keys that a query reads at most; all of them, where ends alone tell.
        place = every if rows is None else rows
        first, end = ends[of_queries].long(), ends[of_queries + 1].long()
        if window is not None:
            first, end = torch.maximum(first, place - window), torch.minimum(end, place + window + 1)
        exact = layout.told_by_ends(distances=window is not None)
        return Sight(block_mask(first, end, total, exact, seen), None if slopes is None else score)


def block_mask(first: Tensor, end: Tensor, keys: int, exact: bool, seen: Any) -> "BlockMask":
    """The blocks of keys that blocks of queries read, without looking at every pair of a query and a key.

    Args:
        first: (Q,) int64, the first row of keys that each query may read.
        end: (Q,) int64, the row after the last one.
        keys: T.
        exact: a query reads every key between the two; blocks that all their queries read whole are then not masked.
        seen: flex's ``mask_mod``, for the other blocks.
    """
    from torch.nn.attention.flex_attention import BlockMask

    queries, blocks = first.shape[0], -(-keys // BLOCK)
    filled = (0, -queries % BLOCK)  # rows that are none: they read nothing, so that their block is masked
    first = F.pad(first, filled, value=keys).view(-1, BLOCK)
    end = F.pad(end, filled, value=0).view(-1, BLOCK)
    begins = torch.arange(blocks, device=first.device) * BLOCK
    read = (begins < end.amax(1, keepdim=True)) & (begins + BLOCK > first.amin(1, keepdim=True))
    whole = (begins >= first.amax(1, keepdim=True)) & (begins + BLOCK <= end.amin(1, keepdim=True))
    masked, which_masked = _listed(read & ~whole if exact else read)
    others, which_others = _listed(whole) if exact else (None, None)
    return BlockMask.from_kv_blocks(
        masked,
        which_masked,
        others,
        which_others,
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(queries, keys),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many, and which come first in order: (n, n) bool -> (1, 1, n), (1, 1, n, n) int32."""
    order = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def flex_attention(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
    """What each query reads, all rows as one sequence: (Q, A, W), 2 x (T, A, W) -> (Q, A, W)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    found = flex_kernel(q, k, v, sight.score, sight.mask)
    return found[0].transpose(0, 1)


def flex_kernel(q: Tensor, k: Tensor, v: Tensor, score: ScoreMod | None, mask: "BlockMask") -> Tensor:
    """torch's, compiled on a GPU; a processor computes the definition, without gradients.

    (1, A, Q, W), 2 x (1, A, T, W) -> (1, A, Q, W).
    """
    from torch.nn.attention.flex_attention import flex_attention as plain

    attend: Any = _compiled_flex() if q.is_cuda and not torch.compiler.is_compiling() else plain
    found: Tensor = attend(q, k, v, score_mod=score, block_mask=mask)
    return found


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention as plain

    return torch.compile(plain)
