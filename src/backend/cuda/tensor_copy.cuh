#pragma once
// Copies of boxes of a matrix into shared memory by the tensor memory accelerator (sm_90). PTX ISA,
// "cp.async.bulk.tensor"; CUDA driver API, cuTensorMapEncodeTiled. A box stands there in rows of
// 128 bytes as WGMMA wants them (wgmma.cuh); what lies outside of the matrix is zero.

#include <cuda.h>

#include <cstdint>

namespace polar::backend::cuda {

/// A matrix of bf16, [rows][columns], of which boxes of `box_rows` rows by 64 columns are copied.
/// `stride` is in values, % 8 == 0.
CUtensorMap tensor_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                       int box_rows);
/// A matrix copied in groups of eight rows by panels of 64 columns: boxes stand in shared memory as
/// [groups][halves][panels][8][64], so that what is neighbours in a row is asked for together, as
/// memory likes it. With two halves the groups of the second, which begins `rows` further on, stand
/// between those of the first. rows % 8 == 0, columns % 64 == 0, rows follow each other.
CUtensorMap tensor_map_of_groups(const void* data, int halves, int64_t rows, int64_t columns,
                                 int box_groups, int box_panels);

#if __CUDA_ARCH__ >= 900
/// For what is read once.
__device__ __forceinline__ uint64_t evict_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
/// The box that begins at `row` and `column`; its bytes are counted at `barrier`.
__device__ __forceinline__ void tensor_copy(uint32_t to, const CUtensorMap& map, int row,
                                            int column, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void tensor_copy_groups(uint32_t to, const CUtensorMap& map, int group,
                                                   int panel, uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %2, %3, %2, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(0), "r"(panel), "r"(group), "r"(barrier), "l"(policy)
      : "memory");
}
/// The first copy need not wait for the map.
__device__ __forceinline__ void fetch_tensor_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
#endif

}  // namespace polar::backend::cuda
