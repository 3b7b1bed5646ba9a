// The neurons that a step's rows compute: their scores from the routers' logits, the best of them,
// and these as an ascending list; one kernel.

#include <algorithm>

#include "backend/cuda/cuda_check.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/plan.cuh"

namespace polar::backend::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kRowParts = 4;                   // of the rows, side by side
constexpr int kScored = kThreads / kRowParts;  // neurons of a block

/// off_cost() of neuron_choice.h.
__device__ __forceinline__ float off_cost_of(float logit) {
  return fmaxf(logit, 0.0f) + log1pf(__expf(-fabsf(logit)));
}

/// Unsigned numbers above zero, in the order of the floats; the two zeros are one.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return max(bits >> 31 ? ~bits : bits | 1u << 31, 1u);
}

/// The score of one of the block's neurons; threads of the first part have it.
__device__ float score_of(const NeuronChoiceLaunch& p, int neuron) {
  const int part = threadIdx.x / kScored;
  float sum = 0.0f;
  if (neuron < p.ffn) {
    const float* logit = p.logits + neuron;
    if (p.by == UnionBy::kLikely && p.rows == 1) {
      sum = part == 0 ? *logit : 0.0f;
    } else {
#pragma unroll 4
      for (int row = part; row < p.rows; row += kRowParts) {
        const float v = logit[static_cast<int64_t>(row) * p.ffn] * p.inverse_unit;
        sum += p.by == UnionBy::kSum ? fmaxf(v, 0.0f) : off_cost_of(v);
      }
    }
  }
  __shared__ float parts[kRowParts][kScored];
  parts[part][threadIdx.x % kScored] = sum;
  __syncthreads();
  if (part > 0) return 0.0f;
#pragma unroll
  for (int other = 1; other < kRowParts; ++other) sum += parts[other][threadIdx.x];
  return sum;
}

/// How many of a block's values there are, in one of a few counters that take turns.
__device__ __forceinline__ int count_of(int mine, int turn) {
  __shared__ int counters[3];
  int& counter = counters[turn % 3];
  if (turn == 0) {
    if (threadIdx.x < 3) counters[threadIdx.x] = 0;
    __syncthreads();
  }
  mine = __reduce_add_sync(~0u, mine);
  if (threadIdx.x % 32 == 0 && mine > 0) atomicAdd(&counter, mine);
  __syncthreads();
  // All have read the counter of the turn before: it is the next but one.
  if (threadIdx.x == 0) counters[(turn + 2) % 3] = 0;
  return *static_cast<volatile int*>(&counter);
}

/// The list, by one block; a thread holds up to `Items` neighbouring keys.
template <int Items>
__device__ void list_best(const NeuronChoiceLaunch& p) {
  const int per = (p.ffn + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * per, p.ffn), end = min(begin + per, p.ffn);
  uint32_t key[Items];
#pragma unroll
  for (int i = 0; i < Items; ++i) key[i] = begin + i < end ? __ldcg(p.keys + begin + i) : 0;
  // The largest threshold that at least `count` keys reach.
  uint32_t threshold = 0;
  bool exact = p.count == p.ffn;
  if (exact) threshold = 1;
  for (int bit = 31; bit >= 0 && !exact; --bit) {
    const uint32_t trial = threshold | 1u << bit;
    int mine = 0;
#pragma unroll
    for (int i = 0; i < Items; ++i) mine += key[i] >= trial;
    const int count = count_of(mine, 31 - bit);
    if (count >= p.count) threshold = trial;
    exact = count == p.count;
  }
  int above = 0, equal = 0;
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    above += key[i] > threshold;
    equal += key[i] == threshold;
  }
  int2 all;
  const int2 before = block_scan<kThreads>({above, equal}, all);
  // Of equal ones the first few: the lower neurons.
  int left = exact ? p.ffn : p.count - all.x;
  int at = before.x + min(before.y, left);
  left -= min(before.y, left);
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    if (key[i] > threshold || (key[i] == threshold && key[i] > 0 && left-- > 0))
      p.index[at++] = begin + i;
  }
}

template <int Items>
__global__ void __launch_bounds__(kThreads)
    choose_neurons_kernel(const __grid_constant__ NeuronChoiceLaunch p) {
  __shared__ bool last;
  let_next_begin();
  wait_for_previous();
  const int neuron = blockIdx.x * kScored + threadIdx.x % kScored;
  const float score = score_of(p, neuron);
  if (threadIdx.x < kScored && neuron < p.ffn) __stcg(p.keys + neuron, ordered(score));
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(p.arrived, 1) == static_cast<int>(gridDim.x) - 1;
  __syncthreads();
  if (!last) return;
  if (threadIdx.x == 0) *p.arrived = 0;
  __threadfence();
  list_best<Items>(p);
}

template <int Items>
void launch(const NeuronChoiceLaunch& p, cudaStream_t stream) {
  POLAR_CUDA(launch_early(choose_neurons_kernel<Items>, dim3((p.ffn + kScored - 1) / kScored),
                          kThreads, 0, stream, p));
}

}  // namespace

void launch_choose_neurons(const NeuronChoiceLaunch& p, cudaStream_t stream) {
  POLAR_CHECK(p.by != UnionBy::kRows && p.rows > 0 && p.count > 0 && p.count <= p.ffn &&
              p.ffn <= kMostNeurons);
  const int per = (p.ffn + kThreads - 1) / kThreads;
  if (per <= 4) return launch<4>(p, stream);
  if (per <= 16) return launch<16>(p, stream);
  if (per <= 28) return launch<28>(p, stream);
  if (per <= 40) return launch<40>(p, stream);
  launch<64>(p, stream);
}

}  // namespace polar::backend::cuda
