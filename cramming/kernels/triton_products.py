"""Matrix products of 16-bit operands in Triton, on a GPU and in Triton's interpreter alike.

The interpreter (``TRITON_INTERPRET=1`` as triton is imported) keeps bfloat16 as bit patterns: it multiplies those as if
they were integers, and its own conversion to bfloat16 cuts digits off, or loses a carry where asked to round. Kernels
therefore round and multiply by the two functions below, which in the interpreter do it by other means: products of two
16-bit numbers are exact in float32, so the results are those of tensor cores but for the order of sums.
"""
# ruff: noqa: N803 -- what is known as a kernel is compiled has capitals

import torch
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
OLDEST = (8, 0)  # compute capability: the first with products of bfloat16, and the oldest Triton compiles for


def no_device(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on a device, or None."""
    if INTERPRETED.value:
        return None
    if device.type != "cuda":
        return f"Triton compiles for GPUs, and this is on {device.type}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < OLDEST:
        major, minor = torch.cuda.get_device_capability(device)
        return f"Triton needs compute capability {OLDEST[0]}.{OLDEST[1]}, and {device} has {major}.{minor}"
    return None


@triton.jit
def narrowed(x, TYPE: tl.constexpr):
    """A float32 tile rounded to the nearest of TYPE, ties to even."""
    if INTERPRETED:
        if TYPE == tl.bfloat16:  # noqa: SIM300
            bits = x.to(tl.uint32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
        else:
            return x.to(TYPE)
    else:
        return x.to(TYPE)


@triton.jit
def product(a, b, acc):
    """acc + a b, for tiles of one type, summed in float32; products of float32 are those of float32, never tf32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")
