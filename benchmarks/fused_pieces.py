"""What fusing is worth in the pieces of a Transformer that torch computes in several passes, forward and backward.

    python benchmarks/fused_pieces.py
    python benchmarks/fused_pieces.py pieces=[cross_entropy] tokens=8192 vocabulary=50368 out=fused.json

Sides, in turn, on the same operands: ``eager`` torch as one would write it; the same ``compiled``; ``ours``, as the
models here compute it; and a ``floor``, the part that no fusing saves: products alone where they take longer than
traffic (cross-entropy, the gated layer), else a copy of as many bytes as inputs and outputs have (residual and norm).

Ratios are seconds over those of ``ours``. Memory is what a pass takes beyond its operands.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from benchmarks.grid import Bounds, busy, compared, measured, median_s
from benchmarks.presentation import CONTENDED, OURS, Page
from benchmarks.reporting import asked, circumstances, keep
from cramming import resolve
from cramming.architectures.layers.cross_entropy import linear_cross_entropy
from cramming.architectures.layers.feedforward import FeedForward
from cramming.cli import run_command
from cramming.errors import UserError
from cramming.precision import DTYPES
from cramming.suggest import nearest

PIECES = ("cross_entropy", "residual_norm", "gated")
EAGER, COMPILED, FLOOR = "eager", "compiled", "floor"


@dataclass
class Options:
    """What the command line may change; sizes are those of ``bert_base``."""

    pieces: list[str] = field(default_factory=lambda: list(PIECES))
    tokens: int = 4096
    hidden: int = 768
    intermediate: int = 3072  # of the gated layer's first matrix, gates and values
    vocabulary: int = 30528
    predicted: float = 0.15  # of the tokens, which cross-entropy sees
    pairs: int = 9  # of blocks of every side; fewer, but three or more, where they take longer than cell_s
    cell_s: float = 30.0  # seconds for a piece's pairs
    precision: str = "auto"
    device: str = "auto"
    threads: int = 0  # 0: a thread for each core
    out: str = ""  # a JSON file for the result; a page in Markdown lies beside it

    def __post_init__(self) -> None:
        for name in self.pieces:
            if name not in PIECES:
                raise UserError(f"pieces={name} is unknown{nearest(name, PIECES)}")
        if self.precision not in ("auto", *DTYPES):
            raise UserError(f"precision={self.precision} is unknown{nearest(self.precision, ('auto', *DTYPES))}")
        if min(self.tokens * self.predicted, self.hidden, self.intermediate // 2, self.vocabulary) < 1:
            raise UserError("tokens, hidden, intermediate, vocabulary and predicted must leave something to compute")

    def where(self) -> torch.device:
        """The device."""
        return resolve.device() if self.device == "auto" else torch.device(self.device)

    def dtype(self) -> torch.dtype:
        """Of operands: bfloat16 where ``auto`` finds it."""
        if self.precision == "auto":
            return torch.float32 if resolve.lacking("bfloat16", self.where()) else torch.bfloat16
        return DTYPES[self.precision]


class _Side:
    flops: float | None = None
    loss: float | None = None


class Passes(_Side):
    """Forward and backward of a function, the gradient of every floating-point operand wanted."""

    def __init__(self, function: Callable[..., Tensor], operands: Sequence[Tensor], slope: Tensor) -> None:
        self.function, self.operands, self.slope = function, operands, slope
        self.leaves = [part.requires_grad_() for part in operands if part.is_floating_point()]

    def block(self) -> None:
        """Once."""
        self.passed()

    def passed(self) -> list[Tensor]:
        """The output and the gradients."""
        out = self.function(*self.operands)
        return [out.detach(), *torch.autograd.grad(out, self.leaves, self.slope)]


class Floor(_Side):
    """Products, (left, right, out), or copies (from, to), and nothing else."""

    def __init__(self, products: Sequence[tuple[Tensor, Tensor, Tensor]], copies: Sequence[tuple[Tensor, Tensor]]):
        self.products, self.copies = products, copies

    def block(self) -> None:
        """Once."""
        for left, right, out in self.products:
            torch.mm(left, right, out=out)
        for source, place in self.copies:
            place.copy_(source)


Sides = dict[str, Passes | Floor]


def cross_entropy(options: Options) -> Sides:
    """Vocabulary projection and loss of the predicted tokens: (N, H), (V, H), (V,), (N,) -> (N,)."""
    draw = _Draw(options)
    rows = round(options.tokens * options.predicted)
    x, weight, bias = draw(rows, options.hidden), draw(options.vocabulary, options.hidden), draw(options.vocabulary)
    labels = torch.randint(options.vocabulary, (rows,), generator=draw.generator).to(options.where())
    slope = torch.full((rows,), 1 / rows, device=options.where())

    def plain(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight, bias).float(), labels, reduction="none")

    operands = (x, weight, bias, labels)
    logits, of_x, of_weight = x.new_empty(rows, options.vocabulary), torch.empty_like(x), torch.empty_like(weight)
    bare, table = (part.detach() for part in (x, weight))
    products = [(bare, table.t(), logits), (logits, table, of_x), (logits.t(), bare, of_weight)]
    return _sides(plain, linear_cross_entropy, operands, slope, Floor(products, []))


def residual_norm(options: Options) -> Sides:
    """A layer's output joins its input and is normalized: (T, H), (T, H), (H,), (H,) -> (T, H)."""
    draw = _Draw(options)
    shape = (options.tokens, options.hidden)

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x + residual, weight.shape, weight, bias, 1e-12)

    operands = (draw(*shape), draw(*shape), draw(options.hidden), draw(options.hidden))
    # Seven of this shape: forward reads two and writes the sum and the result, backward reads two and writes one.
    rows = 3 * [options.tokens] + [options.tokens // 2]
    copies = [(draw(number, options.hidden), draw(number, options.hidden)) for number in rows]
    return _sides(plain, plain, operands, draw(*shape), Floor([], copies))


def gated(options: Options) -> Sides:
    """The gated feed-forward layer, ours with gates and values of one matrix: (T, H) -> (T, H)."""
    draw = _Draw(options)
    tokens, hidden, half = options.tokens, options.hidden, options.intermediate // 2
    layer = FeedForward(hidden, 2 * half, gated=True, bias=False).to(options.where(), options.dtype())

    def plain(x: Tensor, values: Tensor, gates: Tensor, contract: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, gates)) * F.linear(x, values), contract)

    def ours(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
        weights = {"expand.weight": expand, "contract.weight": contract}
        return torch.func.functional_call(layer, weights, (x,))  # type: ignore[no-any-return]

    x, slope = draw(tokens, hidden), draw(tokens, hidden)
    expand, contract = (part.detach() for part in (layer.expand.weight, layer.contract.weight))
    wide, middle = draw(tokens, 2 * half), draw(tokens, half)
    outs = [torch.empty_like(part) for part in (wide, x, middle, contract, x, expand)]
    lefts = (x.detach(), middle, slope, slope.t(), wide, wide.t())
    rights = (expand.t(), contract.t(), contract, middle, expand, x.detach())
    floor = Floor(list(zip(lefts, (part.clone().detach() for part in rights), outs, strict=True)), [])
    found = _sides(plain, plain, (x, *(part.clone() for part in expand.chunk(2)), contract.clone()), slope, floor)
    found[OURS] = Passes(ours, (x, expand.clone(), contract.clone()), slope)
    found["ours, compiled"] = Passes(_compiled(ours), (x, expand.clone(), contract.clone()), slope)
    return found


BUILDERS = dict(zip(PIECES, (cross_entropy, residual_norm, gated), strict=True))


class _Draw:
    """Random operands, the same every time."""

    def __init__(self, options: Options) -> None:
        self.generator, self.place = torch.Generator().manual_seed(0), (options.where(), options.dtype())

    def __call__(self, *shape: int) -> Tensor:
        return (0.05 * torch.randn(shape, generator=self.generator)).to(*self.place)


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, dynamic=False)  # type: ignore[no-any-return]


