#pragma once
// Launches that begin while the kernel before them still runs (programmatic dependent launch): what
// it costs to start a kernel is hidden. Such a kernel calls wait_for_previous before it touches
// memory, and may call let_next_begin as soon as its own blocks run.

#include <cuda_runtime.h>

namespace polar::backend::cuda {

__device__ __forceinline__ void wait_for_previous() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
__device__ __forceinline__ void let_next_begin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

template <typename Kernel, typename... Args>
cudaError_t launch_early(Kernel kernel, dim3 grid, int threads, size_t shared_bytes,
                         cudaStream_t stream, const Args&... args) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace polar::backend::cuda
