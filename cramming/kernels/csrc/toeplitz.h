// What the Toeplitz kernels of gated_long_conv share: how signals and filters lie in registers and shared memory.
//
// A filter applied to a channel's sequences is a product with a Toeplitz matrix, Y[b, t] = sum_k X[b, k] h[t - k]: rows
// of the warp's matrix instruction are sequences, its inner dimension input positions, its columns output positions.
//
// Positions go in blocks of 32, sequences in tiles of 16. With g = lane / 4 and q = lane % 4, a lane holds of a tile
// and a block the eight positions 8q .. 8q + 7 of the sequences g and g + 8: 16 bytes each, as they lie in memory. Inner
// indices and columns of the instruction may be numbered at will if both operands agree; here so that those eight are
//   as left operand of step f (0, 1):  inner indices 2q, 2q+1, 2q+8, 2q+9 are positions 8q + 4f + 0, 1, 2, 3;
//   as sums of part e (0 .. 3):        columns 2q, 2q+1 are positions 8q + 2e, 8q + 2e + 1.
// What comes from memory is then an operand, sums are what goes to memory, and gates meet their signals, without one
// exchange between lanes. The right operand of (f, e) from block K to block J holds, in lane (g, q), the taps of lags
//   32 (J - K) + 8 (g / 2 - q) + g % 2 + 2e - 4f - {0, 1 | 2, 3}:
// pairs of neighbouring taps, two steps of e are one of f, and only J - K matters. So seven words per lane and block
// diagonal are all eight operands of it, and going on to the next K takes one new diagonal.
//
// Shape legend: C channels, B sequences, S positions, R taps of one direction, D directions.
#pragma once

#include "device.h"

namespace toeplitz {

constexpr unsigned whole_warp = 0xffffffffu;
constexpr int tile_sequences = 16, block_positions = 32, tile_blocks = 4;
constexpr int tile_positions = tile_blocks * block_positions;  // of a warp's sums
constexpr int least_tiles = 4, most_tiles = 8;                 // of a thread block: as many as its warps
constexpr int longest = most_tiles * tile_positions;
constexpr int block_units = 64;  // uint4 that hold 16 sequences of a block

DEVICE int lane_number() { return static_cast<int>(threadIdx.x % 32); }

// -- sizes -------------------------------------------------------------------------------------------------------------

struct Sizes {
    int channels, sequences, length;
    int tiles;         // of positions that the sequence spans
    int blocks;        // of 32 positions that it spans; shared memory has room for those of all tiles
    int row_tiles;     // of 16 sequences in a thread block
    int splits;        // thread blocks that share a channel's sequences
    int warps;         // of a thread block
    int signal_units;  // uint4 of one signal in shared memory
    int row_words;     // of one of a filter's two rows of words there

    Sizes(int64_t channels, int64_t sequences, int64_t length)
        : channels(static_cast<int>(channels)), sequences(static_cast<int>(sequences)),
          length(static_cast<int>(length)) {
        tiles = (this->length + tile_positions - 1) / tile_positions;
        blocks = (this->length + block_positions - 1) / block_positions;
        row_tiles = tiles < least_tiles ? least_tiles / tiles : 1;
        splits = static_cast<int>((sequences + row_tiles * tile_sequences - 1) / (row_tiles * tile_sequences));
        warps = row_tiles * tiles;
        signal_units = row_tiles * tiles * tile_blocks * block_units;
        row_words = 32 * blocks + 16;  // those 16 keep lanes that read of both rows from colliding
    }
};

// Where a warp stands, and what its lane has of signals: in each half of the tile (sequences g, g + 8) eight positions of
// each of 4 blocks, from t on.
struct Work {
    int channel, split, warp, row_tile, tile;
    int row_tiles;     // that have sequences
    bool idle;         // this warp's has none
    int t;             // the first position of the lane in block 0 of the warp's
    int there[2];      // positions from t on that a half's sequence has; less than -26 where there is no sequence
    unsigned kept[2];  // 8 bits for each block: positions that there are and that the mask, if any, does not hide
    int64_t at[2];     // of t in a half's sequence, in the matrix (B, S) of a channel