def _sides(
    plain: Callable[..., Tensor], ours: Callable[..., Tensor], operands: Sequence[Tensor], slope: Tensor, floor: Floor
) -> Sides:
    """All sides of a piece, in the order of the table."""
    ways = {OURS: ours, EAGER: plain, COMPILED: _compiled(plain)}
    return {**{name: Passes(way, operands, slope) for name, way in ways.items()}, FLOOR: floor}


def row(options: Options, piece: str) -> dict[str, Any]:
    """Measure a piece. Each side has run once before, so that what is compiled is in nobody's account."""
    sides = BUILDERS[piece](options)
    for side in sides.values():
        side.block()
    bounds = Bounds(options.where(), options.pairs, options.cell_s, 600.0, float("inf"), isolated=False)
    found = measured({name: lambda side=side: side for name, side in sides.items()}, bounds)  # type: ignore[misc]
    return {
        "piece": piece,
        "ms": {name: 1e3 * median_s(found, name) for name in found.seconds},
        "peak_mb": found.peak_mb,
        "ratios": {name: {**ratio, "busy": busy(ratio, found)} for name, ratio in compared(found).items()},
        "unfit": found.unfit,
    }


def page(rows: Sequence[dict[str, Any]]) -> Page:
    """A line for each side of each piece."""
    shown = []
    for found in rows:
        for name, taken in found["ms"].items():
            ratio = found["ratios"].get(name)
            low, high = ratio["wall"]["quartiles"] if ratio else (1.0, 1.0)
            said = f"{ratio['wall']['median']:.2f} ({low:.2f}-{high:.2f})" if ratio else ""
            cells = [found["piece"], name, CONTENDED if ratio and ratio["busy"] else said]
            shown.append([*cells, f"{taken:,.2f}", f"{found['peak_mb'][name]:,.0f}"])
    notes = [f"{found['piece']}, {name}: {why}" for found in rows for name, why in found["unfit"].items()]
    columns = ["piece", "side", "seconds over ours", "ms", "MB"]
    return Page("Fused pieces, forward and backward: median (quartiles)", columns, shown, notes)


def main() -> None:
    """Parse, measure, print, keep."""
    options = asked(Options, __doc__)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    for number, piece in enumerate(options.pieces, start=1):
        print(f"{piece} ({number} of {len(options.pieces)})", flush=True)
        rows.append(row(options, piece))
    shown = page(rows)
    Console(width=None if os.isatty(1) else 160).print(shown.rich())
    about = {"options": asdict(options), "dtype": str(options.dtype()), **circumstances(options.where())}
    keep({"rows": rows, **about}, options.out, shown.markdown())


if __name__ == "__main__":
    run_command(main)
