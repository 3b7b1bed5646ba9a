#pragma once
// Clusters of blocks (sm_90) that read each other's shared memory. PTX ISA, "Cluster of cooperative
// thread arrays".

#include <cstdint>

namespace polar::backend::cuda {

#if __CUDA_ARCH__ >= 900
/// Where `address` of this block's shared memory stands in that of the cluster's block `rank`.
__device__ __forceinline__ uint32_t cluster_address(uint32_t address, int rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
__device__ __forceinline__ float load_cluster(uint32_t address) {
  float v;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(address));
  return v;
}
/// All threads of a cluster; what they wrote before is seen after.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
#endif

}  // namespace polar::backend::cuda