    DEVICE explicit Work(const Sizes& sizes) {
        const int lane = lane_number();
        channel = static_cast<int>(blockIdx.x) / sizes.splits;
        split = static_cast<int>(blockIdx.x) % sizes.splits;
        warp = static_cast<int>(threadIdx.x / 32);
        row_tile = warp / sizes.tiles;
        tile = warp % sizes.tiles;
        const int first = split * sizes.row_tiles * tile_sequences;
        row_tiles = min(sizes.row_tiles, (sizes.sequences - first + tile_sequences - 1) / tile_sequences);
        idle = row_tile >= row_tiles;
        t = tile * tile_positions + lane % 4 * 8;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int sequence = first + row_tile * tile_sequences + half * 8 + lane / 4;
            there[half] = sequence < sizes.sequences ? sizes.length - t : -longest;
            at[half] = static_cast<int64_t>(sequence) * sizes.length + t;
        }
    }
    // Of the 4 blocks of this warp, how many there are.
    DEVICE int blocks(const Sizes& sizes) const { return min(tile_blocks, sizes.blocks - tile * tile_blocks); }
    // Where the warp's row of 4 blocks begins in a signal's shared memory.
    DEVICE int units(const Sizes& sizes) const { return (row_tile * sizes.tiles + tile) * tile_blocks * block_units; }
    DEVICE bool keeps(int half, int j, int n) const { return kept[half] >> (8 * j + n) & 1; }

    // WIDE: rows begin at multiples of 8 bytes.
    template <bool WIDE>
    DEVICE void look(const uint8_t* mask) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            kept[half] = 0;
#pragma unroll
            for (int j = 0; j < tile_blocks; j++) {
                const int left = min(8, there[half] - j * block_positions);
                unsigned bits = left > 0 ? (1u << left) - 1 : 0;
                if (mask && left > 0) {
                    const uint8_t* const from = mask + at[half] + j * block_positions;
                    if (WIDE) {  // each byte is 0 or 1: gathered by a product
                        const uint2 bytes = *reinterpret_cast<const uint2*>(from);
                        bits = bytes.x * 0x10204080u >> 28 | bytes.y * 0x10204080u >> 28 << 4;
                    } else {
#pragma unroll
                        for (int n = 0; n < 8; n++)
                            if (n < left && !from[n]) bits &= ~(1u << n);
                    }
                }
                kept[half] |= bits << 8 * j;
            }
        }
    }
};

// -- global memory -----------------------------------------------------------------------------------------------------

// A channel of a signal, (B, S).
template <typename T>
DEVICE T* matrix(T* signal, int channel, const Sizes& sizes) {
    return signal + static_cast<int64_t>(channel) * sizes.sequences * sizes.length;
}

// Eight positions, of which there are `there`, zeros behind them. WIDE: there are 8 or none, and they begin at a multiple
// of 16 bytes.
template <typename T, bool WIDE>
DEVICE void load8(uint32_t (&words)[4], const T* from, int there) {
    if (WIDE) {
        uint4 found = make_uint4(0, 0, 0, 0);
        if (there > 0) found = *reinterpret_cast<const uint4*>(from);
        words[0] = found.x, words[1] = found.y, words[2] = found.z, words[3] = found.w;
    } else {
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const T lo = 2 * n < there ? from[2 * n] : T{0};
            const T hi = 2 * n + 1 < there ? from[2 * n + 1] : T{0};
            words[n] = pack2(lo, hi);
        }
    }
}

template <typename T>
DEVICE uint4 packed8(const float (&x)[8]) {
    return make_uint4(pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]), pack2<T>(x[6], x[7]));
}

// Number n of the eight in four words.
template <typename T>
DEVICE float part(const uint32_t (&words)[4], int n) {
    const float2 two = unpack2<T>(words[n / 2]);
    return n % 2 ? two.y : two.x;
}

