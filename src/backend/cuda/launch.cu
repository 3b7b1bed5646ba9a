#include "backend/cuda/launch.cuh"

#include "backend/cuda/kernels.h"

namespace polar::backend::cuda {
namespace {

__global__ void probe_kernel() {}

}  // namespace

int code_version() {
  static const int version = [] {
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess)
      return attributes.ptxVersion;
    cudaGetLastError();  // the next check is not about this
    return 0;
  }();
  return version;
}

}  // namespace polar::backend::cuda
