// Gradients of both gated long convolutions, by transforms.
//
// A block does one filter k of a channel's sequences, or of one of `splits` parts of them: the two do not meet. With S
// the transform of what the filter was given and G that of what comes back (x2 dy, or dy) modulo X^M - i,
//
//   gradient of the signal: real part of conj(H) G      gradient of x2: dy times the real part of H S
//   gradient of the filter: sum over sequences, in their order, of G conj(S), transformed back once; its real parts are
//   those of lags t, its imaginary parts, times -1, those of lags t - M.
//
// Transforms that forward has made are made again: nothing is saved. The gradients of x1, x2 and v go back through the
// short convolution, for which a thread reads those of the next two positions from its group's exchange.
#pragma once

#include "transform_signals.h"

namespace transform {

// Blocks on a multiprocessor: of 256 threads together, with 255 registers each, or one block of more with 128.
template <typename P>
constexpr int at_once = Block<P>::threads < 256 ? 256 / Block<P>::threads : 1;

struct Back {
    const void* gradient;  // (C, B, S)
    void *of_z, *of_u;     // (3C, B, S), (C, B, S)
    float* of_filters;     // (splits, K, 2, C, M): of lags 0, 1, ... and of lags -1, -2, ...
    float* of_short;       // (splits, 3, C, 4): of the three taps and of the bias
};

// dy, and with the first filter x2 dy.
template <typename P>
DEVICE void read_incoming(float2 (&v)[held], const Given& given, const Back& back, int number, int channel,
                          int sequence, bool live, int j) {
    read_row<P>(v, back.gradient, given, channel, sequence, live, j);
    if (number) return;
    float second[held];
    read_second<P>(second, given, channel, sequence, live, j);
#pragma unroll
    for (int e = 0; e < held; e++) v[e].x *= second[e];
}

// Adds a position's part of the gradients of a third's short weight and bias.
template <typename T>
DEVICE void add_short(float (&sums)[4], const Third<T>& third, float slope) {
#pragma unroll
    for (int n = 0; n < short_taps; n++) sums[n] = fmaf(slope, third.before[n], sums[n]);
    sums[3] += slope;
}

// Through the short convolution of third `number`, of which v holds the gradient after it (parts y of v if IN_Y) and
// the exchange those of all positions.
template <typename P, bool IN_Y>
DEVICE void write_short(const float2 (&v)[held], const float2* exchange, const Given& given, void* of_z, int number,
                        int channel, int sequence, bool live, int j) {
    const int place = number * given.channels + channel, room = live ? given.length - j : 0;
    const float oldest = given.weight[place * short_taps], older = given.weight[place * short_taps + 1],
                now = given.weight[place * short_taps + 2];
    float found[held];
#pragma unroll
    for (int c = 0; c < held / P::first; c++) {
        const int next = c * P::threads + j + 1, after = next + 1;
        const float2* const of_next = exchange + next + (next >> P::gap);
        const float2* const of_after = exchange + after + (after >> P::gap);
#pragma unroll
        for (int q = 0; q < P::first; q++) {
            const int e = c * P::first + q, at = q * Top<P>::step;
            const float one = offset<P>(e) + 1 < room ? (IN_Y ? of_next[at].y : of_next[at].x) : 0.0f;
            const float two = offset<P>(e) + 2 < room ? (IN_Y ? of_after[at].y : of_after[at].x) : 0.0f;
            found[e] = fmaf(now, IN_Y ? v[e].y : v[e].x, fmaf(older, one, oldest * two));
        }
    }
    write_row<P>(found, of_z, given, place, sequence, live, j);
}

// What follows the transform up of H S: gradients of x2.
template <typename P>
DEVICE void finish_second(float2 (&v)[held], float2* exchange, float (&sums)[3][4], const Given& given,
                          const Back& back, int channel, int sequence, bool live, int j) {
    by_kind(given.kind, [&](auto type) {
        using T = decltype(type);
        const Row<T> incoming(back.gradient, given, channel, sequence, live, j);
        Third<T> second(given, 1, channel, sequence, live, j);
        float here[4] = {};
#pragma unroll
        for (int e = 0; e < held; e++) {
            second.at(offset<P>(e));
            v[e] = make_float2(incoming.at(offset<P>(e)) * v[e].x, 0.0f);
            add_short(here, second, v[e].x);
        }
#pragma unroll
        for (int n = 0; n < 4; n++) sums[1][n] += here[n];
    });
    Top<P>::put(v, exchange, j);
    group_barrier<P>();
    write_short<P, false>(v, exchange, given, back.of_z, 1, channel, sequence, live, j);
    group_barrier<P>();
}

// What follows the transform up of conj(H) G: gradients of x1 and v, or of u.
template <typename P>
DEVICE void finish_signal(float2 (&v)[held], float2* exchange, float (&sums)[3][4], const Given& given,
                          const Back& back, int number, int channel, int sequence, bool live, int j) {
    apply_mask<P>(v, given, sequence, live, j);
    if (number) {
        float found[held];
#pragma unroll
        for (int e = 0; e < held; e++) found[e] = v[e].x;
        write_row<P>(found, back.of_u, given, channel, sequence, live, j);
        return;
    }
    by_kind(given.kind, [&](auto type) {
        using T = decltype(type);
        Third<T> first(given, 0, channel, sequence, live, j), values(given, 2, channel, sequence, live, j);
        float of_first[4] = {}, of_values[4] = {};
#pragma unroll
        for (int e = 0; e < held; e++) {
            const float other = first.at(offset<P>(e));
            v[e] = make_float2(v[e].x * values.at(offset<P>(e)), v[e].x * other);
            add_short(of_first, first, v[e].x);
            add_short(of_values, values, v[e].y);
        }
#pragma unroll
        for (int n = 0; n < 4; n++) sums[0][n] += of_first[n], sums[2][n] += of_values[n];
    });
    Top<P>::put(v, exchange, j);
    group_barrier<P>();
    write_short<P, false>(v, exchange, given, back.of_z, 0, channel, sequence, live, j);
    write_short<P, true>(v, exchange, given, back.of_z, 2, channel, sequence, live, j);
    group_barrier<P>();
}

// Sums of all threads of the block, in a fixed order.
template <typename P>
DEVICE void write_sums(const float (&sums)[3][4], float* shared, float* of_short, int channel, int channels) {
    constexpr int warps = Block<P>::threads / 32;
    const int thread = static_cast<int>(threadIdx.x);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < 12; n++) {
        float sum = sums[n / 4][n % 4];
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        if (thread % 32 == 0) shared[thread / 32 * 12 + n] = sum;
    }
    __syncthreads();
    if (thread < 12) {
        float sum = 0.0f;
        for (int warp = 0; warp < warps; warp++) sum += shared[warp * 12 + thread];
        of_short[((int64_t(blockIdx.y) * 3 + thread / 4) * channels + channel) * 4 + thread % 4] = sum;
    }
}

