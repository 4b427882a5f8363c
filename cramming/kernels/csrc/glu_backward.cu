// block_diagonal_glu of 16-bit operands, backward through the outer layer and the activation, in one pass.
//
// A thread block holds the gradient of an outer block's outputs; a tile's product with w_out is the middle's gradient,
// which stays in registers. Gates and values are read into others as the product begins, 16 bytes at a time; of all
// three come the gradients of gates and values, and the middle again, for the gradient of w_out. Per token there are
// 2 q m + 4 q n bytes to read, 6 q n to write and 2 q m n operations: memory takes longest. glu.h: how it all lies.
#include "glu.h"

namespace glu {

template <typename T>
struct Backward {
    const T *gradient, *w_out, *kept;  // (T, q m), (q, n, m), (T, 2 q n)
    T *of_kept, *middle;               // (T, 2 q n), (T, q n)
};

template <typename T, int ROWS>
struct Slopes {
    const Backward<T>& given;
    const Work& work;
    const Sizes& sizes;
    uint4 gates[2 * ROWS], values[2 * ROWS];

    // Of the lane's first token, in rows of `pitch`; false: there are none.
    DEVICE bool place(int64_t& at, int tile, int64_t pitch) const {
        const int hidden = tile * tile_hidden + work.column;
        at = work.own * pitch + static_cast<int64_t>(work.block) * sizes.width + hidden;
        return hidden < sizes.width;
    }

    DEVICE void begin(int tile) {
        const int64_t all = sizes.hidden();
        int64_t at;
        if (!place(at, tile, 2 * all)) return;
        const T* from = given.kept + at;
#pragma unroll
        for (int n = 0; n < 2 * ROWS; n++, from += 16 * all) {
            if (n * 8 >= work.left) return;
            gates[n] = *reinterpret_cast<const uint4*>(from);
            values[n] = *reinterpret_cast<const uint4*>(from + all);
        }
    }

    DEVICE void end(int tile, const Sums<ROWS> (&sums)[1]) {
        const int64_t all = sizes.hidden();
        int64_t at, middle_at;
        if (!(place(at, tile, 2 * all) && place(middle_at, tile, all))) return;
        T *to = given.of_kept + at, *middle_to = given.middle + middle_at;
#pragma unroll
        for (int n = 0; n < 2 * ROWS; n++, to += 16 * all, middle_to += 8 * all) {
            if (n * 8 >= work.left) return;
            const float(&own)[4][4] = sums[0][n / 2];
            uint4 of_gate, of_value, middle;
            two(gates[n].x, values[n].x, &own[0][n % 2 * 2], of_gate.x, of_value.x, middle.x);
            two(gates[n].y, values[n].y, &own[1][n % 2 * 2], of_gate.y, of_value.y, middle.y);
            two(gates[n].z, values[n].z, &own[2][n % 2 * 2], of_gate.z, of_value.z, middle.z);
            two(gates[n].w, values[n].w, &own[3][n % 2 * 2], of_gate.w, of_value.w, middle.w);
            *reinterpret_cast<uint4*>(to) = of_gate;
            *reinterpret_cast<uint4*>(to + all) = of_value;
            *reinterpret_cast<uint4*>(middle_to) = middle;
        }
    }

    // Of two hidden channels.
    DEVICE static void two(uint32_t gates, uint32_t values, const float* slope, uint32_t& of_gates, uint32_t& of_values,
                           uint32_t& middle) {
        const float2 gate = unpack2<T>(gates), value = unpack2<T>(values);
        const float outside[2] = {beyond(gate.x), beyond(gate.y)};
        const float active[2] = {gelu(gate.x, outside[0]), gelu(gate.y, outside[1])};
        of_gates = pack2<T>(slope[0] * value.x * slope_of_gelu(gate.x, outside[0]),
                            slope[1] * value.y * slope_of_gelu(gate.y, outside[1]));
        of_values = pack2<T>(slope[0] * active[0], slope[1] * active[1]);
        middle = pack2<T>(active[0] * value.x, active[1] * value.y);
    }
};

template <typename T, int ROWS>
KERNEL void __launch_bounds__(threads, 2) backward(Backward<T> given, Sizes sizes) {
    SHARED(uint4, shared);
    const Work work(sizes, ROWS);
    const int64_t terms = sizes.terms, block = work.block;
    const Operand<T> of[1] = {
        {given.gradient + block * terms, sizes.blocks * terms, given.w_out + block * sizes.width * terms}};
    Slopes<T, ROWS> part{given, work, sizes, {}, {}};
    run_through<T, ROWS, 1>(shared, of, work, sizes, part);
}

}  // namespace glu

// gradient (T, q m), w_out turned (q, n, m), kept (T, 2 q n) -> of_kept (T, 2 q n), middle (T, q n); `half`: float16.
extern "C" const char* glu_backward(const void* gradient, const void* w_out, const void* kept, void* of_kept,
                                    void* middle, int64_t tokens, int64_t blocks, int64_t outputs, int64_t inner,
                                    int half, void* stream) {
    using namespace glu;
    if (const char* why = refused(tokens, blocks, outputs, inner)) return why;
    if (!(aligned(gradient) && aligned(w_out) && aligned(kept) && aligned(of_kept) && aligned(middle)))
        return "operands begin at no multiple of 16 bytes";
    Sizes sizes(tokens, blocks, outputs, inner);
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        const Backward<T> given = {static_cast<const T*>(gradient), static_cast<const T*>(w_out),
                                   static_cast<const T*>(kept), static_cast<T*>(of_kept), static_cast<T*>(middle)};
        return launched(sizes, 1, [&](auto rows, dim3 grid, size_t bytes) {
            return LAUNCH((backward<T, decltype(rows)::value>), grid, dim3(threads), bytes, stream, given, sizes);
        });
    };
    return half ? run(half16{}) : run(bf16{});
}
