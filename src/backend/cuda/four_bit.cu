// Products of few rows with a matrix of four bits a value: what routers read. Each value is its
// block's scale times (code - 8), as in Q4_0; kernels.h says how they lie in memory.
//
// A block of threads owns 32 to 128 outputs, a warp 16 of them and half of their inputs. Codes,
// scales and x go through a ring in shared memory, filled by asynchronous copies; those of the
// matrix are requested before the kernel in front has ended. Codes become the tensor core's left
// operand; inputs are dealt to its columns so that of each block of 32 a lane has eight neighbours,
// which are one load of x.

#include <cuda_bf16.h>

#include <algorithm>

#include "backend/cuda/async_copy.cuh"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/four_bit.cuh"
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/neuron_scores.cuh"

namespace polar::backend::cuda {
namespace {

using bf16 = __nv_bfloat16;
constexpr int kBlock = 32;  // inputs that share a scale

/// kRows: of x, padded; kSpan: inputs of a stage of the ring; kSplit: warps that share a stage's
/// inputs, since one warp's chain of loads and products hides nothing; kPerProcessor: blocks.
template <int kRows_, int kStrips_, int kSplit_, int kSpan_, int kPerProcessor_>
struct Shape {
  static constexpr int kRows = kRows_, kStrips = kStrips_, kSplit = kSplit_, kSpan = kSpan_;
  static constexpr int kPerProcessor = kPerProcessor_;
  static constexpr int kThreads = kStrips * kSplit * 32, kOutputs = kStrips * 16;
  static constexpr int kTiles = kRows / 8;
  // Of a stage: 16 rows of the matrix, then others, then x; rows of x are an odd multiple of 64, so
  // that what eight lanes read lies in all banks.
  static constexpr int kStripBytes = kSpan / kFourBitInputs * kFourBitPiece;
  static constexpr int kX = kStrips * kStripBytes, kXPitch = kSpan * 2 + 64;
  static constexpr int kStageBytes = kX + kRows * kXPitch;
  static constexpr int kStages = 2 * kTwoPerProcessorBytes / kPerProcessor / kStageBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kSpan % (kSplit * 4 * kBlock) == 0 && 2 * kFourBitInputs % kSpan == 0);
  static_assert(kFourBitRows == 16 && kStages >= 2);
  static_assert(kTiles * 4 * kThreads * 4 <= kSharedBytes);
};

/// Requests the matrix, stage after stage: a strip's warps copy what they will read. Strips behind
/// the last are left as they are.
template <typename S>
class MatrixLoader {
 public:
  __device__ MatrixLoader(const FourBitLaunch& p, int64_t pieces, int first) {
    const int warp = threadIdx.x / 32, strip = warp % S::kStrips;
    unit_ = warp / S::kStrips * 32 + threadIdx.x % 32;
    there_ = first + strip * kFourBitRows < p.n;
    from_ = static_cast<const std::byte*>(p.matrix) + unit_ * 16 +
            (first / kFourBitRows + strip) * pieces * kFourBitPiece;
    to_ = strip * S::kStripBytes + unit_ * 16;
  }

  __device__ __forceinline__ void load(uint32_t stage) {
    if (!there_) return;
    constexpr int kUnits = S::kStripBytes / 16, kPass = S::kSplit * 32;
#pragma unroll
    for (int i = 0; i < (kUnits + kPass - 1) / kPass; ++i) {
      if (kUnits % kPass != 0 && unit_ + i * kPass >= kUnits) break;
      copy16(stage + to_ + i * kPass * 16, from_ + i * kPass * 16, 16);
    }
    from_ += S::kStripBytes;
  }

 private:
  const std::byte* from_;
  uint32_t to_;
  int unit_;
  bool there_;
};

template <typename S>
__device__ __forceinline__ void load_x(const FourBitLaunch& p, int stage_of_row, uint32_t to) {
  constexpr int kUnits = S::kSpan / 8;
#pragma unroll
  for (int i = 0; i < (S::kRows * kUnits + S::kThreads - 1) / S::kThreads; ++i) {
    const int at = threadIdx.x + i * S::kThreads, row = at / kUnits, unit = at % kUnits;
    if (at >= S::kRows * kUnits) break;
    const int k = stage_of_row * S::kSpan + unit * 8;
    const int bytes = row < p.rows && k < p.k ? 16 : 0;
    copy16(to + S::kX + row * S::kXPitch + unit * 16,
           static_cast<const bf16*>(p.x) + (bytes > 0 ? row * p.x_stride + k : 0), bytes);
  }
}

/// Two codes plus 128, from the low nibbles of each half of `bits`: a code in the low bits of 128.0
/// is 128 + code.
__device__ __forceinline__ uint32_t biased(uint32_t bits) {
  return (bits & 0x000f000fu) | 0x43004300u;
}
__device__ __forceinline__ uint32_t values_of(uint32_t bits, uint32_t scale) {
  const uint32_t v = biased(bits);
  const __nv_bfloat162 codes =
      __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&v), __float2bfloat162_rn(136.0f));
  const __nv_bfloat162 out = __hmul2(codes, *reinterpret_cast<const __nv_bfloat162*>(&scale));
  return *reinterpret_cast<const uint32_t*>(&out);
}

