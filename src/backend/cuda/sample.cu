// Choosing the next token, and scoring given ones: one block a row, no sort. Tokens are ordered by
// a 64-bit key, larger first: the logit's bits as an ordered integer, then the lower id. Every
// filter keeps the first tokens of that order, so a filter is one key: found digit by digit from
// histograms of counts (top-k) or of weights (top-p and the draw itself). Weights are fixed-point
// numbers, so their sums do not depend on the order of additions.

#include <cuda_runtime.h>

#include "backend/cuda/kernels.h"

namespace polar::backend::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kBins = 2048;               // of a digit of 11 bits
constexpr float kOne = 1099511627776.0f;  // 2^40: the weight of the likeliest token

using Sum = unsigned long long;

__device__ uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

__device__ uint64_t key_of(float logit, int id) {
  uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 and 0 are equal
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ int id_of(uint64_t key) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}

struct Shared {
  Sum bin[kBins];
  uint32_t count[kBins];
  Sum scan[kThreads];
  uint64_t warp_key[32];
  float warp_value[32];
  uint64_t key;
  Sum before;
  int done;
};

/// The largest key below `below` in the row.
__device__ uint64_t best_key(const float* logits, int count, uint64_t below, Shared& s) {
  uint64_t best = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const uint64_t key = key_of(logits[i], i);
    if (key < below && key > best) best = key;
  }
  for (int o = 16; o > 0; o >>= 1) {
    const uint64_t other = __shfl_xor_sync(~0u, static_cast<unsigned long long>(best), o);
    if (other > best) best = other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warp_key[threadIdx.x / 32] = best;
  __syncthreads();
  best = s.warp_key[threadIdx.x % 32];
  for (int o = 16; o > 0; o >>= 1) {
    const uint64_t other = __shfl_xor_sync(~0u, static_cast<unsigned long long>(best), o);
    if (other > best) best = other;
  }
  return best;
}

/// log(sum exp(logit)), given the largest logit.
__device__ double log_of_sum(const float* logits, int count, float top, Shared& s) {
  float sum = 0.0f;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += expf(logits[i] - top);
  for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warp_value[threadIdx.x / 32] = sum;
  __syncthreads();
  double all = s.warp_value[threadIdx.x % 32];
  for (int o = 16; o > 0; o >>= 1) all += __shfl_xor_sync(~0u, all, o);
  return top + log(all);
}

/// Tokens with keys >= floor, in descending order of keys, or (by_id) all of them in ascending
/// order of ids: the first key at which the running sum of weights (or, without weights, of ones)
/// exceeds `target`; the last one if none does.
struct Order {
  const float* logits;
  int count;
  uint64_t floor;
  float top, inverse_temperature;
  bool by_id, weigh;
  __device__ bool at(int i, uint64_t& key, Sum& weight) const {
    key = key_of(logits[i], i);
    if (key < floor) return false;
    weight = 1;
    if (weigh) weight = static_cast<Sum>(expf((logits[i] - top) * inverse_temperature) * kOne);
    if (by_id)
      key = static_cast<uint64_t>(0xffffffffu - static_cast<uint32_t>(i)) << 32 |
            static_cast<uint32_t>(key);
    return weight > 0;
  }
};

