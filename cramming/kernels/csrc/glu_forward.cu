// block_diagonal_glu of 16-bit operands, forward, up to the middle: gates, values and gelu(gates) * values in one pass.
//
// A thread block holds the inputs of a pair's gates and of its values, two products a tile of hidden channels. Of both
// sums the middle is made in float32 and rounded once; it is written, gates and values beside it where they are kept.
// Per token 4 p i bytes are read, 2 p o written, and 4 p o more if kept; 4 p o i operations. glu.h: how it all lies.
#include "glu.h"

namespace glu {

template <typename T>
struct Forward {
    const T *x, *w_gate, *w_value;
    T *middle, *kept;  // (T, p o); (T, 2 p o) or null
};

template <typename T, int ROWS>
struct Activation {
    const Forward<T>& given;
    const Work& work;
    const Sizes& sizes;

    DEVICE void begin(int) {}

    DEVICE void end(int tile, const Sums<ROWS> (&sums)[2]) {
        const int hidden = tile * tile_hidden + work.column;
        if (hidden >= sizes.width) return;
        const int64_t all = sizes.hidden();
        const int64_t column = static_cast<int64_t>(work.block) * sizes.width + hidden;
        int64_t at = work.own * all + column, kept_at = work.own * 2 * all + column;
#pragma unroll
        for (int n = 0; n < 2 * ROWS; n++, at += 8 * all, kept_at += 16 * all) {
            if (n * 8 >= work.left) return;
            uint32_t gates[4], values[4], middle[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float *const gate = &sums[0][n / 2][e][n % 2 * 2], *const value = &sums[1][n / 2][e][n % 2 * 2];
                gates[e] = pack2<T>(gate[0], gate[1]);
                values[e] = pack2<T>(value[0], value[1]);
                middle[e] = pack2<T>(gelu(gate[0], beyond(gate[0])) * value[0],
                                     gelu(gate[1], beyond(gate[1])) * value[1]);
            }
            store(given.middle + at, middle);
            if (given.kept) {
                store(given.kept + kept_at, gates);
                store(given.kept + kept_at + all, values);
            }
        }
    }
    DEVICE static void store(T* to, const uint32_t (&words)[4]) {
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    }
};

template <typename T, int ROWS>
KERNEL void __launch_bounds__(threads, 2) forward(Forward<T> given, Sizes sizes) {
    SHARED(uint4, shared);
    const Work work(sizes, ROWS);
    const int64_t pitch = static_cast<int64_t>(sizes.blocks) * 2 * sizes.terms;
    const int64_t weights = static_cast<int64_t>(work.block) * sizes.width * sizes.terms;
    const T* const gates_of = given.x + static_cast<int64_t>(work.block) * sizes.terms;
    const Operand<T> of[2] = {{gates_of, pitch, given.w_gate + weights},
                              {gates_of + pitch / 2, pitch, given.w_value + weights}};
    Activation<T, ROWS> part{given, work, sizes};
    run_through<T, ROWS, 2>(shared, of, work, sizes, part);
}

}  // namespace glu

// x (T, 2 p i), w_gate and w_value (p, o, i) -> middle (T, p o), and kept (T, 2 p o) or null; `half`: float16.
extern "C" const char* glu_forward(const void* x, const void* w_gate, const void* w_value, void* middle, void* kept,
                                   int64_t tokens, int64_t pairs, int64_t inputs, int64_t width, int half,
                                   void* stream) {
    using namespace glu;
    if (const char* why = refused(tokens, pairs, inputs, width)) return why;
    if (!(aligned(x) && aligned(w_gate) && aligned(w_value) && aligned(middle) && aligned(kept)))
        return "operands begin at no multiple of 16 bytes";
    Sizes sizes(tokens, pairs, inputs, width);
    const auto run = [&](auto zero) {
        using T = decltype(zero);
        const Forward<T> given = {static_cast<const T*>(x), static_cast<const T*>(w_gate),
                                  static_cast<const T*>(w_value), static_cast<T*>(middle), static_cast<T*>(kept)};
        return launched(sizes, 2, [&](auto rows, dim3 grid, size_t bytes) {
            return LAUNCH((forward<T, decltype(rows)::value>), grid, dim3(threads), bytes, stream, given, sizes);
        });
    };
    return half ? run(half16{}) : run(bf16{});
}