/// Adds a warp's part of a stage to the sums of its 16 outputs.
template <typename S>
__device__ __forceinline__ void multiply(uint32_t stage, float (&sums)[S::kTiles][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4;
  constexpr int kFours = S::kSpan / kBlock / 4 / S::kSplit;
  const uint32_t strip = stage + warp % S::kStrips * S::kStripBytes;
  const uint32_t x_row = stage + S::kX + group * S::kXPitch + quarter * 16;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const int four = warp / S::kStrips * kFours + i;
    const uint32_t piece = strip + four / 2 * kFourBitPiece,
                   codes = piece + four % 2 * 1024 + lane * 16,
                   scales = piece + kFourBitScales + group * 16 + four % 2 * 8;
    const uint4 upper = load_shared16(codes), lower = load_shared16(codes + 512);
    const uint2 upper_scales = load_shared8(scales), lower_scales = load_shared8(scales + 128);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t high = (&upper.x)[j], low = (&lower.x)[j];
      const uint32_t high_scales = j < 2 ? upper_scales.x : upper_scales.y,
                     low_scales = j < 2 ? lower_scales.x : lower_scales.y;
      uint4 in[S::kTiles];
#pragma unroll
      for (int t = 0; t < S::kTiles; ++t)
        in[t] = load_shared16(x_row + t * 8 * S::kXPitch + (four * 4 + j) * 64);
      if constexpr (S::kTiles == 1) {
        // The scale once per sum, not per value; what 136 too much adds is taken off first.
        const uint32_t minus_136[4] = {0xc308c308u, 0xc308c308u, 0xc308c308u, 0xc308c308u};
        const uint32_t a[4] = {biased(high), biased(low), biased(high >> 4), biased(low >> 4)};
        const uint32_t b[4] = {biased(high >> 8), biased(low >> 8), biased(high >> 12),
                               biased(low >> 12)};
        float sum[4] = {};
        mma<bf16>(sum, minus_136, in[0].x, in[0].y);
        mma<bf16>(sum, minus_136, in[0].z, in[0].w);
        mma<bf16>(sum, a, in[0].x, in[0].y);
        mma<bf16>(sum, b, in[0].z, in[0].w);
        const auto scale = [&](uint32_t two) {
          return __uint_as_float(j % 2 == 0 ? two << 16 : two & 0xffff0000u);
        };
#pragma unroll
        for (int v = 0; v < 4; ++v) sums[0][v] += sum[v] * scale(v < 2 ? high_scales : low_scales);
      } else {
        const auto twice = [&](uint32_t two) {
          return __byte_perm(two, 0, j % 2 == 0 ? 0x1010 : 0x3232);
        };
        const uint32_t high_scale = twice(high_scales), low_scale = twice(low_scales);
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const int shift = step * 8;
          const uint32_t a[4] = {
              values_of(high >> shift, high_scale), values_of(low >> shift, low_scale),
              values_of(high >> (shift + 4), high_scale), values_of(low >> (shift + 4), low_scale)};
#pragma unroll
          for (int t = 0; t < S::kTiles; ++t)
            mma<bf16>(sums[t], a, step == 0 ? in[t].x : in[t].z, step == 0 ? in[t].y : in[t].w);
        }
      }
    }
  }
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kPerProcessor)
    four_bit_kernel(const __grid_constant__ FourBitLaunch p, int64_t pieces) {
  extern __shared__ __align__(128) std::byte ring[];
  const uint32_t base = shared_address(ring);
  const int first = blockIdx.x * S::kOutputs, stages = (p.k + S::kSpan - 1) / S::kSpan;
  constexpr int kAhead = S::kStages - 1;
  const int lane = threadIdx.x % 32, quarter = lane % 4;
  const auto output_of = [&](int half) {  // of those warps that store
    return first + static_cast<int>(threadIdx.x) / 32 * 16 + half * 8 + lane / 4;
  };
  float bias[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (p.bias != nullptr) bias[half] = p.bias[min(output_of(half), p.n - 1)];
  let_next_begin();
  MatrixLoader<S> matrix(p, pieces, first);
#pragma unroll 1
  for (int i = 0; i < kAhead && i < stages; ++i) matrix.load(base + i * S::kStageBytes);
  wait_for_previous();
#pragma unroll 1
  for (int i = 0; i < kAhead; ++i) {
    if (i < stages) load_x<S>(p, i, base + i * S::kStageBytes);
    commit_copies();
  }
  float sums[S::kTiles][4] = {};
  int stage = 0, refill = kAhead;
#pragma unroll 1
  for (int at = 0; at < stages; ++at) {
    wait_copies<kAhead - 1>();
    __syncthreads();  // this stage is there for all; the one before is free
    if (at + kAhead < stages) {
      matrix.load(base + refill * S::kStageBytes);
      load_x<S>(p, at + kAhead, base + refill * S::kStageBytes);
    }
    commit_copies();
    multiply<S>(base + stage * S::kStageBytes, sums);
    stage = stage + 1 == S::kStages ? 0 : stage + 1;
    refill = refill + 1 == S::kStages ? 0 : refill + 1;
  }

  if constexpr (S::kSplit > 1) {
    // The warps that shared a strip's inputs add up in order.
    wait_copies<0>();
    __syncthreads();  // the ring is free
    auto* left = reinterpret_cast<float*>(ring) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < S::kTiles * 4; ++i) left[i * S::kThreads] = sums[i / 4][i % 4];
    __syncthreads();
    if (threadIdx.x >= S::kStrips * 32) return;
#pragma unroll
    for (int i = 0; i < S::kTiles * 4; ++i) {
#pragma unroll
      for (int other = 1; other < S::kSplit; ++other)
        sums[i / 4][i % 4] += left[i * S::kThreads + other * S::kStrips * 32];
    }
  }
  float score[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int n = output_of(half);
#pragma unroll
    for (int i = 0; i < S::kTiles * 2; ++i) {
      const int row = i / 2 * 8 + quarter * 2 + i % 2;
      if (row >= p.rows || n >= p.n) continue;
      const float v = sums[i / 2][half * 2 + i % 2] + bias[half];
      if (p.y != nullptr) {
        p.y[static_cast<int64_t>(row) * p.n + n] = v;
      } else {
        score[half] += score_part(p.scores, p.rows, v);
      }
    }
  }
  if (p.y != nullptr) return;
#pragma unroll
  for (float& s : score) {
    s += __shfl_xor_sync(~0u, s, 1);
    s += __shfl_xor_sync(~0u, s, 2);
  }
  const int n = output_of(quarter);
  keep_key(p.scores, quarter < 2 && n < p.n ? n : -1, quarter == 0 ? score[0] : score[1]);
}

