#include "cli/open_device.h"

#include <cstdio>

namespace polar::cli {

Result<std::unique_ptr<backend::Device>> open_device(const ModelFlags& flags) {
  if (flags.device != "cpu") {
    auto cuda = backend::make_cuda_device();
    if (cuda.ok() || flags.device == "cuda") return cuda;
    if (backend::has_gpu())
      std::fprintf(stderr, "polar: the CPU computes: %s\n", cuda.error().message.c_str());
  }
  return backend::make_cpu_device({flags.threads});
}

DType kv_dtype(const ModelFlags& flags, const backend::Device& device) {
  if (flags.kv_dtype == "f32") return DType::kF32;
  if (flags.kv_dtype == "f16") return DType::kF16;
  if (flags.kv_dtype == "bf16") return DType::kBF16;
  return device.info().default_kv;
}

}  // namespace polar::cli
