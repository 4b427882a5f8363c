// What the Toeplitz kernels of gated_long_conv share: how signals and filters lie in registers and shared memory.
//
// A filter applied to a channel's sequences is a product with a Toeplitz matrix, Y[b, t] = sum_k X[b, k] h[t - k]: rows
// of the warp's matrix instruction are sequences, its inner dimension input positions, its columns output positions.
//
// Positions go in blocks of 32, sequences in tiles of 16. With g = lane / 4 and q = lane % 4, a lane holds of a tile
// and a block the eight positions 8q .. 8q + 7 of the sequences g and g + 8: 16 bytes each, as they lie in memory.
// Inner indices and columns of the instruction may be numbered at will if both operands agree; here so that those are
//   as left operand of step f (0, 1):  inner indices 2q, 2q+1, 2q+8, 2q+9 are positions 8q + 2f + 0, 1, 4, 5;
//   as sums of part e (0 .. 3):        columns 2q, 2q+1 are positions 8q + 2e, 8q + 2e + 1.
// What comes from memory is then an operand, sums are what goes to memory, and gates meet their signals, without one
// exchange between lanes. The right operand of (f, e) from block K to block J holds, in lane (g, q), the taps of lags
//   32 (J - K) + 8 (g / 2 - q) + g % 2 + 2 (e - f) - {0, 1 | 4, 5}:
// pairs of neighbouring taps, of which only e - f and J - K matter. So seven words per lane and block diagonal are all
// eight operands of it, and going on to the next K takes one new diagonal.
//
// Shape legend: C channels, B sequences, S positions, R taps of one direction, D directions.
#pragma once

#include "toeplitz_signals.h"

namespace toeplitz {

// -- shared memory: filters -------------------------------------------------------------------------------------------

// Taps of one channel by their lag; zero where there are none, or no pair of positions is so far apart, and for lag 0:
// that tap and the bias are applied together, in float32, outside of the matrix (`here`).
struct Filter {
    const float *behind, *ahead;
    int behind_reach, ahead_reach;

    DEVICE Filter(const float* taps, int directions, int count, int channel, const Sizes& sizes)
        : behind(taps + static_cast<int64_t>(channel) * count),
          ahead(behind + static_cast<int64_t>(sizes.channels) * count),
          behind_reach(min(count, sizes.length)), ahead_reach(directions == 2 ? min(count, sizes.length - 1) : 0) {}
    DEVICE float operator()(int lag) const {
        if (lag >= 0) return lag > 0 && lag < behind_reach ? behind[lag] : 0.0f;
        return -lag <= ahead_reach ? ahead[-lag - 1] : 0.0f;
    }
    DEVICE float here(const float* bias, int channel) const { return bias[channel] + behind[0]; }
};

// The whole thread block fills in a filter; `turned`: that of the transposed matrix. It takes two rows of words: pairs
// (h[2m], h[2m - 1]) and (h[2m + 1], h[2m]), m from -16 blocks up, each four of them as m = 3, 1, 2, 0: what is read
// together then begins with operands as they are.
template <typename T>
DEVICE void fill_filter(uint32_t* words, const Filter& filter, bool turned, const Sizes& sizes) {
    for (int n = static_cast<int>(threadIdx.x); n < 32 * sizes.blocks; n += static_cast<int>(blockDim.x)) {
        const int lag = 2 * (n - 16 * sizes.blocks);
        const float before = filter(turned ? 1 - lag : lag - 1), at = filter(turned ? -lag : lag),
                    after = filter(turned ? -lag - 1 : lag + 1);
        const int place = (n & ~3) + (n % 4 == 3 ? 0 : n % 4 == 0 ? 3 : n % 4);
        words[place] = pack2<T>(at, before);
        words[sizes.row_words + place] = pack2<T>(after, at);
    }
}

// The words of a block diagonal: word w, -3 .. 3, holds the lags 32 diagonal + 8 (g / 2 - q) + g % 2 + 2w - {0, 1}.
struct Diagonal {
    uint4 low, high;