template <typename S>
void launch(const FourBitLaunch& p, cudaStream_t stream) {
  static const bool once = [] {
    POLAR_CUDA(cudaFuncSetAttribute(four_bit_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    S::kSharedBytes));
    return true;
  }();
  (void)once;
  POLAR_CUDA(launch_early(four_bit_kernel<S>, dim3((p.n + S::kOutputs - 1) / S::kOutputs),
                          S::kThreads, S::kSharedBytes, stream, p, four_bit_pieces(p.k)));
}

}  // namespace

void launch_four_bit(const FourBitLaunch& p, cudaStream_t stream) {
  POLAR_CHECK(p.k % kBlock == 0 && p.x_stride % 8 == 0);
  POLAR_CHECK(p.y != nullptr || (p.rows <= kMostSkinnyRows && p.scores.by != UnionBy::kRows));
  for (int row = 0; row < p.rows; row += kMostSkinnyRows) {
    FourBitLaunch some = p;
    some.x = static_cast<const bf16*>(p.x) + row * p.x_stride;
    if (p.y != nullptr) some.y = p.y + static_cast<int64_t>(row) * p.n;
    some.rows = std::min(p.rows - row, kMostSkinnyRows);
    // Many rows: larger blocks, since each reads all of x.
    if (some.rows == 1) {
      launch_four_bit_row(some, stream);
    } else if (some.rows <= 8) {
      launch<Shape<8, 2, 2, 512, 4>>(some, stream);
    } else if (some.rows <= 16) {
      launch<Shape<16, 4, 2, 512, 2>>(some, stream);
    } else if (some.rows <= 32) {
      launch<Shape<32, 4, 2, 256, 2>>(some, stream);
    } else {
      launch<Shape<64, 8, 2, 256, 1>>(some, stream);
    }
  }
}

}  // namespace polar::backend::cuda
