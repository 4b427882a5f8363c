// What the kernels of block_diagonal_glu share: products of a tile of tokens, held in shared memory, with weights that
// come by, and what is made of their sums before those leave registers.
//
// A thread block has ROWS x 32 tokens and a block of the operand's columns, which it reads once, and goes through tiles
// of 64 hidden channels. Of weights it holds two or three stages, 32 terms of one tile each (cp.async); of the tokens
// everything, in chunks of 32 terms that come with the first tile's weights. Four warps share a tile, two by two: each
// has ROWS x 16 tokens and 32 hidden channels, sums in float32 in registers, of both products where there are two.
//
// Both lie in shared memory in rows of four units of 16 bytes, unit u of row r in the place u ^ (r / 2 % 4): eight rows
// of one u, which ldmatrix reads at once, never collide, nor do two whole rows, which eight lanes copy.
//
// Rows of weights are hidden channels, columns of the instruction. They are stored in such an order (`hidden_of`) that
// of a warp's 32 channels a lane's sums are eight neighbouring ones of each of its tokens: 16 bytes to read, to write.
//
// Traffic from the GPU's cache: all weights once for each thread block, so 32 ROWS operations a byte of them. An H200
// delivers about 5.5 TB/s of that, enough with 128 tokens for the 60 % or so of its products' rate that mma.sync
// reaches there (wgmma would be the rest); with them and 192 inputs two thread blocks fit on a multiprocessor, so that
// one's activations run beside the other's products. GPUs with less shared memory have slower products too.
//
// Shape legend: T tokens; blocks, each of `terms` columns of the operand and `width` hidden channels.
#pragma once

#include "device.h"

namespace glu {

constexpr int threads = 128, row_tokens = 32, tile_hidden = 64, chunk_terms = 32;
constexpr int piece = 8;                            // numbers of 16 bits in a unit
constexpr int row_units = chunk_terms / piece;
constexpr int stage_units = tile_hidden * row_units;  // of one product's weights
constexpr int most_rows = 4;

// -- sizes ------------------------------------------------------------------------------------------------------------

struct Sizes {
    int64_t tokens;
    int blocks, terms, width;
    int chunks;      // of terms
    int tiles;       // of a block's hidden channels
    int parts;       // thread blocks that share a block's tiles
    int part_tiles;  // of each of them but the last
    int stages;

    Sizes(int64_t tokens, int64_t blocks, int64_t terms, int64_t width)
        : tokens(tokens), blocks(static_cast<int>(blocks)), terms(static_cast<int>(terms)),
          width(static_cast<int>(width)), chunks((this->terms + chunk_terms - 1) / chunk_terms),
          tiles((this->width + tile_hidden - 1) / tile_hidden), parts(1), part_tiles(tiles), stages(2) {}
    HOST_DEVICE int64_t hidden() const { return static_cast<int64_t>(blocks) * width; }
};

// What a thread block and a lane of it are to do.
struct Work {
    int block, first_tile, tiles;
    int warp_row, warp_column, column;  // of 16 ROWS tokens and of 32 channels; the lane's first of those
    int64_t token, own;                 // the thread block's first token; the lane's, of which it has every eighth
    int left;                           // tokens from the lane's first on, as far as they are its warp's

