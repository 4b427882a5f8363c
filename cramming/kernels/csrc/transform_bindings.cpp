// The transforms of gated_long_conv for torch: cuda_transform.py says what is given to them.
#include "binding.h"

extern "C" {
int64_t transform_points(int64_t length);
int64_t transform_bytes(int64_t length, int filters, int back, int kept, int of_scratch);
const char* transform_forward(const void* z, const void* u, const void* taps, const void* taps_residual,
                              const void* bias, const void* bias_residual, const void* weight, const void* skip,
                              const void* mask, void* out, void* scratch, int64_t channels, int64_t sequences,
                              int64_t length, int64_t directions, int64_t rows, int64_t directions_residual,
                              int64_t rows_residual, int64_t kind, int64_t kept, int64_t splits, void* stream);
const char* transform_back(const void* z, const void* u, const void* taps, const void* taps_residual, const void* bias,
                           const void* bias_residual, const void* weight, const void* skip, const void* mask,
                           const void* gradient, void* of_z, void* of_u, void* of_filters, void* of_short,
                           void* scratch, int64_t channels, int64_t sequences, int64_t length, int64_t directions,
                           int64_t rows, int64_t directions_residual, int64_t rows_residual, int64_t kind, int64_t kept,
                           int64_t splits, void* stream);
}

namespace {

using binding::ScalarType;
using binding::Tensor;
using Maybe = std::optional<Tensor>;

// Sizes that every operand must agree with.
struct Sizes {
    int64_t channels, sequences, length, filters, directions, rows, more_directions, more_rows, kind;
    ScalarType type;

