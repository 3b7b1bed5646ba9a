#pragma once
// For checks and benchmarks: seeded inputs that host and device compute alike, and attention in
// float64 from the definition in step.h.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

#include "backend/cuda/attention.h"
#include "backend/cuda/kv_layout.cuh"

namespace polar::backend::cuda::check {

__host__ __device__ inline uint32_t mix(uint32_t a, uint32_t b) {
  uint32_t h = a * 0x9e3779b1u ^ (b + 0x7f4a7c15u) * 0x85ebca6bu;
  h ^= h >> 15;
  h *= 0x2c1b3c6du;
  h ^= h >> 12;
  h *= 0x297a2d39u;
  return h ^ h >> 15;
}

/// Uniform in [-1, 1), in steps of 2^-15.
__host__ __device__ inline float uniform(uint32_t seed, uint32_t index) {
  return static_cast<float>(static_cast<int32_t>(mix(seed, index) >> 16) - 32768) / 32768.0f;
}

/// Rounds to the 16-bit type and says what that is as bits and as a float.
__host__ __device__ inline uint16_t to_bits(DType type, float v) {
  if (type == DType::kF16) {
    const __half h = __float2half(v);
    return *reinterpret_cast<const uint16_t*>(&h);
  }
  const __nv_bfloat16 h = __float2bfloat16(v);
  return *reinterpret_cast<const uint16_t*>(&h);
}
inline float from_bits(DType type, uint16_t bits) {
  if (type == DType::kF16) return __half2float(*reinterpret_cast<const __half*>(&bits));
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  return *reinterpret_cast<const float*>(&wide);
}

/// Element of block (page, head): half 0 is K, 1 is V.
__host__ __device__ inline float kv_value(int block, int half, int token, int dim) {
  return uniform(static_cast<uint32_t>(block) * 2 + half, token * 1024 + dim) *
         (half ? 1.0f : 2.0f);
}

/// What a page's summary holds: the mean over its tokens as stored, rounded to the same type.
inline float summary_value(DType type, int block, int half, int dim) {
  float sum = 0.0f;
  for (int token = 0; token < kPageTokens; ++token)
    sum += from_bits(type, to_bits(type, kv_value(block, half, token, dim)));
  return from_bits(type, to_bits(type, sum / kPageTokens));
}

/// One (unit, query head): a list of (page, first and last visible token), or of pages that are
/// seen by their summaries.
struct Visible {
  int page, low, high;
  bool summary = false;
};

/// What a unit sees, from the definition of PageRanges.
inline std::vector<Visible> visible_pages(const PageRanges& r, const int32_t* pages, int list_begin,
                                          int table_begin, int position, int window) {
  std::vector<Visible> out;
  const auto add = [&](int entry) {
    int low = 0, high = kPageTokens;
    if (entry < list_begin) {
      for (int t = 0; t < kPageTokens; ++t) {
        const int p = (entry - table_begin) * kPageTokens + t;
        if (p > position) high = std::min(high, t);
        if (window > 0 && p <= position - window) low = t + 1;
      }
    }
    if (low < high) out.push_back({pages[entry], low, high});
  };
  for (int i = 0; i < r.count; ++i) add(r.begin + i);
  for (int i = 0; i < r.tail_count; ++i) add(r.tail_begin + i);
  for (int page = r.summary_begin; page < r.summary_end; ++page) {
    if (r.read_bits == 0 || (pages[r.read_bits + page / 16] >> page % 16 & 1) == 0)
      out.push_back({pages[table_begin + page], 0, 1, true});
  }
  return out;
}

/// softmax(q K^T scale) V in float64 over the visible tokens; zero if there are none.
inline std::vector<double> attend(const std::vector<Visible>& pages, const float* query,
                                  int head_dim, int kv_heads, int kv_head, DType type,
                                  double scale) {
  const auto element = [&](const Visible& v, int block, int half, int token, int d) {
    if (v.summary) return summary_value(type, block, half, d);
    return from_bits(type, to_bits(type, kv_value(block, half, token, d)));
  };
  std::vector<double> out(head_dim, 0.0);
  double maximum = -INFINITY, sum = 0.0;
  for (const Visible& v : pages) {
    const int block = v.page * kv_heads + kv_head;
    for (int t = v.low; t < v.high; ++t) {
      double score = 0.0;
      for (int d = 0; d < head_dim; ++d)
        score += static_cast<double>(query[d]) * element(v, block, 0, t, d);
      score *= scale;
      if (v.summary) score += std::log(kPageTokens);
      if (score > maximum) {
        const double shrink = std::exp(maximum - score);
        for (double& o : out) o *= shrink;
        sum *= shrink;
        maximum = score;
      }
      const double weight = std::exp(score - maximum);
      sum += weight;
      for (int d = 0; d < head_dim; ++d) out[d] += weight * element(v, block, 1, t, d);
    }
  }
  if (sum > 0.0) {
    for (double& o : out) o /= sum;
  }
  return out;
}

/// Runs f(0) .. f(count - 1) on all cores.
template <typename F>
void parallel(int count, F f) {
  std::atomic<int> next{0};
  std::vector<std::thread> threads;
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  for (unsigned i = 0; i < cores; ++i) {
    threads.emplace_back([&] {
      for (int at; (at = next.fetch_add(1)) < count;) f(at);
    });
  }
  for (auto& t : threads) t.join();
}

}  // namespace polar::backend::cuda::check
