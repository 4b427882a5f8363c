// The Toeplitz kernels of gated_long_conv for torch: cuda_toeplitz.py says what is given to them.
#include <algorithm>

#include "binding.h"

extern "C" {
const char* toeplitz_forward(const void* z, const void* u, const float* taps, const float* taps_residual,
                             const float* bias, const float* bias_residual, const float* short_weight,
                             const float* short_bias, const void* mask, void* mixed, int64_t channels,
                             int64_t sequences, int64_t length, int64_t directions, int64_t count,
                             int64_t directions_residual, int64_t count_residual, int half, void* stream);
const char* toeplitz_backward(const void* z, const void* gradient, const float* taps, const float* bias,
                              const float* short_weight, const float* short_bias, const void* mask, void* of_z,
                              float* of_taps, float* of_short, int64_t channels, int64_t sequences, int64_t length,
                              int64_t directions, int64_t count, int64_t splits, int half, void* stream);
const char* toeplitz_backward_residual(const void* u, const void* gradient, const float* taps, const float* bias,
                                       const void* mask, void* of_u, float* of_taps, int64_t channels,
                                       int64_t sequences, int64_t length, int64_t directions, int64_t count,
                                       int64_t splits, int half, void* stream);
}

namespace {

using binding::ScalarType;
using binding::Tensor;
using Maybe = std::optional<Tensor>;

// Sizes that every operand must agree with; signals are of 16 bits.
struct Signals {
    const int64_t channels, sequences, length;
    const ScalarType type;

    Signals(const char* op, const Tensor& signal, int64_t thirds)
        : channels(signal.size(0) / thirds), sequences(signal.size(1)), length(signal.size(2)),
          type(signal.scalar_type()) {
        STD_TORCH_CHECK(half() || type == ScalarType::BFloat16, op, ": signals are of ", binding::name(type),
                        ", not bfloat16 or float16");
    }
    bool half() const { return type == ScalarType::Half; }
};

void forward(const Tensor& z, const Maybe& u, const Tensor& taps, const Maybe& taps_residual, const Tensor& bias,
             const Maybe& bias_residual, const Tensor& short_weight, const Tensor& short_bias, const Maybe& mask,
             const Tensor& mixed) {
    const binding::Launch launch("toeplitz_forward", z);
    const Signals of("toeplitz_forward", z, 3);
    const int64_t c = of.channels, b = of.sequences, s = of.length, d = taps.size(0), r = taps.size(2);
    STD_TORCH_CHECK(u.has_value() == taps_residual.has_value() && u.has_value() == bias_residual.has_value(),
                    "toeplitz_forward: u, taps_residual and bias_residual belong together");
    const int64_t more_d = u ? taps_residual->size(0) : 0, more_r = u ? taps_residual->size(2) : 0;
    constexpr auto wide = ScalarType::Float;
    launch.done(toeplitz_forward(
        launch.data(z, "z", of.type, {3 * c, b, s}), launch.data(u, "u", of.type, {c, b, s}),
        launch.data<float>(taps, "taps", wide, {d, c, r}),
        launch.data<float>(taps_residual, "taps_residual", wide, {more_d, c, more_r}),
        launch.data<float>(bias, "bias", wide, {c}), launch.data<float>(bias_residual, "bias_residual", wide, {c}),
        launch.data<float>(short_weight, "short_weight", wide, {3 * c, 3}),
        launch.data<float>(short_bias, "short_bias", wide, {3 * c}),
        launch.data(mask, "mask", ScalarType::Bool, {b, s}), launch.data(mixed, "mixed", of.type, {c, b, s}), c, b, s,
        d, r, more_d, more_r, of.half(), launch.stream()));
}

void backward(const Tensor& z, const Tensor& gradient, const Tensor& taps, const Tensor& bias,
              const Tensor& short_weight, const Tensor& short_bias, const Maybe& mask, const Tensor& of_z,
              const Tensor& of_taps, const Tensor& of_short) {
    const binding::Launch launch("toeplitz_backward", z);
    const Signals of("toeplitz_backward", z, 3);
    const int64_t c = of.channels, b = of.sequences, s = of.length, d = taps.size(0), r = taps.size(2);
    const int64_t splits = of_taps.size(0);
    constexpr auto wide = ScalarType::Float;
    launch.done(toeplitz_backward(
        launch.data(z, "z", of.type, {3 * c, b, s}), launch.data(gradient, "gradient", of.type, {c, b, s}),
        launch.data<float>(taps, "taps", wide, {d, c, r}), launch.data<float>(bias, "bias", wide, {c}),
        launch.data<float>(short_weight, "short_weight", wide, {3 * c, 3}),
        launch.data<float>(short_bias, "short_bias", wide, {3 * c}),
        launch.data(mask, "mask", ScalarType::Bool, {b, s}), launch.data(of_z, "of_z", of.type, {3 * c, b, s}),
        launch.data<float>(of_taps, "of_taps", wide, {splits, d, c, std::min(r, s)}),
        launch.data<float>(of_short, "of_short", wide, {splits, 3 * c, 4}), c, b, s, d, r, splits, of.half(),
        launch.stream()));
}

void backward_residual(const Tensor& u, const Tensor& gradient, const Tensor& taps, const Tensor& bias,
                       const Maybe& mask, const Tensor& of_u, const Tensor& of_taps) {
    const binding::Launch launch("toeplitz_backward_residual", u);
    const Signals of("toeplitz_backward_residual", u, 1);
    const int64_t c = of.channels, b = of.sequences, s = of.length, d = taps.size(0), r = taps.size(2);
    const int64_t splits = of_taps.size(0);
    constexpr auto wide = ScalarType::Float;
    launch.done(toeplitz_backward_residual(
        launch.data(u, "u", of.type, {c, b, s}), launch.data(gradient, "gradient", of.type, {c, b, s}),
        launch.data<float>(taps, "taps", wide, {d, c, r}), launch.data<float>(bias, "bias", wide, {c}),
        launch.data(mask, "mask", ScalarType::Bool, {b, s}), launch.data(of_u, "of_u", of.type, {c, b, s}),
        launch.data<float>(of_taps, "of_taps", wide, {splits, d, c, std::min(r, s)}), c, b, s, d, r, splits,
        of.half(), launch.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cramming_kernels, m) {
    m.def(
        "toeplitz_forward(Tensor z, Tensor? u, Tensor taps, Tensor? taps_residual, Tensor bias, Tensor? bias_residual, "
        "Tensor short_weight, Tensor short_bias, Tensor? mask, Tensor(a!) mixed) -> ()");
    m.def(
        "toeplitz_backward(Tensor z, Tensor gradient, Tensor taps, Tensor bias, Tensor short_weight, "
        "Tensor short_bias, Tensor? mask, Tensor(a!) of_z, Tensor(b!) of_taps, Tensor(c!) of_short) -> ()");
    m.def(
        "toeplitz_backward_residual(Tensor u, Tensor gradient, Tensor taps, Tensor bias, Tensor? mask, "
        "Tensor(a!) of_u, Tensor(b!) of_taps) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(cramming_kernels, CUDA, m) {
    m.impl("toeplitz_forward", TORCH_BOX(&forward));
    m.impl("toeplitz_backward", TORCH_BOX(&backward));
    m.impl("toeplitz_backward_residual", TORCH_BOX(&backward_residual));
}
