// Stands in for the CUDA backend in a build without nvcc.

#include "backend/device.h"

namespace polar::backend {

Result<std::unique_ptr<Device>> make_cuda_device() {
  return bad_input("device", "cuda", "a Polar that was built without CUDA",
                   "one built where nvcc is found");
}

bool has_gpu() {
  return false;
}

}  // namespace polar::backend
