#include <cuda_runtime_api.h>

#include "backend/cuda/cuda_check.h"
#include "backend/cuda/tensor_copy.cuh"
#include "core/error.h"

namespace polar::backend::cuda {
namespace {

/// The driver is not linked: its function is asked for.
CUtensorMap encode(const void* data, int rank, const cuuint64_t* size, const cuuint64_t* strides,
                   const cuuint32_t* box) {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    POLAR_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                cudaEnableDefault, &result));
    POLAR_CHECK(result == cudaDriverEntryPointSuccess);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  constexpr cuuint32_t kOne[] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  POLAR_CHECK(function(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, const_cast<void*>(data), size,
                       strides, box, kOne, CU_TENSOR_MAP_INTERLEAVE_NONE,
                       CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                       CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS);
  return map;
}

}  // namespace

CUtensorMap tensor_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                       int box_rows) {
  const cuuint64_t size[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * 2};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows)};
  return encode(data, 2, size, strides, box);
}

CUtensorMap tensor_map_of_groups(const void* data, int halves, int64_t rows, int64_t columns,
                                 int box_groups, int box_panels) {
  const auto row_bytes = static_cast<cuuint64_t>(columns) * 2;
  const cuuint64_t size[] = {64, 8, static_cast<cuuint64_t>(columns / 64),
                             static_cast<cuuint64_t>(halves), static_cast<cuuint64_t>(rows / 8)};
  const cuuint64_t strides[] = {row_bytes, 128, row_bytes * static_cast<cuuint64_t>(rows),
                                row_bytes * 8};
  const cuuint32_t box[] = {64, 8, static_cast<cuuint32_t>(box_panels),
                            static_cast<cuuint32_t>(halves), static_cast<cuuint32_t>(box_groups)};
  return encode(data, 5, size, strides, box);
}

}  // namespace polar::backend::cuda
