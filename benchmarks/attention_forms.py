"""Attention written out against ``scaled_dot_product_attention``, forward and backward of one layer, in pairs.

    python benchmarks/attention_forms.py pairs=8 hidden=256 heads=4 tokens=4096

Prints, for every length and with and without padding, the fused kernel's seconds over the plain form's.
"""

import statistics
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from cramming.architectures.layers.attention import SelfAttention
from cramming.architectures.layers.unpadding import Layout
from cramming.cli import parse, run_command

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


@dataclass
class Options:
    """What the command line may change."""

    pairs: int = 8
    hidden: int = 256
    heads: int = 4
    tokens: int = 4096  # cells of the batch, whatever the length
    precision: str = "bfloat16"


def seconds(layer: SelfAttention, form: str, x: Tensor, layout: Layout) -> float:
    """One forward and backward pass."""
    layer.form = form
    started = time.perf_counter()
    layer(x, layout).sum().backward()
    return time.perf_counter() - started


def main() -> None:
    """Parse, measure, print."""
    usage = f"{__doc__}\nOptions: {' '.join(f'{f.name}={f.default}' for f in fields(Options))}"
    options, _ = parse(sys.argv[1:], Options, usage)
    torch.manual_seed(0)
    dtype = getattr(torch, options.precision)
    layer = SelfAttention(options.hidden, options.heads).to(dtype)
    for length in (n for n in LENGTHS if n <= options.tokens):
        grid = torch.empty(options.tokens // length, length)
        lengths = torch.randint(length // 4, length + 1, (len(grid),))
        for padded in (False, True):
            layout = Layout.of(grid, lengths=lengths if padded else None)
            x = layout.unpad(torch.randn(*grid.shape, options.hidden, dtype=dtype)).requires_grad_()
            pairs = [
                (seconds(layer, "sdpa", x, layout), seconds(layer, "math", x, layout)) for _ in range(options.pairs + 2)
            ][2:]
            low, median, high = statistics.quantiles([fused / plain for fused, plain in pairs], n=4)
            print(f"length {length:4} padded {padded!s:5} {median:.2f} ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    run_command(main)
