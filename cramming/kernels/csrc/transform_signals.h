// Rows of signals as a transform's threads hold them, taps as a filter's coefficients, and what both passes are given.
//
// Shapes as in operands.py: C channels, B sequences, S positions, R taps of a direction, K filters.
#pragma once

#include "transform.h"

namespace transform {

constexpr int short_taps = 3;
enum Kind { float32 = 0, bfloat16 = 1, float16 = 2 };
enum Kept { spectra_shared = 1, sums_shared = 2 };  // in shared memory; else in the scratch in global memory

struct Filter {
    const float *taps, *bias;  // (D, C, R), (C,)
    int directions, rows;
};

struct Given {
    const void *z, *u;           // (3C, B, S), (C, B, S) or null
    const uint8_t* mask;         // (B, S) or null
    const float *weight, *skip;  // (3C, 3), (3C,) of the short convolution
    Filter filter, filter_residual;
    float2* scratch;         // where what is not kept in shared memory lies ...
    int64_t scratch_values;  // ... so much of each block
    int kind, kept, channels, sequences, length, count;  // count: K
};

// f(T()) for the type of the signals.
template <typename F>
DEVICE void by_kind(int kind, F f) {
    if (kind == bfloat16) {
        f(bf16());
    } else if (kind == float16) {
        f(half16());
    } else {
        f(0.0f);
    }
}

// A place in global memory that is worked out once, not anew for each of the loads or stores that lie about it.
template <typename T>
DEVICE T* settled(T* place) {
#ifdef __CUDACC__
    size_t address = __cvta_generic_to_global(place);
    asm("" : "+l"(address));
    place = static_cast<T*>(__cvta_global_to_generic(address));
#endif
    return place;
}

// A thread's positions of one sequence of a signal (C, B, S); 0 outside it, and in sequences that are not `live`.
template <typename T>
struct Row {
    const T* here;
    int room;

    DEVICE Row(const void* signal, const Given& given, int channel, int sequence, bool live, int j)
        : here(settled(static_cast<const T*>(signal) +
                       (int64_t(channel) * given.sequences + sequence) * given.length + j)),
          room(live ? given.length - j : 0) {}
    DEVICE float at(int offset) const { return offset < room ? to_float(here[offset]) : 0.0f; }
};

// Of one of the three thirds of z: before the short convolution and after it.
template <typename T>
struct Third {
    Row<T> row;
    float oldest, older, now, bias;
    bool has_older, has_oldest;     // before the thread's first position
    float before[short_taps] = {};  // the position's own value last

