#pragma once
// One unit of decode attention inside a warp: a page's products, the running softmax, and how
// partial results of one unit add up.

#include <type_traits>

#include "backend/cuda/attention.h"
#include "backend/cuda/kv_layout.cuh"
#include "backend/cuda/mma.cuh"

namespace polar::backend::cuda {

/// What is seen of a page: a bit for each token; and whether the tokens are summaries of pages.
inline constexpr int kAllTokens = (1 << kPageTokens) - 1;
inline constexpr int kSummaries = 1 << kPageTokens;

/// Running softmax of one unit in one warp. Lane l holds, of query heads c = l % 4 * 2 + {0, 1} of
/// each tile of 8: maximum and its own part of the sum, and the outputs of dims l / 4 + {0, 8} of
/// each 16.
template <int D, typename T, int NT>
struct UnitState {
  uint32_t query[NT][D / 16][2];
  float out[NT][D / 16][4];
  float maximum[NT][2];  // of scores in units of log2
  float sum[NT][2];

  /// Loads the unit's queries, [group][D] in bf16, as B operands: lane l holds head l / 4, dims
  /// l % 4 * 2 + {0, 1, 8, 9} of each 16.
  __device__ void begin(const DecodeAttention& a, int unit) {
    const int lane = threadIdx.x & 31;
    const auto* base = static_cast<const uint32_t*>(a.query) +
                       (static_cast<int64_t>(unit) * a.group * D + lane % 4 * 2) / 2;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      const int head = n * 8 + lane / 4;
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t bits = head < a.group ? base[(head * D + k * 16 + half * 8) / 2] : 0;
          if constexpr (!std::is_same_v<T, __nv_bfloat16>) {
            const float2 v = unpack<__nv_bfloat16>(bits);
            bits = pack<T>(v.x, v.y);
          }
          query[n][k][half] = bits;
        }
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) maximum[n][c] = -1e30f, sum[n][c] = 0.0f;
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[n][d][i] = 0.0f;
      }
    }
  }

  /// Adds the page at `block` (shared address). Other tokens than those in `seen` are not seen,
  /// whatever stands there; the scores of summaries count for all tokens of their pages.
  __device__ __forceinline__ void add_page(uint32_t block, int seen, float scale_log2) {
    static_assert(kPageTokens == 16);
    const int lane = threadIdx.x & 31;
    const bool whole = (seen & kAllTokens) == kAllTokens;
    const float gain = (seen & kSummaries) != 0 ? 4.0f : 0.0f;  // log2(kPageTokens)
    constexpr int kChains = NT == 1 ? 4 : 2;
    float score[NT][kChains][4] = {};
    {
      const int token = lane & 15;
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        uint32_t key[4];
        ldmatrix(key, block + kv_unit_offset(D, token, k * 2 + (lane >> 4)));
#pragma unroll
        for (int n = 0; n < NT; ++n)
          mma<T>(score[n][k % kChains], key, query[n][k][0], query[n][k][1]);
      }
    }
    uint32_t weights[NT][2];
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float s[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[i] = score[n][0][i] + score[n][1][i];
        if constexpr (kChains == 4) s[i] += score[n][2][i] + score[n][3][i];
        s[i] = s[i] * scale_log2 + gain;
      }
      if (!whole) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = lane / 4 + (i / 2) * 8;
          if ((seen >> token & 1) == 0) s[i] = -INFINITY;
        }
      }
      float top[2] = {fmaxf(s[0], s[2]), fmaxf(s[1], s[3])};
#pragma unroll
      for (int mask = 4; mask <= 16; mask *= 2) {
#pragma unroll
        for (int c = 0; c < 2; ++c) top[c] = fmaxf(top[c], __shfl_xor_sync(~0u, top[c], mask));
      }
      if (__any_sync(~0u, top[0] > maximum[n][0] || top[1] > maximum[n][1])) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float next = fmaxf(maximum[n][c], top[c]);
          const float shrink = exp2_fast(maximum[n][c] - next);
          maximum[n][c] = next;
          sum[n][c] *= shrink;
