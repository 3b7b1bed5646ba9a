// Products of few rows with a matrix of four bits a value: what routers read. Each value is its
// block's scale times (code - 8), as in Q4_0; kernels.h says how they lie in memory.
//
// The matrix's strips of 16 outputs are dealt to blocks of threads evenly, one block a
// multiprocessor, so that all end together and x is read once by each. A warp has a strip, or two
// warps halves of its inputs, and a ring of its own, filled before the kernel in front has ended.
// Codes become halves in registers: the left operand of a warpgroup's products (m16n8k16 where
// there are none). Its lanes have eight neighbours of each block of 32 inputs; all warps bring x
// in, as halves in that order. No barrier stops them all: in step they would take turns in using
// the integer pipe and the tensor cores.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "backend/cuda/async_copy.cuh"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/four_bit.cuh"
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/neuron_scores.cuh"
#include "backend/cuda/wgmma.cuh"

namespace polar::backend::cuda {
namespace {

using bf16 = __nv_bfloat16;
constexpr int kBlock = 32;  // inputs that share a scale
constexpr int kPieceBlocks = kFourBitInputs / kBlock;
constexpr int kMostSharedBytes = 227 << 10;  // of sm_90

/// kRows: of x, padded; kSplit: warps that share a strip's inputs, a piece of each stage for each;
/// kGroups: warpgroups.
template <int kRows_, int kSplit_, int kGroups_>
struct Shape {
  static constexpr int kRows = kRows_, kSplit = kSplit_, kTiles = kRows / 8;
  static constexpr int kThreads = kGroups_ * 128, kWarps = kThreads / 32;
  static constexpr int kStrips = kWarps / kSplit;
  // Stages of x: atoms [row / 8][input / 64] of 8 rows by 128 bytes, their units of 16 permuted by
  // the row, which WGMMA reads. Then stages of the matrix: a piece for each warp.
  static constexpr int kSpan = kSplit * kFourBitInputs, kRowGroupBytes = kSpan * 16;
  static constexpr int kXStages = kRows <= 16 ? 4 : 3, kXBytes = kTiles * kRowGroupBytes;
  static constexpr int kStageBytes = kWarps * kFourBitPiece;
  static constexpr int kDepth =
      std::min(5, (kMostSharedBytes - kXStages * (kXBytes + 16)) / kStageBytes);
  static constexpr int kPieces = kXStages * kXBytes, kXFull = kPieces + kDepth * kStageBytes,
                       kXEmpty = kXFull + kXStages * 8, kSharedBytes = kXEmpty + kXStages * 8;
  // Of eight neighbours each, x's units in a stage; a loader has some of one block, part of it and
  // row of eight.
  static constexpr int kUnits = kRows * kSpan / 8, kLoaders = std::min(512, kUnits);
  static constexpr int kMine = kUnits / kLoaders, kRowStep = kLoaders / (kSpan / 8);
  static_assert(kSplit <= 2 && kDepth >= 3 && kFourBitRows == 16 && kRowStep % 8 == 0);
  static_assert(kSplit == 1 || kTiles * 16 * kThreads <= kXFull);
};

/// Two bf16 as halves; those have no infinity here, which times zero is no number.
__device__ __forceinline__ uint32_t halves_of(uint32_t two) {
  const float2 v = unpack<bf16>(two);
  uint32_t halves;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(v.y), "f"(v.x));
  return halves;
}

/// Takes a thread's units of x from stage to stage: eight lanes of four have eight rows of a block.
template <typename S>
class XLoader {
 public:
  __device__ explicit XLoader(const FourBitLaunch& p)
      : stride_(p.x_stride * S::kRowStep), rows_left_(p.rows), inputs_left_(p.k) {
    constexpr int kBlocks = S::kSpan / kBlock;
    const int part = threadIdx.x % 4, row = threadIdx.x / 32 / kBlocks * 8 + threadIdx.x / 4 % 8,
              block = threadIdx.x / 32 % kBlocks, k = block * kBlock + part * 8;
    from_ = static_cast<const bf16*>(p.x) + row * p.x_stride + k;
    rows_left_ -= row;
    inputs_left_ -= k;
    to_ = row / 8 * S::kRowGroupBytes + block / 2 * 1024 + row % 8 * 128 +
          ((block % 2 * 4) ^ row % 8) * 16 + part * 4;
  }

