// A complex transform of M = 2^n points in a group of M / 32 threads, made for linear convolutions of real signals.
//
// Polynomials of real coefficients are multiplied modulo X^M - i. A product of degree below 2M then has its first M
// coefficients as real parts and the others as imaginary parts, so that a signal of M positions needs no zeros behind
// it: half the points and half the memory of a circle that is long enough. A filter's forward taps are the real parts
// of its coefficients, its backward taps, as X^-d = -i X^(M-d), the imaginary parts; of the product with a signal the
// real part is what is wanted ("right-angle" convolution, R. Crandall and B. Fagin, Math. Comp. 62, 1994).
//
// Forward, X^M - i is split into X^(M/2) - w and X^(M/2) + w, w^2 = i, and so on down to single roots of modulus one:
//
//   a + w b, a - w b     six fused multiply-adds; w belongs to the part: root(1/4 + turned(part), 2^(level + 1)),
//
// root(k, n) = exp(2 pi i k / n), turned(part): its bits in reverse. Values end in the order of turned roots, are
// multiplied there, and come back from that order by the classical butterflies, whose w belongs to the position, and a
// last factor root(-t, 4 M). log2 R levels are done at a time on R points in registers; of a part's roots one is read
// from a table (two where R is 32: each squaring doubles the error), the others are its squares, turned by constants.
// Between passes points are exchanged through shared memory, where each is written to the place from which its thread
// has read: one barrier an exchange.
#pragma once

#include "device.h"