    DEVICE Third(const Given& given, int number, int channel, int sequence, bool live, int j)
        : row(given.z, given, number * given.channels + channel, sequence, live, j), has_older(j > 0),
          has_oldest(j > 1) {
        const int place = number * given.channels + channel;
        oldest = given.weight[place * short_taps];
        older = given.weight[place * short_taps + 1];
        now = given.weight[place * short_taps + 2];
        bias = given.skip[place];
    }
    DEVICE float at(int offset) {
        const bool inside = offset < row.room;
        before[2] = inside ? to_float(row.here[offset]) : 0.0f;
        before[1] = inside && (offset || has_older) ? to_float(row.here[offset - 1]) : 0.0f;
        before[0] = inside && (offset || has_oldest) ? to_float(row.here[offset - 2]) : 0.0f;
        const float after = fmaf(oldest, before[0], fmaf(older, before[1], fmaf(now, before[2], bias)));
        return inside ? after : 0.0f;
    }
};

// Zero where the mask is not; real parts.
template <typename P>
DEVICE void apply_mask(float2 (&v)[held], const Given& given, int sequence, bool live, int j) {
    if (!given.mask) return;
    const uint8_t* const here = settled(given.mask + int64_t(sequence) * given.length + j);
    const int room = live ? given.length - j : 0;
#pragma unroll
    for (int e = 0; e < held; e++) {
        const uint8_t there = offset<P>(e) < room ? here[offset<P>(e)] : uint8_t(0);
        v[e].x = there ? v[e].x : 0.0f;
    }
}

// x2
template <typename P>
DEVICE void read_second(float (&found)[held], const Given& given, int channel, int sequence, bool live, int j) {
    by_kind(given.kind, [&](auto type) {
        Third<decltype(type)> second(given, 1, channel, sequence, live, j);
#pragma unroll
        for (int e = 0; e < held; e++) found[e] = second.at(offset<P>(e));
    });
}

// A signal (C, B, S) as real parts.
template <typename P>
DEVICE void read_row(float2 (&v)[held], const void* signal, const Given& given, int channel, int sequence, bool live,
                     int j) {
    by_kind(given.kind, [&](auto type) {
        const Row<decltype(type)> row(signal, given, channel, sequence, live, j);
#pragma unroll
        for (int e = 0; e < held; e++) v[e] = make_float2(row.at(offset<P>(e)), 0.0f);
    });
}

// What a filter is given: mask * x1 * v, or mask * u.
template <typename P>
DEVICE void read_signal(float2 (&v)[held], const Given& given, int number, int channel, int sequence, bool live,
                        int j) {
    if (number) {
        read_row<P>(v, given.u, given, channel, sequence, live, j);
    } else {
        by_kind(given.kind, [&](auto type) {
            using T = decltype(type);
            Third<T> first(given, 0, channel, sequence, live, j), values(given, 2, channel, sequence, live, j);
#pragma unroll
            for (int e = 0; e < held; e++)
                v[e] = make_float2(first.at(offset<P>(e)) * values.at(offset<P>(e)), 0.0f);
        });
    }
    apply_mask<P>(v, given, sequence, live, j);
}

// Numbers as a row of a signal (C, B, S).
template <typename P>
DEVICE void write_row(const float (&v)[held], void* signal, const Given& given, int channel, int sequence, bool live,
                      int j) {
    const int64_t place = (int64_t(channel) * given.sequences + sequence) * given.length + j;
    const int room = live ? given.length - j : 0;
    by_kind(given.kind, [&](auto type) {
        using T = decltype(type);
        T* const here = settled(static_cast<T*>(signal) + place);
#pragma unroll
        for (int e = 0; e < held; e++)
            if (offset<P>(e) < room) here[offset<P>(e)] = from_float<T>(v[e]);
    });
}

// Coefficients modulo X^M - i of a filter with its bias. Lags that no pair of positions has are left out.
template <typename P>
DEVICE void read_filter(float2 (&v)[held], const Given& given, int number, int channel, int j) {
    const float* const taps = number ? given.filter_residual.taps : given.filter.taps;
    const float* const bias = number ? given.filter_residual.bias : given.filter.bias;
    const int rows = number ? given.filter_residual.rows : given.filter.rows;
    const int directions = number ? given.filter_residual.directions : given.filter.directions;
    const int behind = min(rows, given.length), ahead = directions == 2 ? min(rows, given.length - 1) : 0;
    const float* const back = settled(taps + int64_t(channel) * rows + j);
    const int first = P::points - j;  // lag whose X^-lag = -i X^t, at the thread's first position
    const float* const forth = settled(taps + (int64_t(given.channels) + channel) * rows + first - 1);
#pragma unroll
    for (int e = 0; e < held; e++)
        v[e] = make_float2(offset<P>(e) < behind - j ? back[offset<P>(e)] : 0.0f,
                           offset<P>(e) >= first - ahead ? -forth[-offset<P>(e)] : 0.0f);
    if (j == 0) v[0].x += bias[channel];
}

// Blocks of threads: one group, or as many as make 128 threads.
template <typename P>
struct Block {
    static constexpr int threads = P::threads < 128 ? 128 : P::threads, groups = threads / P::threads;
};

// What a block needs, in values of two floats: `work`, all groups' exchanges and the roots, in shared memory; spectra
// of filters, and sums of the gradients of filters' spectra, there or in the scratch.
struct Needs {
    int64_t work, spectra, sums;

    int64_t shared_bytes(int kept) const {
        return 8 * (work + (kept & spectra_shared ? spectra : 0) + (kept & sums_shared ? sums : 0));
    }
    int64_t scratch_values(int kept) const {
        return (kept & spectra_shared ? 0 : spectra) + (kept & sums_shared ? 0 : sums);
    }
};

template <typename P>
Needs needs(int filters, bool back) {
    return {Block<P>::groups * P::room + P::roots, (back ? 1 : filters) * P::points,
            back ? Block<P>::groups * P::points : 0};
}

// Of a launcher: f(P()) for sequences of this length; complains where there is no plan.
template <int FROM = least_log, int TO = most_log, typename F>
const char* by_length(int64_t length, F f) {
    if constexpr (FROM <= TO) {
        using P = typename PlanOf<FROM>::Plan;
        return length <= P::points ? f(P()) : by_length<FROM + 1, TO>(length, f);
    } else {
        return "sequences are longer than the longest transform";
    }
}

// A block's own part of the scratch.
DEVICE float2* scratch_of(const Given& given) {
    const int64_t block = (int64_t(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    return given.scratch + block * given.scratch_values;
}

inline Filter filter_of(const void* taps, const void* bias, int64_t directions, int64_t rows) {
    return {static_cast<const float*>(taps), static_cast<const float*>(bias), static_cast<int>(directions),
            static_cast<int>(rows)};
}

// What both launchers are given, checked.
inline const char* complaint(const Given& given, int64_t splits) {
    if (given.kind < float32 || given.kind > float16) return "there is no such type of signals";
    if (given.channels < 1 || given.sequences < 1 || given.length < 1) return "there is nothing to do";
    if (splits < 1 || splits > given.sequences || splits > 65535) return "sequences cannot be split so";
    const auto bad = [](const Filter& filter) {
        return !filter.taps || !filter.bias || filter.rows < 1 || filter.directions < 1 || filter.directions > 2;
    };
    if (bad(given.filter) || (given.count == 2 && bad(given.filter_residual)))
        return "a filter has no taps, or more than two directions";
    return nullptr;
}

}  // namespace transform
