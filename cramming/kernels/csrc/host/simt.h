// Stands in for CUDA where a kernel's source is compiled for a processor: the other half of device.h.
//
// Blocks run one after another, in an order drawn from a seed. Each thread of a block is a fibre; one runs until it
// waits for others (a barrier, a shuffle, a matrix instruction), then another is drawn. Shared memory holds NaN before
// a block begins and while a copy is under way. What a GPU would not do, or do differently each time, ends the launch
// with a message: a barrier that not all reach, lanes that part, an access outside shared memory, a copy never waited
// for. Not parallel, and not to be called from two threads at once.
#pragma once

#include <climits>
#include <cmath>
#include <cstring>
#include <functional>
#include <type_traits>

#define KERNEL
#define DEVICE inline
#define HOST_DEVICE inline
#define LAUNCH(...) simt::launch(__VA_ARGS__)
#define SHARED(type, name) type* const name = reinterpret_cast<type*>(simt::shared_memory())
#define __launch_bounds__(...)
#define __forceinline__ inline
#define threadIdx (simt::current().thread)
#define blockIdx (simt::current().block)
#define blockDim (simt::current().block_size)
#define gridDim (simt::current().grid_size)
#define warpSize 32

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace simt {

// Where in the source a call stands: lanes that meet must come from one place.
struct Site {
    const char* file;
    int line;
};

struct Place {
    dim3 thread, block, block_size, grid_size;
};

enum class Meeting { barrier, vote, shuffle, mma, ldmatrix };

const Place& current();
void* shared_memory();
int lane();
[[noreturn]] void fail(const char* what, Site site);

void block_barrier(Site site);
// All lanes of the mask meet, each with `bytes` of its own; `given` and `found` are tables of 32 lanes, `size` apart,
// of which the last to come computes `found` for all.
using Exchange = void (*)(const unsigned char* given, unsigned char* found, unsigned mask);
constexpr int exchanged_bytes = 48;
void meet(Meeting kind, unsigned mask, const void* given, size_t given_bytes, void* found, size_t found_bytes,
          Exchange exchange, Site site);

void copy_later(void* to, const void* from, bool valid, Site site);
void close_copies();
void wait_for_copies(int groups_left);

const char* launch_block_by_block(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
int shared_limit();

template <typename... P, typename... A>
const char* launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void*, A... args) {
    return launch_block_by_block(grid, block, shared_bytes, [=] { kernel(static_cast<P>(args)...); });
}

template <typename T>
struct Shuffled {
    T value;
    int source;
};

template <typename T>
T shuffle(unsigned mask, T value, int source, Site site) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(Shuffled<T>) <= exchanged_bytes, "at most 32 bytes");
    const Shuffled<T> given = {value, source};
    T found;
    meet(Meeting::shuffle, mask, &given, sizeof given, &found, sizeof found,
         [](const unsigned char* given, unsigned char* found, unsigned mask) {
             for (int lane = 0; lane < 32; lane++) {
                 if (!(mask >> lane & 1)) continue;
                 Shuffled<T> one, other;
                 memcpy(&one, given + lane * exchanged_bytes, sizeof one);
                 memcpy(&other, given + one.source * exchanged_bytes, sizeof other);
                 memcpy(found + lane * exchanged_bytes, &other.value, sizeof(T));
             }
         },
         site);
    return found;
}

void ldmatrix(uint32_t (&r)[4], const void* row, bool transposed, Site site);
unsigned ballot(unsigned mask, bool vote, Site site);

}  // namespace simt

#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline int shared_limit() { return simt::shared_limit(); }
inline int multiprocessors() { return 4; }

