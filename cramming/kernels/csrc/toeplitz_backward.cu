// gated_long_conv of 16-bit signals, backward: from the operands and the slope of its output, nothing else kept.
//
// With s = x1 v, c = long(s), y = x2 c + long(u) and a dash for slopes, long' being long with all lags turned round:
//   c' = y' x2;   s' = long'(c');   x1' = s' v;   v' = s' x1;   x2' = y' c;   z' from these, short convolutions turned
//   taps'[lag] = sum over sequences and t of c'[t + lag] s[t], of the bias that of lag 0;   u' = long'(y')
// `backward` does the first filter, `backward_residual` the second; thread blocks and warps share the work as forward's
// do. c' and s are in shared memory in 16 bits for products, but lag 0 and all else is float32. Signals that are needed
// again (z and y' in what comes after the products) are read again: shortly after the first time, so not from memory.
// Slopes of what all sequences share are written per split, to be summed over splits by the caller.
//
// Per channel and token: 8 bytes read and 6 written by `backward`, 4 and 2 by `backward_residual`.
#include "toeplitz_gram.h"

namespace toeplitz {

template <typename T>
struct Backward {
    const T *z, *gradient;
    const float *taps, *bias, *short_weight, *short_bias;
    const uint8_t* mask;
    T* of_z;
    float *of_taps, *of_short;  // (splits, D, C, P), (splits, 3C, 4)
    int directions, count, count_kept;
};

template <typename T>
struct BackwardResidual {
    const T *u, *gradient;
    const float *taps, *bias;
    const uint8_t* mask;
    T* of_u;
    float* of_taps;  // (splits, D, C, P)
    int directions, count, count_kept;
};

// What a lane sums of slopes by weight and bias of one short convolution: oldest, older, now, bias.
using ShortSums = float[4];
constexpr int warp_sums = 16;  // of the three short convolutions, and of tap 0

// Through a short convolution: slopes before it from eight behind it and the two that follow; the lane's sums grow.
DEVICE void short_back8(float (&back)[8], ShortSums& sums, const float (&slopes)[8], float2 next, const float (&z)[10],
                        const Short& by) {
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const float after = n < 7 ? slopes[n < 7 ? n + 1 : 0] : next.x;
        const float after_that = n < 6 ? slopes[n < 6 ? n + 2 : 0] : n == 6 ? next.x : next.y;
        back[n] = by.now * slopes[n] + by.older * after + by.oldest * after_that;
        sums[0] += slopes[n] * z[n], sums[1] += slopes[n] * z[n + 1], sums[2] += slopes[n] * z[n + 2];
        sums[3] += slopes[n];
    }
}

// The two slopes after the lane's eight: the lane behind has them first; the last of four lanes has them from the first
// one, which hands over what it carries from the block behind.
DEVICE float2 after8(const float (&slopes)[8], float2 carried) {
    const int lane = lane_number(), from = (lane & 28) | ((lane + 1) & 3);
    const bool first = lane % 4 == 0;
    return make_float2(__shfl_sync(whole_warp, first ? carried.x : slopes[0], from),
                       __shfl_sync(whole_warp, first ? carried.y : slopes[1], from));
}

// The first two slopes of each sequence of a warp's tile, sums times a gate, for the warp whose positions come before:
// [16 sequences].
template <typename T, bool WIDE>
DEVICE void leave_edge(float2* edges, Sums& sums, const T* gate, const Short& by, int half, const Work& work) {
    float was[10], x[8];
    convolved_alone<T, WIDE>(was, x, gate, 0, half, by, work);
    if (lane_number() % 4 == 0)
        edges[half * 8 + lane_number() / 4] =
            make_float2(sum_at(sums, 0, half, 0) * x[0], sum_at(sums, 0, half, 1) * x[1]);
}

DEVICE float2 edge_behind(const float2* edges, int half, const Work& work, const Sizes& sizes) {
    if (work.tile + 1 == sizes.tiles) return make_float2(0.0f, 0.0f);
    return edges[tile_sequences + half * 8 + lane_number() / 4];
}

// A warp's sums over its lanes, left for the thread block to sum.
DEVICE void leave_sums(float* place, const ShortSums& sums) {
#pragma unroll
    for (int n = 0; n < 4; n++) {
        float sum = sums[n];
#pragma unroll
        for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(whole_warp, sum, lanes);
        if (lane_number() == 0) place[n] = sum;
    }
}