__device__ Sum total_weight(const Order& order, Shared& s) {
  Sum sum = 0, weight;
  uint64_t key;
  for (int i = threadIdx.x; i < order.count; i += kThreads)
    if (order.at(i, key, weight)) sum += weight;
  for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.scan[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = s.scan[threadIdx.x % 32];
  for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
  __syncthreads();
  return sum;
}

__device__ uint64_t select_key(const Order& order, Sum target, Shared& s) {
  constexpr int kShift[] = {53, 42, 32, 21, 10, 0};
  constexpr int kBits[] = {11, 11, 10, 11, 11, 10};
  uint64_t prefix = 0;
  Sum before = 0;
  for (int digit = 0; digit < 6; ++digit) {
    const int shift = kShift[digit], above = shift + kBits[digit];
    for (int b = threadIdx.x; b < kBins; b += kThreads) {
      s.bin[b] = 0;
      s.count[b] = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < order.count; i += kThreads) {
      uint64_t key;
      Sum weight;
      if (!order.at(i, key, weight)) continue;
      if (above < 64 && key >> above != prefix) continue;
      const int b = static_cast<int>(key >> shift) & ((1 << kBits[digit]) - 1);
      atomicAdd(&s.bin[b], weight);
      atomicAdd(&s.count[b], 1u);
    }
    __syncthreads();
    // Sums from the highest bin down; each thread owns bins 2t and 2t + 1 of the reversed order.
    const int high = kBins - 1 - 2 * static_cast<int>(threadIdx.x), low = high - 1;
    const Sum mine = s.bin[high] + s.bin[low];
    s.scan[threadIdx.x] = mine;
    __syncthreads();
    for (int o = 1; o < kThreads; o <<= 1) {
      const Sum other = static_cast<int>(threadIdx.x) >= o ? s.scan[threadIdx.x - o] : 0;
      __syncthreads();
      s.scan[threadIdx.x] += other;
      __syncthreads();
    }
    if (threadIdx.x == 0) s.done = -1;
    __syncthreads();
    const Sum all = s.scan[kThreads - 1];
    if (before + all <= target) target = before + all - 1;  // the last one
    const Sum start = before + s.scan[threadIdx.x] - mine;
    if (mine > 0 && start <= target && target < start + mine) {
      const bool first = target < start + s.bin[high];
      const int b = first ? high : low;
      s.key = prefix << kBits[digit] | static_cast<uint64_t>(b);
      s.before = first ? start : start + s.bin[high];
      s.done = s.count[b] == 1 ? 1 : 0;
    }
    __syncthreads();
    prefix = s.key;
    before = s.before;
    const bool single = s.done == 1;
    __syncthreads();
    if (single && shift > 0) {
      for (int i = threadIdx.x; i < order.count; i += kThreads) {
        uint64_t key;
        Sum weight;
        if (order.at(i, key, weight) && key >> shift == prefix) s.key = key;
      }
      __syncthreads();
      prefix = s.key;
      __syncthreads();
      return prefix;
    }
  }
  return prefix;
}

__device__ void report_top(const float* logits, int vocabulary, double log_sum, int wanted,
                           Sampled& out, Shared& s) {
  const int count = min(min(wanted, kMaxTopLogprobs), vocabulary);
  if (threadIdx.x == 0) out.top_count = max(count, 0);
  uint64_t below = ~0ull;
  for (int i = 0; i < count; ++i) {
    below = best_key(logits, vocabulary, below, s);
    if (threadIdx.x == 0) {
      out.top_token[i] = id_of(below);
      out.top_logprob[i] = static_cast<float>(logits[id_of(below)] - log_sum);
    }
  }
}

__device__ float edited(const SampleParams& params, const LogitEdit& edit, float logit) {
  if (edit.repeated != 0)
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  if (edit.output_count > 0)
    logit -=
        params.presence_penalty + params.frequency_penalty * static_cast<float>(edit.output_count);
  return logit + edit.add;
}
__device__ float unedited(const SampleParams& params, const LogitEdit& edit, float logit) {
  logit -= edit.add;
  if (edit.output_count > 0)
    logit +=
        params.presence_penalty + params.frequency_penalty * static_cast<float>(edit.output_count);
  if (edit.repeated != 0)
    logit = logit > 0 ? logit * params.repetition_penalty : logit / params.repetition_penalty;
  return logit;
}

__device__ int draw(const SampleParams& params, const float* logits, int vocabulary, Shared& s) {
  const uint64_t best = best_key(logits, vocabulary, ~0ull, s);
  if (params.temperature <= 0.0f) return id_of(best);
  Order order{logits, vocabulary, 0, logits[id_of(best)], 1.0f / params.temperature, false, false};
  const bool by_count = params.top_k > 0 && params.top_k < vocabulary;
  const bool filtered = by_count || params.top_p < 1.0f || params.min_p > 0.0f;
  if (by_count) order.floor = select_key(order, params.top_k - 1, s);
  order.weigh = true;
  if (params.top_p < 1.0f) {
    // The token at which the sum reaches top_p of the total is the last that stays.
    const double bound =
        static_cast<double>(params.top_p) * static_cast<double>(total_weight(order, s));
    order.floor = max(order.floor,
                      select_key(order, bound >= 1.0 ? static_cast<Sum>(ceil(bound)) - 1 : 0, s));
  }
  if (params.min_p > 0.0f) {
    const float bound = min(params.min_p, 1.0f);
    uint64_t floor = best;
    for (int i = threadIdx.x; i < vocabulary; i += kThreads) {
      const uint64_t key = key_of(logits[i], i);
      if (key < floor && expf((logits[i] - order.top) * order.inverse_temperature) >= bound)
        floor = key;
    }
    for (int o = 16; o > 0; o >>= 1)
      floor = min(floor, static_cast<uint64_t>(
                             __shfl_xor_sync(~0u, static_cast<unsigned long long>(floor), o)));
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.warp_key[threadIdx.x / 32] = floor;
    __syncthreads();
    for (int w = 0; w < 32; ++w) floor = min(floor, s.warp_key[w]);
    order.floor = max(order.floor, floor);
    __syncthreads();
  }
  // As on the CPU: unfiltered tokens are drawn in the order of ids, filtered ones likeliest first.
  order.by_id = !filtered;
  const double uniform =
      static_cast<double>(mix(mix(params.seed) + static_cast<uint64_t>(params.step)) >> 11) *
      0x1p-53;
  const Sum target = static_cast<Sum>(uniform * static_cast<double>(total_weight(order, s)));
  const uint64_t key = select_key(order, target, s);
  return filtered ? id_of(key) : static_cast<int>(0xffffffffu - static_cast<uint32_t>(key >> 32));
}

__global__ void __launch_bounds__(kThreads) sample_kernel(const SampleArgs p) {
  __shared__ Shared s;
  const int row = blockIdx.x;
  const SampleParams params = p.params[row];
  float* logits = p.logits + static_cast<int64_t>(row) * p.vocabulary;
  Sampled& out = p.sampled[row];
  double log_sum = 0.0;
  if (params.logprobs >= 0) {
    const uint64_t best = best_key(logits, p.vocabulary, ~0ull, s);
    log_sum = log_of_sum(logits, p.vocabulary, logits[id_of(best)], s);
    report_top(logits, p.vocabulary, log_sum, params.logprobs, out, s);
  } else if (threadIdx.x == 0) {
    out.top_count = 0;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < params.edit_count; i += kThreads) {
    const LogitEdit edit = p.edits[params.edit_begin + i];
    logits[edit.token] = edited(params, edit, logits[edit.token]);
  }
  __syncthreads();
  const int token = draw(params, logits, p.vocabulary, s);
  __syncthreads();
  if (threadIdx.x == 0) {
    out.token = token;
    out.logprob = params.logprobs >= 0 ? static_cast<float>(logits[token] - log_sum) : 0.0f;
    p.last_token[params.slot] = token;
  }
  __syncthreads();
  if (params.logprobs < 0) return;
  for (int i = threadIdx.x; i < params.edit_count; i += kThreads) {
    const LogitEdit edit = p.edits[params.edit_begin + i];
    if (edit.token == token)
      out.logprob = static_cast<float>(unedited(params, edit, logits[token]) - log_sum);
  }
}

__global__ void __launch_bounds__(kThreads) score_kernel(const ScoreArgs p) {
  __shared__ Shared s;
  const int row = blockIdx.x;
  const float* logits = p.logits + static_cast<int64_t>(row) * p.vocabulary;
  const uint64_t best = best_key(logits, p.vocabulary, ~0ull, s);
  const double log_sum = log_of_sum(logits, p.vocabulary, logits[id_of(best)], s);
  Sampled& out = p.scored[row];
  if (threadIdx.x == 0) {
    out.token = p.token[row];
    out.logprob = static_cast<float>(logits[out.token] - log_sum);
  }
  report_top(logits, p.vocabulary, log_sum, p.top, out, s);
}

}  // namespace

void launch_sample(const SampleArgs& args, cudaStream_t stream) {
  sample_kernel<<<args.rows, kThreads, 0, stream>>>(args);
}

void launch_score(const ScoreArgs& args, cudaStream_t stream) {
  score_kernel<<<args.rows, kThreads, 0, stream>>>(args);
}

}  // namespace polar::backend::cuda
