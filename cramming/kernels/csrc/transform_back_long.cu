// Gradients of both gated long convolutions, by transforms: see transform_back.h. Long sequences.
#include "transform_back.h"

const char* transform::launch_back_long(const Given& given, const Back& back, int64_t splits, void* stream) {
    return launch_back<short_log + 1, most_log>(given, back, splits, stream);
}
