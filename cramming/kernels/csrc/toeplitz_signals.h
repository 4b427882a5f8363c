// Signals of the Toeplitz kernels: who has which part, and how it comes from memory, through the short convolution and
// into shared memory. toeplitz.h says how they lie there and why.
#pragma once

#include "device.h"

// At most so many registers a thread, so that three thread blocks of 128 threads share a multiprocessor.
#ifdef __CUDACC__
#define THREE_BLOCKS __maxnreg__(168)
#else
#define THREE_BLOCKS
#endif

namespace toeplitz {

constexpr unsigned whole_warp = 0xffffffffu;
constexpr int tile_sequences = 16, block_positions = 32, tile_blocks = 4;
constexpr int tile_positions = tile_blocks * block_positions;  // of a warp's sums
constexpr int least_tiles = 4, most_tiles = 8;                 // of a thread block: as many as its warps
constexpr int longest = most_tiles * tile_positions;
constexpr int block_units = 64;  // uint4 that hold 16 sequences of a block

DEVICE int lane_number() { return static_cast<int>(threadIdx.x % 32); }

// -- sizes ------------------------------------------------------------------------------------------------------------

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

// Where a warp stands, and what its lane has of signals: in each half of the tile (sequences g, g + 8) eight positions
// of each of 4 blocks, from t on.
struct Work {
    int channel, split, warp, row_tile, tile;
    int row_tiles;     // that have sequences
    bool idle;         // this warp's has none
    int t;             // the first position of the lane in block 0 of the warp's
    int there[2];      // positions from t on that a half's sequence has; less than -26 where there is no sequence
    unsigned kept[2];  // 8 bits for each block: positions that there are and that the mask, if any, does not hide
    int at[2];         // of t in a half's sequence, in the matrix (B, S) of a channel

    DEVICE explicit Work(const Sizes& sizes) {
        const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
        channel = static_cast<int>(blockIdx.x) / sizes.splits;
        split = static_cast<int>(blockIdx.x) % sizes.splits;
        warp = __shfl_sync(whole_warp, thread / 32, 0);  // the compiler sees that it is the same in all lanes
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
            at[half] = sequence * sizes.length + t;
        }
    }
    // Of the 4 blocks of this warp, how many there are.
    DEVICE int blocks(const Sizes& sizes) const { return min(tile_blocks, sizes.blocks - tile * tile_blocks); }
    // Where the warp's row of 4 blocks begins in a signal's shared memory.
    DEVICE int units(const Sizes& sizes) const { return (row_tile * sizes.tiles + tile) * tile_blocks * block_units; }
    // Between phases of a kernel. The compiler would begin all loads at once, and keep every address and condition from
    // phase to phase: more than there are registers.
    DEVICE void next_phase() {
        __syncwarp();
#ifdef __CUDACC__
#pragma unroll
        for (int half = 0; half < 2; half++) asm volatile("" : "+r"(at[half]), "+r"(there[half]), "+r"(kept[half]));
#endif
    }
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

// -- global memory ----------------------------------------------------------------------------------------------------

// A channel of a signal, (B, S).
template <typename T>
DEVICE T* matrix(T* signal, int channel, const Sizes& sizes) {
    return signal + static_cast<int64_t>(channel) * sizes.sequences * sizes.length;
}

// Eight positions, of which there are `there`, zeros behind them. WIDE: there are 8 or none, and they begin at a
// multiple of 16 bytes.
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

// What a lane has of a signal in one half of the warp's tile: loaded at once, so that no load waits for another.
using Stretch = uint32_t[tile_blocks][4];

template <typename T, bool WIDE>
DEVICE void load(Stretch& stretch, const T* channel, int half, const Work& work) {
#pragma unroll
    for (int j = 0; j < tile_blocks; j++) {
        load8<T, WIDE>(stretch[j], channel + work.at[half] + j * block_positions,
                       work.there[half] - j * block_positions);
    }
}

// -- the short convolution --------------------------------------------------------------------------------------------

struct Short {
    float oldest, older, now, bias;

    DEVICE Short(const float* weight, const float* bias, int channel)
        : oldest(weight[3 * channel]), older(weight[3 * channel + 1]), now(weight[3 * channel + 2]),
          bias(bias[channel]) {}
};

// The two positions before block j of the warp's tile, zeros before the sequence: for the last of a sequence's four
// lanes, which hands them to the first; others need none.
template <typename T, bool WIDE>
DEVICE uint32_t pair_before(const T* channel, int j, int half, const Work& work) {
    const int first = j * block_positions - 26;  // of the pair, from the last lane's t
    if ((work.tile == 0 && j == 0) || lane_number() % 4 != 3 || work.there[half] <= first) return 0;
    const T* const from = channel + work.at[half] + first;
    if (WIDE) return *reinterpret_cast<const uint32_t*>(from);
    return pack2(from[0], work.there[half] > first + 1 ? from[1] : T{0});
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

// Of block j of a third of z in a half of the warp's tile, loaded alone: ten positions as they are, eight behind the
// short convolution.
template <typename T, bool WIDE>
DEVICE void convolved_alone(float (&z)[10], float (&x)[8], const T* channel, int j, int half, const Short& by,
                            const Work& work) {
    uint32_t words[4];
    load8<T, WIDE>(words, channel + work.at[half] + j * block_positions, work.there[half] - j * block_positions);
    unpack10<T>(z, words, pair_before<T, WIDE>(channel, j, half, work));
    short8(x, z, by);
}

// A third of z, a channel with a short convolution of its own, in one half of the warp's tile.
template <typename T, bool WIDE>
struct Third {
    Stretch stretch;
    uint32_t before;

    DEVICE Third(const T* channel, int half, const Work& work) {
        load<T, WIDE>(stretch, channel, half, work);
        before = pair_before<T, WIDE>(channel, 0, half, work);
    }
    // Of block j, as of convolved_alone.
    DEVICE void convolved(float (&z)[10], float (&x)[8], int j, const Short& by) const {
        unpack10<T>(z, stretch[j], j ? stretch[j ? j - 1 : 0][3] : before);
        short8(x, z, by);
    }
};

// -- shared memory: signals -------------------------------------------------------------------------------------------

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

}  // namespace toeplitz
