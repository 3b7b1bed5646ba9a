#pragma once
// What neurons are ranked by, and the first step of the ranking: a histogram of all keys.

#include "backend/cuda/kernels.h"

namespace polar::backend::cuda {

// The bits of a key, most significant first, by the histogram that tells them.
inline constexpr int kFirstBits = 11, kSecondBits = 11, kThirdBits = 32 - kFirstBits - kSecondBits;
static_assert(kNeuronBins == 1 << kFirstBits);

/// What a row's logit adds to its neuron's score, of several rows: see union_scores().
__device__ __forceinline__ float score_part(const NeuronScores& to, int rows, float logit) {
  if (to.by == UnionBy::kLikely && rows == 1) return logit;
  const float v = logit * to.inverse_unit;
  if (to.by == UnionBy::kSum) return fmaxf(v, 0.0f);
  return fmaxf(v, 0.0f) + log1pf(__expf(-fabsf(v)));  // off_cost()
}

/// Unsigned numbers above zero, in the order of the floats; the two zeros are one.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return max(bits >> 31 ? ~bits : bits | 1u << 31, 1u);
}

/// Keeps and counts the key of a neuron: one a lane, of a whole warp; `neuron` < 0: none.
__device__ __forceinline__ void keep_key(const NeuronScores& to, int neuron, float score) {
  const uint32_t key = ordered(score);
  const uint32_t bin = neuron < 0 ? kNeuronBins : key >> (kSecondBits + kThirdBits);
  const uint32_t same = __match_any_sync(~0u, bin);
  if (neuron < 0) return;
  __stcg(to.keys + neuron, key);
  if (__ffs(same) - 1 == threadIdx.x % 32) atomicAdd(to.bins + bin, __popc(same));
}

}  // namespace polar::backend::cuda
