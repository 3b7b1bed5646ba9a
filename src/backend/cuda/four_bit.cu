// Products of few rows with a matrix of four bits a value: what routers read. Each value is its
// block's scale times (code - 8), as in Q4_0; FourBitLaunch says how codes lie in memory.
//
// A block of threads owns 32 or 64 outputs; its warps share the inputs, 256 at a time, and add up
// in the end, in order. Codes go from memory to registers, where they become the tensor core's left
// operand; inputs are dealt to its columns so that of each block of 32 a lane has eight neighbours,
// which are one load of x, and a row's four lanes read neighbours: 64 bytes of codes or of x.

#include <cuda_bf16.h>

#include <algorithm>

#include "backend/cuda/cuda_check.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/mma.cuh"

namespace polar::backend::cuda {
namespace {

using bf16 = __nv_bfloat16;
constexpr int kBlock = 32;                        // inputs that share a scale
constexpr int kBlocks = kFourBitInputs / kBlock;  // of a warp's chunk of a row
static_assert(kBlocks == 8);

/// One lane's part of 16 kStrips rows by a chunk: of each half strip eight inputs of a row's eight
/// blocks, and the scales of two of these.
template <int kStrips>
struct Codes {
  uint4 code[2 * kStrips][2];
  uint32_t scales[2 * kStrips];
};

/// Two values, from the low nibbles of each half of `bits`.
__device__ __forceinline__ uint32_t values_of(uint32_t bits, __nv_bfloat162 scale) {
  // A code in the low bits of 128.0 is 128 + code.
  const uint32_t biased = (bits & 0x000f000fu) | 0x43004300u;
  const __nv_bfloat162 offset = __float2bfloat162_rn(136.0f);
  const __nv_bfloat162 v =
      __hmul2(__hsub2(*reinterpret_cast<const __nv_bfloat162*>(&biased), offset), scale);
  return *reinterpret_cast<const uint32_t*>(&v);
}

/// The scale of a block, twice; a row's four lanes have those of two blocks each.
__device__ __forceinline__ __nv_bfloat162 scale_of(uint32_t scales, int block) {
  const uint32_t two = __shfl_sync(~0u, scales, block / 2, 4);
  const uint32_t both = __byte_perm(two, 0, block % 2 == 0 ? 0x1010 : 0x3232);
  return *reinterpret_cast<const __nv_bfloat162*>(&both);
}

/// kStrips: of 16 outputs, of a block of threads; kTiles: of 8 rows of x; kAtOnce: blocks on a
/// multiprocessor.
template <int kStrips, int kTiles, int kWarps, int kAtOnce>
__global__ void __launch_bounds__(kWarps * 32, kAtOnce)
    four_bit_kernel(const __grid_constant__ FourBitLaunch p) {
  constexpr int kTile = 16 * kStrips, kThreads = kWarps * 32;
  constexpr bool kAhead = kTiles <= 2;  // there are registers for a second chunk
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4;
  const int first = blockIdx.x * kTile, chunks = (p.k + kFourBitInputs - 1) / kFourBitInputs;
  const auto* codes = static_cast<const uint4*>(p.codes);
  const auto* scales = static_cast<const uint32_t*>(p.scales);
  const auto load = [&](int chunk, Codes<kStrips>& to) {
#pragma unroll
    for (int h = 0; h < 2 * kStrips; ++h) {
      const int64_t row = min(first + h * 8 + group, p.n - 1);
      const int64_t at = row * chunks + chunk;
      to.code[h][0] = __ldcs(codes + at * 8 + quarter);
      to.code[h][1] = __ldcs(codes + at * 8 + 4 + quarter);
      to.scales[h] = scales[at * 4 + quarter];
    }
  };
  let_next_begin();
  Codes<kStrips> next;
  if (warp < chunks) load(warp, next);  // does not depend on what is still running
  wait_for_previous();

  float sums[kStrips][kTiles][4] = {};
  const auto* x = static_cast<const bf16*>(p.x);
#pragma unroll 1
  for (int chunk = warp; chunk < chunks; chunk += kWarps) {
    const Codes<kStrips> now = next;
    if (kAhead && chunk + kWarps < chunks) load(chunk + kWarps, next);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int input = chunk * kFourBitInputs + block * kBlock + quarter * 8;
      uint4 in[kTiles];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const int row = t * 8 + group;
        in[t] = row < p.rows && input < p.k
                    ? *reinterpret_cast<const uint4*>(x + row * p.x_stride + input)
                    : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        const __nv_bfloat162 high = scale_of(now.scales[2 * strip], block),
                             low = scale_of(now.scales[2 * strip + 1], block);
        const uint32_t upper = (&now.code[2 * strip][block / 4].x)[block % 4],
                       lower = (&now.code[2 * strip + 1][block / 4].x)[block % 4];
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const int shift = step * 8;
          const uint32_t a[4] = {values_of(upper >> shift, high), values_of(lower >> shift, low),
                                 values_of(upper >> (shift + 4), high),
                                 values_of(lower >> (shift + 4), low)};
#pragma unroll
          for (int t = 0; t < kTiles; ++t)
            mma<bf16>(sums[strip][t], a, step == 0 ? in[t].x : in[t].z,
                      step == 0 ? in[t].y : in[t].w);
        }
      }
    }
    if (!kAhead && chunk + kWarps < chunks) load(chunk + kWarps, next);
  }

  constexpr int kStride = kTile + 4;  // no two lanes of a store in one bank
  __shared__ float parts[kWarps][8 * kStride];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    if (t > 0) __syncthreads();
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        parts[warp][(quarter * 2 + i % 2) * kStride + strip * 16 + group + i / 2 * 8] =
            sums[strip][t][i];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 8 * kTile; i += kThreads) {
      const int row = t * 8 + i / kTile, n = first + i % kTile;
      if (row >= p.rows || n >= p.n) continue;
      float sum = p.bias != nullptr ? p.bias[n] : 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += parts[w][i / kTile * kStride + i % kTile];
      p.y[static_cast<int64_t>(row) * p.n + n] = sum;
    }
  }
}

template <int kStrips, int kTiles, int kWarps, int kAtOnce>
void launch(const FourBitLaunch& p, cudaStream_t stream) {
  constexpr int kTile = 16 * kStrips;
  POLAR_CUDA(launch_early(four_bit_kernel<kStrips, kTiles, kWarps, kAtOnce>,
                          dim3((p.n + kTile - 1) / kTile), kWarps * 32, 0, stream, p));
}

}  // namespace

void launch_four_bit(const FourBitLaunch& p, cudaStream_t stream) {
  POLAR_CHECK(p.k % kBlock == 0 && p.x_stride % 8 == 0);
  for (int row = 0; row < p.rows; row += kMostSkinnyRows) {
    FourBitLaunch some = p;
    some.x = static_cast<const bf16*>(p.x) + row * p.x_stride;
    some.y = p.y + static_cast<int64_t>(row) * p.n;
    some.rows = std::min(p.rows - row, kMostSkinnyRows);
    // Many rows: larger blocks, since each reads all of x.
    if (some.rows <= 8) {
      launch<2, 1, 4, 4>(some, stream);
    } else if (some.rows <= 16) {
      launch<2, 2, 4, 4>(some, stream);
    } else if (some.rows <= 32) {
      launch<4, 4, 4, 2>(some, stream);
    } else {
      launch<4, 8, 8, 1>(some, stream);
    }
  }
}

}  // namespace polar::backend::cuda