inline void __syncthreads(SIMT_SITE) { simt::block_barrier({file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_SITE) { simt::ballot(mask, true, {file, line}); }
inline unsigned __ballot_sync(unsigned mask, int vote, SIMT_SITE) { return simt::ballot(mask, vote, {file, line}); }
inline int __any_sync(unsigned mask, int vote, SIMT_SITE) { return simt::ballot(mask, vote, {file, line}) != 0; }
inline int __all_sync(unsigned mask, int vote, SIMT_SITE) { return simt::ballot(mask, vote, {file, line}) == mask; }

// Of CUDA's shuffles: within segments of `width` lanes; where there is no such lane, a lane's own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, SIMT_SITE) {
    return simt::shuffle(mask, value, (simt::lane() & ~(width - 1)) + (lane & (width - 1)), {file, line});
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_SITE) {
    const int own = simt::lane(), other = own ^ lanes;
    return simt::shuffle(mask, value, other / width > own / width ? own : other, {file, line});
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_SITE) {
    const int own = simt::lane(), other = own - lanes;
    return simt::shuffle(mask, value, other < (own & ~(width - 1)) ? own : other, {file, line});
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_SITE) {
    const int own = simt::lane(), other = own + lanes;
    return simt::shuffle(mask, value, other > (own | (width - 1)) ? own : other, {file, line});
}

// -- numbers -----------------------------------------------------------------------------------------------------------

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(b) < T(a) ? T(b) : T(a);
}

template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(a) < T(b) ? T(b) : T(a);
}

inline uint32_t __float_as_uint(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}

inline float __uint_as_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

inline int __float_as_int(float f) { return static_cast<int>(__float_as_uint(f)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<uint32_t>(bits)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
unsigned __brev(unsigned x);
inline float rsqrtf(float x) { return static_cast<float>(1 / std::sqrt(static_cast<double>(x))); }
void sincos_pi(float x, float& s, float& c);

template <typename T>
T __ldg(const T* pointer) {
    return *pointer;
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
float to_float(half16 x);

template <typename T>
T from_float(float f);
template <>
inline float from_float<float>(float f) {
    return f;
}
template <>
bf16 from_float<bf16>(float f);
template <>
half16 from_float<half16>(float f);

template <typename T>
uint32_t pack2(T lo, T hi) {
    return static_cast<uint32_t>(lo.bits) | static_cast<uint32_t>(hi.bits) << 16;
}

template <typename T>
uint32_t pack2(float lo, float hi) {
    return pack2<T>(from_float<T>(lo), from_float<T>(hi));
}

template <typename T>
float2 unpack2(uint32_t packed) {
    return {to_float(T{static_cast<uint16_t>(packed)}), to_float(T{static_cast<uint16_t>(packed >> 16)})};
}

// -- the warp's matrices, copies under way -----------------------------------------------------------------------------

namespace simt {

struct Fragments {
    float d[4];
    uint32_t a[4], b[2];
};

// d += a b from the fragments of 32 lanes, sums in float32 in the order of k.
template <typename T>
__attribute__((no_sanitize("thread"))) void multiply(const unsigned char* given, unsigned char* found, unsigned) {
    float a[16][16], b[16][8];
    Fragments lanes[32];
    for (int lane = 0; lane < 32; lane++) {
        memcpy(&lanes[lane], given + lane * exchanged_bytes, sizeof(Fragments));
        const int g = lane / 4, t = lane % 4 * 2;
        for (int n = 0; n < 4; n++) {
            const float2 two = unpack2<T>(lanes[lane].a[n]);
            float* const place = &a[g + n % 2 * 8][t + n / 2 * 8];
            place[0] = two.x, place[1] = two.y;
        }
        for (int n = 0; n < 2; n++) {
            const float2 two = unpack2<T>(lanes[lane].b[n]);
            b[t + n * 8][g] = two.x, b[t + n * 8 + 1][g] = two.y;
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        float* const d = lanes[lane].d;
        for (int n = 0; n < 4; n++) {
            const int row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
            for (int k = 0; k < 16; k++) d[n] += a[row][k] * b[k][column];
        }
        memcpy(found + lane * exchanged_bytes, d, sizeof lanes[lane].d);
    }
}

}  // namespace simt

template <typename T>
void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], SIMT_SITE) {
    simt::Fragments given;
    memcpy(given.d, d, sizeof d);
    memcpy(given.a, a, sizeof a);
    memcpy(given.b, b, sizeof b);
    simt::meet(simt::Meeting::mma, ~0u, &given, sizeof given, d, sizeof d, simt::multiply<T>, {file, line});
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, SIMT_SITE) { simt::ldmatrix(r, row, false, {file, line}); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, SIMT_SITE) {
    simt::ldmatrix(r, row, true, {file, line});
}

inline void cp_async_16(void* to, const void* from, bool valid, SIMT_SITE) {
    simt::copy_later(to, from, valid, {file, line});
}
inline void cp_async_commit() { simt::close_copies(); }
template <int N>
void cp_async_wait() {
    simt::wait_for_copies(N);
}
