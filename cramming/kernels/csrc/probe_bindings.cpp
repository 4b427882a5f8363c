// What the library is, and whether a device can run it; both asked by cuda.py before anything else.
#include "binding.h"

extern "C" const char* probe_launch(void* stream);

namespace {

std::string build_info() { return CRAMMING_BUILD_INFO; }

std::string probe(int64_t device) {
    const torch::stable::accelerator::DeviceGuard guard(static_cast<int32_t>(device));
    const char* const why = probe_launch(binding::current_stream(static_cast<int32_t>(device)));
    return why ? why : "";
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cramming_kernels, m) {
    m.def("build_info() -> str");  // digest of the sources, compiler and targets, in words
    m.def("probe(int device) -> str");  // what keeps a device from running kernels, or nothing
}

STABLE_TORCH_LIBRARY_IMPL(cramming_kernels, CompositeExplicitAutograd, m) {
    m.impl("build_info", TORCH_BOX(&build_info));
    m.impl("probe", TORCH_BOX(&probe));
}