    DEVICE Work(const Sizes& sizes, int rows) {
        const int columns = sizes.blocks * sizes.parts, place = static_cast<int>(blockIdx.x) % columns;
        const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
        block = place / sizes.parts;
        first_tile = place % sizes.parts * sizes.part_tiles;
        tiles = min(sizes.part_tiles, sizes.tiles - first_tile);
        warp_row = warp / 2, warp_column = warp % 2;
        column = warp_column * 32 + lane % 4 * piece;
        token = static_cast<int64_t>(static_cast<int>(blockIdx.x) / columns) * rows * row_tokens;
        own = token + warp_row * rows * 16 + lane / 4;
        left = static_cast<int>(min(sizes.tokens - own, static_cast<int64_t>(rows) * 16));
    }
};

// -- shared memory ----------------------------------------------------------------------------------------------------

DEVICE int unit_at(int row, int unit) { return row * row_units + (unit ^ (row / 2 % 4)); }

// The hidden channel in a row of a tile's weights: column 2q + b of the instruction's part e is 8q + 2e + b.
DEVICE int hidden_of(int row) { return row / 32 * 32 + row % 8 / 2 * 8 + row / 8 % 4 * 2 + row % 2; }

// One operand of a product, the first column of a block on, and the block's weights (width, terms).
template <typename T>
struct Operand {
    const T* rows;
    int64_t pitch;
    const T* weights;
};

template <typename T, int ROWS>
DEVICE void copy_rows(uint4* chunk, const Operand<T>& of, int number, const Work& work, const Sizes& sizes) {
    const int unit = static_cast<int>(threadIdx.x) % row_units, term = number * chunk_terms + unit * piece;
#pragma unroll
    for (int n = 0; n < ROWS; n++) {
        const int row = n * row_tokens + static_cast<int>(threadIdx.x) / row_units;
        const bool there = work.token + row < sizes.tokens && term < sizes.terms;
        const T* const from = there ? of.rows + (work.token + row) * of.pitch + term : of.rows;
        cp_async_16(chunk + unit_at(row, unit), from, there);
    }
}

template <typename T>
DEVICE void copy_weights(uint4* stage, const Operand<T>& of, int tile, int number, const Sizes& sizes) {
    const int unit = static_cast<int>(threadIdx.x) % row_units, term = number * chunk_terms + unit * piece;
#pragma unroll
    for (int n = 0; n < tile_hidden / row_tokens; n++) {
        const int row = n * row_tokens + static_cast<int>(threadIdx.x) / row_units;
        const int hidden = tile * tile_hidden + hidden_of(row);
        const bool there = hidden < sizes.width && term < sizes.terms;
        const T* const from = there ? of.weights + static_cast<int64_t>(hidden) * sizes.terms + term : of.weights;
        cp_async_16(stage + unit_at(row, unit), from, there);
    }
}

// -- products ---------------------------------------------------------------------------------------------------------

// A lane's sums: of 16 tokens each [part e][2 half + b]: hidden channel 2e + b of its eight.
template <int ROWS>
using Sums = float[ROWS][4][4];

// sums += a chunk of the tokens times a stage of weights.
template <typename T, int ROWS>
DEVICE void multiply(Sums<ROWS>& sums, const uint4* chunk, const uint4* stage, int terms, const Work& work) {
    const int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8, line = lane % 8;
    const uint4* const rows = chunk + (work.warp_row * ROWS * 16 + matrix % 2 * 8 + line) * row_units;
    const uint4* const columns = stage + (work.warp_column * 32 + matrix / 2 * 8 + line) * row_units;
#pragma unroll
    for (int step = 0; step < chunk_terms / 16; step++) {
        if (step * 16 >= terms) break;
        uint32_t b[4][2];
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
            uint32_t both[4];
            ldmatrix_x4(both, columns + e * 8 * row_units + ((step * 2 + matrix % 2) ^ line / 2));
            b[e][0] = both[0], b[e][1] = both[1], b[e + 1][0] = both[2], b[e + 1][1] = both[3];
        }
#pragma unroll
        for (int row = 0; row < ROWS; row++) {
            uint32_t a[4];
            ldmatrix_x4(a, rows + row * 16 * row_units + ((step * 2 + matrix / 2) ^ line / 2));
#pragma unroll
            for (int e = 0; e < 4; e++) mma_16816<T>(sums[row][e], a, b[e]);
        }
    }
}

// All tiles of a thread block: `part.begin(tile)` as soon as a tile's products begin, `part.end(tile, sums)` with them.
template <typename T, int ROWS, int PRODUCTS, typename Part>
DEVICE void run_through(uint4* shared, const Operand<T> (&of)[PRODUCTS], const Work& work, const Sizes& sizes,
                        Part& part) {
    constexpr int chunk_units = ROWS * row_tokens * row_units;
    uint4* const stages = shared + sizes.chunks * PRODUCTS * chunk_units;
    const int all = work.tiles * sizes.chunks;
    int due_tile = work.first_tile, due_chunk = 0, due_stage = 0, due = 0;
    const auto copy_next = [&] {
        if (due < all) {
#pragma unroll
            for (int n = 0; n < PRODUCTS; n++) {
                if (due < sizes.chunks)
                    copy_rows<T, ROWS>(shared + (due * PRODUCTS + n) * chunk_units, of[n], due, work, sizes);
                copy_weights(stages + (due_stage * PRODUCTS + n) * stage_units, of[n], due_tile, due_chunk, sizes);
            }
            due++;
            if (++due_chunk == sizes.chunks) due_chunk = 0, due_tile++;
            if (++due_stage == sizes.stages) due_stage = 0;
        }
        cp_async_commit();
    };
    for (int n = 1; n < sizes.stages; n++) copy_next();
    int stage = 0;
#pragma unroll 1
    for (int tile = work.first_tile; tile < work.first_tile + work.tiles; tile++) {
        Sums<ROWS> sums[PRODUCTS];
#pragma unroll
        for (int n = 0; n < PRODUCTS * ROWS * 16; n++) (&sums[0][0][0][0])[n] = 0.0f;
        part.begin(tile);
#pragma unroll 1
        for (int number = 0; number < sizes.chunks; number++) {
            if (sizes.stages == 2) cp_async_wait<0>();
            else cp_async_wait<1>();
            __syncthreads();  // all copies of this stage are there, all reads of the one before are done
            copy_next();
#pragma unroll
            for (int n = 0; n < PRODUCTS; n++)
                multiply<T, ROWS>(sums[n], shared + (number * PRODUCTS + n) * chunk_units,
                                  stages + (stage * PRODUCTS + n) * stage_units, sizes.terms - number * chunk_terms,
                                  work);
            if (++stage == sizes.stages) stage = 0;
        }
        part.end(tile, sums);
    }
}

// -- the activation ---------------------------------------------------------------------------------------------------

DEVICE float power_of_2(float x) {
#ifdef __CUDACC__
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#else
    return exp2f(x);
#endif
}

