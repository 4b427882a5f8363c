"""``gated_long_conv`` by the compiled transforms, for sequences of any length up to what shared memory holds.

Sums, spectra and filters are float32 whatever the signals are. The filters are transformed inside the kernels, from the
taps, on points of their own: ``given.spectra`` lie on others and are not used. Nothing is kept for the backward pass
but what was given. ``csrc/transform.h`` says how the kernels work.

Shape legend: ``operands.py``; M points of a transform, N thread blocks that share a channel's sequences.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from cramming.kernels import cuda
from cramming.kernels.operands import Convolution, ConvolutionGradients

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LONGEST = 16384  # positions
# What lies in shared memory beside the exchange, as in csrc/transform_signals.h; what does not lies in global memory,
# which the second-level cache holds.
_SPECTRA, _SUMS = 1, 2
_RESERVED = 1024  # bytes of shared memory that each block costs beside its own
_BLOCKS_EACH = 8  # thread blocks wanted for each multiprocessor
_LEAST_SEQUENCES = 8  # of a thread block: each transforms the filters anew ...
_POINTS_AT_ONCE = 4096  # ... and takes as many sequences at a time as make so many points, for at least ...
_LEAST_ROUNDS = 4  # ... so many times


class Room(NamedTuple):
    """What a device has.

    Attributes:
        block: bytes of shared memory that a thread block may ask for.
        multiprocessor: bytes of shared memory of a multiprocessor.
        multiprocessors: how many there are.
    """

    block: int
    multiprocessor: int
    multiprocessors: int


def room_of(device: torch.device) -> Room:
    """What a GPU has."""
    found = torch.cuda.get_device_properties(device)
    # From compute capability 8.0 a block may ask for all of a multiprocessor's but what is reserved (CUDA's guide).
    whole = found.shared_memory_per_multiprocessor
    return Room(whole - _RESERVED, whole, found.multi_processor_count)


def convolution_lacks(given: Convolution) -> str | None:
    """Why these kernels cannot do this; whether they are there at all is not asked here."""
    length = given.z.shape[2]
    if given.z.dtype not in DTYPES:
        return f"transforms are for float32, bfloat16 and float16, not {str(given.z.dtype).removeprefix('torch.')}"
    if length > LONGEST:
        return f"transforms are for at most {LONGEST} positions, not {length}"
    if max(given.z.shape) >= 2**31:
        return "sizes must be below 2^31"
    room = room_of(given.z.device)
    if _kept(given, back=True, room=room) is None:
        needed = _bytes(length, _filters(given), True, 0)
        return f"{length} positions take {needed} bytes of a thread block's shared memory: {room.block} are there"
    return None


def convolve(given: Convolution) -> Tensor:
    """-> (C, B, S)."""
    given = _contiguous(given)
    mixed = given.z.new_empty(given.z.shape[0] // 3, *given.z.shape[1:])
    splits, kept, scratch = _plan(given, back=False)
    cuda.ops().transform_forward(*given[:9], mixed, scratch, kept, splits)
    return mixed


def convolve_back(given: Convolution, gradient: Tensor) -> ConvolutionGradients:
    """(C, B, S) -> gradients of what ``convolve`` was given."""
    given, gradient = _contiguous(given), gradient.contiguous()
    z, u, residual = given.z, given.u, given.taps_residual
    channels, filters, length = z.shape[0] // 3, _filters(given), z.shape[2]
    splits, kept, scratch = _plan(given, back=True)
    of_z, of_u = torch.empty_like(z), None if u is None else torch.empty_like(u)
    points = cuda.ops().transform_points(length)
    of_filters = given.taps.new_empty(splits, filters, 2, channels, points)
    of_short = given.taps.new_empty(splits, 3, channels, 4)
    cuda.ops().transform_back(*given[:9], gradient, of_z, of_u, of_filters, of_short, scratch, kept, splits)
    circles, short = _summed(of_filters), _summed(of_short).flatten(0, 1)
    of_taps, of_bias = _taps_back(circles[0], given.taps, length)
    of_residual = (None, None) if residual is None else _taps_back(circles[1], residual, length)
    return ConvolutionGradients(
        of_z,
        of_u,
        of_taps,
        of_residual[0],
        of_bias,
        of_residual[1],
        short[:, :3].clone(),
        short[:, 3].clone(),
    )


def _filters(given: Convolution) -> int:
    return 1 if given.u is None else 2


def _contiguous(given: Convolution) -> Convolution:
    return Convolution(*(None if part is None else part.contiguous() for part in given))  # type: ignore[arg-type]


@functools.cache
def _bytes(length: int, filters: int, back: bool, kept: int, of_scratch: bool = False) -> int:
    """Of a thread block: in shared memory, or in the memory beside it."""
    found: int = cuda.ops().transform_bytes(length, filters, back, kept, of_scratch)
    return found


def _kept(given: Convolution, back: bool, room: Room) -> int | None:
    """What lies in shared memory; None: the exchange alone does not fit.

    Forward, spectra do if two thread blocks of a multiprocessor still have room: one alone would wait at its barriers.
    Backward, sums are read and written with every sequence, and come first.
    """

    def needed(kept: int) -> int:
        return _bytes(given.z.shape[2], _filters(given), back, kept)

    if not back and 2 * (needed(_SPECTRA) + _RESERVED) <= room.multiprocessor:
        return _SPECTRA
    choices = (_SPECTRA | _SUMS, _SUMS, 0) if back else (0,)
    return next((kept for kept in choices if needed(kept) <= room.block), None)


def _plan(given: Convolution, back: bool) -> tuple[int, int, Tensor]:
    """-> N, what lies in shared memory, and the memory for what does not."""
    channels, sequences = given.z.shape[0] // 3, given.z.shape[1]
    filters, room = _filters(given), room_of(given.z.device)
    kept = _kept(given, back, room)
    assert kept is not None
    wanted = -(-_BLOCKS_EACH * room.multiprocessors // channels)
    at_once = max(1, _POINTS_AT_ONCE // cuda.ops().transform_points(given.z.shape[2]))
    splits = max(1, min(wanted, sequences // max(_LEAST_SEQUENCES, _LEAST_ROUNDS * at_once), 65535))
    each = _bytes(given.z.shape[2], filters, back, kept, of_scratch=True)
    blocks = channels * splits * (filters if back else 1)
    return splits, kept, given.taps.new_empty(each // 4 * blocks)


def _summed(parts: Tensor) -> Tensor:
    """Over thread blocks that shared a channel, in their order."""
    return parts[0] if len(parts) == 1 else parts.sum(0)


def _taps_back(lags: Tensor, taps: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Gradients of taps and bias from those of lags 0, 1, ... and -1, -2, ...: (2, C, M) -> (D, C, R), (C,).

    Zero for lags that no pair of positions has.
    """
    found = torch.zeros_like(taps)
    rows = min(taps.shape[2], length)
    found[0, :, :rows] = lags[0, :, :rows]
    if taps.shape[0] == 2:
        rows = min(taps.shape[2], length - 1)
        found[1, :, :rows] = lags[1, :, :rows]
    return found, lags[0, :, 0].clone()