template <typename T, bool WIDE>
KERNEL void THREE_BLOCKS backward(Backward<T> given, Sizes sizes) {
    SHARED(uint4, gated);                                // s
    uint4* const incoming = gated + sizes.signal_units;  // c'
    float2* const edges = reinterpret_cast<float2*>(incoming + sizes.signal_units);  // 3 x warps x 16
    float* const shared_sums = reinterpret_cast<float*>(edges + 3 * sizes.warps * tile_sequences);  // warps x 16
    uint32_t* const filter = reinterpret_cast<uint32_t*>(shared_sums + sizes.warps * warp_sums);
    uint32_t* const turned = filter + 2 * sizes.row_words;
    Work work(sizes);
    work.look<WIDE>(given.mask);
    const int channel = work.channel, channels = sizes.channels, own_units = work.units(sizes);
    const T* const x1_given = matrix(given.z, channel, sizes);
    const T* const x2_given = matrix(given.z, channels + channel, sizes);
    const T* const v_given = matrix(given.z, 2 * channels + channel, sizes);
    const T* const gradient = matrix(given.gradient, channel, sizes);
    float* const own_sums = shared_sums + work.warp * warp_sums;

    const Filter taps(given.taps, given.directions, given.count, channel, sizes);
    fill_filter<T>(filter, taps, false, sizes);
    fill_filter<T>(turned, taps, true, sizes);
    const float here = taps.here(given.bias, channel);
    Sums sums;
    float here_slope = 0.0f;  // of tap 0, and of the bias
#pragma unroll
    for (int half = 0; half < 2; half++) {
        work.next_phase();
        const Short x2_by(given.short_weight, given.short_bias, channels + channel);
        const Third<T, WIDE> x2(x2_given, half, work);
        Stretch y;
        load<T, WIDE>(y, gradient, half, work);
#pragma unroll
        for (int j = 0; j < tile_blocks; j++) {
            float was[10], x[8];
            x2.convolved(was, x, j, x2_by);
#pragma unroll
            for (int n = 0; n < 8; n++) sum_at(sums, j, half, n) = x[n] *= part<T>(y[j], n);
            incoming[own_units + j * block_units + own_unit(half)] = packed8<T>(x);
        }
        work.next_phase();
        const Short x1_by(given.short_weight, given.short_bias, channel);
        const Short v_by(given.short_weight, given.short_bias, 2 * channels + channel);
        const Third<T, WIDE> x1(x1_given, half, work), v(v_given, half, work);
#pragma unroll
        for (int j = 0; j < tile_blocks; j++) {
            float was[10], s[8], values[8];
            x1.convolved(was, s, j, x1_by);
            v.convolved(was, values, j, v_by);
#pragma unroll
            for (int n = 0; n < 8; n++) {
                s[n] = work.keeps(half, j, n) ? s[n] * values[n] : 0.0f;
                here_slope += sum_at(sums, j, half, n) * s[n];
                sum_at(sums, j, half, n) *= here;
            }
            gated[own_units + j * block_units + own_unit(half)] = packed8<T>(s);
        }
    }
    leave_sums(own_sums + 12, {here_slope, 0, 0, 0});
    __syncthreads();

    // s' = long'(c'), x1' = s' v, v' = s' x1, and through their short convolutions; then sums begin anew.
    float2* const x1_edges = edges + work.warp * tile_sequences;
    float2* const x2_edges = x1_edges + sizes.warps * tile_sequences;
    float2* const v_edges = x2_edges + sizes.warps * tile_sequences;
    multiply<T>(sums, incoming, turned, work, sizes);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        work.next_phase();
#pragma unroll
        for (int j = 0; j < tile_blocks; j++)
#pragma unroll
            for (int n = 0; n < 8; n++)
                if (!work.keeps(half, j, n)) sum_at(sums, j, half, n) = 0.0f;
        if (work.tile > 0) {
            leave_edge<T, WIDE>(x1_edges, sums, v_given,
                                Short(given.short_weight, given.short_bias, 2 * channels + channel), half, work);
            leave_edge<T, WIDE>(v_edges, sums, x1_given, Short(given.short_weight, given.short_bias, channel), half,
                                work);
        }
    }
    __syncthreads();
    ShortSums x1_sums = {0, 0, 0, 0}, v_sums = {0, 0, 0, 0};
    T* const of_x1 = matrix(given.of_z, channel, sizes);
    T* const of_v = matrix(given.of_z, 2 * channels + channel, sizes);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        work.next_phase();
        const Short x1_by(given.short_weight, given.short_bias, channel);
        const Short v_by(given.short_weight, given.short_bias, 2 * channels + channel);
        float2 x1_next = edge_behind(x1_edges, half, work, sizes), v_next = edge_behind(v_edges, half, work, sizes);
