#pragma once
// Clusters of blocks (sm_90) that read each other's shared memory. PTX ISA, "Cluster of cooperative
// thread arrays". Before sm_90 a block is alone.

#include <cstdint>

namespace polar::backend::cuda {

#if __CUDA_ARCH__ >= 900
#define POLAR_CLUSTER "shared::cluster"
#else
#define POLAR_CLUSTER "shared"
#endif

/// Where `address` of this block's shared memory stands in that of the cluster's block `rank`.
__device__ __forceinline__ uint32_t cluster_address(uint32_t address, int rank) {
#if __CUDA_ARCH__ >= 900
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
#else
  return address;
#endif
}
__device__ __forceinline__ float load_cluster(uint32_t address) {
  float v;
  asm volatile("ld." POLAR_CLUSTER ".f32 %0, [%1];" : "=f"(v) : "r"(address));
  return v;
}
__device__ __forceinline__ int4 load_cluster16(uint32_t address) {
  int4 v;
  asm volatile("ld." POLAR_CLUSTER ".v4.s32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address));
  return v;
}
__device__ __forceinline__ void store_cluster(uint32_t address, int value) {
  asm volatile("st." POLAR_CLUSTER ".s32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ void add_cluster(uint32_t address, int value) {
  asm volatile("red." POLAR_CLUSTER ".add.s32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
/// All threads of a cluster; what they wrote before is seen after.
__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#else
  __syncthreads();
#endif
}

#undef POLAR_CLUSTER

}  // namespace polar::backend::cuda
