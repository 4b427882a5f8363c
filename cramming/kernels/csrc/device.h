// What kernel sources are written against: names of CUDA, two 16-bit types and the warp's matrix instructions.
//
// Under nvcc these are the machine's own; under any other C++17 compiler host/simt.h stands in, so that the same source
// runs, checked, on a processor (tests/kernels/emulation.py). Beside CUDA's own names (threadIdx, __syncthreads,
// __shfl_sync and its kin, min, max, float2, uint4, ...) there are here, on both sides alike:
//
//   KERNEL, DEVICE                       what stands before a kernel, and before a function that kernels call
//   HOST_DEVICE                          before one that launchers call, too
//   SHARED(type, name)                   name: pointer to the block's dynamic shared memory, aligned to 128 bytes
//   LAUNCH(kernel, grid, block, shared_bytes, stream, args...)  -> nullptr, or what is wrong; a kernel may be f<T, 3>
//   shared_limit(), multiprocessors()    of the current device: bytes that a block may ask for; how many there are
//   bf16, half16                         16 bits of storage; to_float(x), from_float<T>(f): to nearest, ties to even
//   pack2<T>(lo, hi) -> uint32_t, unpack2<T>(uint32_t) -> float2    two of them in a register, from floats or from T
//   mma_16816<T>(d, a, b)                d (16 x 8, float32) += a (16 x 16) b (16 x 8)
//   ldmatrix_x4(r, row), ldmatrix_x4_trans(r, row)   four 8 x 8 matrices of 16 bits; lane l gives row l % 8 of l / 8
//   cp_async_16(to, from, valid)         16 bytes from global to shared memory, zeros where not valid (then `from` is
//                                        not read, but must be a mapped address)
//   cp_async_commit(), cp_async_wait<N>()   close a group of copies; wait until at most the N last groups are under way
//   sincos_pi(x, s, c)                   sin and cos of pi x
//
// Fragments of mma_16816, with g = lane / 4 and t = lane % 4, low half first (PTX ISA, mma.m16n8k16):
//   a[0] = A[g][2t, 2t+1]  a[1] = A[g+8][2t, 2t+1]  a[2] = A[g][2t+8, 2t+9]  a[3] = A[g+8][2t+8, 2t+9]
//   b[0] = B[2t, 2t+1][g]  b[1] = B[2t+8, 2t+9][g]
//   d[0], d[1] = D[g][2t, 2t+1]   d[2], d[3] = D[g+8][2t, 2t+1]
// ldmatrix: r[j] = M_j[g][2t, 2t+1] of the matrix whose rows lanes 8j to 8j+7 point at; _trans: M_j[2t, 2t+1][g].
#pragma once

#include <cstddef>
#include <cstdint>

struct alignas(2) bf16 {
    uint16_t bits;
};

struct alignas(2) half16 {
    uint16_t bits;
};

#ifndef __CUDACC__
#include "host/simt.h"
#else

#define KERNEL __global__
#define DEVICE __device__ __forceinline__
#define HOST_DEVICE __host__ __device__ __forceinline__
#define LAUNCH(...) launch_kernel(__VA_ARGS__)
#define SHARED(type, name)                                            \
    extern __shared__ __align__(128) unsigned char dynamic_shared[]; \
    type* const name = reinterpret_cast<type*>(dynamic_shared)

// -- launches, on the host ---------------------------------------------------------------------------------------------

inline int device_attribute(cudaDeviceAttr attribute) {
    int device = 0, value = 0;
    if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess) {
        cudaGetLastError();  // the launch that follows says it better
        return 0;
    }
    return value;
}

inline int shared_limit() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

template <typename... P, typename... A>
const char* launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, void* stream, A... args) {
    if (shared_bytes > 48 * 1024) {  // more must be asked for
        const cudaError_t failed = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        if (failed != cudaSuccess) {
            cudaGetLastError();
            return cudaGetErrorString(failed);
        }
    }
    kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(static_cast<P>(args)...);
    const cudaError_t failed = cudaGetLastError();
    return failed == cudaSuccess ? nullptr : cudaGetErrorString(failed);
}

// -- 16-bit types ------------------------------------------------------------------------------------------------------

DEVICE float to_float(float x) { return x; }

DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

DEVICE float to_float(half16 x) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
    return f;
}

template <typename T>
DEVICE T from_float(float f);

template <>
DEVICE float from_float<float>(float f) {
    return f;
}

template <>
DEVICE bf16 from_float<bf16>(float f) {
    bf16 x;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(x.bits) : "f"(f));
    return x;
}

template <>
DEVICE half16 from_float<half16>(float f) {
    half16 x;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(x.bits) : "f"(f));
    return x;
}

template <typename T>
DEVICE uint32_t pack2(T lo, T hi) {
    return static_cast<uint32_t>(lo.bits) | static_cast<uint32_t>(hi.bits) << 16;
}

template <typename T>
DEVICE uint32_t pack2(float lo, float hi);

template <>
DEVICE uint32_t pack2<bf16>(float lo, float hi) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(hi), "f"(lo));
    return packed;
}

template <>
DEVICE uint32_t pack2<half16>(float lo, float hi) {
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(hi), "f"(lo));
    return packed;
}

template <typename T>
DEVICE float2 unpack2(uint32_t packed) {
    const T lo = {static_cast<uint16_t>(packed)}, hi = {static_cast<uint16_t>(packed >> 16)};
    return make_float2(to_float(lo), to_float(hi));
}

// -- the warp's matrices -----------------------------------------------------------------------------------------------

template <typename T>
DEVICE void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define DEFINE_MMA(type, name)                                                                      \
    template <>                                                                                     \
    DEVICE void mma_16816<type>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {    \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 "                 \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"              \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                               \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));           \
    }
DEFINE_MMA(bf16, "bf16")
DEFINE_MMA(half16, "f16")
#undef DEFINE_MMA

DEVICE uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// -- copies under way --------------------------------------------------------------------------------------------------

DEVICE void cp_async_16(void* to, const void* from, bool valid) {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes)
                 : "memory");
}

DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int N>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

DEVICE void sincos_pi(float x, float& s, float& c) { sincospif(x, &s, &c); }

#endif