namespace transform {

constexpr int held = 32;  // points that a thread holds

constexpr int tables(int points) { return points == 32 ? 2 : 1; }  // of a pass on so many points
constexpr int log_of(int power) { return power == 1 ? 0 : 1 + log_of(power / 2); }

// Three passes of FIRST, MIDDLE and LAST points, or two where MIDDLE is 1; a gap every 2^GAP points in shared memory,
// so that the sixteen threads that are served at a time meet sixteen banks of eight bytes in every pass.
template <int FIRST, int MIDDLE, int LAST, int GAP>
struct Passes {
    static constexpr int first = FIRST, middle = MIDDLE, last = LAST, gap = GAP;
    static constexpr int points = FIRST * MIDDLE * LAST, threads = points / held;
    static constexpr int first_log = log_of(FIRST), top_log = log_of(FIRST * MIDDLE);
    static constexpr int room = points + (points >> GAP);  // of an exchange
    // Tables of roots: of parts, in the second and third pass down; of positions, in the second and third pass up;
    // and the last factor. For passes of 32 points each table is followed by one of fourth powers.
    static constexpr int parts = FIRST, small_parts = MIDDLE > 1 ? FIRST * MIDDLE : 0;
    static constexpr int small_places = MIDDLE > 1 ? LAST : 0, places = points / FIRST;
    static constexpr int of_parts = 0;
    static constexpr int of_small_parts = of_parts + parts * tables(MIDDLE > 1 ? MIDDLE : LAST);
    static constexpr int of_small_places = of_small_parts + small_parts * tables(LAST);
    static constexpr int of_places = of_small_places + small_places * tables(MIDDLE);
    static constexpr int of_factors = of_places + places * tables(FIRST), roots = of_factors + places;
};

template <int LOG>
struct PlanOf;
template <> struct PlanOf<8> { using Plan = Passes<16, 1, 16, 4>; };
template <> struct PlanOf<9> { using Plan = Passes<16, 1, 32, 5>; };
template <> struct PlanOf<10> { using Plan = Passes<32, 1, 32, 5>; };
template <> struct PlanOf<11> { using Plan = Passes<16, 8, 16, 4>; };
template <> struct PlanOf<12> { using Plan = Passes<16, 16, 16, 4>; };
template <> struct PlanOf<13> { using Plan = Passes<16, 16, 32, 5>; };
template <> struct PlanOf<14> { using Plan = Passes<16, 32, 32, 5>; };
constexpr int least_log = 8, most_log = 14;

// -- roots ------------------------------------------------------------------------------------------------------------

DEVICE float2 times(float2 a, float2 b) {
    return make_float2(fmaf(a.x, b.x, -a.y * b.y), fmaf(a.x, b.y, a.y * b.x));
}

DEVICE float2 times_conjugate(float2 a, float2 b) {  // a * conj(b)
    return make_float2(fmaf(a.x, b.x, a.y * b.y), fmaf(a.y, b.x, -a.x * b.y));
}

DEVICE float2 squared(float2 a) { return make_float2(fmaf(a.x, a.x, -a.y * a.y), 2.0f * a.x * a.y); }

// root(k, 128), k from 0 to 32; k is known when it is compiled.
DEVICE float2 constant_root(int k) {
    constexpr float cosines[33] = {
        1.0f,         0.998795456f, 0.995184727f, 0.98917651f,  0.98078528f,  0.970031253f, 0.956940336f,
        0.941544065f, 0.923879533f, 0.903989293f, 0.881921264f, 0.85772861f,  0.831469612f, 0.803207531f,
        0.773010453f, 0.740951125f, 0.707106781f, 0.671558955f, 0.634393284f, 0.595699304f, 0.555570233f,
        0.514102744f, 0.471396737f, 0.427555093f, 0.382683432f, 0.336889853f, 0.290284677f, 0.24298018f,
        0.195090322f, 0.146730474f, 0.0980171403f, 0.0490676743f, 0.0f};
    return make_float2(cosines[k], cosines[32 - k]);
}

DEVICE constexpr int turned_bits(int x, int bits) {  // of at most 4
    return ((x & 1) << 3 | (x & 2) << 1 | (x & 4) >> 1 | (x & 8) >> 3) >> (4 - bits);
}

DEVICE float2 root(int k, int n) {  // n a power of two, k below 2^24: exact but for the rounding of its parts
    float2 found;
    sincos_pi(2.0f * static_cast<float>(k) / static_cast<float>(n), found.y, found.x);
    return found;
}

template <typename P>
DEVICE void fill_roots(float2* roots) {
    const int step = static_cast<int>(blockDim.x);
    for (int n = static_cast<int>(threadIdx.x); n < P::roots; n += step) {
        if (n < P::of_small_parts) {
            const int power = n < P::parts ? 1 : 4, part = n % P::parts;
            const int turned = static_cast<int>(__brev(part) >> (32 - P::first_log));
            roots[n] = root(power * (1 + 4 * turned), 4 * P::parts * (P::middle > 1 ? P::middle : P::last));
        } else if (n < P::of_small_places) {
            const int place = n - P::of_small_parts, power = place < P::small_parts ? 1 : 4;
            const int turned = static_cast<int>(__brev(place % (P::first * P::middle)) >> (32 - P::top_log));
            roots[n] = root(power * (1 + 4 * turned), 4 * P::points);
        } else if (n < P::of_places) {
            const int place = n - P::of_small_places;
            roots[n] = root(-(place < P::small_places ? place : 4 * (place - P::small_places)), P::points / P::first);
        } else if (n < P::of_factors) {
            const int place = n - P::of_places;
            roots[n] = root(-(place < P::places ? place : 4 * (place - P::places)), P::points);
        } else {
            roots[n] = root(-(n - P::of_factors), 4 * P::points);
        }
    }
}

// -- R points in registers --------------------------------------------------------------------------------------------

// a, b = a + w b, a - w b
DEVICE void butterfly(float2& a, float2& b, float2 w) {
    const float x = fmaf(-w.y, b.y, fmaf(w.x, b.x, a.x)), y = fmaf(w.y, b.x, fmaf(w.x, b.y, a.y));
    b = make_float2(fmaf(2.0f, a.x, -x), fmaf(2.0f, a.y, -y));
    a = make_float2(x, y);
}

DEVICE void butterfly(float2& a, float2& b) {  // w = 1
    const float2 sum = make_float2(a.x + b.x, a.y + b.y);
    b = make_float2(a.x - b.x, a.y - b.y);
    a = sum;
}

DEVICE void butterfly_turned(float2& a, float2& b) {  // w = -i
    const float2 sum = make_float2(a.x + b.y, a.y - b.x);
    b = make_float2(a.x - b.y, a.y + b.x);
    a = sum;
}

// Level S of a pass down on v[0 .. R); powers[S]: the root of the whole part at that level.
template <int R, int S, bool TOP>
DEVICE void split(float2* v, const float2* powers) {
    constexpr int half = R >> (S + 1);
#pragma unroll
    for (int part = 0; part < 1 << S; part += 2) {
        float2 w;
        if (TOP) {
            w = constant_root((1 + 4 * turned_bits(part, S)) * (16 >> S));
        } else {
            w = part ? times(powers[S], constant_root(turned_bits(part, S) * (64 >> S))) : powers[S];
        }
#pragma unroll
        for (int n = 0; n < half; n++) butterfly(v[2 * part * half + n], v[(2 * part + 1) * half + n], w);
        if (S > 0) {
            const float2 turned = make_float2(-w.y, w.x);
#pragma unroll
            for (int n = 0; n < half; n++)
                butterfly(v[(2 * part + 2) * half + n], v[(2 * part + 3) * half + n], turned);
        }
    }
    if constexpr (half > 1) split<R, S + 1, TOP>(v, powers);
}

// Level S of a pass up; powers[S] = base^(2^S), the root of the thread's position. FACTOR: powers[0] is multiplied by
// `factor`, and so shall the points be that it does not reach.
template <int R, int S, bool BOTTOM, bool FACTOR>
DEVICE void join(float2* v, const float2* powers, float2 factor) {
    constexpr int half = R >> (S + 1);
    if (FACTOR && S == 0) {
#pragma unroll
        for (int n = 0; n < half; n++) v[n] = times(v[n], factor);
    }
#pragma unroll
    for (int n = 0; n < (half + 1) / 2; n++) {
        float2 w = constant_root(n * (128 / R << S));
        w.y = -w.y;
        if (!BOTTOM) w = n ? times(powers[S], w) : powers[S];
        const float2 turned = make_float2(w.y, -w.x);
#pragma unroll
        for (int part = 0; part < 1 << S; part++) {
            float2* const a = v + 2 * part * half + n;
            if (BOTTOM && n == 0) {
                butterfly(a[0], a[half]);
                if (half > 1) butterfly_turned(a[half / 2], a[half + half / 2]);
            } else {
                butterfly(a[0], a[half], w);
                if (half > 1) butterfly(a[half / 2], a[half + half / 2], turned);
            }
        }
    }
    if constexpr (S > 0) join<R, S - 1, BOTTOM, FACTOR>(v, powers, factor);
}

// -- passes -----------------------------------------------------------------------------------------------------------

// The pass on R points that begins where M points have become DONE parts. A thread has columns of R points, `stride`
// apart, of which column c of thread j is number c * threads + j.
template <typename P, int DONE, int R>
struct Pass {
    static constexpr int part = P::points / DONE, stride = part / R, columns = held / R, levels = log_of(R);
    static constexpr int step = stride >> P::gap ? stride + (stride >> P::gap) : stride;  // between places of a column
    static_assert(stride >> P::gap ? stride % (1 << P::gap) == 0 : stride == 1 && R <= 1 << P::gap,
                  "places of a column lie evenly");

