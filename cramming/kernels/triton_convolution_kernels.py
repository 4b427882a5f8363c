"""Kernels of ``gated_long_conv`` by Toeplitz products; ``triton_convolution`` launches them.

Those that end the gradients of filters are in ``triton_convolution_sums.py``.

A channel's signals are a (B, S) matrix, and its long convolution is a product of that matrix with a Toeplitz one,
(S, S), whose tiles are read from the taps and never exist in memory as a whole:

    c[b, t] = sum_j s[b, j] h(t - j),   h(d) = taps[0, d] for 0 <= d < R, taps[1, -d - 1] for -R <= d < 0, else 0

Shape legend: C channels, B sequences, S positions, R taps, D directions as in ``operands.py``; a program works on ROWS
sequences and POSITIONS positions of one channel, and takes DEPTH positions of the sum at a time. Every program is
numbered by one axis: tiles of positions vary fastest, so that those that read the same sequences run together, then
tiles of sequences, then channels.

The taps are laid out first (``lay_out_taps``) as lags[c, k, i] = h(i - ORIGIN - k) for k < COPIES, zeros around them:
row j of a Toeplitz tile is then read from copy j mod COPIES at t - (j rounded down to COPIES), which is aligned, so
that COPIES taps are one load. In 16 bits this is also where taps are rounded, once. A skip term beta s is added in
float32 beside the product: within tap 0 it would be rounded with it.

What must not be read is masked in every load, and what does not exist is zero: positions outside of the sequence,
sequences beyond the last, masked tokens in s and u. Sums are float32, in an order that depends on sizes alone.
"""
# ruff: noqa: N803, N806 -- sizes, and what is known as a kernel is compiled, have capitals

import triton
import triton.language as tl

from cramming.kernels.triton_products import narrowed, product

COPIES = tl.constexpr(4)  # 8 bytes of 16-bit taps at a time
SUMS = tl.constexpr(13)  # of a program of ``slopes``: of three thirds, three taps and the bias; of the skip


@triton.jit
def lay_out_taps(taps, lags, C, R, D, WIDTH, ORIGIN, FLIPPED: tl.constexpr, BLOCK: tl.constexpr):
    """taps (D, C, R) float32 -> lags (C, COPIES, WIDTH), h(i - ORIGIN - k), or h(-(i - ORIGIN - k)) where flipped.

    Programs: channels, copies, blocks of i.
    """
    channel = tl.program_id(0).to(tl.int64)
    copy = tl.program_id(1)
    place = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    lag = place - ORIGIN - copy
    if FLIPPED:
        lag = -lag
    ahead = lag < 0
    tap = tl.where(ahead, -lag - 1, lag)
    direction = tl.where(ahead, 1, 0)
    exists = (tap < R) & (direction < D)
    found = tl.load(taps + (direction * C + channel) * R + tap, mask=exists, other=0.0)
    at = lags + (channel * COPIES + copy) * WIDTH + place
    tl.store(at, narrowed(found, lags.dtype.element_ty), mask=place < WIDTH)