    DEVICE void load(const uint32_t* filter, int diagonal, const Sizes& sizes) {
        const int g = lane_number() / 4, q = lane_number() % 4;
        const int at = 16 * (diagonal + sizes.blocks) + 4 * (g / 2 - q) + g % 2 * sizes.row_words;
        low = *reinterpret_cast<const uint4*>(filter + at - 4);
        high = *reinterpret_cast<const uint4*>(filter + at);
    }
    // The right operand of step f and part e, of which `difference` is e - f: words w and w - 2.
    DEVICE void operand(uint32_t (&b)[2], int difference) const {
        switch (difference) {
            case 3: b[0] = high.x, b[1] = high.y; break;
            case 2: b[0] = high.z, b[1] = high.w; break;
            case 1: b[0] = high.y, b[1] = low.x; break;
            case 0: b[0] = high.w, b[1] = low.z; break;
            default: b[0] = low.x, b[1] = low.y;
        }
    }
};

// -- the product ------------------------------------------------------------------------------------------------------

// Sums of a warp: of block j, part e: [e][0], [e][1] of the sequence g and [e][2], [e][3] of g + 8.
using Sums = float[tile_blocks][4][4];

DEVICE void clear(Sums& sums) {
#pragma unroll
    for (int j = 0; j < tile_blocks; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int n = 0; n < 4; n++) sums[j][e][n] = 0.0f;
}

// One of eight sums of a half of block j.
DEVICE float& sum_at(Sums& sums, int j, int half, int n) { return sums[j][n / 2][2 * half + n % 2]; }

// sums += the filter's matrix applied to the warp's tile of sequences.
template <typename T>
DEVICE void multiply(Sums& sums, const uint4* signal, const uint32_t* filter, const Work& work, const Sizes& sizes) {
    if (work.idle) return;
    const int own = work.tile * tile_blocks, own_blocks = work.blocks(sizes);
    const uint4* const inputs = signal + work.row_tile * sizes.tiles * tile_blocks * block_units;
    Diagonal held[tile_blocks];  // that of j at step k lies at (j - k) % 4, and serves j + 1 at step k + 1
#pragma unroll
    for (int j = 1; j < tile_blocks; j++)
        if (j < own_blocks) held[j].load(filter, own + j, sizes);
#pragma unroll 1
    for (int start = 0; start < sizes.blocks; start += tile_blocks) {
#pragma unroll
        for (int step = 0; step < tile_blocks; step++) {
            const int k = start + step;
            if (k >= sizes.blocks) break;
            held[(tile_blocks - step) % tile_blocks].load(filter, own - k, sizes);
            uint32_t low[4], high[4];
            get8(low, inputs + k * block_units, 0);
            get8(high, inputs + k * block_units, 1);
#pragma unroll
            for (int j = 0; j < tile_blocks; j++) {
                if (j >= own_blocks) break;
                const Diagonal& taps = held[(tile_blocks + j - step) % tile_blocks];
#pragma unroll
                for (int f = 0; f < 2; f++) {
                    const uint32_t a[4] = {low[f], high[f], low[f + 2], high[f + 2]};
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        uint32_t b[2];
                        taps.operand(b, e - f);
                        mma_16816<T>(sums[j][e], a, b);
                    }
                }
            }
        }
    }
}

// -- on the host ------------------------------------------------------------------------------------------------------

inline bool aligned(const void* pointer, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// Whether rows of 16-bit values, and of the mask beside them, can be read in whole pieces of eight.
inline bool wide(const Sizes& sizes, const void* mask, const void* a, const void* b, const void* c, const void* d) {
    return sizes.length % 8 == 0 && aligned(mask, 8) && aligned(a, 16) && aligned(b, 16) && aligned(c, 16) &&
           aligned(d, 16);
}

inline const char* refused(int64_t channels, int64_t sequences, int64_t length, int64_t directions, int64_t count,
                           int64_t splits) {
    if (channels < 1 || sequences < 1 || length < 1 || count < 1) return "nothing to convolve";
    if (length > longest) return "a sequence is longer than 1024 positions";
    if (directions < 1 || directions > 2) return "taps are of one direction or two";
    if (channels > INT32_MAX / 9 || sequences > INT32_MAX / length - 64 || count > INT32_MAX)
        return "a size is beyond 32 bits";
    const Sizes sizes(channels, sequences, length);
    if (channels * sizes.splits > INT32_MAX) return "more thread blocks than a launch can have";
    if (splits && splits != sizes.splits) return "sums are kept for another number of parts than there are";
    return nullptr;
}

}  // namespace toeplitz
