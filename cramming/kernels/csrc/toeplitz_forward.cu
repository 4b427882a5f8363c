// gated_long_conv of 16-bit signals, forward: everything between the two projections in one pass over memory.
//
// A thread block takes a channel and 16, 32 or 64 of its sequences, a warp of it 16 sequences and 128 positions:
//   1. it reads x1, v and u of its own, applies short convolutions, gate and mask, and puts s = x1 v and u, in 16 bits,
//      into shared memory, where all taps of the channel's two filters lie too; its sums begin with (bias + tap 0) s;
//   2. sums += s times the first filter's matrix, all input positions; times x2 (read, convolved), in float32;
//   3. sums += u times the second filter's matrix, and (bias + tap 0) u; rounded once, written.
// Per channel and token 8 bytes are read and 2 written, beside the filters. toeplitz.h: how it all lies.
#include "toeplitz.h"

namespace toeplitz {

template <typename T>
struct Forward {
    const T *z, *u;
    const float *taps, *taps_residual, *bias, *bias_residual, *short_weight, *short_bias;
    const uint8_t* mask;
    T* mixed;
    int directions, count, directions_residual, count_residual;
};

template <typename T, bool WIDE>
KERNEL void THREE_BLOCKS forward(Forward<T> given, Sizes sizes) {
    SHARED(uint4, gated);
    uint4* const plain = gated + sizes.signal_units;
    uint32_t* const filter = reinterpret_cast<uint32_t*>(given.u ? plain + sizes.signal_units : plain);
    uint32_t* const filter_residual = filter + 2 * sizes.row_words;
    Work work(sizes);
    work.look<WIDE>(given.mask);
    const int channel = work.channel, channels = sizes.channels, own_units = work.units(sizes);

    const Filter taps(given.taps, given.directions, given.count, channel, sizes);
    fill_filter<T>(filter, taps, false, sizes);
    const float here = taps.here(given.bias, channel);
    float here_residual = 0.0f;
    if (given.u) {
        const Filter more(given.taps_residual, given.directions_residual, given.count_residual, channel, sizes);
        fill_filter<T>(filter_residual, more, false, sizes);
        here_residual = more.here(given.bias_residual, channel);
    }
    Sums sums;
    {
        const Short x1_by(given.short_weight, given.short_bias, channel);
        const Short v_by(given.short_weight, given.short_bias, 2 * channels + channel);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            work.next_phase();
            const Third<T, WIDE> x1(matrix(given.z, channel, sizes), half, work);
            const Third<T, WIDE> v(matrix(given.z, 2 * channels + channel, sizes), half, work);
            Stretch u;
            if (given.u) {
                load<T, WIDE>(u, matrix(given.u, channel, sizes), half, work);
#pragma unroll
                for (int j = 0; j < tile_blocks; j++)
                    put8(plain, own_units + j * block_units + own_unit(half), u[j], work.kept[half] >> 8 * j);
            }
#pragma unroll
            for (int j = 0; j < tile_blocks; j++) {
                const int place = own_units + j * block_units + own_unit(half);
                float was[10], s[8], values[8];
                x1.convolved(was, s, j, x1_by);
                v.convolved(was, values, j, v_by);
#pragma unroll
                for (int n = 0; n < 8; n++) {
                    s[n] = work.keeps(half, j, n) ? s[n] * values[n] : 0.0f;
                    sum_at(sums, j, half, n) = here * s[n];
                }
                gated[place] = packed8<T>(s);
            }
        }
    }
    __syncthreads();

    multiply<T>(sums, gated, filter, work, sizes);
    work.next_phase();
    {
        const Short x2_by(given.short_weight, given.short_bias, channels + channel);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            work.next_phase();
            const Third<T, WIDE> x2(matrix(given.z, channels + channel, sizes), half, work);
#pragma unroll
            for (int j = 0; j < tile_blocks; j++) {
                float was[10], x[8];
                x2.convolved(was, x, j, x2_by);
#pragma unroll
                for (int n = 0; n < 8; n++) sum_at(sums, j, half, n) *= x[n];
            }
        }
    }

    if (given.u) multiply<T>(sums, plain, filter_residual, work, sizes);
    const uint4* const own_plain = plain + own_units;
    T* const mixed = matrix(given.mixed, work.channel, sizes);
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < tile_blocks; j++) {
            uint32_t words[4] = {0, 0, 0, 0};
            if (given.u) get8(words, own_plain + j * block_units, half);
            float y[8];
#pragma unroll
            for (int n = 0; n < 8; n++) y[n] = sum_at(sums, j, half, n) + here_residual * part<T>(words, n);
            store8<T, WIDE>(mixed + work.at[half] + j * block_positions, work.there[half] - j * block_positions, y);
        }
}

template <typename T>
const char* run_forward(const Forward<T>& given, const Sizes& sizes, void* stream) {
    const bool whole = wide(sizes, given.mask, given.z, given.u, given.mixed, given.mixed);
    const size_t filters = given.u ? 2 : 1;
    const size_t bytes = filters * (sizes.signal_units * sizeof(uint4) + 2 * sizes.row_words * sizeof(uint32_t));
    const dim3 grid(sizes.channels * sizes.splits), block(32 * sizes.warps);
    if (whole) return LAUNCH((forward<T, true>), grid, block, bytes, stream, given, sizes);
    return LAUNCH((forward<T, false>), grid, block, bytes, stream, given, sizes);
}

}  // namespace toeplitz

// z (3C, B, S), u (C, B, S) or null, taps (D, C, R), mask (B, S) or null -> mixed (C, B, S); `half`: of float16, else
// of bfloat16.
extern "C" const char* toeplitz_forward(const void* z, const void* u, const float* taps, const float* taps_residual,
                                        const float* bias, const float* bias_residual, const float* short_weight,
                                        const float* short_bias, const void* mask, void* mixed, int64_t channels,
                                        int64_t sequences, int64_t length, int64_t directions, int64_t count,
                                        int64_t directions_residual, int64_t count_residual, int half, void* stream) {
    using namespace toeplitz;
    if (const char* why = refused(channels, sequences, length, directions, count, 0)) return why;
    if (u)
        if (const char* why = refused(channels, sequences, length, directions_residual, count_residual, 0)) return why;
    const Sizes sizes(channels, sequences, length);
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        const Forward<T> given = {static_cast<const T*>(z), static_cast<const T*>(u), taps, taps_residual, bias,
                                  bias_residual, short_weight, short_bias, static_cast<const uint8_t*>(mask),
                                  static_cast<T*>(mixed), static_cast<int>(directions), static_cast<int>(count),
                                  static_cast<int>(directions_residual), static_cast<int>(count_residual)};
        return run_forward(given, sizes, stream);
    };
    return half ? run(half16{}) : run(bf16{});
}