  __device__ void load() {
#pragma unroll
    for (int i = 0; i < S::kMine; ++i) {
      units_[i] = make_uint4(0, 0, 0, 0);
      if (inputs_left_ > 0 && i * S::kRowStep < rows_left_)
        units_[i] = *reinterpret_cast<const uint4*>(from_ + i * stride_);
    }
    from_ += S::kSpan;
    inputs_left_ -= S::kSpan;
  }

  /// Pairs of neighbours stand where the lanes that have their codes expect them.
  __device__ void store(uint32_t x) const {
#pragma unroll
    for (int i = 0; i < S::kMine; ++i) {
#pragma unroll
      for (int pair = 0; pair < 4; ++pair)
        store_shared4((x + to_ + i * (S::kRowStep / 8 * S::kRowGroupBytes)) ^ (pair * 16),
                      halves_of((&units_[i].x)[pair]));
    }
#ifdef POLAR_WGMMA
    wgmma_sees_copies();
#endif
  }

 private:
  const bf16* from_;
  int64_t stride_;
  int rows_left_, inputs_left_;
  uint32_t to_;
  uint4 units_[S::kMine];
};

/// What makes values of a row's codes, for two blocks: see values_of.
struct Scales {
  __half2 low, next, offset;
  __device__ explicit Scales(uint32_t two)
      : low(reinterpret_cast<const __half2&>(two)),
        next(__hmul2(low, __float2half2_rn(1.0f / 16))),
        offset(__hmul2(low, __float2half2_rn(-8.0f * kFourBitUnit))) {}
};

/// Two values, times kFourBitUnit, from the nibbles that begin at bit 0 or 4 of each half of
/// `bits`, by the scale of block `of` of two: a code in the low bits of a half is code *
/// kFourBitUnit.
__device__ __forceinline__ uint32_t values_of(uint32_t bits, bool next, const Scales& scales,
                                              int of) {
  const auto twice = [of](__half2 two) { return of == 0 ? __low2half2(two) : __high2half2(two); };
  const uint32_t codes = bits & (next ? 0x00f000f0u : 0x000f000fu);
  const __half2 out = __hfma2(reinterpret_cast<const __half2&>(codes),
                              twice(next ? scales.next : scales.low), twice(scales.offset));
  return *reinterpret_cast<const uint32_t*>(&out);
}

/// Adds the products of 16 inputs, step `step` of those at `x`.
template <typename S>
__device__ __forceinline__ void multiply_step(float (&sums)[S::kTiles][4], const uint32_t (&a)[4],
                                              uint32_t x, int step) {
#ifdef POLAR_WGMMA
  wgmma_halves(sums, a,
               wgmma_advance(wgmma_matrix(x, S::kRowGroupBytes), step / 4 * 1024 + step % 4 * 32));
#else
  const int group = threadIdx.x % 32 / 4, quarter = threadIdx.x % 4;
  const uint32_t row = x + step / 4 * 1024 + group * 128 + quarter * 4;
#pragma unroll
  for (int t = 0; t < S::kTiles; ++t) {
    const auto word = [&](int unit) {
      return load_shared4(row + t * S::kRowGroupBytes + (unit ^ group) * 16);
    };
    mma<__half>(sums[t], a, word(step % 4 * 2), word(step % 4 * 2 + 1));
  }
#endif
}

/// Adds a warp's piece to the sums of its 16 outputs.
template <typename S>
__device__ __forceinline__ void multiply(uint32_t piece, uint32_t x, float (&sums)[S::kTiles][4]) {
  const int lane = threadIdx.x % 32, group = lane / 4;
  const uint32_t codes = piece + lane * 16, scales = piece + kFourBitScales + group * 16;
  uint32_t values[4][4];  // of two blocks, as four products take them
#pragma unroll
  for (int four = 0; four < kPieceBlocks / 4; ++four) {
    const uint4 upper = load_shared16(codes + four * 1024),
                lower = load_shared16(codes + four * 1024 + 512);
    const uint2 upper_scales = load_shared8(scales + four * 8),
                lower_scales = load_shared8(scales + four * 8 + 128);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const Scales of_high(pair == 0 ? upper_scales.x : upper_scales.y),
          of_low(pair == 0 ? lower_scales.x : lower_scales.y);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const int block = step / 2, shift = step % 2 * 8;
        const uint32_t high = (&upper.x)[pair * 2 + block] >> shift,
                       low = (&lower.x)[pair * 2 + block] >> shift;
        values[step][0] = values_of(high, false, of_high, block);
        values[step][1] = values_of(low, false, of_low, block);
        values[step][2] = values_of(high, true, of_high, block);
        values[step][3] = values_of(low, true, of_low, block);
      }
#ifdef POLAR_WGMMA
      wgmma_begin();
#endif
#pragma unroll
      for (int step = 0; step < 4; ++step)
        multiply_step<S>(sums, values[step], x, four * 8 + pair * 4 + step);
#ifdef POLAR_WGMMA
      wgmma_commit();
      wgmma_wait<0>();
#endif
    }
  }
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    four_bit_kernel(const __grid_constant__ FourBitLaunch p, int strips, int pieces) {
  extern __shared__ __align__(1024) std::byte ring[];
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32,
            quarter = lane % 4;
  const int first = strips * blockIdx.x / gridDim.x,
            count = strips * (blockIdx.x + 1) / gridDim.x - first;
  const int strip = warp % S::kStrips, part = S::kSplit == 1 ? 0 : warp / S::kStrips;
  const bool there = strip < count, group_there = strip / 4 * 4 < count;
  const int stages = pieces / S::kSplit;
  const auto output_of = [&](int half) { return (first + strip) * 16 + half * 8 + lane / 4; };
  const uint32_t shared = shared_address(ring);
  const auto x_full = [&](int stage) { return shared + S::kXFull + stage % S::kXStages * 8; };
  const auto x_empty = [&](int stage) { return shared + S::kXEmpty + stage % S::kXStages * 8; };
  const auto parity = [&](int stage) { return stage / S::kXStages & 1; };
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kXStages; ++i) {
      barrier_init(x_full(i), S::kLoaders);
      barrier_init(x_empty(i), S::kWarps);
    }
  }
  __syncthreads();
  let_next_begin();
  const uint32_t mine = S::kPieces + warp * kFourBitPiece + shared;
  const std::byte* from =
      static_cast<const std::byte*>(p.matrix) + lane * 16 +
      (static_cast<int64_t>(there ? first + strip : 0) * pieces + part) * kFourBitPiece;
  const auto bring = [&](int stage, uint32_t to) {
    if (there && stage < stages) {
#pragma unroll
      for (int i = 0; i < 4; ++i) copy16(to + lane * 16 + i * 512, from + i * 512, 16);
      if (lane < 16) copy16(to + lane * 16 + 2048, from + 2048, 16);
      from += S::kSplit * kFourBitPiece;
    }
    commit_copies();
  };
  static_assert(kFourBitPiece == 4 * 512 + 256);
