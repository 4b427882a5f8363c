// Gradients of both gated long convolutions, by transforms: see transform_back.h. The launcher, and short sequences.
#include "transform_back.h"

using namespace transform;

// gradient (C, B, S) -> of_z, of_u, and sums of each split: of_filters (splits, K, 2, C, M), M the transform's points,
// of_short (splits, 3, C, 4). Others as for transform_forward; scratch for each of C splits K blocks.
extern "C" const char* transform_back(
    const void* z, const void* u, const void* taps, const void* taps_residual, const void* bias,
    const void* bias_residual, const void* weight, const void* skip, const void* mask, const void* gradient, void* of_z,
    void* of_u, void* of_filters, void* of_short, void* scratch, int64_t channels, int64_t sequences, int64_t length,
    int64_t directions, int64_t rows, int64_t directions_residual, int64_t rows_residual, int64_t kind, int64_t kept,
    int64_t splits, void* stream) {
    const Given given = {z, u, static_cast<const uint8_t*>(mask), static_cast<const float*>(weight),
                         static_cast<const float*>(skip), filter_of(taps, bias, directions, rows),
                         filter_of(taps_residual, bias_residual, directions_residual, rows_residual),
                         static_cast<float2*>(scratch), 0, static_cast<int>(kind), static_cast<int>(kept),
                         static_cast<int>(channels), static_cast<int>(sequences), static_cast<int>(length), u ? 2 : 1};
    if (const char* const why = complaint(given, splits)) return why;
    const Back back = {gradient, of_z, of_u, static_cast<float*>(of_filters), static_cast<float*>(of_short)};
    if (length > 1 << short_log) return launch_back_long(given, back, splits, stream);
    return launch_back<least_log, short_log>(given, back, splits, stream);
}
