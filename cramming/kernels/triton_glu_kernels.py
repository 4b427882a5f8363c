"""The kernels of ``triton_glu``: what each program reads, keeps in registers and writes.

Shape legend: ``operands.py``. A program has a tile of TT tokens and works through tiles of HT hidden channels; widths
that are no powers of two are cut into two that are, the second of which may reach beyond and is then masked. All sizes
are known as a kernel is compiled, but for the number of tokens.
"""
# ruff: noqa: E741, N803, N806 -- what is known as a kernel is compiled has capitals

import triton
import triton.language as tl

from cramming.kernels.triton_products import narrowed, product

RATE = tl.constexpr(-0.7213475204444817)  # -1 / (2 ln 2): exp(-x^2 / 2) is 2^(RATE x^2)
DENSITY = tl.constexpr(0.3989422804014327)  # of the normal distribution, at 0


@triton.jit
def beyond(x, EXACT: tl.constexpr):
    """How much of the normal distribution lies beyond |x|.

    Not exact, its binary logarithm is a polynomial of |x|, fitted on [0, 6.5] to 7e-6 and falling without end from
    there: a relative error of 5e-6, a hundredth of what float16 rounds, in a third of erf's instructions.
    """
    far = tl.abs(x)
    if EXACT:
        return 0.5 - 0.5 * tl.erf(far * 0.7071067811865476)
    else:
        power = -1.757783120e-6 * far + 5.993674356e-5
        power = power * far - 9.163645635e-4
        power = power * far + 8.447393797e-3
        power = power * far - 5.382452471e-2
        power = power * far - 4.586156744e-1
        power = power * far - 1.151180187
        power = power * far - 1.000003870
        return tl.exp2(power)


@triton.jit
def gelu(x, EXACT: tl.constexpr):
    """x times the share of the normal distribution below x, without a difference of nearly equal numbers."""
    return tl.maximum(x, 0.0) - tl.abs(x) * beyond(x, EXACT)


@triton.jit
def tile(base, rows, columns, height, width, STRIDE: tl.constexpr, WHOLE: tl.constexpr):
    """A tile of a matrix; zeros beyond ``height`` and ``width``, which no tile reaches where WHOLE."""
    places = base + rows[:, None] * STRIDE + columns[None, :]
    if WHOLE:
        return tl.load(places)
    else:
        return tl.load(places, mask=(rows[:, None] < height) & (columns[None, :] < width), other=0.0)