template <typename T, bool WIDE>
DEVICE void store8(T* to, int there, const float (&x)[8]) {
    if (WIDE) {
        if (there > 0) *reinterpret_cast<uint4*>(to) = packed8<T>(x);
    } else {
#pragma unroll
        for (int n = 0; n < 8; n++)
            if (n < there) to[n] = from_float<T>(x[n]);
    }
}

// What a lane has of a signal in one half of the warp's tile: loaded at once, so that loads do not wait for one another.
using Stretch = uint32_t[tile_blocks][4];

template <typename T, bool WIDE>
DEVICE void load(Stretch& stretch, const T* channel, int half, const Work& work) {
#pragma unroll
    for (int j = 0; j < tile_blocks; j++)
        load8<T, WIDE>(stretch[j], channel + work.at[half] + j * block_positions, work.there[half] - j * block_positions);
}

// -- the short convolution ---------------------------------------------------------------------------------------------

struct Short {
    float oldest, older, now, bias;

    DEVICE Short(const float* weight, const float* bias, int channel)
        : oldest(weight[3 * channel]), older(weight[3 * channel + 1]), now(weight[3 * channel + 2]),
          bias(bias[channel]) {}
};

// The two positions before the warp's tile, zeros before the sequence: for the last of a sequence's four lanes, which
// hands them to the first; others need none.
template <typename T, bool WIDE>
DEVICE uint32_t pair_before(const T* channel, int half, const Work& work) {
    if (work.tile == 0 || lane_number() % 4 != 3 || work.there[half] <= -26) return 0;
    const T* const from = channel + work.at[half] - 26;
    return WIDE ? *reinterpret_cast<const uint32_t*>(from) : pack2(from[0], from[1]);
}

// Ten positions as numbers: the lane's eight after the two before them. The lane before has these as its last word; the
// first of a sequence's four lanes has them from the last one, which hands over its last word of the block before.
template <typename T>
DEVICE void unpack10(float (&z)[10], const uint32_t (&words)[4], uint32_t block_before) {
    const int lane = lane_number();
    const uint32_t before =
        __shfl_sync(whole_warp, lane % 4 == 3 ? block_before : words[3], (lane & 28) | ((lane + 3) & 3));
    const float2 first = unpack2<T>(before);
    z[0] = first.x, z[1] = first.y;
#pragma unroll
    for (int n = 0; n < 8; n++) z[n + 2] = part<T>(words, n);
}

DEVICE void short8(float (&x)[8], const float (&z)[10], const Short& by) {
#pragma unroll
    for (int n = 0; n < 8; n++) x[n] = by.bias + by.oldest * z[n] + by.older * z[n + 1] + by.now * z[n + 2];
}

// A third of z, a channel with a short convolution of its own, in one half of the warp's tile.
template <typename T, bool WIDE>
struct Third {
    Stretch stretch;
    uint32_t before;

    DEVICE Third(const T* channel, int half, const Work& work) {
        load<T, WIDE>(stretch, channel, half, work);
        before = pair_before<T, WIDE>(channel, half, work);
    }
    // Of block j: ten positions as they are, eight behind the short convolution.
    DEVICE void convolved(float (&z)[10], float (&x)[8], int j, const Short& by) const {
        unpack10<T>(z, stretch[j], j ? stretch[j ? j - 1 : 0][3] : before);
        short8(x, z, by);
    }
};

// -- shared memory: signals --------------------------------------------------------------------------------------------

// Where of a block's 64 units the eight positions 8q .. of a sequence lie: so that neither four lanes of two sequences
// (operands of products over positions) nor eight sequences of one q (ldmatrix, for products over sequences) collide.
DEVICE int unit(int half, int g, int q) { return half * 32 + 8 * q + (g ^ 2 * q); }

DEVICE int own_unit(int half) { return unit(half, lane_number() / 4, lane_number() % 4); }

DEVICE void get8(uint32_t (&words)[4], const uint4* block, int half) {
    const uint4 found = block[own_unit(half)];
    words[0] = found.x, words[1] = found.y, words[2] = found.z, words[3] = found.w;
}