@triton.jit
def _toeplitz(lags, j, t, WIDTH, ORIGIN):
    """Tile h(t - j), (positions j) x (positions t), of a channel's lags."""
    start = (j % COPIES) * WIDTH + ORIGIN - (j // COPIES) * COPIES
    return tl.load(lags + start[:, None] + t[None, :])


@triton.jit
def _tile(signal, row, t, there):
    """Where in memory sequences ``row`` and positions t are, of a channel, loaded as float32; 0 where not there."""
    return tl.load(signal + row[:, None] + t[None, :], mask=there, other=0.0).to(tl.float32)


@triton.jit
def present_of(mask, row, t, there, MASKED: tl.constexpr):
    """Tile of which positions the long convolutions see."""
    if MASKED:
        return there & (tl.load(mask + row[:, None] + t[None, :], mask=there, other=0) != 0)
    else:
        return there


@triton.jit
def _short(z, weight, bias, row, t, there):
    """The short convolution of a channel: z, its three taps and its bias -> tile at positions t, not masked."""
    made = tl.load(bias) + tl.load(weight + 2) * _tile(z, row, t, there)
    made += tl.load(weight + 1) * _tile(z, row, t - 1, there & (t >= 1)[None, :])
    made += tl.load(weight) * _tile(z, row, t - 2, there & (t >= 2)[None, :])
    return made


@triton.jit
def _gated(z, weight, bias, channel, C, BS, row, t, present):
    """s = mask x1 v, a tile in float32, of the channel's three thirds of z."""
    first = _short(z + channel * BS, weight + channel * 3, bias + channel, row, t, present)
    place = 2 * C + channel
    values = _short(z + place * BS, weight + place * 3, bias + place, row, t, present)
    return tl.where(present, first * values, 0.0)


@triton.jit
def _program(positions, sequences):
    """Which tile of positions, which of sequences, which channel (int64)."""
    number = tl.program_id(0)
    tile = number % positions
    rest = number // positions
    return tile, rest % sequences, (rest // sequences).to(tl.int64)


@triton.jit
def gate(
    z, gradient, mask, weight, bias, signal, incoming,
    C, B, S, positions, sequences,
    BACK: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """signal = s, and where BACK incoming = gradient x2, the slope at the long convolution's output: (C, B, S).

    Bytes of a position and channel, 16-bit: 4 read and 2 written, twice where BACK.
    """
    tile, group, channel = _program(positions, sequences)
    t = tile * POSITIONS + tl.arange(0, POSITIONS)
    b = group * ROWS + tl.arange(0, ROWS)
    row = b.to(tl.int64) * S
    there = (b < B)[:, None] & (t < S)[None, :]
    BS = B.to(tl.int64) * S
    made = _gated(z, weight, bias, channel, C, BS, row, t, present_of(mask, row, t, there, MASKED))
    at = channel * BS + row[:, None] + t[None, :]
    tl.store(signal + at, narrowed(made, signal.dtype.element_ty), mask=there)
    if BACK:
        place = C + channel
        second = _short(z + place * BS, weight + place * 3, bias + place, row, t, there)
        made = second * _tile(gradient + channel * BS, row, t, there)
        tl.store(incoming + at, narrowed(made, incoming.dtype.element_ty), mask=there)


@triton.jit
def _long(
    signal, mask, lags, acc, row, rows, t, S, low, high, WIDTH, ORIGIN,
    MASKED: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """acc + the products of a channel's signal with a Toeplitz matrix, over positions low .. high - 1."""
    for start in range(low, high, DEPTH):
        j = start + tl.arange(0, DEPTH)
        there = rows[:, None] & (j < S)[None, :]
        present = present_of(mask, row, j, there, MASKED)
        part = tl.load(signal + row[:, None] + j[None, :], mask=present, other=0.0)
        acc = product(part, _toeplitz(lags, j, t, WIDTH, ORIGIN), acc)
    return acc


@triton.jit
def mix(
    z, u, signal, mask, lags, lags_residual, skip, skip_residual, weight, bias, out,
    C, B, S, positions, sequences, WIDTH, ORIGIN, behind, ahead, behind_residual, ahead_residual,
    WHOLE: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr, MASKED: tl.constexpr,
    ROWS: tl.constexpr, POSITIONS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """y (C, B, S). s is read from ``signal``, made by ``gate``, where GATED; else it is worked out, and where WHOLE, a
    sequence being no longer than a tile, only once.

    ``behind`` and ``ahead``: how far back a position sees by this filter, and how far on. Bytes of a position and
    channel, 16-bit: 8 read and 2 written, and 2 more read where GATED; operations 2 S a filter.
    """
    tile, group, channel = _program(positions, sequences)
    t = tile * POSITIONS + tl.arange(0, POSITIONS)
    b = group * ROWS + tl.arange(0, ROWS)
    row = b.to(tl.int64) * S
    rows = b < B
    there = rows[:, None] & (t < S)[None, :]
    BS = B.to(tl.int64) * S
    channel_lags = channel * COPIES * WIDTH
    present = present_of(mask, row, t, there, MASKED)
    low = tl.maximum(tile * POSITIONS - behind, 0) // DEPTH * DEPTH
    high = tl.minimum(tile * POSITIONS + POSITIONS + ahead, S)
    if WHOLE:
        made = _gated(z, weight, bias, channel, C, BS, row, t, present)
        part = narrowed(made, z.dtype.element_ty)
        tap = _toeplitz(lags + channel_lags, t, t, WIDTH, ORIGIN)
        acc = product(part, tap, tl.load(skip + channel) * made)
    else:
        acc = tl.zeros((ROWS, POSITIONS), tl.float32)
        if GATED:
            acc = _long(
                signal + channel * BS, mask, lags + channel_lags, acc, row, rows, t, S, low, high, WIDTH, ORIGIN,
                False, DEPTH,
            )  # fmt: skip
        else:
            for start in range(low, high, DEPTH):
                j = start + tl.arange(0, DEPTH)
                seen = present_of(mask, row, j, rows[:, None] & (j < S)[None, :], MASKED)
                made = _gated(z, weight, bias, channel, C, BS, row, j, seen)
                part = narrowed(made, z.dtype.element_ty)
                acc = product(part, _toeplitz(lags + channel_lags, j, t, WIDTH, ORIGIN), acc)
        acc += tl.load(skip + channel) * _gated(z, weight, bias, channel, C, BS, row, t, present)
    place = C + channel
    acc *= _short(z + place * BS, weight + place * 3, bias + place, row, t, there)
    if RESIDUAL:
        if WHOLE:
            part = tl.load(u + channel * BS + row[:, None] + t[None, :], mask=present, other=0.0)
            acc = product(part, _toeplitz(lags_residual + channel_lags, t, t, WIDTH, ORIGIN), acc)
        else:
            low = tl.maximum(tile * POSITIONS - behind_residual, 0) // DEPTH * DEPTH
            high = tl.minimum(tile * POSITIONS + POSITIONS + ahead_residual, S)
            acc = _long(
                u + channel * BS, mask, lags_residual + channel_lags, acc, row, rows, t, S, low, high, WIDTH, ORIGIN,
                MASKED, DEPTH,
            )  # fmt: skip
        acc += tl.load(skip_residual + channel) * _tile(u + channel * BS, row, t, present)
    at = channel * BS + row[:, None] + t[None, :]
    tl.store(out + at, narrowed(acc, out.dtype.element_ty), mask=there)


@triton.jit
def _later(x, local, by: tl.constexpr, POSITIONS: tl.constexpr):
    """A tile's values ``by`` positions later; zeros where that is beyond the tile."""
    place = tl.where(local + by < POSITIONS, local + by, 0)
    moved = tl.gather(x, tl.broadcast_to(place[None, :], x.shape), 1)
    return tl.where((local + by < POSITIONS)[None, :], moved, 0.0)


@triton.jit
def _total(x):
    """Sum of a tile."""
    return tl.sum(tl.sum(x, 1), 0)


@triton.jit
def _short_back(
    z, weight, slope, of_z, sums, row, t, local, there, owned, POSITIONS: tl.constexpr
):  # fmt: skip
    """Through the transpose of a channel's short convolution: slope at x -> of_z, and four sums for its taps and bias.

    Positions that another program owns are in ``slope`` for those before them, and in no sum.
    """
    through = tl.load(weight + 2) * slope
    through += tl.load(weight + 1) * _later(slope, local, 1, POSITIONS)
    through += tl.load(weight) * _later(slope, local, 2, POSITIONS)
    tl.store(of_z + row[:, None] + t[None, :], narrowed(through, of_z.dtype.element_ty), mask=owned)
    mine = tl.where(owned, slope, 0.0)
    tl.store(sums, _total(mine * _tile(z, row, t - 2, there & (t >= 2)[None, :])))
    tl.store(sums + 1, _total(mine * _tile(z, row, t - 1, there & (t >= 1)[None, :])))
    tl.store(sums + 2, _total(mine * _tile(z, row, t, there)))
    tl.store(sums + 3, _total(mine))


@triton.jit
def slopes(
    z, gradient, signal, incoming, mask, lags, flipped, flipped_residual, skip, skip_residual, weight, bias,
    of_z, of_u, sums,
    C, B, S, positions, sequences, WIDTH, ORIGIN, behind, ahead, behind_residual, ahead_residual,
    WHOLE: tl.constexpr, RESIDUAL: tl.constexpr, MASKED: tl.constexpr,
    ROWS: tl.constexpr, POSITIONS: tl.constexpr, STEP: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """of_z (3C, B, S), of_u (C, B, S) and sums (programs, SUMS) from gradient, ``signal`` and ``incoming`` of ``gate``.

    The last two it writes itself where WHOLE, a sequence being no longer than a tile.

    The transpose of the short convolution needs the two positions behind each: where a sequence is longer than a
    program's POSITIONS, programs stand STEP apart and overlap, and each writes what it owns, its first STEP. Bytes of
    a position and channel, 16-bit: 12 read and 8 written, where WHOLE 8 and 12; operations 2 S in each of three
    products.
    """
    tile, group, channel = _program(positions, sequences)
    local = tl.arange(0, POSITIONS)
    t = tile * STEP + local
    b = group * ROWS + tl.arange(0, ROWS)
    row = b.to(tl.int64) * S
    rows = b < B
    there = rows[:, None] & (t < S)[None, :]
    owned = there & (local < STEP)[None, :]
    present = present_of(mask, row, t, there, MASKED)
    BS = B.to(tl.int64) * S
    here = channel * BS
    channel_lags = channel * COPIES * WIDTH
    place = C + channel
    third = 2 * C + channel
    sums += tl.program_id(0).to(tl.int64) * SUMS

    at = here + row[:, None] + t[None, :]
    if WHOLE:
        made = _gated(z, weight, bias, channel, C, BS, row, t, present)
        part = narrowed(made, signal.dtype.element_ty)
        tl.store(signal + at, part, mask=there)
        tap = _toeplitz(lags + channel_lags, t, t, WIDTH, ORIGIN)
        acc = product(part, tap, tl.load(skip + channel) * made)
    else:
        low = tl.maximum(tile * STEP - behind, 0) // DEPTH * DEPTH
        high = tl.minimum(tile * STEP + POSITIONS + ahead, S)
        acc = tl.zeros((ROWS, POSITIONS), tl.float32)
        acc = _long(
            signal + here, mask, lags + channel_lags, acc, row, rows, t, S, low, high, WIDTH, ORIGIN, False, DEPTH
        )
        acc += tl.load(skip + channel) * _gated(z, weight, bias, channel, C, BS, row, t, present)
    acc *= _tile(gradient + here, row, t, there)
    _short_back(
        z + place * BS, weight + place * 3, acc, of_z + place * BS, sums + 4, row, t, local, there, owned, POSITIONS
    )

    if WHOLE:
        back = _short(z + place * BS, weight + place * 3, bias + place, row, t, there)
        back *= _tile(gradient + here, row, t, there)
        part = narrowed(back, incoming.dtype.element_ty)
        tl.store(incoming + at, part, mask=there)
        tap = _toeplitz(flipped + channel_lags, t, t, WIDTH, ORIGIN)
        acc = product(part, tap, tl.load(skip + channel) * back)
    else:
        low = tl.maximum(tile * STEP - ahead, 0) // DEPTH * DEPTH
        high = tl.minimum(tile * STEP + POSITIONS + behind, S)
        acc = tl.zeros((ROWS, POSITIONS), tl.float32)
        acc = _long(
            incoming + here, mask, flipped + channel_lags, acc, row, rows, t, S, low, high, WIDTH, ORIGIN, False, DEPTH
        )
        back = _short(z + place * BS, weight + place * 3, bias + place, row, t, there)
        back *= _tile(gradient + here, row, t, there)
        acc += tl.load(skip + channel) * back
    acc = tl.where(present, acc, 0.0)
    first = _short(z + here, weight + channel * 3, bias + channel, row, t, there)
    values = _short(z + third * BS, weight + third * 3, bias + third, row, t, there)
    tl.store(sums + 12, _total(tl.where(owned & present, first * values * back, 0.0)))
    _short_back(z + here, weight + channel * 3, acc * values, of_z + here, sums, row, t, local, there, owned, POSITIONS)
    _short_back(
        z + third * BS, weight + third * 3, acc * first, of_z + third * BS, sums + 8, row, t, local, there, owned,
        POSITIONS,
    )  # fmt: skip

    if RESIDUAL:
        acc = tl.zeros((ROWS, POSITIONS), tl.float32)
        if WHOLE:
            part = tl.load(gradient + at, mask=there, other=0.0)
            acc = product(part, _toeplitz(flipped_residual + channel_lags, t, t, WIDTH, ORIGIN), acc)
        else:
            low = tl.maximum(tile * STEP - ahead_residual, 0) // DEPTH * DEPTH
            high = tl.minimum(tile * STEP + POSITIONS + behind_residual, S)
            acc = _long(
                gradient + here, mask, flipped_residual + channel_lags, acc, row, rows, t, S, low, high, WIDTH, ORIGIN,
                False, DEPTH,
            )  # fmt: skip
        acc += tl.load(skip_residual + channel) * _tile(gradient + here, row, t, there)
        acc = tl.where(present, acc, 0.0)
        tl.store(of_u + at, narrowed(acc, of_u.dtype.element_ty), mask=owned)
