// The kernels of block_diagonal_glu for torch: cuda_glu.py says what is given to them.
#include "binding.h"

extern "C" {
const char* glu_forward(const void* x, const void* w_gate, const void* w_value, void* middle, void* kept,
                        int64_t tokens, int64_t pairs, int64_t inputs, int64_t width, int half, void* stream);
const char* glu_backward(const void* gradient, const void* w_out, const void* kept, void* of_kept, void* middle,
                         int64_t tokens, int64_t blocks, int64_t outputs, int64_t inner, int half, void* stream);
}

namespace {

using binding::ScalarType;
using binding::Tensor;

ScalarType type_of(const char* op, const Tensor& leader) {
    const ScalarType type = leader.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Half || type == ScalarType::BFloat16, op, ": operands are of ",
                    binding::name(type), ", not bfloat16 or float16");
    return type;
}

void forward(const Tensor& x, const Tensor& w_gate, const Tensor& w_value, const Tensor& middle,
             const std::optional<Tensor>& kept) {
    const binding::Launch launch("glu_forward", x);
    const ScalarType type = type_of("glu_forward", x);
    const int64_t tokens = x.size(0), pairs = w_gate.size(0), width = w_gate.size(1), inputs = w_gate.size(2);
    launch.done(glu_forward(
        launch.data(x, "x", type, {tokens, 2 * pairs * inputs}),
        launch.data(w_gate, "w_gate", type, {pairs, width, inputs}),
        launch.data(w_value, "w_value", type, {pairs, width, inputs}),
        launch.data(middle, "middle", type, {tokens, pairs * width}),
        launch.data(kept, "kept", type, {tokens, 2 * pairs * width}), tokens, pairs, inputs, width,
        type == ScalarType::Half, launch.stream()));
}

void backward(const Tensor& gradient, const Tensor& w_out, const Tensor& kept, const Tensor& of_kept,
              const Tensor& middle) {
    const binding::Launch launch("glu_backward", gradient);
    const ScalarType type = type_of("glu_backward", gradient);
    const int64_t tokens = gradient.size(0), blocks = w_out.size(0), inner = w_out.size(1), outputs = w_out.size(2);
    launch.done(glu_backward(
        launch.data(gradient, "gradient", type, {tokens, blocks * outputs}),
        launch.data(w_out, "w_out", type, {blocks, inner, outputs}),
        launch.data(kept, "kept", type, {tokens, 2 * blocks * inner}),
        launch.data(of_kept, "of_kept", type, {tokens, 2 * blocks * inner}),
        launch.data(middle, "middle", type, {tokens, blocks * inner}), tokens, blocks, outputs, inner,
        type == ScalarType::Half, launch.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cramming_kernels, m) {
    m.def("glu_forward(Tensor x, Tensor w_gate, Tensor w_value, Tensor(a!) middle, Tensor(b!)? kept) -> ()");
    m.def("glu_backward(Tensor gradient, Tensor w_out, Tensor kept, Tensor(a!) of_kept, Tensor(b!) middle) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(cramming_kernels, CUDA, m) {
    m.impl("glu_forward", TORCH_BOX(&forward));
    m.impl("glu_backward", TORCH_BOX(&backward));
}