@triton.jit
def store(base, rows, columns, values, height, width, STRIDE: tl.constexpr):
    """Write a tile of a matrix, as far as it has one."""
    places = base + rows[:, None] * STRIDE + columns[None, :]
    inside = (rows[:, None] < height) & (columns[None, :] < width)
    tl.store(places, narrowed(values, base.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def through(
    x,
    w_gate,
    w_value,
    w_out,
    bias,
    out,
    kept,
    tokens,
    PAIRS: tl.constexpr,
    EACH: tl.constexpr,
    I: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    I0: tl.constexpr,
    I1: tl.constexpr,
    M0: tl.constexpr,
    M1: tl.constexpr,
    TT: tl.constexpr,
    HT: tl.constexpr,
    BIASED: tl.constexpr,
    KEEP: tl.constexpr,
    EXACT: tl.constexpr,
):
    """All of it: a program has a tile of tokens and one outer block, whose outputs it sums up in registers.

    Its two blocks of inputs are read once; weights come by tile after tile of hidden channels, which never leave the
    program: gates and values are sums over I0 + I1 inputs, the middle is at once multiplied into M0 + M1 outputs.
    """
    BLOCKS: tl.constexpr = PAIRS * EACH
    O: tl.constexpr = EACH * N
    block, pair = tl.program_id(0) % BLOCKS, tl.program_id(0) % BLOCKS // EACH
    rows = (tl.program_id(0) // BLOCKS).to(tl.int64) * TT + tl.arange(0, TT)
    before, after = tl.arange(0, I0), I0 + tl.arange(0, max(I1, 16))
    FULL: tl.constexpr = I == I0 + I1
    gates_in, values_in = x + pair * I, x + (PAIRS + pair) * I
    gates_0 = tile(gates_in, rows, before, tokens, I, 2 * PAIRS * I, False)
    values_0 = tile(values_in, rows, before, tokens, I, 2 * PAIRS * I, False)
    if I1:
        gates_1 = tile(gates_in, rows, after, tokens, I, 2 * PAIRS * I, False)
        values_1 = tile(values_in, rows, after, tokens, I, 2 * PAIRS * I, False)
    first = pair * O + block % EACH * N  # of the hidden channels of all pairs
    w_gate += first * I
    w_value += first * I
    w_out += block * M * N
    outputs, others = tl.arange(0, M0), M0 + tl.arange(0, max(M1, 16))
    sum_0, sum_1 = tl.zeros((TT, M0), tl.float32), tl.zeros((TT, max(M1, 16)), tl.float32)
    ROUND: tl.constexpr = N % HT == 0
    for start in range(0, N, HT):
        hidden = start + tl.arange(0, HT)
        weights = tile(w_gate, hidden, before, N, I, I, FULL and ROUND)
        gates = product(gates_0, weights.trans(), tl.zeros((TT, HT), tl.float32))
        weights = tile(w_value, hidden, before, N, I, I, FULL and ROUND)
        values = product(values_0, weights.trans(), tl.zeros((TT, HT), tl.float32))
        if I1:
            weights = tile(w_gate, hidden, after, N, I, I, FULL and ROUND)
            gates = product(gates_1, weights.trans(), gates)
            weights = tile(w_value, hidden, after, N, I, I, FULL and ROUND)
            values = product(values_1, weights.trans(), values)
        if KEEP:
            store(kept + first, rows, hidden, gates, tokens, N, 2 * PAIRS * O)
            store(kept + PAIRS * O + first, rows, hidden, values, tokens, N, 2 * PAIRS * O)
        middle = narrowed(gelu(gates, EXACT) * values, x.dtype.element_ty)
        weights = tile(w_out, outputs, hidden, M, N, N, M >= M0 and ROUND)
        sum_0 = product(middle, weights.trans(), sum_0)
        if M1:
            weights = tile(w_out, others, hidden, M, N, N, M == M0 + M1 and ROUND)
            sum_1 = product(middle, weights.trans(), sum_1)
    if BIASED:
        sum_0 += tl.load(bias + block * M + outputs, mask=outputs < M, other=0.0).to(tl.float32)[None, :]
    store(out + block * M, rows, outputs, sum_0, tokens, M, BLOCKS * M)
    if M1:
        if BIASED:
            sum_1 += tl.load(bias + block * M + others, mask=others < M, other=0.0).to(tl.float32)[None, :]
        store(out + block * M, rows, others, sum_1, tokens, M, BLOCKS * M)


@triton.jit(do_not_specialize=["tokens"])
def between(
    x,
    w_gate,
    w_value,
    middle,
    kept,
    tokens,
    PAIRS: tl.constexpr,
    I: tl.constexpr,
    O: tl.constexpr,
    TT: tl.constexpr,
    HT: tl.constexpr,
    KT: tl.constexpr,
    KEEP: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The middle alone, gelu(gates) * values: a program has a tile of tokens and one of a pair's hidden channels."""
    TILES: tl.constexpr = tl.cdiv(O, HT)
    place = tl.program_id(0) % (PAIRS * TILES)
    pair, hidden = place // TILES, place % TILES * HT + tl.arange(0, HT)
    rows = (tl.program_id(0) // (PAIRS * TILES)).to(tl.int64) * TT + tl.arange(0, TT)
    gates, values = tl.zeros((TT, HT), tl.float32), tl.zeros((TT, HT), tl.float32)
    WHOLE: tl.constexpr = O % HT == 0 and I % KT == 0
    for start in range(0, I, KT):
        inputs = start + tl.arange(0, KT)
        given = tile(x + pair * I, rows, inputs, tokens, I, 2 * PAIRS * I, False)
        weights = tile(w_gate + pair * O * I, hidden, inputs, O, I, I, WHOLE)
        gates = product(given, weights.trans(), gates)
        given = tile(x + (PAIRS + pair) * I, rows, inputs, tokens, I, 2 * PAIRS * I, False)
        weights = tile(w_value + pair * O * I, hidden, inputs, O, I, I, WHOLE)
        values = product(given, weights.trans(), values)
    if KEEP:
        store(kept + pair * O, rows, hidden, gates, tokens, O, 2 * PAIRS * O)
        store(kept + (PAIRS + pair) * O, rows, hidden, values, tokens, O, 2 * PAIRS * O)
    store(middle + pair * O, rows, hidden, gelu(gates, EXACT) * values, tokens, O, PAIRS * O)


@triton.jit(do_not_specialize=["tokens"])
def back(
    gradient,
    w_out,
    kept,
    of_kept,
    middle,
    tokens,
    PAIRS: tl.constexpr,
    EACH: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    TT: tl.constexpr,
    HT: tl.constexpr,
    KT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Gradients of gates and values, and the middle again: a program has tiles of tokens and of a block's inputs.

    The gradient of the middle, a product of M terms, stays in registers; gates and values are read as they were kept.
    """
    BLOCKS: tl.constexpr = PAIRS * EACH
    TILES: tl.constexpr = tl.cdiv(N, HT)
    ALL: tl.constexpr = BLOCKS * N  # hidden channels, p o
    place = tl.program_id(0) % (BLOCKS * TILES)
    block, hidden = place // TILES, place % TILES * HT + tl.arange(0, HT)
    rows = (tl.program_id(0) // (BLOCKS * TILES)).to(tl.int64) * TT + tl.arange(0, TT)
    gates = tile(kept + block * N, rows, hidden, tokens, N, 2 * ALL, False)
    values = tile(kept + ALL + block * N, rows, hidden, tokens, N, 2 * ALL, False)
    slopes = tl.zeros((TT, HT), tl.float32)
    for start in range(0, M, KT):
        outputs = start + tl.arange(0, KT)
        given = tile(gradient + block * M, rows, outputs, tokens, M, BLOCKS * M, False)
        weights = tile(w_out + block * M * N, outputs, hidden, M, N, N, N % HT == 0 and M % KT == 0)
        slopes = product(given, weights, slopes)
    gates, values = gates.to(tl.float32), values.to(tl.float32)
    outside = beyond(gates, EXACT)
    active = tl.maximum(gates, 0.0) - tl.abs(gates) * outside
    density = tl.exp2(gates * gates * RATE) * DENSITY
    steepness = tl.where(gates > 0, 1.0 - outside, outside) + gates * density
    store(of_kept + block * N, rows, hidden, slopes * values * steepness, tokens, N, 2 * ALL)
    store(of_kept + ALL + block * N, rows, hidden, slopes * active, tokens, N, 2 * ALL)
    store(middle + block * N, rows, hidden, active * values, tokens, N, ALL)