    DEVICE static int place(int column) {
        const int first = column / stride * part + column % stride;
        return first + (first >> P::gap);
    }
    DEVICE static void get(float2 (&v)[held], const float2* exchange, int j) {
#pragma unroll
        for (int c = 0; c < columns; c++) {
            const float2* const from = exchange + place(c * P::threads + j);
#pragma unroll
            for (int q = 0; q < R; q++) v[c * R + q] = from[q * step];
        }
    }
    DEVICE static void put(const float2 (&v)[held], float2* exchange, int j) {
#pragma unroll
        for (int c = 0; c < columns; c++) {
            float2* const to = exchange + place(c * P::threads + j);
#pragma unroll
            for (int q = 0; q < R; q++) to[q * step] = v[c * R + q];
        }
    }
    // Down; `table` holds the roots of parts.
    DEVICE static void down(float2 (&v)[held], const float2* table, int j) {
#pragma unroll
        for (int c = 0; c < columns; c++) {
            float2 powers[levels];
            if (DONE > 1) {
                const float2* const base = table + (c * P::threads + j) / stride;
                powers[levels - 1] = base[0];
#pragma unroll
                for (int s = levels - 1; s > 0; s--)
                    powers[s - 1] = R == 32 && s == 3 ? base[DONE] : squared(powers[s]);
            }
            split<R, 0, DONE == 1>(v + c * R, powers);
        }
    }
    // Up; `table` holds the roots of positions, `factors` what is multiplied into the points of the last pass up.
    DEVICE static void up(float2 (&v)[held], const float2* table, const float2* factors, int j) {
#pragma unroll
        for (int c = 0; c < columns; c++) {
            float2 powers[levels], factor = make_float2(1.0f, 0.0f);
            if (stride > 1) {
                const float2* const base = table + (c * P::threads + j) % stride;
                powers[0] = base[0];
#pragma unroll
                for (int s = 1; s < levels; s++)
                    powers[s] = R == 32 && s == 2 ? base[stride] : squared(powers[s - 1]);
            }
            if (DONE == 1) {
                factor = factors[c * P::threads + j];
                powers[0] = times(powers[0], factor);
            }
            join<R, levels - 1, stride == 1, DONE == 1>(v + c * R, powers, factor);
        }
    }
};

template <typename P>
using Top = Pass<P, 1, P::first>;
template <typename P>
using Bottom = Pass<P, P::first * P::middle, P::last>;

// A thread's positions, before the transform down and after that up, are j and what is known when it is compiled.
template <typename P>
DEVICE constexpr int offset(int e) {
    return e / P::first * P::threads + e % P::first * Top<P>::stride;
}

// Waits for the group: a part of a warp, or the block.
template <typename P>
DEVICE void group_barrier() {
    if (P::threads <= 32) {
        __syncwarp();
    } else {
        __syncthreads();
    }
}

// v: coefficients at j + `offset` -> values at the roots, thread by thread. Since the last barrier threads of the group
// have read nothing from `exchange` but their own places of the top pass, as after transform_up; after transform_down a
// barrier is needed first.
template <typename P>
DEVICE void transform_down(float2 (&v)[held], float2* exchange, const float2* roots, int j) {
    Top<P>::down(v, nullptr, j);
    Top<P>::put(v, exchange, j);
    group_barrier<P>();
    if constexpr (P::middle > 1) {
        using Middle = Pass<P, P::first, P::middle>;
        Middle::get(v, exchange, j);
        Middle::down(v, roots + P::of_parts, j);
        Middle::put(v, exchange, j);
        group_barrier<P>();
    }
    Bottom<P>::get(v, exchange, j);
    Bottom<P>::down(v, roots + (P::middle > 1 ? P::of_small_parts : P::of_parts), j);
}

// Back, times M. Imaginary parts are right only if `whole`.
template <typename P>
DEVICE void transform_up(float2 (&v)[held], float2* exchange, const float2* roots, int j, bool whole) {
    Bottom<P>::up(v, nullptr, nullptr, j);
    Bottom<P>::put(v, exchange, j);
    group_barrier<P>();
    if constexpr (P::middle > 1) {
        using Middle = Pass<P, P::first, P::middle>;
        Middle::get(v, exchange, j);
        Middle::up(v, roots + P::of_small_places, nullptr, j);
        Middle::put(v, exchange, j);
        group_barrier<P>();
    }
    Top<P>::get(v, exchange, j);
    Top<P>::up(v, roots + P::of_places, roots + P::of_factors, j);
#pragma unroll
    for (int e = 0; e < held; e++) {
        float2 last = constant_root(e % P::first * (32 / P::first));
        const float y = whole ? fmaf(v[e].y, last.x, -v[e].x * last.y) : 0.0f;
        v[e] = make_float2(fmaf(v[e].x, last.x, v[e].y * last.y), y);
    }
}

}  // namespace transform