// Zeros where a bit says that there is nothing.
DEVICE void put8(uint4* signal, int place, const uint32_t (&words)[4], unsigned kept) {
    uint32_t left[4];
#pragma unroll
    for (int n = 0; n < 4; n++)
        left[n] = words[n] & ((kept >> 2 * n & 1 ? 0xffffu : 0u) | (kept >> 2 * n & 2 ? 0xffff0000u : 0u));
    signal[place] = make_uint4(left[0], left[1], left[2], left[3]);
}

// -- shared memory: filters --------------------------------------------------------------------------------------------

// Taps of one channel by their lag; zero where there are none, or no pair of positions is so far apart, and for lag 0:
// that tap and the bias are applied together, in float32, outside of the matrix (`here`).
struct Filter {
    const float *behind, *ahead;
    int behind_reach, ahead_reach;

    DEVICE Filter(const float* taps, int directions, int count, int channel, const Sizes& sizes)
        : behind(taps + static_cast<int64_t>(channel) * count), ahead(behind + static_cast<int64_t>(sizes.channels) * count),
          behind_reach(min(count, sizes.length)), ahead_reach(directions == 2 ? min(count, sizes.length - 1) : 0) {}
    DEVICE float operator()(int lag) const {
        if (lag >= 0) return lag > 0 && lag < behind_reach ? behind[lag] : 0.0f;
        return -lag <= ahead_reach ? ahead[-lag - 1] : 0.0f;
    }
    DEVICE float here(const float* bias, int channel) const { return bias[channel] + behind[0]; }
};

// The whole thread block fills in a filter; `turned`: that of the transposed matrix. It takes two rows of words: pairs
// (h[2m], h[2m - 1]) and (h[2m + 1], h[2m]), m from -16 blocks up.
template <typename T>
DEVICE void fill_filter(uint32_t* words, const Filter& filter, bool turned, const Sizes& sizes) {
    for (int n = static_cast<int>(threadIdx.x); n < 32 * sizes.blocks; n += static_cast<int>(blockDim.x)) {
        const int lag = 2 * (n - 16 * sizes.blocks);
        const float before = filter(turned ? 1 - lag : lag - 1), at = filter(turned ? -lag : lag),
                    after = filter(turned ? -lag - 1 : lag + 1);
        words[n] = pack2<T>(at, before);
        words[sizes.row_words + n] = pack2<T>(after, at);
    }
}

// The words of a block diagonal: word w, from -3, holds the lags 32 diagonal + 8 (g / 2 - q) + g % 2 + 2w - {0, 1}.
struct Diagonal {
    uint32_t words[8];

    DEVICE void load(const uint32_t* filter, int diagonal, const Sizes& sizes) {
        const int g = lane_number() / 4, q = lane_number() % 4;
        const int at = 16 * (diagonal + sizes.blocks) + 4 * (g / 2 - q) + g % 2 * sizes.row_words;
        const uint4 low = *reinterpret_cast<const uint4*>(filter + at - 4);
        const uint4 high = *reinterpret_cast<const uint4*>(filter + at);
        words[0] = low.x, words[1] = low.y, words[2] = low.z, words[3] = low.w;
        words[4] = high.x, words[5] = high.y, words[6] = high.z, words[7] = high.w;
    }
    DEVICE uint32_t operator[](int w) const { return words[w + 4]; }
};

// -- the product -------------------------------------------------------------------------------------------------------

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
                    const uint32_t a[4] = {low[2 * f], high[2 * f], low[2 * f + 1], high[2 * f + 1]};
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const uint32_t b[2] = {taps[e - 2 * f], taps[e - 2 * f - 1]};
                        mma_16816<T>(sums[j][e], a, b);
                    }
                }
            }
        }
    }
}

// -- on the host -------------------------------------------------------------------------------------------------------

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
    if (channels > INT32_MAX / 9 || sequences > INT32_MAX - 64 || count > INT32_MAX) return "a size is beyond 32 bits";
    const Sizes sizes(channels, sequences, length);
    if (channels * sizes.splits > INT32_MAX) return "more thread blocks than a launch can have";
    if (splits && splits != sizes.splits) return "sums are kept for another number of parts than there are";
    return nullptr;
}

}  // namespace toeplitz