#pragma unroll
        for (int j = tile_blocks - 1; j >= 0; j--) {
            const int64_t at = work.at[half] + j * block_positions;
            const int there = work.there[half] - j * block_positions;
            float x1_was[10], x1_slopes[8], v_was[10], v_slopes[8], back[8];
            convolved_alone<T, WIDE>(x1_was, x1_slopes, x1_given, j, half, x1_by, work);
            convolved_alone<T, WIDE>(v_was, v_slopes, v_given, j, half, v_by, work);
#pragma unroll
            for (int n = 0; n < 8; n++) {
                float& sum = sum_at(sums, j, half, n);
                const float slope = sum, first = x1_slopes[n], value = v_slopes[n];
                sum = work.keeps(half, j, n) ? here * (first * value) : 0.0f;  // of what follows
                x1_slopes[n] = slope * value, v_slopes[n] = slope * first;
            }
            short_back8(back, x1_sums, x1_slopes, after8(x1_slopes, x1_next), x1_was, x1_by);
            store8<T, WIDE>(of_x1 + at, there, back);
            short_back8(back, v_sums, v_slopes, after8(v_slopes, v_next), v_was, v_by);
            store8<T, WIDE>(of_v + at, there, back);
            x1_next = make_float2(x1_slopes[0], x1_slopes[1]), v_next = make_float2(v_slopes[0], v_slopes[1]);
        }
    }
    leave_sums(own_sums, x1_sums);
    leave_sums(own_sums + 8, v_sums);

    // x2' = y' long(s), and through its short convolution.
    multiply<T>(sums, gated, filter, work, sizes);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        work.next_phase();
        Stretch y;
        load<T, WIDE>(y, gradient, half, work);
#pragma unroll
        for (int j = 0; j < tile_blocks; j++)
#pragma unroll
            for (int n = 0; n < 8; n++) sum_at(sums, j, half, n) *= part<T>(y[j], n);
        if (lane_number() % 4 == 0)
            x2_edges[half * 8 + lane_number() / 4] = make_float2(sum_at(sums, 0, half, 0), sum_at(sums, 0, half, 1));
    }
    __syncthreads();
    ShortSums x2_sums = {0, 0, 0, 0};
    T* const of_x2 = matrix(given.of_z, channels + channel, sizes);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        work.next_phase();
        const Short x2_by(given.short_weight, given.short_bias, channels + channel);
        const Third<T, WIDE> x2(x2_given, half, work);
        float2 next = edge_behind(x2_edges, half, work, sizes);
#pragma unroll
        for (int j = tile_blocks - 1; j >= 0; j--) {
            float was[10], slopes[8], back[8];
            unpack10<T>(was, x2.stretch[j], j ? x2.stretch[j ? j - 1 : 0][3] : x2.before);
#pragma unroll
            for (int n = 0; n < 8; n++) slopes[n] = sum_at(sums, j, half, n);
            short_back8(back, x2_sums, slopes, after8(slopes, next), was, x2_by);
            store8<T, WIDE>(of_x2 + work.at[half] + j * block_positions, work.there[half] - j * block_positions, back);
            next = make_float2(slopes[0], slopes[1]);
        }
    }
    leave_sums(own_sums + 4, x2_sums);
    __syncthreads();

    if (threadIdx.x < warp_sums) {
        float sum = 0.0f;
        for (int warp = 0; warp < sizes.warps; warp++) sum += shared_sums[warp * warp_sums + threadIdx.x];
        const int third = static_cast<int>(threadIdx.x) / 4, which = static_cast<int>(threadIdx.x) % 4;
        if (third < 3)
            given.of_short[((static_cast<int64_t>(work.split) * 3 + third) * channels + channel) * 4 + which] = sum;
        shared_sums[threadIdx.x] = sum;  // of no other thread's concern
    }
    // The filters have been used: their place is the scratch of the taps' slopes.
    const int64_t of_split = static_cast<int64_t>(work.split) * given.directions * channels * given.count_kept;
    slopes_of_taps<T>(given.of_taps + of_split, given.directions, given.count_kept, incoming, gated,
                      reinterpret_cast<float*>(filter), shared_sums + 12, work, sizes);
}