    Sizes(const char* op, const Tensor& z, const Maybe& u, const Tensor& taps, const Maybe& taps_residual)
        : channels(z.size(0) / 3), sequences(z.size(1)), length(z.size(2)), filters(u ? 2 : 1),
          directions(taps.size(0)), rows(taps.size(2)), more_directions(taps_residual ? taps_residual->size(0) : 0),
          more_rows(taps_residual ? taps_residual->size(2) : 0), type(z.scalar_type()) {
        kind = type == ScalarType::Float ? 0 : type == ScalarType::BFloat16 ? 1 : type == ScalarType::Half ? 2 : -1;
        STD_TORCH_CHECK(kind >= 0, op, ": signals are of ", binding::name(type),
                        ", not float32, bfloat16 or float16");
    }
    // Values of two floats that the scratch must hold.
    int64_t scratch(bool back, int64_t kept, int64_t splits) const {
        const int64_t each = transform_bytes(length, static_cast<int>(filters), back, static_cast<int>(kept), 1);
        return each / 4 * channels * splits * (back ? filters : 1);
    }
};

// Operands in the order of operands.py, as launchers take them: f(z, u, taps, ..., mask).
template <typename F>
void given(const binding::Launch& launch, const Sizes& of, const Tensor& z, const Maybe& u, const Tensor& taps,
           const Maybe& taps_residual, const Tensor& bias, const Maybe& bias_residual, const Tensor& short_weight,
           const Tensor& short_bias, const Maybe& mask, F f) {
    constexpr auto wide = ScalarType::Float;
    const int64_t c = of.channels;
    launch.done(f(launch.data(z, "z", of.type, {3 * c, of.sequences, of.length}),
                  launch.data(u, "u", of.type, {c, of.sequences, of.length}),
                  launch.data(taps, "taps", wide, {of.directions, c, of.rows}),
                  launch.data(taps_residual, "taps_residual", wide, {of.more_directions, c, of.more_rows}),
                  launch.data(bias, "bias", wide, {c}), launch.data(bias_residual, "bias_residual", wide, {c}),
                  launch.data(short_weight, "short_weight", wide, {3 * c, 3}),
                  launch.data(short_bias, "short_bias", wide, {3 * c}),
                  launch.data(mask, "mask", ScalarType::Bool, {of.sequences, of.length})));
}

void forward(const Tensor& z, const Maybe& u, const Tensor& taps, const Maybe& taps_residual, const Tensor& bias,
             const Maybe& bias_residual, const Tensor& short_weight, const Tensor& short_bias, const Maybe& mask,
             const Tensor& mixed, const Tensor& scratch, int64_t kept, int64_t splits) {
    const binding::Launch launch("transform_forward", z);
    const Sizes of("transform_forward", z, u, taps, taps_residual);
    void* const out = launch.data(mixed, "mixed", of.type, {of.channels, of.sequences, of.length});
    void* const aside = launch.data(scratch, "scratch", ScalarType::Float, {of.scratch(false, kept, splits)});
    given(launch, of, z, u, taps, taps_residual, bias, bias_residual, short_weight, short_bias, mask,
          [&](auto... operands) {
              return transform_forward(operands..., out, aside, of.channels, of.sequences, of.length, of.directions,
                                       of.rows, of.more_directions, of.more_rows, of.kind, kept, splits,
                                       launch.stream());
          });
}

void back(const Tensor& z, const Maybe& u, const Tensor& taps, const Maybe& taps_residual, const Tensor& bias,
          const Maybe& bias_residual, const Tensor& short_weight, const Tensor& short_bias, const Maybe& mask,
          const Tensor& gradient, const Tensor& of_z, const Maybe& of_u, const Tensor& of_filters,
          const Tensor& of_short, const Tensor& scratch, int64_t kept, int64_t splits) {
    const binding::Launch launch("transform_back", z);
    const Sizes of("transform_back", z, u, taps, taps_residual);
    constexpr auto wide = ScalarType::Float;
    const int64_t c = of.channels, b = of.sequences, s = of.length;
    STD_TORCH_CHECK(u.has_value() == of_u.has_value(), "transform_back: u and of_u belong together");
    void* const slopes = launch.data(gradient, "gradient", of.type, {c, b, s});
    void* const slopes_z = launch.data(of_z, "of_z", of.type, {3 * c, b, s});
    void* const slopes_u = launch.data(of_u, "of_u", of.type, {c, b, s});
    void* const lags = launch.data(of_filters, "of_filters", wide, {splits, of.filters, 2, c, transform_points(s)});
    void* const sums = launch.data(of_short, "of_short", wide, {splits, 3, c, 4});
    void* const aside = launch.data(scratch, "scratch", wide, {of.scratch(true, kept, splits)});
    given(launch, of, z, u, taps, taps_residual, bias, bias_residual, short_weight, short_bias, mask,
          [&](auto... operands) {
              return transform_back(operands..., slopes, slopes_z, slopes_u, lags, sums, aside, c, b, s, of.directions,
                                    of.rows, of.more_directions, of.more_rows, of.kind, kept, splits, launch.stream());
          });
}

int64_t bytes(int64_t length, int64_t filters, bool back, int64_t kept, bool of_scratch) {
    return transform_bytes(length, static_cast<int>(filters), back, static_cast<int>(kept), of_scratch);
}

int64_t points(int64_t length) { return transform_points(length); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cramming_kernels, m) {
    m.def(
        "transform_forward(Tensor z, Tensor? u, Tensor taps, Tensor? taps_residual, Tensor bias, "
        "Tensor? bias_residual, Tensor short_weight, Tensor short_bias, Tensor? mask, Tensor(a!) mixed, "
        "Tensor(b!) scratch, int kept, int splits) -> ()");
    m.def(
        "transform_back(Tensor z, Tensor? u, Tensor taps, Tensor? taps_residual, Tensor bias, Tensor? bias_residual, "
        "Tensor short_weight, Tensor short_bias, Tensor? mask, Tensor gradient, Tensor(a!) of_z, Tensor(b!)? of_u, "
        "Tensor(c!) of_filters, Tensor(d!) of_short, Tensor(e!) scratch, int kept, int splits) -> ()");
    m.def("transform_bytes(int length, int filters, bool back, int kept, bool of_scratch) -> int");
    m.def("transform_points(int length) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(cramming_kernels, CompositeExplicitAutograd, m) {
    m.impl("transform_bytes", TORCH_BOX(&bytes));
    m.impl("transform_points", TORCH_BOX(&points));
}

STABLE_TORCH_LIBRARY_IMPL(cramming_kernels, CUDA, m) {
    m.impl("transform_forward", TORCH_BOX(&forward));
    m.impl("transform_back", TORCH_BOX(&back));
}
