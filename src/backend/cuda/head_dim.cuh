#pragma once
// The head_dims that there are attention kernels for.

#include <cuda_runtime_api.h>

#include <type_traits>

namespace polar::backend::cuda {

/// Calls `run` with the head_dim as a constant.
template <typename Run>
cudaError_t with_head_dim(int head_dim, Run run) {
  switch (head_dim) {
    case 64:
      return run(std::integral_constant<int, 64>());
    case 80:
      return run(std::integral_constant<int, 80>());
    case 96:
      return run(std::integral_constant<int, 96>());
    case 128:
      return run(std::integral_constant<int, 128>());
    case 256:
      return run(std::integral_constant<int, 256>());
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace polar::backend::cuda
