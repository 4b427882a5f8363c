// Small kernels that show the emulator to be right, and others with a mistake that it must find.
#include "device.h"

namespace {

KERNEL void shuffles(const int* x, int* out) {
    const int lane = static_cast<int>(threadIdx.x), v = x[lane];
    out[lane] = __shfl_sync(~0u, v, 5);
    out[32 + lane] = __shfl_xor_sync(~0u, v, 3);
    out[64 + lane] = __shfl_up_sync(~0u, v, 2);
    out[96 + lane] = __shfl_down_sync(~0u, v, 2);
    out[128 + lane] = __shfl_down_sync(~0u, v, 1, 8);
    out[160 + lane] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
    if (lane < 16) out[192 + lane] = __shfl_xor_sync(0xffffu, v, 15);
    const double wide = __shfl_sync(~0u, v + 0.25, lane / 2);
    out[208 + lane] = static_cast<int>(4 * wide);
}

// Sums of rows of 256 in shared memory, by a tree of barriers; one of them may be left out.
KERNEL void tree(const float* x, float* out, int left_out) {
    SHARED(float, part);
    const unsigned i = threadIdx.x;
    part[i] = x[blockIdx.x * 256 + i];
    int number = 0;
    for (unsigned half = 128; half; half /= 2) {
        if (++number != left_out) __syncthreads();
        const float v = i < half ? part[i] + part[i + half] : 0.f;
        if (i < half) part[i] = v;
    }
    if (i == 0) out[blockIdx.x] = part[0];
}

// d = c + a b from rows of a and columns of b as the manual's figures lay them out, element by element.
template <typename T>
KERNEL void product(const T* a, const T* b, const float* c, float* d) {
    const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4 * 2;
    uint32_t of_a[4], of_b[2];
    for (int n = 0; n < 4; n++) {
        const T* const at = a + (g + n % 2 * 8) * 16 + t + n / 2 * 8;
        of_a[n] = pack2(at[0], at[1]);
    }
    for (int n = 0; n < 2; n++) {
        const int k = t + n * 8;
        of_b[n] = pack2(b[k * 8 + g], b[(k + 1) * 8 + g]);
    }
    float sum[4];
    for (int n = 0; n < 4; n++) sum[n] = c[(g + n / 2 * 8) * 8 + t + n % 2];
    mma_16816<T>(sum, of_a, of_b);
    for (int n = 0; n < 4; n++) d[(g + n / 2 * 8) * 8 + t + n % 2] = sum[n];
}

// The same product with fragments read by ldmatrix from shared memory: a is 16 x 16, b 16 x 8 (twice, for x4).
KERNEL void loaded_product(const bf16* a, const bf16* b, float* d) {
    SHARED(bf16, s);
    const int lane = static_cast<int>(threadIdx.x);
    for (int n = lane; n < 256; n += 32) s[n] = a[n];
    for (int n = lane; n < 128; n += 32) s[256 + n] = b[n];
    __syncwarp();
    uint32_t of_a[4], both[4];
    // lanes 0-7: rows 0-7, columns 0-7; 8-15: rows 8-15; 16-23: rows 0-7, columns 8-15; 24-31: the rest
    ldmatrix_x4(of_a, s + (lane % 16) * 16 + lane / 16 * 8);
    ldmatrix_x4_trans(both, s + 256 + (lane % 16) * 8);
    const uint32_t of_b[2] = {both[0], both[1]};
    float sum[4] = {};
    mma_16816<bf16>(sum, of_a, of_b);
    for (int n = 0; n < 4; n++) d[(lane / 4 + n / 2 * 8) * 8 + lane % 4 * 2 + n % 2] = sum[n];
}

// Tiles of 16 bytes a thread copied two stages ahead, each read by the neighbour; `mistake` 1: waits for too little,
// 2: no barrier behind the wait, 3: the last copies are never waited for.
KERNEL void pipelined(const float4* x, float* out, int64_t n, int tiles, int mistake) {
    SHARED(float4, s);
    const int i = static_cast<int>(threadIdx.x), size = static_cast<int>(blockDim.x);
    const auto fetch = [&](int tile) {
        const int64_t at = static_cast<int64_t>(tile) * size + i;
        if (tile < tiles) cp_async_16(&s[tile % 3 * size + i], x + (at < n ? at : 0), at < n);
        cp_async_commit();
    };
    fetch(0);
    fetch(1);
    float sum = 0;
    for (int tile = 0; tile < tiles; tile++) {
        fetch(tile + 2);
        if (mistake == 1) cp_async_wait<3>();
        else if (mistake != 3 || tile < tiles - 1) cp_async_wait<2>();
        if (mistake != 2) __syncthreads();
        const float4 v = s[tile % 3 * size + (i + 1) % size];
        sum += (v.x + v.y) + (v.z + v.w);
        __syncthreads();
    }
    out[i] = sum;
}

// One mistake each.
KERNEL void mistaken(int which, float* out, int64_t n) {
    SHARED(float, s);
    const int i = static_cast<int>(threadIdx.x);
    float local[4] = {1, 2, 3, 4};
    if (which == 0 && i < 16) __syncthreads();                             // the others return
    if (which == 1 && i != 3) __syncthreads();                             // one waits elsewhere
    if (which == 1 && i == 3) __syncwarp();
    if (which == 2 && i < 16) out[0] = __shfl_sync(~0u, 1.f, 0);           // half a warp, whole mask
    if (which == 3) out[0] = __shfl_sync(0xffffu, 1.f, 0);                 // lanes that are not in the mask
    if (which == 4) s[blockDim.x + i] = 1;                                 // behind shared memory
    if (which == 5) out[0] = s[i - 40];                                    // in front of it
    if (which == 6) out[n + i] = 1;                                        // behind a fenced buffer
    if (which == 7) out[0] = local[static_cast<int>(n) + i];               // out of a local array
    if (which == 8) out[0] = reinterpret_cast<const float4*>(out + 1)->x;  // not aligned
    if (which == 9 && i < 8) __syncthreads();                              // two barriers at once
    else if (which == 9) __syncthreads();
    if (which == 10) out[i] = s[i];                                        // never written
    if (which == 11) s[i] = 1, out[i] = s[i ^ 1];                          // no barrier between
    if (which == 12) s[i & ~1] = static_cast<float>(i);                    // two write one place
}

KERNEL void converted(const float* x, uint16_t* as_bf16, uint16_t* as_half, float* back, uint32_t* packed, int64_t n) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const bf16 b = from_float<bf16>(x[i]);
    const half16 h = from_float<half16>(x[i]);
    as_bf16[i] = b.bits, as_half[i] = h.bits;
    back[2 * i] = to_float(b), back[2 * i + 1] = to_float(h);
    packed[i] = pack2<half16>(x[i], unpack2<bf16>(pack2(b, from_float<bf16>(1.f))).y);
}

}  // namespace