#pragma unroll
  for (int i = 0; i < S::kDepth; ++i) bring(i, mine + i * S::kStageBytes);
  float bias[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half)
    if (p.bias != nullptr) bias[half] = p.bias[min(output_of(half), p.n - 1)];
  wait_for_previous();
  // x is loaded a stage before it is stored, and stored two stages before it is used.
  XLoader<S> loader(p);
  constexpr int kXAhead = 2;
  const auto store_x = [&](int stage) {
    if (stage >= stages || threadIdx.x >= S::kLoaders) return;
    barrier_wait(x_empty(stage), parity(stage) ^ 1);
    loader.store(shared + stage % S::kXStages * S::kXBytes);
    barrier_arrive(x_full(stage));
    loader.load();
  };
  loader.load();
#pragma unroll
  for (int i = 0; i < kXAhead; ++i) store_x(i);

  float sums[S::kTiles][4] = {};
  int slot = 0;
#pragma unroll 1
  for (int at = 0; at < stages; ++at) {
    wait_copies<S::kDepth - 1>();
    __syncwarp();
    if (group_there) {
      barrier_wait(x_full(at), parity(at));
      const uint32_t of_part = shared + at % S::kXStages * S::kXBytes + part * kFourBitInputs * 16;
      // Of one lane, so that the compiler knows that operands are the same for all of a warp.
      multiply<S>(mine + slot * S::kStageBytes, __shfl_sync(~0u, of_part, 0), sums);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(x_empty(at));
    bring(at + S::kDepth, mine + slot * S::kStageBytes);
    store_x(at + kXAhead);
    if (++slot == S::kDepth) slot = 0;
  }
#ifdef POLAR_WGMMA
  wgmma_pin(sums);
#endif

  if constexpr (S::kSplit > 1) {
    // Of two warps that shared a strip's inputs the first adds up.
    wait_copies<0>();
    __syncthreads();  // the ring is free
    constexpr int kStride = S::kThreads;
    auto* left = reinterpret_cast<float*>(ring) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < S::kTiles * 4; ++i)
      if (part == 1) left[i * kStride] = sums[i / 4][i % 4];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < S::kTiles * 4; ++i)
      if (part == 0) sums[i / 4][i % 4] += left[i * kStride + S::kStrips * 32];
  }
  if (part > 0 || !there) return;
  const float unit = p.unit / kFourBitUnit;
  float score[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int n = output_of(half);
#pragma unroll
    for (int i = 0; i < S::kTiles * 2; ++i) {
      const int row = i / 2 * 8 + quarter * 2 + i % 2;
      if (row >= p.rows || n >= p.n) continue;
      const float v = sums[i / 2][half * 2 + i % 2] * unit + bias[half];
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
void launch(const FourBitLaunch& p, int strips, int blocks, cudaStream_t stream) {
  static const bool once = [] {
    POLAR_CUDA(cudaFuncSetAttribute(four_bit_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    S::kSharedBytes));
    return true;
  }();
  (void)once;
  POLAR_CUDA(launch_early(four_bit_kernel<S>, dim3(blocks), S::kThreads, S::kSharedBytes, stream, p,
                          strips, static_cast<int>(four_bit_pieces(p.k))));
}

int processors() {
  static const int count = [] {
    int device = 0, value = 0;
    POLAR_CUDA(cudaGetDevice(&device));
    POLAR_CUDA(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device));
    return value;
  }();
  return count;
}

/// Strips of a block decide how many warps it has, and whether two share a strip's inputs.
template <int kRows>
void launch_rows(const FourBitLaunch& p, cudaStream_t stream) {
  const int strips = (p.n + kFourBitRows - 1) / kFourBitRows, at_once = processors();
  const int blocks = std::min(strips, at_once), most = (strips + blocks - 1) / blocks;
  if constexpr (kRows < 64) {
    if (most <= 8) return launch<Shape<kRows, 2, 4>>(p, strips, blocks, stream);
    if (most > 16 && most <= 20) return launch<Shape<kRows, 1, 5>>(p, strips, blocks, stream);
  }
  const int rounds = (most + 15) / 16;
  launch<Shape<kRows, 1, 4>>(p, strips, blocks * rounds, stream);
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
    if (some.rows == 1) {
      launch_four_bit_row(some, stream);
    } else if (some.rows <= 8) {
      launch_rows<8>(some, stream);
    } else if (some.rows <= 16) {
      launch_rows<16>(some, stream);
    } else if (some.rows <= 32) {
      launch_rows<32>(some, stream);
    } else {
      launch_rows<64>(some, stream);
    }
  }
}

}  // namespace polar::backend::cuda
