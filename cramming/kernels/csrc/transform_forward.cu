// Both gated long convolutions of a channel's sequences: y = x2 * long(mask x1 v) + long(mask u), by transforms.
//
// A block does a channel's sequences, or one of `splits` parts of them. It first transforms the filters and keeps their
// spectra; then every group of its threads takes a sequence at a time: reads z and u once, stays in registers and in
// its exchange, writes y once. Sums are float32 whatever the signals are.
#include "transform_signals.h"

using namespace transform;

namespace {

constexpr int threads_at_once = 512;  // on a multiprocessor, of 128 registers each

template <typename P>
KERNEL void __launch_bounds__(Block<P>::threads, threads_at_once / Block<P>::threads)
convolve(Given given, void* out) {
    constexpr int groups = Block<P>::groups;
    SHARED(float2, shared);
    const int group = static_cast<int>(threadIdx.x) / P::threads, j = static_cast<int>(threadIdx.x) % P::threads;
    const int channel = static_cast<int>(blockIdx.x);
    const int begin = static_cast<int>(int64_t(given.sequences) * blockIdx.y / gridDim.y);
    const int end = static_cast<int>(int64_t(given.sequences) * (blockIdx.y + 1) / gridDim.y);
    float2* const exchange = shared + group * P::room;
    float2* const roots = shared + groups * P::room;
    float2* const spectra = given.kept & spectra_shared ? roots + P::roots : scratch_of(given);
    fill_roots<P>(roots);
    __syncthreads();
    float mixed[held];
#pragma unroll 1
    for (int first = begin - groups; first < end; first += groups) {
        const bool of_filters = first < begin;  // the first round
        const int sequence = first + group;
        const bool live = !of_filters && sequence < end;
#pragma unroll 1
        for (int k = 0; k < given.count; k++) {
            float2* const spectrum = spectra + k * P::points + j;
            float2 v[held];
            if (of_filters) {
                read_filter<P>(v, given, k, channel, j);
            } else {
                read_signal<P>(v, given, k, channel, sequence, live, j);
            }
            transform_down<P>(v, exchange, roots, j);
            if (of_filters) {
                constexpr float scale = 1.0f / P::points;
                if (group == 0) {
#pragma unroll
                    for (int e = 0; e < held; e++)
                        spectrum[e * P::threads] = make_float2(v[e].x * scale, v[e].y * scale);
                }
                __syncthreads();
                continue;
            }
#pragma unroll
            for (int e = 0; e < held; e++) v[e] = times(v[e], spectrum[e * P::threads]);
            transform_up<P>(v, exchange, roots, j, false);
            if (k == 0) {
                read_second<P>(mixed, given, channel, sequence, live, j);
#pragma unroll
                for (int e = 0; e < held; e++) mixed[e] *= v[e].x;
            } else {
#pragma unroll
                for (int e = 0; e < held; e++) mixed[e] += v[e].x;
            }
            if (k == given.count - 1) write_row<P>(mixed, out, given, channel, sequence, live, j);
        }
    }
}

}  // namespace

// Bytes of shared memory that a block needs with what is `kept` there, or of scratch beside it; -1: the sequence is too
// long for any.
extern "C" int64_t transform_bytes(int64_t length, int filters, int back, int kept, int of_scratch) {
    int64_t bytes = -1;
    by_length(length, [&](auto plan) {
        const Needs wanted = needs<decltype(plan)>(filters, back != 0);
        bytes = of_scratch ? 8 * wanted.scratch_values(kept) : wanted.shared_bytes(kept);
        return static_cast<const char*>(nullptr);
    });
    return bytes;
}

// M: points of the transform for sequences of this length; -1 where there is none.
extern "C" int64_t transform_points(int64_t length) {
    int64_t points = -1;
    by_length(length, [&](auto plan) {
        points = decltype(plan)::points;
        return static_cast<const char*>(nullptr);
    });
    return points;
}

// out (C, B, S); z, u, mask, weight, skip, taps and biases as in operands.py, contiguous; u, mask, taps_residual and
// bias_residual may be null. `kept`: see Kept; scratch: transform_bytes(..., 1) for each of C splits blocks.
extern "C" const char* transform_forward(
    const void* z, const void* u, const void* taps, const void* taps_residual, const void* bias,
    const void* bias_residual, const void* weight, const void* skip, const void* mask, void* out, void* scratch,
    int64_t channels, int64_t sequences, int64_t length, int64_t directions, int64_t rows, int64_t directions_residual,
    int64_t rows_residual, int64_t kind, int64_t kept, int64_t splits, void* stream) {
    const Given given = {z, u, static_cast<const uint8_t*>(mask), static_cast<const float*>(weight),
                         static_cast<const float*>(skip), filter_of(taps, bias, directions, rows),
                         filter_of(taps_residual, bias_residual, directions_residual, rows_residual),
                         static_cast<float2*>(scratch), 0, static_cast<int>(kind), static_cast<int>(kept),
                         static_cast<int>(channels), static_cast<int>(sequences), static_cast<int>(length), u ? 2 : 1};
    if (const char* const why = complaint(given, splits)) return why;
    return by_length(length, [&](auto plan) {
        using P = decltype(plan);
        const Needs wanted = needs<P>(given.count, false);
        Given complete = given;
        complete.scratch_values = wanted.scratch_values(given.kept);
        return LAUNCH(convolve<P>, dim3(static_cast<unsigned>(channels), static_cast<unsigned>(splits)),
                      Block<P>::threads, static_cast<size_t>(wanted.shared_bytes(given.kept)), stream, complete, out);
    });
}
