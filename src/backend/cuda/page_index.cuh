#pragma once
// The indices that pages are scored by, written from the keys of a full page as stored, by a block
// of kIndexThreads.

#include "backend/cuda/attention.h"
#include "backend/cuda/kv_layout.cuh"
#include "backend/cuda/mma.cuh"

namespace polar::backend::cuda {

inline constexpr int kIndexThreads = 128;

/// Codes of one page and KV head, two bits per token and channel (page_score.h), as a warp reads
/// them: lane l stands for tokens l / 4 and l / 4 + 8 and for channels l % 4 * 4 + {0, 1, 2, 3} of
/// each 16, an operand of m16n8k32. A word holds one token's channels of a chunk of 64: byte b,
/// bits 2 s: channel b of the s-th 16. Chunks come in pairs, so that a lane loads 16 bytes at once;
/// behind them, channels beyond the last chunk: 32 of them as a word of both tokens, 16 as half a
/// word.
template <int D>
struct PageCodes {
  static constexpr int kChunks = D / 64;
  static constexpr int kRest = D % 64 / 16;  // 0, 1 or 2 times 16 channels
  static constexpr int kWords = D;           // of a page
  static constexpr uint32_t kMask = 0x03030303u;
  static_assert(D % 16 == 0 && kRest <= 2 && kChunks > 0);

  uint32_t word[kChunks * 2];  // [chunk][token / 8]
  uint32_t rest;

  /// Where a lane's word of a chunk stands.
  static __device__ __forceinline__ int word_at(int chunk, int lane, int half) {
    const int pair = chunk / 2;
    if ((chunk | 1) < kChunks) return pair * 128 + lane * 4 + chunk % 2 * 2 + half;
    return pair * 128 + lane * 2 + half;
  }

  __device__ __forceinline__ void load(const uint32_t* page, int lane) {
#pragma unroll
    for (int pair = 0; pair < kChunks / 2; ++pair) {
      const uint4 v = __ldcs(reinterpret_cast<const uint4*>(page + pair * 128 + lane * 4));
      word[pair * 4] = v.x, word[pair * 4 + 1] = v.y;
      word[pair * 4 + 2] = v.z, word[pair * 4 + 3] = v.w;
    }
    if constexpr (kChunks % 2 != 0) {
      const uint2 v = __ldcs(reinterpret_cast<const uint2*>(page + kChunks / 2 * 128 + lane * 2));
      word[kChunks * 2 - 2] = v.x, word[kChunks * 2 - 1] = v.y;
    }
    const uint32_t* behind = page + kChunks * 64;
    if constexpr (kRest == 2) rest = __ldcs(behind + lane);
    if constexpr (kRest == 1) {
      rest = __ldcs(reinterpret_cast<const unsigned short*>(behind) + lane);
      rest = (rest | rest << 8) & 0x00ff00ffu;
      rest = (rest | rest << 4) & 0x0f0f0f0fu;
    }
  }

  /// The codes, 0 to 3, of the lane's four channels of the g-th 16, one a byte.
  __device__ __forceinline__ uint32_t codes(int g, int half) const {
    if (g < kChunks * 4) return word[g / 4 * 2 + half] >> (g % 4 * 2) & kMask;
    if (g >= D / 16) return 0;
    return rest >> (kRest == 2 ? half * 4 + g % 4 * 2 : half * 2) & kMask;
  }
};

template <int D>
inline constexpr int kRotated = rotated_channels(D);

/// Channels lane + 32 i of one vector in a warp, rotated as page_score.h says but not normalised.
template <int D>
__device__ __forceinline__ void rotate(float (&v)[(D + 31) / 32]) {
  constexpr int kWidth = kRotated<D>, kPer = (D + 31) / 32;
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int half = 1; half < kWidth && half < 32; half *= 2) {
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const float other = __shfl_xor_sync(~0u, v[i], half);
      v[i] = (lane & half) != 0 ? other - v[i] : v[i] + other;
    }
  }
  if constexpr (kWidth == 64) {
#pragma unroll
    for (int i = 0; i < kPer; i += 2) {
      const float a = v[i], b = v[i + 1];
      v[i] = a + b;
      v[i + 1] = a - b;
    }
  }
}

/// The mean over a half's tokens of one 16-byte unit of T, as values of Out; `kAhead` tokens are
/// loaded together.
template <int D, typename T, typename Out, int kAhead>
__device__ __forceinline__ uint4 mean_of_unit(const std::byte* half, int unit) {
  float sum[8] = {};
#pragma unroll kAhead
  for (int token = 0; token < kPageTokens; ++token) {
    const uint4 bits = *reinterpret_cast<const uint4*>(half + kv_unit_offset(D, token, unit));
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 v = unpack<T>(words[i]);
      sum[i * 2] += v.x;
      sum[i * 2 + 1] += v.y;
    }
  }
  uint32_t packed[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    packed[i] = pack<Out>(sum[i * 2] / kPageTokens, sum[i * 2 + 1] / kPageTokens);
  return make_uint4(packed[0], packed[1], packed[2], packed[3]);
}

/// Mean key, as bf16.
template <int D, typename T>
__device__ void write_mean(const std::byte* keys, void* index) {
  auto* out = static_cast<uint4*>(index);
  for (int unit = threadIdx.x; unit < D / kUnitElements; unit += kIndexThreads)
    out[unit] = mean_of_unit<D, T, __nv_bfloat16, kPageTokens>(keys, unit);
}

