// Slopes of a filter's taps: for every lag the sum over sequences and positions of a[b, t + lag] x[b, t].
//
// By tiles of 16 by 16 positions, sequences being the inner dimension of the matrix instruction: the operands are those
// of toeplitz.h's tiles, read across (ldmatrix with transposition). Tile (i, k) holds lags 16 (i - k) + row - column,
// so all tiles of a diagonal i - k, of all sequences, are summed in the same registers; a warp takes four diagonals at
// a time, which need one new tile of x for each tile of a. Three steps are left: the four 8 x 8 parts of a tile lie on
// three diagonals of parts, shared with the neighbouring tiles' (in registers); a part's own diagonals are summed by
// way of shared memory; and the 15 lags that two groups of four diagonals share are summed when all are done. All of it
// in a fixed order.
#pragma once

#include "toeplitz.h"

namespace toeplitz {

constexpr int group_diagonals = 4, group_parts = 2 * group_diagonals + 1;
constexpr int group_lags = 16 * group_diagonals;  // group n: from group_lags n - 15 to group_lags (n + 1) - 1
constexpr int group_sums = 80;                    // of which one is not used
constexpr int part_stride = 76;                   // floats: columns of eight parts' rows, so that lanes do not collide
constexpr int gathered_floats = 8 * part_stride;  // of a warp

// Groups of diagonals on either side of lag 0.
DEVICE int groups_each_side(const Sizes& sizes) { return (2 * sizes.blocks + group_diagonals - 1) / group_diagonals; }

inline int gram_floats(const Sizes& sizes) {
    const int each_side = (2 * sizes.blocks + group_diagonals - 1) / group_diagonals;
    return sizes.warps * gathered_floats + 2 * each_side * group_sums;
}

// 16 sequences by 16 positions as both operands: [0], [1] two times 8 positions of 8 sequences, [2], [3] of the others.
DEVICE void read_across(uint32_t (&r)[4], const uint4* signal, int tile) {
    const int lane = lane_number(), matrix = lane / 8;
    ldmatrix_x4_trans(r, signal + tile / 2 * block_units + unit(matrix / 2, lane % 8, tile % 2 * 2 + matrix % 2));
}

// Slopes of the taps with lags of group n; a and x in shared memory, `gathered` the warp's own, sums[80] the group's.
template <typename T>
DEVICE void correlate(const uint4* a, const uint4* x, int n, float* gathered, float* sums, const Work& work,
                      const Sizes& sizes) {
    const int tiles = 2 * sizes.blocks;
    float tile_sums[group_diagonals][2][4];  // [2]: columns 0 .. 7 and 8 .. 15 of a tile
#pragma unroll
    for (int d = 0; d < group_diagonals; d++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int k = 0; k < 4; k++) tile_sums[d][half][k] = 0.0f;
    // Tile i of a meets tiles i - 4n - d of x, d = 0 .. 3: of these i - 4n is new and goes to place i % 4. Groups of
    // negative lags take up their first tiles of x before there are tiles of a.
    const int start = n >= 0 ? group_diagonals * n : -group_diagonals;
    const int end = min(tiles, tiles + group_diagonals * (n + 1));
#pragma unroll 1
    for (int row_tile = 0; row_tile < work.row_tiles; row_tile++) {
        const int first = row_tile * sizes.tiles * tile_blocks * block_units;
        uint32_t held[group_diagonals][4];
#pragma unroll 1
        for (int base = start; base < end; base += group_diagonals) {
#pragma unroll
            for (int step = 0; step < group_diagonals; step++) {
                const int i = base + step, fresh = i - group_diagonals * n;
                if (fresh < tiles) read_across(held[step], x + first, fresh);
                if (i < 0 || i >= tiles) continue;
                uint32_t across[4];
                read_across(across, a + first, i);
                const uint32_t left[4] = {across[0], across[1], across[2], across[3]};
#pragma unroll
                for (int d = 0; d < group_diagonals; d++) {
                    if (fresh - d < 0 || fresh - d >= tiles) continue;
                    const uint32_t(&right)[4] = held[(group_diagonals + step - d) % group_diagonals];
                    const uint32_t columns[2][2] = {{right[0], right[2]}, {right[1], right[3]}};
                    mma_16816<T>(tile_sums[d][0], left, columns[0]);
                    mma_16816<T>(tile_sums[d][1], left, columns[1]);
                }
            }
        }
    }
    // Parts by their diagonal: part p holds lags 64 n - 8 + 8p + row - column, rows and columns from 0 to 7. Row and
    // part together choose the place, so that a lag's eight numbers are one step aside from column to column.
    const int g = lane_number() / 4, q = lane_number() % 4;
#pragma unroll
    for (int p = 0; p < group_parts; p++) {
        float two[2] = {0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < 2; k++) {
            if (p % 2) two[k] = tile_sums[p / 2][0][k] + tile_sums[p / 2][1][2 + k];
            if (p % 2 == 0 && p / 2 < group_diagonals) two[k] = tile_sums[p / 2][1][k];
            if (p % 2 == 0 && p > 0) two[k] += tile_sums[p / 2 - 1][0][2 + k];
        }
        gathered[2 * q * part_stride + 8 * p + g] = two[0];
        gathered[(2 * q + 1) * part_stride + 8 * p + g] = two[1];
    }
    __syncwarp();
    for (int lag = lane_number(); lag < group_lags + 15; lag += 32) {
        float sum = 0.0f;
#pragma unroll
        for (int column = 0; column < 8; column++) {
            const int place = lag - 7 + column;
            if (place >= 0 && place < 8 * group_parts) sum += gathered[column * part_stride + place];
        }
        sums[lag] = sum;
    }
    __syncwarp();
}

// Slopes of all taps from the signals a, which comes back, and x, which was filtered: written to of_taps (D, C, P) of
// this thread block's split, P <= S taps of each direction. The whole thread block takes part; `scratch` holds
// gram_floats, and no one may be using it any more. `at_zero`: the slope of lag 0 where it is known better, or null.
template <typename T>
DEVICE void slopes_of_taps(float* of_taps, int directions, int count, const uint4* a, const uint4* x, float* scratch,
                           const float* at_zero, const Work& work, const Sizes& sizes) {
    const int each_side = groups_each_side(sizes);
    float* const sums = scratch + sizes.warps * gathered_floats;
    for (int group = work.warp; group < 2 * each_side; group += sizes.warps)
        correlate<T>(a, x, group - each_side, scratch + work.warp * gathered_floats, sums + group * group_sums, work,
                     sizes);
    __syncthreads();
    for (int n = static_cast<int>(threadIdx.x); n < directions * count; n += static_cast<int>(blockDim.x)) {
        const int direction = n / count, lag = direction ? -1 - n % count : n % count;
        float slope = 0.0f;  // of lags that no pair of positions has
        if (lag > -sizes.length) {
            const int from_least = lag + group_lags * each_side;
            const int group = from_least / group_lags, next = from_least % group_lags - (group_lags - 15);
            slope = sums[group * group_sums + from_least % group_lags + 15];
            if (next >= 0 && group + 1 < 2 * each_side) slope += sums[(group + 1) * group_sums + next];
        }
        if (at_zero && !direction && !lag) slope = *at_zero;
        of_taps[(static_cast<int64_t>(direction) * sizes.channels + work.channel) * count + n % count] = slope;
    }
}

}  // namespace toeplitz
