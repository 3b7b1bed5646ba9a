#pragma once
// Launches that begin while the kernel before them still runs (programmatic dependent launch): what
// it costs to start a kernel is hidden. Such a kernel calls wait_for_previous before it touches
// memory, and may call let_next_begin as soon as its own blocks run. Before sm_90 there is no such
// thing: kernels run one after the other.

#include <cuda_runtime.h>

#include "backend/cuda/kernels.h"

namespace polar::backend::cuda {

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// `cluster` neighbouring blocks run side by side (1: no clusters).
template <typename Kernel, typename... Args>
cudaError_t launch_early_clusters(Kernel kernel, dim3 grid, int cluster, int threads,
                                  size_t shared_bytes, cudaStream_t stream, const Args&... args) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(cluster);
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = code_version() < 90 ? 0 : cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, args...);
}
template <typename Kernel, typename... Args>
cudaError_t launch_early(Kernel kernel, dim3 grid, int threads, size_t shared_bytes,
                         cudaStream_t stream, const Args&... args) {
  return launch_early_clusters(kernel, grid, 1, threads, shared_bytes, stream, args...);
}

}  // namespace polar::backend::cuda