/// Two-bit codes of the rotated keys, and half their step.
template <int D, typename T>
__device__ void write_codes(const std::byte* keys, void* index, float* half_step) {
  using Codes = PageCodes<D>;
  constexpr int kWarps = kIndexThreads / 32, kPer = (D + 31) / 32;
  __shared__ uint32_t codes[kPageTokens][D / 4];  // a byte each
  __shared__ float parts[kWarps];
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  float squares = 0.0f;
  for (int unit = threadIdx.x; unit < kPageTokens * D / kUnitElements; unit += kIndexThreads) {
    const uint4 bits = *reinterpret_cast<const uint4*>(keys + unit * 16);
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 v = unpack<T>(words[i]);
      squares += v.x * v.x + v.y * v.y;
    }
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) squares += __shfl_xor_sync(~0u, squares, mask);
  if (lane == 0) parts[warp] = squares;
  __syncthreads();
  squares = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) squares += parts[w];
  const float step = sqrtf(squares / (kPageTokens * D));
  const float norm = rsqrtf(static_cast<float>(kRotated<D>));
  for (int token = warp; token < kPageTokens; token += kWarps) {
    float v[kPer];
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int d = lane + i * 32;
      v[i] = d < D ? static_cast<float>(
                         *reinterpret_cast<const T*>(keys + kv_element_offset(D, token, d)))
                   : 0.0f;
    }
    rotate<D>(v);
    auto* row = reinterpret_cast<uint8_t*>(codes[token]);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const float value = v[i] * norm;
      if (lane + i * 32 < D) row[lane + i * 32] = (value > -step) + (value > 0.0f) + (value > step);
    }
  }
  __syncthreads();
  auto* out = static_cast<uint32_t*>(index);
  for (int i = threadIdx.x; i < Codes::kChunks * 64; i += kIndexThreads) {
    const int chunk = i / 64, of_lane = i % 64 / 2, half = i % 2;
    const uint32_t* four = &codes[of_lane / 4 + half * 8][chunk * 16 + of_lane % 4];
    out[Codes::word_at(chunk, of_lane, half)] =
        four[0] | four[4] << 2 | four[8] << 4 | four[12] << 6;
  }
  if (Codes::kRest > 0 && threadIdx.x < 32) {
    const uint32_t* low = &codes[lane / 4][Codes::kChunks * 16 + lane % 4];
    const uint32_t* high = low + 8 * (D / 4);
    uint32_t* behind = out + Codes::kChunks * 64;
    if constexpr (Codes::kRest == 2)
      behind[lane] = low[0] | low[4] << 2 | high[0] << 4 | high[4] << 6;
    if constexpr (Codes::kRest == 1) {
      uint32_t v = low[0] | high[0] << 2;
      v = (v | v >> 4) & 0x00ff00ffu;
      reinterpret_cast<unsigned short*>(behind)[lane] = static_cast<unsigned short>(v | v >> 8);
    }
  }
  if (threadIdx.x == 0) *half_step = step / 2;
  __syncthreads();  // shared memory may be written again
}

/// Mean key and mean value, as rows of a block (kv_layout.cuh). Seldom done, by kernels that want
/// their registers for other things: few tokens are loaded together.
template <int D, typename T>
__device__ void write_summary(const std::byte* block, int token, std::byte* summary) {
  constexpr int kUnits = D / kUnitElements;
  for (int unit = threadIdx.x; unit < 2 * kUnits; unit += kIndexThreads) {
    const int half = unit / kUnits, of_half = unit % kUnits;
    std::byte* row = summary + half * D * 2;
    *reinterpret_cast<uint4*>(row + kv_row_offset(D, token, of_half * kUnitElements)) =
        mean_of_unit<D, T, T, 4>(block + half * kv_half_bytes(D), of_half);
  }
}

/// Writes the index and the summary of the page that a row fills, if it fills one. The whole block
/// calls it.
template <int D, PageScore kScore>
__device__ void write_page_index(const PageIndex& index, int row, int head) {
  const int position = index.position[row];
  if (position % kPageTokens != kPageTokens - 1) return;
  const int page = index.pages[index.sequence[row] * index.table_stride + position / kPageTokens];
  const int64_t which = static_cast<int64_t>(page) * index.kv_heads + head;
  const std::byte* keys = index.kv + which * kv_block_bytes(D);
  const bool f16 = index.kv_dtype == DType::kF16;
  if (index.summaries != nullptr) {
    std::byte* out = index.summaries + which * D * 4;
    const int token = position / kPageTokens % kPageTokens;
    f16 ? write_summary<D, __half>(keys, token, out)
        : write_summary<D, __nv_bfloat16>(keys, token, out);
  }
  if (index.data == nullptr) return;
  if constexpr (kScore == PageScore::kMean) {
    auto* out = static_cast<std::byte*>(index.data) + which * D * 2;
    f16 ? write_mean<D, __half>(keys, out) : write_mean<D, __nv_bfloat16>(keys, out);
  } else {
    uint32_t* out = static_cast<uint32_t*>(index.data) + which * PageCodes<D>::kWords;
    float* half_step = index.half_steps + which;
    f16 ? write_codes<D, __half>(keys, out, half_step)
        : write_codes<D, __nv_bfloat16>(keys, out, half_step);
  }
}

}  // namespace polar::backend::cuda