extern "C" {

const char* shuffles_launch(const int* x, int* out, void* stream) { return LAUNCH(shuffles, 1, 32, 0, stream, x, out); }

const char* tree_launch(const float* x, float* out, int64_t rows, int left_out, void* stream) {
    return LAUNCH(tree, static_cast<unsigned>(rows), 256, 256 * sizeof(float), stream, x, out, left_out);
}

const char* product_launch(const void* a, const void* b, const float* c, float* d, int half, void* stream) {
    if (half) {
        return LAUNCH(product<half16>, 1, 32, 0, stream, static_cast<const half16*>(a), static_cast<const half16*>(b),
                      c, d);
    }
    return LAUNCH(product<bf16>, 1, 32, 0, stream, static_cast<const bf16*>(a), static_cast<const bf16*>(b), c, d);
}

const char* loaded_product_launch(const bf16* a, const bf16* b, float* d, void* stream) {
    return LAUNCH(loaded_product, 1, 32, 384 * sizeof(bf16), stream, a, b, d);
}

const char* pipelined_launch(const float4* x, float* out, int64_t n, int threads, int tiles, int mistake,
                             void* stream) {
    const auto block = static_cast<unsigned>(threads);
    return LAUNCH(pipelined, 1, block, 3 * block * sizeof(float4), stream, x, out, n, tiles, mistake);
}

const char* mistaken_launch(int which, float* out, int64_t n, void* stream) {
    return LAUNCH(mistaken, 2, 64, 64 * sizeof(float), stream, which, out, n);
}

const char* sized_launch(int64_t grid, int64_t block, int64_t shared_bytes, float* out, void* stream) {
    return LAUNCH(mistaken, static_cast<unsigned>(grid), static_cast<unsigned>(block),
                  static_cast<size_t>(shared_bytes), stream, -1, out, 0);
}

const char* converted_launch(const float* x, uint16_t* as_bf16, uint16_t* as_half, float* back, uint32_t* packed,
                             int64_t n, void* stream) {
    return LAUNCH(converted, static_cast<unsigned>((n + 127) / 128), 128, 0, stream, x, as_bf16, as_half, back, packed,
                  n);
}

}  // extern "C"