template <typename P>
KERNEL void __launch_bounds__(Block<P>::threads, at_once<P>)
convolve_back(Given given, Back back) {
    constexpr int groups = Block<P>::groups;
    SHARED(float2, shared);
    const int group = static_cast<int>(threadIdx.x) / P::threads, j = static_cast<int>(threadIdx.x) % P::threads;
    const int channel = static_cast<int>(blockIdx.x), number = static_cast<int>(blockIdx.z);
    const int begin = static_cast<int>(int64_t(given.sequences) * blockIdx.y / gridDim.y);
    const int end = static_cast<int>(int64_t(given.sequences) * (blockIdx.y + 1) / gridDim.y);
    float2* const exchange = shared + group * P::room;
    float2* const roots = shared + groups * P::room;
    float2 *const in_shared = roots + P::roots, *const in_scratch = scratch_of(given);
    const bool spectrum_shared = given.kept & spectra_shared, totals_shared = given.kept & sums_shared;
    float2* const spectrum = (spectrum_shared ? in_shared : in_scratch) + j;
    float2* const totals = (totals_shared ? in_shared : in_scratch) +
                           (spectrum_shared == totals_shared ? P::points : 0);  // behind the spectrum, if it is there
    float2* const total = totals + group * P::points + j;
    fill_roots<P>(roots);
    __syncthreads();
    float sums[3][4] = {};
    float2 signal[held];  // its transform, from one step to the next
    const int last = 2 * ((end - begin + groups - 1) / groups) + 1;
#pragma unroll 1
    for (int step = 0; step <= last; step++) {  // the filter; a signal and what comes back to it, ...; the sums
        const int sequence = begin + (step - 1) / 2 * groups + group;
        const bool live = sequence < end, comes_back = step % 2 == 0;
        float2 v[held];
        if (step < last) {
            if (step == 0) {
                read_filter<P>(v, given, number, channel, j);
            } else if (comes_back) {
                read_incoming<P>(v, given, back, number, channel, sequence, live, j);
            } else {
                read_signal<P>(v, given, number, channel, sequence, live, j);
            }
            transform_down<P>(v, exchange, roots, j);
        }
        if (step == 0) {
            constexpr float scale = 1.0f / P::points;
#pragma unroll
            for (int e = 0; e < held; e++) {
                if (group == 0) spectrum[e * P::threads] = make_float2(v[e].x * scale, v[e].y * scale);
                total[e * P::threads] = make_float2(0.0f, 0.0f);
            }
            __syncthreads();
            continue;
        }
        if (step == last) {
            __syncthreads();
#pragma unroll
            for (int e = 0; e < held; e++) v[e] = totals[e * P::threads + j];
#pragma unroll 1
            for (int other = 1; other < groups; other++) {
#pragma unroll
                for (int e = 0; e < held; e++) {
                    const float2 more = totals[other * P::points + e * P::threads + j];
                    v[e] = make_float2(v[e].x + more.x, v[e].y + more.y);
                }
            }
        } else if (comes_back) {
#pragma unroll
            for (int e = 0; e < held; e++) {
                const float2 product = times_conjugate(v[e], signal[e]), before = total[e * P::threads];
                total[e * P::threads] = make_float2(before.x + product.x, before.y + product.y);
                v[e] = times_conjugate(v[e], spectrum[e * P::threads]);
            }
        } else {
#pragma unroll
            for (int e = 0; e < held; e++) signal[e] = v[e];
            if (number) {  // x2 is not in it
                group_barrier<P>();
                continue;
            }
#pragma unroll
            for (int e = 0; e < held; e++) v[e] = times(v[e], spectrum[e * P::threads]);
        }
        transform_up<P>(v, exchange, roots, j, step == last);
        if (step == last) {
            constexpr float scale = 1.0f / P::points;
            const int64_t place = (int64_t(blockIdx.y) * given.count + number) * 2 * given.channels + channel;
            float* const behind = settled(back.of_filters + place * P::points + j);
            float* const ahead =
                settled(back.of_filters + (place + given.channels + 1) * P::points - 1 - j);  // backwards
            if (group == 0) {
#pragma unroll
                for (int e = 0; e < held; e++) {
                    behind[offset<P>(e)] = v[e].x * scale;
                    ahead[-offset<P>(e)] = -v[e].y * scale;
                }
            }
        } else if (comes_back) {
            finish_signal<P>(v, exchange, sums, given, back, number, channel, sequence, live, j);
        } else {
            finish_second<P>(v, exchange, sums, given, back, channel, sequence, live, j);
        }
    }
    if (number == 0) write_sums<P>(sums, reinterpret_cast<float*>(shared), back.of_short, channel, given.channels);
}

// For sequences of at most 2^TO positions.
template <int FROM, int TO>
const char* launch_back(const Given& given, const Back& back, int64_t splits, void* stream) {
    return by_length<FROM, TO>(given.length, [&](auto plan) {
        using P = decltype(plan);
        const Needs wanted = needs<P>(given.count, true);
        Given complete = given;
        complete.scratch_values = wanted.scratch_values(given.kept);
        return LAUNCH(convolve_back<P>,
                      dim3(static_cast<unsigned>(given.channels), static_cast<unsigned>(splits),
                           static_cast<unsigned>(given.count)),
                      Block<P>::threads, static_cast<size_t>(wanted.shared_bytes(given.kept)), stream,
                      complete, back);
    });
}

// launch_back for sequences of more than 2^short_log positions, compiled in a source of its own: at the same time.
constexpr int short_log = 11;
const char* launch_back_long(const Given& given, const Back& back, int64_t splits, void* stream);

}  // namespace transform
