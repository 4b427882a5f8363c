"""Kernels of ``gated_long_conv`` for the gradients of its filters: sums over all positions, in fixed order.

Shape legend: ``triton_convolution_kernels.py``.
"""
# ruff: noqa: N803, N806 -- sizes, and what is known as a kernel is compiled, have capitals

import triton
import triton.language as tl

from cramming.kernels.triton_convolution_kernels import SUMS, present_of
from cramming.kernels.triton_products import product


@triton.jit
def sum_short(sums, of_weight, of_bias, of_skip, C, programs, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """sums (C, programs, SUMS) of ``slopes`` -> gradients of short_weight (3C, 3), short_bias (3C,) and bias (C,).

    Programs: channels. BLOCK: a power of two, SUMS or more; ROWS: of sums at a time.
    """
    channel = tl.program_id(0).to(tl.int64)
    what = tl.arange(0, BLOCK)
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, programs, ROWS):
        row = start + tl.arange(0, ROWS)
        at = sums + (channel * programs + row)[:, None] * SUMS + what[None, :]
        acc += tl.load(at, mask=(row < programs)[:, None] & (what < SUMS)[None, :], other=0.0)
    total = tl.sum(acc, 0)
    place = (what // 4) * C + channel
    tl.store(of_weight + place * 3 + what % 4, total, mask=(what < SUMS - 1) & (what % 4 < 3))
    tl.store(of_bias + place, total, mask=(what < SUMS - 1) & (what % 4 == 3))
    tl.store(of_skip + channel + what * 0, total, mask=what == SUMS - 1)


@triton.jit
def lag_products(
    signal, incoming, mask, parts,
    C, B, S, blocks, reach, splits, rows_of_split,
    MASKED: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Sums of signal[b, t - d] incoming[b, t] for lags d: parts (splits, C, 2 reach + 1, 2, BLOCK).

    Positions lie in ``blocks`` blocks of BLOCK. For a distance a, -reach .. reach, a program adds up, over its share of
    all sequences b and pairs of blocks (i, i - a), P[q, r] = incoming[b, i BLOCK + q] signal[b, (i - a) BLOCK + r]: a
    product whose summed side is the list of (b, i). P's diagonals are the lags a BLOCK + q - r: parts[.., 0, l] is lag
    a BLOCK + l, parts[.., 1, l] is lag (a - 1) BLOCK + l. Programs: distances, then channels, then splits. Bytes of a
    position and channel, 16-bit: 4 read; operations 2 S.
    """
    number = tl.program_id(0)
    distance = number % (2 * reach + 1) - reach
    rest = number // (2 * reach + 1)
    channel = (rest % C).to(tl.int64)
    split = rest // C
    BS = B.to(tl.int64) * S
    signal += channel * BS
    incoming += channel * BS
    pairs = blocks - tl.abs(distance)
    end = tl.minimum((split + 1) * rows_of_split, B * pairs)
    q = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(split * rows_of_split, end, DEPTH):
        k = start + tl.arange(0, DEPTH)
        row = (k // pairs).to(tl.int64) * S
        later = (k % pairs + tl.maximum(distance, 0)) * BLOCK
        earlier = later - distance * BLOCK
        there = (k < end)[:, None] & ((later[:, None] + q[None, :]) < S)
        one = tl.load(incoming + (row + later)[:, None] + q[None, :], mask=there, other=0.0)
        there = (k < end)[:, None] & ((earlier[:, None] + q[None, :]) < S)
        there = present_of(mask, row + earlier, q, there, MASKED)
        other = tl.load(signal + (row + earlier)[:, None] + q[None, :], mask=there, other=0.0)
        acc = product(tl.trans(one), other, acc)
    # Column l of the skewed tile holds P[q, (q - l) mod BLOCK]: lag l from row l on, lag l - BLOCK above.
    skewed = tl.gather(acc, (q[:, None] - q[None, :] + BLOCK) % BLOCK, 1)
    from_lag_on = q[:, None] >= q[None, :]
    at = parts + (split.to(tl.int64) * C + channel) * (2 * reach + 1) * 2 * BLOCK
    at += (distance + reach) * 2 * BLOCK + q
    tl.store(at, tl.sum(tl.where(from_lag_on, skewed, 0.0), 0))
    tl.store(at + BLOCK, tl.sum(tl.where(from_lag_on, 0.0, skewed), 0))


@triton.jit
def sum_lags(parts, of_taps, C, R, D, S, reach, splits, BLOCK: tl.constexpr):
    """parts of ``lag_products`` -> the gradient of taps (D, C, R).

    Lags that no pair of positions has get zero. Programs: channels, directions, blocks of taps.
    """
    channel = tl.program_id(0).to(tl.int64)
    direction = tl.program_id(1)
    tap = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    lag = tl.where(direction == 0, tap, -1 - tap)
    exists = (tap < R) & (lag < S) & (lag > -S)
    # (reach + 1) BLOCK is added so that division rounds down.
    distance = (lag + (reach + 1) * BLOCK) // BLOCK - 1
    within = (lag + (reach + 1) * BLOCK) % BLOCK
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, splits):
        at = parts + (split * C + channel) * (2 * reach + 1) * 2 * BLOCK + within
        own = exists & (distance >= 0) & (distance <= 2 * reach)
        total += tl.load(at + distance * 2 * BLOCK, mask=own, other=0.0)
        beside = exists & (distance + 1 >= 0) & (distance + 1 <= 2 * reach)
        total += tl.load(at + (distance + 1) * 2 * BLOCK + BLOCK, mask=beside, other=0.0)
    tl.store(of_taps + (direction * C + channel) * R + tap, total, mask=tap < R)
