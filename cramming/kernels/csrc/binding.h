// Between torch's stable ABI and launchers: checks of tensors, and the device and stream that a launch goes to.
//
//   void scale(const Tensor& x, const std::optional<Tensor>& mask, const Tensor& out, double factor) {
//       const binding::Launch launch("scale", x);
//       const int64_t rows = x.size(0), columns = x.size(1);
//       launch.done(scale_launch(launch.data(x, "x", ScalarType::Float, {rows, columns}),
//                                launch.data(mask, "mask", ScalarType::Bool, {rows}),  // null where there is none
//                                launch.data(out, "out", ScalarType::Float, {rows, columns}),
//                                rows, columns, factor, launch.stream()));
//   }
//   STABLE_TORCH_LIBRARY_FRAGMENT(cramming_kernels, m) {
//       m.def("scale(Tensor x, Tensor? mask, Tensor(a!) out, float factor) -> ()");
//   }
//   STABLE_TORCH_LIBRARY_IMPL(cramming_kernels, CUDA, m) { m.impl("scale", TORCH_BOX(&scale)); }
//
// Functions registered so live in a namespace of their own (their names would meet those of launchers), and nothing
// here is newer than torch 2.11 (build.py compiles for it).
#pragma once

#include <dlfcn.h>

#include <initializer_list>
#include <optional>
#include <string>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const char* name(ScalarType type) {
    switch (type) {
        case ScalarType::Float: return "float32";
        case ScalarType::Double: return "float64";
        case ScalarType::BFloat16: return "bfloat16";
        case ScalarType::Half: return "float16";
        case ScalarType::Bool: return "bool";
        case ScalarType::Byte: return "uint8";
        case ScalarType::Int: return "int32";
        case ScalarType::Long: return "int64";
        default: return "another type";
    }
}

// The handle of the current stream. Torch's stable interface has it from 2.13; before, only libtorch_cuda has, which
// a library that also loads beside a torch without it cannot be linked against.
inline void* current_stream(int32_t device) {
    using Asked = AOTITorchError (*)(int32_t, void**);
    static const Asked asked = [] {
        void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
        return reinterpret_cast<Asked>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
    }();
    void* stream = nullptr;
    STD_TORCH_CHECK(asked, "this torch has no CUDA");
    TORCH_ERROR_CODE_CHECK(asked(device, &stream));
    return stream;
}

// One call of an operation: on the device of one of its tensors, which is made current as long as this lives.
class Launch {
  public:
    Launch(const char* op, const Tensor& leader)
        : op(op), device(leader.get_device_index()), guard(leader.is_cuda() ? device : refuse(op)) {}

    // Of a contiguous tensor of this type and these sizes on the call's device; raises otherwise.
    template <typename T = void>
    T* data(const Tensor& tensor, const char* name, ScalarType type, std::initializer_list<int64_t> sizes) const {
        const auto found = tensor.sizes();
        bool fits = found.size() == sizes.size();
        for (size_t n = 0; fits && n < sizes.size(); n++) fits = found[n] == sizes.begin()[n];
        STD_TORCH_CHECK(fits, op, ": ", name, " has the shape (", said(found), "), not (", said(sizes), ")");
        STD_TORCH_CHECK(tensor.scalar_type() == type, op, ": ", name, " is of ", binding::name(tensor.scalar_type()),
                        ", not ", binding::name(type));
        STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, op, ": ", name, " is not on cuda:",
                        device);
        STD_TORCH_CHECK(tensor.is_contiguous(), op, ": ", name, " is not contiguous");
        return static_cast<T*>(tensor.data_ptr());
    }

    // The same of a tensor that may be missing: then null.
    template <typename T = void>
    T* data(const std::optional<Tensor>& tensor, const char* name, ScalarType type,
            std::initializer_list<int64_t> sizes) const {
        return tensor ? data<T>(*tensor, name, type, sizes) : nullptr;
    }

    void* stream() const { return current_stream(device); }

    // What a launcher gave back; raises if it is a complaint.
    void done(const char* why) const { STD_TORCH_CHECK(why == nullptr, op, ": ", why); }

  private:
    const char* const op;
    const int32_t device;
    const torch::stable::accelerator::DeviceGuard guard;

    static int32_t refuse(const char* op) { STD_TORCH_CHECK(false, op, ": its operands are not on a GPU"); }

    template <typename Sizes>
    static std::string said(const Sizes& sizes) {
        std::string text;
        for (const int64_t size : sizes) text += (text.empty() ? "" : ", ") + std::to_string(size);
        return text;
    }
};

}  // namespace binding
