// The neurons that a step's rows compute: their scores from the routers' logits, the best of them,
// and these as an ascending list; one kernel.

#include <algorithm>

#include "backend/cuda/cuda_check.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.cuh"

namespace polar::backend::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kRowParts = 4;                   // of the rows, side by side
constexpr int kScored = kThreads / kRowParts;  // neurons of a block
// The bits of a key, most significant first, by the histogram that tells them.
constexpr int kFirstBits = 11, kSecondBits = 11, kThirdBits = 32 - kFirstBits - kSecondBits;
static_assert(kNeuronBins == 1 << kFirstBits && kNeuronBins == 2 * kThreads);

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

/// What the block's warps before this one add up to, of one number of each.
__device__ __forceinline__ int before_warp(int mine) {
  __shared__ int of_warp[kThreads / 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();
  if (lane == 0) of_warp[warp] = mine;
  __syncthreads();
  return __reduce_add_sync(~0u, lane < warp ? of_warp[lane] : 0);
}

/// Where a ranking is cut: the bin of the last key that is taken, and how many of that bin are.
struct Cut {
  uint32_t bin;
  int need;
};

/// Of 2 kThreads counts, the bin that holds the `need`-th key from the top. The first thread has
/// the two highest bins, and so on down.
__device__ __forceinline__ Cut cut_at(int2 low_high, int need) {
  __shared__ Cut cut;
  const int sum = low_high.x + low_high.y;
  int through = sum;  // this lane
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int lower = __shfl_up_sync(~0u, through, step);
    if (threadIdx.x % 32 >= step) through += lower;
  }
  int above = before_warp(__shfl_sync(~0u, through, 31)) + through - sum;
  if (above < need && need <= above + sum) {
    uint32_t bin = 2 * (kThreads - threadIdx.x) - 1;
    if (need > above + low_high.y) above += low_high.y, --bin;
    cut = {bin, need - above};
  }
  __syncthreads();
  return cut;
}

/// The list, by one block; a warp holds up to `Items` times 32 neighbouring keys. The bits of the
/// last key that is taken are found from the top: all blocks have counted every key's first ones.
template <int Items>
__device__ void list_best(const NeuronChoiceLaunch& p) {
  constexpr int kSecond = 1 << kSecondBits, kThird = 1 << kThirdBits;
  __shared__ int2 second[kSecond / 2], third[kThird / 2];
  const int mine = kThreads - 1 - static_cast<int>(threadIdx.x);
  int2* const first = reinterpret_cast<int2*>(p.bins) + mine;
  const int2 own = __ldcg(first);
  const int strips = (p.ffn + kThreads - 1) / kThreads, lane = threadIdx.x % 32;
  const int begin = static_cast<int>(threadIdx.x) / 32 * strips * 32 + lane;
  const auto neuron_of = [&](int i) { return begin + i * 32; };
  uint32_t key[Items];  // 0, below all keys, where there is none
#pragma unroll
  for (int i = 0; i < Items; ++i)
    key[i] = i < strips && neuron_of(i) < p.ffn ? __ldcg(p.keys + neuron_of(i)) : 0;
  __stcg(first, make_int2(0, 0));
  second[mine] = make_int2(0, 0);
  if (mine < kThird / 2) third[mine] = make_int2(0, 0);

  Cut cut = cut_at(own, p.count);
  uint32_t prefix = cut.bin;
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    if (key[i] >> (kSecondBits + kThirdBits) == prefix)
      atomicAdd(&second[0].x + (key[i] >> kThirdBits & (kSecond - 1)), 1);
  }
  __syncthreads();
  cut = cut_at(second[mine], cut.need);
  prefix = prefix << kSecondBits | cut.bin;
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    if (key[i] >> kThirdBits == prefix) atomicAdd(&third[0].x + (key[i] & (kThird - 1)), 1);
  }
  __syncthreads();
  cut = cut_at(mine < kThird / 2 ? third[mine] : make_int2(0, 0), cut.need);
  const uint32_t threshold = prefix << kThirdBits | cut.bin;

  int above = 0, equal = 0;
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    above += key[i] > threshold;
    equal += key[i] == threshold;
  }
  // Of equal ones the first few: the lower neurons.
  const int equal_before = min(before_warp(__reduce_add_sync(~0u, equal)), cut.need);
  int at = before_warp(__reduce_add_sync(~0u, above)) + equal_before;
  int left = cut.need - equal_before;
  const uint32_t lower_lanes = (1u << lane) - 1;
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    const uint32_t ties = __ballot_sync(~0u, key[i] == threshold);
    const bool take =
        key[i] > threshold || (key[i] == threshold && __popc(ties & lower_lanes) < left);
    const uint32_t taken = __ballot_sync(~0u, take);
    if (take) p.index[at + __popc(taken & lower_lanes)] = neuron_of(i);
    at += __popc(taken);
    left -= min(__popc(ties), left);
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
  if (threadIdx.x < kScored) {
    const uint32_t key = neuron < p.ffn ? ordered(score) : 0;
    const uint32_t bin = key >> (kSecondBits + kThirdBits);
    const uint32_t same = __match_any_sync(~0u, neuron < p.ffn ? bin : kNeuronBins);
    if (neuron < p.ffn) {
      __stcg(p.keys + neuron, key);
      if (__ffs(same) - 1 == threadIdx.x % 32) atomicAdd(p.bins + bin, __popc(same));
    }
  }
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