#pragma unroll
          for (int d = 0; d < D / 16; ++d) out[n][d][c] *= shrink, out[n][d][c + 2] *= shrink;
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) s[i] = exp2_fast(s[i] - maximum[n][i & 1]);
#pragma unroll
      for (int c = 0; c < 2; ++c) sum[n][c] += s[c] + s[c + 2];
      weights[n][0] = movmatrix(pack<T>(s[0], s[1]));
      weights[n][1] = movmatrix(pack<T>(s[2], s[3]));
    }
    const int token = (lane & 7) + (lane >> 4) * 8;
    const int token_pair = lane % 4 * 2;  // of the value fragments, + 8 in their second halves
    const uint32_t values = block + kv_half_bytes(D);
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      uint32_t value[4];
      ldmatrix_transposed(value, values + kv_unit_offset(D, token, d * 2 + ((lane >> 3) & 1)));
      if (!whole) {  // 0 * NaN is NaN: what is not seen must not be multiplied either
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int t = token_pair + (i / 2) * 8;
          if ((seen >> t & 1) == 0) value[i] &= 0xffff0000u;
          if ((seen >> (t + 1) & 1) == 0) value[i] &= 0x0000ffffu;
        }
      }
#pragma unroll
      for (int n = 0; n < NT; ++n) mma<T>(out[n][d], value, weights[n][0], weights[n][1]);
    }
  }

  /// Adds up the lanes' parts of the sums.
  __device__ __forceinline__ void reduce() {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int mask = 4; mask <= 16; mask *= 2)
          sum[n][c] += __shfl_xor_sync(~0u, sum[n][c], mask);
      }
    }
  }

  /// Writes the finished unit, bf16.
  __device__ void write(const DecodeAttention& a, int unit) {
    const int lane = threadIdx.x & 31;
    auto* base = static_cast<uint32_t*>(a.output) +
                 (static_cast<int64_t>(unit) * a.group * D + lane % 4 * 2) / 2;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float inverse[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) inverse[c] = sum[n][c] > 0.0f ? 1.0f / sum[n][c] : 0.0f;
      const int head = n * 8 + lane / 4;
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* o = out[n][d] + half * 2;
          const uint32_t bits =
              movmatrix(pack<__nv_bfloat16>(o[0] * inverse[0], o[1] * inverse[1]));
          if (head < a.group) base[(head * D + d * 16 + half * 8) / 2] = bits;
        }
      }
    }
  }

  /// Leaves the unfinished unit in shared memory: outputs [group][D], sums [16] of (maximum, sum).
  __device__ void save(float* outputs, float2* sums, int group) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int head = n * 8 + lane % 4 * 2 + c;
        if (head >= group) continue;
        if (lane < 4) sums[head] = {maximum[n][c], sum[n][c]};
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
          outputs[head * D + d * 16 + lane / 4] = out[n][d][c];
          outputs[head * D + d * 16 + lane / 4 + 8] = out[n][d][c + 2];
        }
      }
    }
  }
};

/// Partial results added up: four dims, before the division by the sum.
struct alignas(16) Merged {
  float maximum = -1e30f, sum = 0.0f;
  float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
};

/// Adds partial results j = begin, begin + step, ... below `count`, in this order. `sums(j)` is
/// (maximum, sum) of the j-th, `values(j)` four of its dims.
template <typename Sums, typename Values>
__device__ __forceinline__ Merged merge_partials(int begin, int step, int count, Sums sums,
                                                 Values values) {
  constexpr int kBatch = 4;  // loaded together: what counts here is latency
  Merged all;
#pragma unroll 1
  for (int base = begin; base < count; base += kBatch * step) {
    float2 s[kBatch];
    float4 v[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {  // behind the last: the first again, with weight 0
      const int j = base + i * step;
      s[i] = sums(j < count ? j : base);
      v[i] = values(j < count ? j : base);
    }
    const float before = all.maximum;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) all.maximum = fmaxf(all.maximum, s[i].x);
    const float shrink = exp2_fast(before - all.maximum);
    all.sum *= shrink;
    all.value.x *= shrink, all.value.y *= shrink, all.value.z *= shrink, all.value.w *= shrink;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float f = base + i * step < count ? exp2_fast(s[i].x - all.maximum) : 0.0f;
      all.sum += s[i].y * f;
      all.value.x += v[i].x * f, all.value.y += v[i].y * f;
      all.value.z += v[i].z * f, all.value.w += v[i].w * f;
    }
  }
  return all;
}

}  // namespace polar::backend::cuda