// How much of the normal distribution lies beyond |x|, to 5e-6 of it up to 6.5: a hundredth of what float16 rounds.
// Its binary logarithm is a polynomial (as in triton_glu_kernels.py): a third of erff's instructions, which would
// take longer than a tile's products.
DEVICE float beyond(float x) {
    const float far = fabsf(x);
    float power = -1.757783120e-6f * far + 5.993674356e-5f;
    power = power * far - 9.163645635e-4f;
    power = power * far + 8.447393797e-3f;
    power = power * far - 5.382452471e-2f;
    power = power * far - 4.586156744e-1f;
    power = power * far - 1.151180187f;
    power = power * far - 1.000003870f;
    return power_of_2(power);
}

// x times the share of the normal distribution below x, given the share beyond |x|.
DEVICE float gelu(float x, float outside) { return fmaxf(x, 0.0f) - fabsf(x) * outside; }

// gelu's derivative.
DEVICE float slope_of_gelu(float x, float outside) {
    constexpr float rate = -0.7213475204444817f;    // -1 / (2 ln 2): exp(-x^2 / 2) is 2^(rate x^2)
    constexpr float density = 0.3989422804014327f;  // of the normal distribution, at 0
    return (x > 0.0f ? 1.0f - outside : outside) + x * density * power_of_2(rate * x * x);
}

// -- on the host ------------------------------------------------------------------------------------------------------

inline size_t bytes_of(int rows, int products, int stages, const Sizes& sizes) {
    const size_t units = static_cast<size_t>(sizes.chunks) * rows * row_tokens * row_units + stages * stage_units;
    return units * products * sizeof(uint4);
}

// ROWS: as many as two thread blocks of a multiprocessor can hold, if those are 64 tokens or more, else as many as one
// can; no more than there are tokens for. Then stages, and how a block's tiles are shared out. 0: not one row fits.
inline int plan(Sizes& sizes, int products) {
    const size_t limit = shared_limit(), reserved = 1024;  // of a thread block; of a multiprocessor a kilobyte more
    const auto fits = [&](int rows, int stages, int times) {
        return times * (bytes_of(rows, products, stages, sizes) + reserved) <= limit + reserved;
    };
    const int useful = static_cast<int>(min(int64_t(most_rows), (sizes.tokens + row_tokens - 1) / row_tokens));
    int times = 2, rows = useful;
    while (rows > min(2, useful) && !fits(rows, 2, times)) rows--;
    if (!fits(rows, 2, times)) {
        times = 1, rows = useful;
        while (rows && !fits(rows, 2, times)) rows--;
    }
    sizes.stages = fits(rows, 3, times) ? 3 : 2;

    // Tiles and their tokens' way into shared memory, about as long as one of them, over all rounds of thread blocks.
    const int64_t at_once = static_cast<int64_t>(times) * max(1, multiprocessors());
    const int64_t columns = rows ? (sizes.tokens + rows * row_tokens - 1) / (rows * row_tokens) * sizes.blocks : 0;
    int64_t least = INT64_MAX;
    for (int asked = 1; asked <= sizes.tiles; asked++) {
        const int tiles = (sizes.tiles + asked - 1) / asked, parts = (sizes.tiles + tiles - 1) / tiles;
        const int64_t rounds = (columns * parts + at_once - 1) / at_once, time = rounds * (tiles + 1);
        if (time < least) least = time, sizes.parts = parts, sizes.part_tiles = tiles;
    }
    return rows;
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % sizeof(uint4) == 0; }

inline const char* refused(int64_t tokens, int64_t blocks, int64_t terms, int64_t width) {
    if (tokens < 1 || blocks < 1 || terms < 1 || width < 1) return "nothing to multiply";
    if (terms % piece || width % piece) return "widths of blocks are no multiples of 8";
    if (blocks > INT32_MAX / width || terms > INT32_MAX / 2) return "a size is beyond 32 bits";
    if ((tokens + row_tokens - 1) / row_tokens * blocks * ((width + tile_hidden - 1) / tile_hidden) > INT32_MAX)
        return "more thread blocks than a launch can have";
    return nullptr;
}

// Calls `launch` with ROWS, as a type, and a launch's grid, threads and bytes of shared memory.
template <int N>
struct Rows {
    static constexpr int value = N;
};

template <typename Launch>
const char* launched(Sizes& sizes, int products, Launch&& launch) {
    const int rows = plan(sizes, products);
    if (!rows) return "shared memory does not hold 32 tokens of a block";
    const int64_t tokens = (sizes.tokens + rows * row_tokens - 1) / (rows * row_tokens);
    const dim3 grid(static_cast<unsigned>(tokens * sizes.blocks * sizes.parts));
    const size_t bytes = bytes_of(rows, products, sizes.stages, sizes);
    switch (rows) {
        case 1: return launch(Rows<1>(), grid, bytes);
        case 2: return launch(Rows<2>(), grid, bytes);
        case 3: return launch(Rows<3>(), grid, bytes);
        default: return launch(Rows<4>(), grid, bytes);
    }
}

}  // namespace glu
