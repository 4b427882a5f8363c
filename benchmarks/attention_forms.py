"""Forms of attention against ``scaled_dot_product_attention``, forward and backward of one layer, alternating.

    python benchmarks/attention_forms.py pairs=8 hidden=256 heads=4 tokens=4096

Prints, for every length and with and without padding, the fused kernel's seconds over those of each other form: written
out (``math``), written out a block at a time (``blocks``), and seeing a window only (``window``, in the form that is
chosen for it). With ``threads=1`` it counts processor seconds, which a busy machine disturbs less.
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

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
FORMS = ("math", "blocks", "window")


@dataclass
class Options:
    """What the command line may change."""

    pairs: int = 8
    hidden: int = 256
    heads: int = 4
    tokens: int = 4096  # cells of the batch, whatever the length
    precision: str = "bfloat16"
    window: int = 64  # keys on each side
    threads: int = 0  # 0: all


def seconds(layer: SelfAttention, form: str, x: Tensor, layout: Layout, options: Options) -> float:
    """One forward and backward pass."""
    layer.form = "auto" if form == "window" else form
    layer.window = options.window if form == "window" else None
    clock = time.process_time if options.threads == 1 else time.perf_counter
    started = clock()
    layer(x, layout).sum().backward()
    return clock() - started


def main() -> None:
    """Parse, measure, print."""
    usage = f"{__doc__}\nOptions: {' '.join(f'{f.name}={f.default}' for f in fields(Options))}"
    options, _ = parse(sys.argv[1:], Options, usage)
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.precision)
    layer = SelfAttention(options.hidden, options.heads).to(dtype)
    for length in (n for n in LENGTHS if n <= options.tokens):
        grid = torch.empty(options.tokens // length, length)
        lengths = torch.randint(length // 4, length + 1, (len(grid),))
        for padded in (False, True):
            layout = Layout.of(grid, lengths=lengths if padded else None)
            x = layout.unpad(torch.randn(*grid.shape, options.hidden, dtype=dtype)).requires_grad_()
            rounds = [
                {form: seconds(layer, form, x, layout, options) for form in ("sdpa", *FORMS)}
                for _ in range(options.pairs + 2)
            ][2:]
            shown = []
            for form in FORMS:
                low, median, high = statistics.quantiles([found["sdpa"] / found[form] for found in rounds], n=4)
                shown.append(f"{form} {median:5.2f} ({low:.2f} to {high:.2f})")
            print(f"length {length:4} padded {padded!s:5} {'  '.join(shown)}", flush=True)


if __name__ == "__main__":
    run_command(main)
