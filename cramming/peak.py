"""The rate a device multiplies matrices at, the denominator of MFU.

MFU = model FLOPs of the passes done / (seconds x peak FLOP/s): forward once and backward twice, predicted positions
only through the vocabulary. The peak of a known GPU is the vendor's dense figure; any other device's is measured.
"""

import functools
import time

import torch

# Dense bfloat16 tensor-core FLOP/s from NVIDIA's data sheets (without sparsity), by a word of the device's name.
_PUBLISHED = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "3090": 71e12,
    "A10": 125e12,
}


def peak_flops_per_s(device: torch.device, precision: str) -> tuple[float, str]:
    """FLOP/s and where the figure comes from: ``published`` or ``measured``."""
    if device.type == "cuda" and precision != "float32":
        name = torch.cuda.get_device_name(device)
        for word, rate in _PUBLISHED.items():
            if word in name:
                return rate, "published"
    return _measured(device, precision, torch.get_num_threads()), "measured"


@functools.cache
def _measured(device: torch.device, precision: str, threads: int, size: int = 1024, within_s: float = 0.5) -> float:
    """The fastest of the square matrix products that fit in a while: a busy machine must not look slow.

    Measured once in a process for so many threads: the runs of a sweep have the same denominator.
    """
    dtype = getattr(torch, precision)
    size = size * (8 if device.type == "cuda" else 1)
    draw = torch.Generator(device).manual_seed(0)  # torch's own random numbers are a run's
    left = torch.randn(size, size, device=device, dtype=dtype, generator=draw)
    right = torch.randn(size, size, device=device, dtype=dtype, generator=draw)
    fastest, end = float("inf"), time.perf_counter() + within_s
    while time.perf_counter() < end:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest
