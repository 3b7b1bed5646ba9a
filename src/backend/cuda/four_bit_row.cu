// A product of one row with a matrix of four bits a value (four_bit.cu has those of more rows).
//
// Bound by arithmetic unless codes stay integers: masked, they are the tensor core's left operand,
// in bytes. The row becomes 16 bits a value under a scale for each block of 32: its two digits of 8
// bits are columns. Codes in the upper half of a byte count 16 times, so their inputs are divided
// by 16 and not the codes shifted. Warps share nothing but the row: each has its own ring of pieces
// of the matrix, requested before the kernel in front has ended.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend/cuda/async_copy.cuh"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/four_bit.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/neuron_scores.cuh"

namespace polar::backend::cuda {
namespace {

using bf16 = __nv_bfloat16;
constexpr int kStrips = 2, kSplit = 2;  // of 16 outputs; warps that share a strip's inputs
constexpr int kThreads = kStrips * kSplit * 32, kOutputs = kStrips * kFourBitRows;
constexpr int kDepth = 4;  // pieces under way, of a warp
constexpr int kPerProcessor = 4;
constexpr int kRingBytes = kThreads / 32 * kDepth * kFourBitPiece;
constexpr int kBlocks = kFourBitInputs / 32;  // of 32 inputs, of a piece
constexpr int kDigitBytes = 64;               // of a block: two columns
constexpr float kMost = 127 * 256;            // of 16 bits, so that both digits fit 8

/// What a block's sum of products with codes is multiplied by, and what is added: codes are 8 more
/// than values.
struct Block {
  float scale, offset;
};

/// Four numbers' bytes of that index, in order.
__device__ __forceinline__ uint32_t bytes_of(const int (&v)[4], int index) {
  const uint32_t pick = index | (4 + index) << 4;
  return __byte_perm(__byte_perm(v[0], v[1], pick), __byte_perm(v[2], v[3], pick), 0x5410);
}

/// Eight inputs, part `unit % 4` of a block, as digits, in the order in which a word has their
/// codes.
__device__ __forceinline__ void take_inputs(const uint4& raw, int unit, std::byte* digits,
                                            Block* scales) {
  const int block = unit / 4, part = unit % 4;
  const float2 a = unpack<bf16>(raw.x), b = unpack<bf16>(raw.y), c = unpack<bf16>(raw.z),
               d = unpack<bf16>(raw.w);
  float most = fmaxf(fmaxf(fmaxf(fabsf(a.x), fabsf(a.y)), fmaxf(fabsf(b.x), fabsf(b.y))),
                     fmaxf(fmaxf(fabsf(c.x), fabsf(c.y)), fmaxf(fabsf(d.x), fabsf(d.y))));
  most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
  most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
  const float to = most > 0.0f ? kMost / most : 0.0f, to_16th = to / 16.0f;
  int low[4] = {__float2int_rn(a.x * to), __float2int_rn(c.x * to), __float2int_rn(a.y * to),
                __float2int_rn(c.y * to)};
  int high[4] = {__float2int_rn(b.x * to_16th), __float2int_rn(d.x * to_16th),
                 __float2int_rn(b.y * to_16th), __float2int_rn(d.y * to_16th)};
  int sum = low[0] + low[1] + low[2] + low[3] + 16 * (high[0] + high[1] + high[2] + high[3]);
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  auto* to_digits = reinterpret_cast<uint2*>(digits + block * kDigitBytes) + part;
  to_digits[4] = make_uint2(bytes_of(low, 0), bytes_of(high, 0));  // signed: what 256 h lack
#pragma unroll
  for (int i = 0; i < 4; ++i) low[i] += 128, high[i] += 128;
  to_digits[0] = make_uint2(bytes_of(low, 1), bytes_of(high, 1));
  if (part == 0) {
    const float scale = most / kMost;
    scales[block] = {scale, -8.0f * scale * static_cast<float>(sum)};
  }
}

/// The whole row; loads are under way together.
__device__ __forceinline__ void take_row(const FourBitLaunch& p, int blocks, std::byte* digits,
                                         Block* scales) {
  constexpr int kAtOnce = 4;
  const auto* x = static_cast<const uint4*>(p.x);
  for (int first = threadIdx.x; first < blocks * 4; first += kAtOnce * kThreads) {
    uint4 raw[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int unit = first + i * kThreads;
      raw[i] = unit * 8 < p.k ? x[unit] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int unit = first + i * kThreads;
      if (unit < blocks * 4) take_inputs(raw[i], unit, digits, scales);
    }
  }
}

/// Adds a piece's products: of rows `group` and `group` + 8.
__device__ __forceinline__ void multiply(uint32_t piece, uint32_t digits, uint32_t scales,
                                         float (&sums)[2]) {
  const int lane = threadIdx.x % 32, group = lane / 4, quarter = lane % 4;
  const uint32_t codes = piece + lane * 16, of_rows = piece + kFourBitScales + group * 16,
                 column = digits + group % 2 * 32 + quarter * 8;
#pragma unroll
  for (int four = 0; four < kBlocks / 4; ++four) {
    const uint4 upper = load_shared16(codes + four * 1024),
                lower = load_shared16(codes + four * 1024 + 512);
    const uint2 upper_scales = load_shared8(of_rows + four * 8),
                lower_scales = load_shared8(of_rows + 128 + four * 8);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t up = (&upper.x)[j], low = (&lower.x)[j];
      const uint32_t a[4] = {up & 0x0f0f0f0fu, low & 0x0f0f0f0fu, up & 0xf0f0f0f0u,
                             low & 0xf0f0f0f0u};
      const uint2 b = load_shared8(column + (four * 4 + j) * kDigitBytes),
                  block = load_shared8(scales + (four * 4 + j) * sizeof(Block));
      int c[4] = {};
      mma_codes(c, a, b.x, b.y);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 two = half == 0 ? upper_scales : lower_scales;
        const uint32_t bits = j < 2 ? two.x : two.y;
        const auto& scales_of = reinterpret_cast<const __half2&>(bits);
        const float scale = j % 2 == 0 ? __low2float(scales_of) : __high2float(scales_of);
        const auto sum = static_cast<float>(c[2 * half] * 256 + c[2 * half + 1]);
        sums[half] += scale * fmaf(__uint_as_float(block.x), sum, __uint_as_float(block.y));
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads, kPerProcessor)
    four_bit_row_kernel(const __grid_constant__ FourBitLaunch p, int pieces) {
  extern __shared__ __align__(128) std::byte ring[];
  std::byte* const digits = ring + kRingBytes;
  auto* const scales = reinterpret_cast<Block*>(digits + pieces * kBlocks * kDigitBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, strip = warp % kStrips;
  const int first = (static_cast<int>(blockIdx.x) * kStrips + strip) * kFourBitRows;
  const int count = pieces / kSplit, begin = warp / kStrips * count;
  const bool there = first < p.n;
  const int inside = lane % 4 * 8 + lane / 4;  // a lane below 2 of four has an output
  const int n = lane % 4 < 2 && first + inside < p.n ? first + inside : -1;
  const float bias = n >= 0 && p.bias != nullptr ? p.bias[n] : 0.0f;
  const std::byte* from =
      static_cast<const std::byte*>(p.matrix) + lane * 16 +
      (static_cast<int64_t>(first / kFourBitRows) * pieces + begin) * kFourBitPiece;
  const uint32_t mine = shared_address(ring) + warp * kDepth * kFourBitPiece;
  const auto load = [&](uint32_t slot) {
#pragma unroll
    for (int i = 0; i < 4; ++i) copy16(slot + lane * 16 + i * 512, from + i * 512, 16);
    if (lane < 16) copy16(slot + lane * 16 + 2048, from + 2048, 16);
    from += kFourBitPiece;
  };
  static_assert(kFourBitPiece == 4 * 512 + 256 && kSplit == 2);
  let_next_begin();
#pragma unroll
  for (int i = 0; i < kDepth; ++i) {
    if (there && i < count) load(mine + i * kFourBitPiece);
    commit_copies();
  }
  wait_for_previous();
  take_row(p, pieces * kBlocks, digits, scales);
  __syncthreads();

  float sums[2] = {};
  uint32_t slot = mine, column = shared_address(digits) + begin * kBlocks * kDigitBytes,
           block = shared_address(scales) + begin * kBlocks * static_cast<int>(sizeof(Block));
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    wait_copies<kDepth - 1>();
    __syncwarp();
    multiply(slot, column, block, sums);
    __syncwarp();
    if (there && i + kDepth < count) load(slot);
    commit_copies();
    slot = slot + kFourBitPiece == mine + kDepth * kFourBitPiece ? mine : slot + kFourBitPiece;
    column += kBlocks * kDigitBytes;
    block += kBlocks * sizeof(Block);
  }

  __shared__ float others[kOutputs];
  const float half = lane % 4 == 0 ? sums[0] : sums[1];
  if (warp >= kStrips && lane % 4 < 2) others[strip * kFourBitRows + inside] = half;
  __syncthreads();
  if (warp >= kStrips) return;
  const float both = half + others[strip * kFourBitRows + inside],
              sum = n >= 0 ? both * p.unit + bias : 0.0f;
  if (p.y == nullptr) {
    keep_key(p.scores, n, score_part(p.scores, 1, sum));
  } else if (n >= 0) {
    p.y[n] = sum;
  }
}

}  // namespace

void launch_four_bit_row(const FourBitLaunch& p, cudaStream_t stream) {
  const auto pieces = static_cast<int>(four_bit_pieces(p.k));
  const int bytes = kRingBytes + pieces * kBlocks * (kDigitBytes + static_cast<int>(sizeof(Block)));
  static int most = 48 << 10;  // what a kernel may have unasked
  if (bytes > most) {
    POLAR_CUDA(cudaFuncSetAttribute(four_bit_row_kernel,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    most = bytes;
  }
  POLAR_CUDA(launch_early(four_bit_row_kernel, dim3((p.n + kOutputs - 1) / kOutputs), kThreads,
                          bytes, stream, p, pieces));
}

}  // namespace polar::backend::cuda
