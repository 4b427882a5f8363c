// Whether the current device can run what is in this library: a kernel that does nothing.
#include "device.h"

namespace {

KERNEL void nothing() {}

}  // namespace

extern "C" const char* probe_launch(void* stream) { return LAUNCH(nothing, 1, 1, 0, stream); }
