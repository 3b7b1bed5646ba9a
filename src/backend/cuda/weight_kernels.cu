// Weights on their way to the device: conversion, transposition, dummies.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend/cuda/kernels.h"

namespace polar::backend::cuda {
namespace {

__device__ inline float widened(float v) {
  return v;
}
__device__ inline float widened(__half v) {
  return __half2float(v);
}
__device__ inline float widened(__nv_bfloat16 v) {
  return __bfloat162float(v);
}

template <typename T>
__global__ void convert_kernel(const T* source, __nv_bfloat16* target, size_t count) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    target[i] = __float2bfloat16(widened(source[i]));
}

template <typename T>
__global__ void transpose_kernel(const T* source, __nv_bfloat16* target, int64_t rows,
                                 int64_t columns, int64_t target_stride) {
  __shared__ __nv_bfloat16 tile[32][33];
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) * 32,
                row0 = static_cast<int64_t>(blockIdx.y) * 32;
  for (int i = threadIdx.y; i < 32; i += 8) {
    const int64_t row = row0 + i, column = column0 + threadIdx.x;
    if (row < rows && column < columns)
      tile[i][threadIdx.x] = __float2bfloat16(widened(source[row * columns + column]));
  }
  __syncthreads();
  for (int i = threadIdx.y; i < 32; i += 8) {
    const int64_t column = column0 + i, row = row0 + threadIdx.x;
    if (row < rows && column < columns) target[column * target_stride + row] = tile[threadIdx.x][i];
  }
}

__global__ void dummy_kernel(__nv_bfloat16* target, size_t count, float scale, uint64_t seed) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    uint64_t x = seed + (i + 1) * 0x9e3779b97f4a7c15ull;  // splitmix64
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    target[i] = __float2bfloat16((static_cast<float>(x >> 40) * 0x1p-23f - 1.0f) * scale);
  }
}

}  // namespace

void launch_convert(DType from, const void* source, void* bf16, size_t count, cudaStream_t stream) {
  auto* target = static_cast<__nv_bfloat16*>(bf16);
  constexpr int kBlocks = 1024, kThreads = 256;
  if (from == DType::kF32) {
    convert_kernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<const float*>(source), target,
                                                     count);
  } else if (from == DType::kF16) {
    convert_kernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<const __half*>(source), target,
                                                     count);
  } else {
    convert_kernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<const __nv_bfloat16*>(source),
                                                     target, count);
  }
}

void launch_f32_to_bf16(const float* source, void* bf16, int count, cudaStream_t stream) {
  convert_kernel<<<(count + 255) / 256, 256, 0, stream>>>(source, static_cast<__nv_bfloat16*>(bf16),
                                                          count);
}

void launch_transpose(DType from, const void* source, void* bf16, int64_t rows, int64_t columns,
                      int64_t target_stride, cudaStream_t stream) {
  auto* target = static_cast<__nv_bfloat16*>(bf16);
  const dim3 grid((columns + 31) / 32, (rows + 31) / 32), block(32, 8);
  if (from == DType::kF32) {
    transpose_kernel<<<grid, block, 0, stream>>>(static_cast<const float*>(source), target, rows,
                                                 columns, target_stride);
  } else if (from == DType::kF16) {
    transpose_kernel<<<grid, block, 0, stream>>>(static_cast<const __half*>(source), target, rows,
                                                 columns, target_stride);
  } else {
    transpose_kernel<<<grid, block, 0, stream>>>(static_cast<const __nv_bfloat16*>(source), target,
                                                 rows, columns, target_stride);
  }
}

void launch_dummy(void* bf16, size_t count, float scale, uint64_t seed, cudaStream_t stream) {
  dummy_kernel<<<2048, 256, 0, stream>>>(static_cast<__nv_bfloat16*>(bf16), count, scale, seed);
}

}  // namespace polar::backend::cuda