template <typename T, bool WIDE>
KERNEL void THREE_BLOCKS backward_residual(BackwardResidual<T> given, Sizes sizes) {
    SHARED(uint4, plain);                                // u
    uint4* const incoming = plain + sizes.signal_units;  // y'
    uint32_t* const turned = reinterpret_cast<uint32_t*>(incoming + sizes.signal_units);
    Work work(sizes);
    work.look<WIDE>(given.mask);
    const int channel = work.channel, own_units = work.units(sizes);

    const Filter taps(given.taps, given.directions, given.count, channel, sizes);
    fill_filter<T>(turned, taps, true, sizes);
    const float here = taps.here(given.bias, channel);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        work.next_phase();
        Stretch u, y;
        load<T, WIDE>(u, matrix(given.u, channel, sizes), half, work);
        load<T, WIDE>(y, matrix(given.gradient, channel, sizes), half, work);
#pragma unroll
        for (int j = 0; j < tile_blocks; j++) {
            const int place = own_units + j * block_units + own_unit(half);
            put8(plain, place, u[j], work.kept[half] >> 8 * j);
            put8(incoming, place, y[j], 0xff);
        }
    }
    __syncthreads();

    Sums sums;
    clear(sums);
    multiply<T>(sums, incoming, turned, work, sizes);
    T* const of_u = matrix(given.of_u, channel, sizes);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < tile_blocks; j++) {
            uint32_t words[4];
            get8(words, incoming + own_units + j * block_units, half);
            float back[8];
#pragma unroll
            for (int n = 0; n < 8; n++)
                back[n] = work.keeps(half, j, n) ? sum_at(sums, j, half, n) + here * part<T>(words, n) : 0.0f;
            store8<T, WIDE>(of_u + work.at[half] + j * block_positions, work.there[half] - j * block_positions, back);
        }
    __syncthreads();  // the filter has been used: its place is the scratch of the taps' slopes
    const int64_t of_split = static_cast<int64_t>(work.split) * given.directions * sizes.channels * given.count_kept;
    slopes_of_taps<T>(given.of_taps + of_split, given.directions, given.count_kept, incoming, plain,
                      reinterpret_cast<float*>(turned), nullptr, work, sizes);
}

// Shared memory of two signals, some filters whose place the scratch of taps' slopes takes, and some floats.
inline size_t shared_bytes(const Sizes& sizes, int filters, int floats) {
    const int last = max(2 * filters * sizes.row_words, gram_floats(sizes));
    return 2 * sizes.signal_units * sizeof(uint4) + (floats + last) * sizeof(float);
}

}  // namespace toeplitz

// z (3C, B, S), gradient (C, B, S), taps (D, C, R), mask (B, S) or null -> of_z (3C, B, S), of_taps (splits, D, C, P),
// P the lesser of R and S, of_short (splits, 3C, 4: weight and bias); `half`: of float16, else of bfloat16.
extern "C" const char* toeplitz_backward(const void* z, const void* gradient, const float* taps, const float* bias,
                                         const float* short_weight, const float* short_bias, const void* mask,
                                         void* of_z, float* of_taps, float* of_short, int64_t channels,
                                         int64_t sequences, int64_t length, int64_t directions, int64_t count,
                                         int64_t splits, int half, void* stream) {
    using namespace toeplitz;
    if (const char* why = refused(channels, sequences, length, directions, count, splits)) return why;
    const Sizes sizes(channels, sequences, length);
    const size_t bytes = shared_bytes(sizes, 2, sizes.warps * (3 * 2 * tile_sequences + warp_sums));
    const dim3 grid(sizes.channels * sizes.splits), block(32 * sizes.warps);
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        const Backward<T> given = {static_cast<const T*>(z), static_cast<const T*>(gradient), taps, bias, short_weight,
                                   short_bias, static_cast<const uint8_t*>(mask), static_cast<T*>(of_z), of_taps,
                                   of_short, static_cast<int>(directions), static_cast<int>(count),
                                   static_cast<int>(min(count, length))};
        if (wide(sizes, mask, z, gradient, of_z, of_z))
            return LAUNCH((backward<T, true>), grid, block, bytes, stream, given, sizes);
        return LAUNCH((backward<T, false>), grid, block, bytes, stream, given, sizes);
    };
    return half ? run(half16{}) : run(bf16{});
}

// u, gradient (C, B, S), taps (D, C, R), mask (B, S) or null -> of_u (C, B, S), of_taps (splits, D, C, P).
extern "C" const char* toeplitz_backward_residual(const void* u, const void* gradient, const float* taps,
                                                  const float* bias, const void* mask, void* of_u, float* of_taps,
                                                  int64_t channels, int64_t sequences, int64_t length,
                                                  int64_t directions, int64_t count, int64_t splits, int half,
                                                  void* stream) {
    using namespace toeplitz;
    if (const char* why = refused(channels, sequences, length, directions, count, splits)) return why;
    const Sizes sizes(channels, sequences, length);
    const size_t bytes = shared_bytes(sizes, 1, 0);
    const dim3 grid(sizes.channels * sizes.splits), block(32 * sizes.warps);
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        const BackwardResidual<T> given = {static_cast<const T*>(u), static_cast<const T*>(gradient), taps, bias,
                                           static_cast<const uint8_t*>(mask), static_cast<T*>(of_u), of_taps,
                                           static_cast<int>(directions), static_cast<int>(count),
                                   static_cast<int>(min(count, length))};
        if (wide(sizes, mask, u, gradient, of_u, of_u))
            return LAUNCH((backward_residual<T, true>), grid, block, bytes, stream, given, sizes);
        return LAUNCH((backward_residual<T, false>), grid, block, bytes, stream, given, sizes);
    };
    return half ? run(half16{}) : run(bf16{});
}
