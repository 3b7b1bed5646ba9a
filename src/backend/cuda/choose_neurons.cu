// The neurons that a step's rows compute: their ranking by the routers' logits, and the best of
// them as an ascending list.

#include <algorithm>

#include "backend/cuda/cluster.cuh"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/neuron_scores.cuh"

namespace polar::backend::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kBinsOfThread = kNeuronBins / kThreads;
constexpr int kMostRanks = 8;  // blocks that list together
static_assert(kBinsOfThread == 4 && kSecondBits == kFirstBits && kThirdBits <= kFirstBits);

/// What the block's warps before this one add up to, of one number of each.
__device__ __forceinline__ int before_warp(int mine) {
  __shared__ int of_warp[kThreads / 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();
  if (lane == 0) of_warp[warp] = mine;
  __syncthreads();
  return __reduce_add_sync(~0u, lane < warp ? of_warp[lane] : 0);
}

/// Where a ranking is cut: the bin of the last key that is taken, and how many of that bin are, or
/// whether all.
struct Cut {
  uint32_t bin;
  int need;
  bool whole;
};

/// Of kNeuronBins counts, the bin that holds the `need`-th key from the top. The first thread has
/// the four highest bins (the highest in w), and so on down.
__device__ __forceinline__ Cut cut_at(int4 counts, int need) {
  __shared__ Cut cut;
  const int sum = counts.x + counts.y + counts.z + counts.w;
  int through = sum;  // this lane
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int lower = __shfl_up_sync(~0u, through, step);
    if (threadIdx.x % 32 >= step) through += lower;
  }
  int above = before_warp(__shfl_sync(~0u, through, 31)) + through - sum;
  if (above < need && need <= above + sum) {
    uint32_t bin = kBinsOfThread * (kThreads - threadIdx.x) - 1;
    const int of_bin[] = {counts.w, counts.z, counts.y, counts.x};
#pragma unroll
    for (int i = 0; i < kBinsOfThread; ++i) {
      if (need > above && need <= above + of_bin[i])
        cut = {bin - i, need - above, need == above + of_bin[i]};
      above += of_bin[i];
    }
  }
  __syncthreads();
  return cut;
}

/// The list, by a cluster of blocks; a warp holds up to `Items` times 32 neighbouring keys. The
/// bits of the last key that is taken are found from the top: every key's first ones are counted
/// already, the others are in the first block's shared memory.
template <int Items>
__global__ void __launch_bounds__(kThreads)
    list_neurons_kernel(const NeuronScores scores, int ffn, int count, int32_t* index) {
  __shared__ int4 second[kThreads], third[kThreads];
  __shared__ int4 totals[kMostRanks / 4];  // of the cluster's blocks: keys taken, keys at the cut
  let_next_begin();
  second[threadIdx.x] = third[threadIdx.x] = make_int4(0, 0, 0, 0);
  const int rank = static_cast<int>(blockIdx.x), ranks = static_cast<int>(gridDim.x);
  const int mine = kThreads - 1 - static_cast<int>(threadIdx.x), lane = threadIdx.x % 32;
  const int strips = (ffn + ranks * kThreads - 1) / (ranks * kThreads);
  const int begin = (rank * kThreads + static_cast<int>(threadIdx.x)) / 32 * strips * 32 + lane;
  const auto neuron_of = [&](int i) { return begin + i * 32; };
  const uint32_t counted_second = cluster_address(shared_address(second), 0),
                 counted_third = cluster_address(shared_address(third), 0);
  cluster_barrier();  // all of them run
  wait_for_previous();
  int4* const first = reinterpret_cast<int4*>(scores.bins) + mine;
  const int4 own = __ldcg(first);
  uint32_t key[Items];  // 0, below all keys, where there is none
#pragma unroll
  for (int i = 0; i < Items; ++i)
    key[i] = i < strips && neuron_of(i) < ffn ? __ldcg(scores.keys + neuron_of(i)) : 0;

  Cut cut = cut_at(own, count);
  uint32_t prefix = cut.bin;
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    if (key[i] >> (kSecondBits + kThirdBits) == prefix)
      add_cluster(counted_second + (key[i] >> kThirdBits & ((1 << kSecondBits) - 1)) * 4, 1);
  }
  cluster_barrier();
  if (rank == 0) __stcg(first, make_int4(0, 0, 0, 0));  // all have read them
  cut = cut_at(load_cluster16(counted_second + mine * 16), cut.need);
  prefix = prefix << kSecondBits | cut.bin;
  // Keys from here on are taken, and of those equal to `tie` the first `ties`: the lower neurons.
  uint32_t from = max(prefix << kThirdBits, 1u), tie = 0;
  int ties = 0;
  if (!cut.whole) {  // of few keys, two rarely agree in 22 bits
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      if (key[i] >> kThirdBits == prefix)
        add_cluster(counted_third + (key[i] & ((1 << kThirdBits) - 1)) * 4, 1);
    }
    cluster_barrier();
    cut = cut_at(load_cluster16(counted_third + mine * 16), cut.need);
    tie = prefix << kThirdBits | cut.bin;
    from = tie + 1;
    ties = cut.need;
  }

  uint32_t tally = 0;  // keys that are taken, and in the upper half those equal to `tie`
#pragma unroll
  for (int i = 0; i < Items; ++i)
    tally += (key[i] >= from) + (static_cast<uint32_t>(key[i] == tie) << 16);
  tally = __reduce_add_sync(~0u, tally);
  const auto before = static_cast<uint32_t>(before_warp(static_cast<int>(tally)));
  if (threadIdx.x / 32 == kThreads / 32 - 1 && lane < ranks)
    store_cluster(cluster_address(shared_address(totals) + rank * 4, lane),
                  static_cast<int>(before + tally));
  cluster_barrier();
  const int others = lane < rank ? reinterpret_cast<const int*>(totals)[lane] : 0;
  const int ties_before =
      min(__reduce_add_sync(~0u, others >> 16) + static_cast<int>(before >> 16), ties);
  int at =
      __reduce_add_sync(~0u, others & 0xffff) + static_cast<int>(before & 0xffff) + ties_before;
  int left = ties - ties_before;
  const uint32_t lower_lanes = (1u << lane) - 1;
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    const uint32_t equal = __ballot_sync(~0u, key[i] == tie);
    const bool take = key[i] >= from || (key[i] == tie && __popc(equal & lower_lanes) < left);
    const uint32_t taken = __ballot_sync(~0u, take);
    if (take) index[at + __popc(taken & lower_lanes)] = neuron_of(i);
    at += __popc(taken);
    left -= min(__popc(equal), left);
  }
}

constexpr int kRowParts = 4;  // of the rows, side by side
constexpr int kScoreThreads = 512, kScored = kScoreThreads / kRowParts;  // neurons of a block

__global__ void __launch_bounds__(kScoreThreads)
    score_neurons_kernel(const float* logits, int rows, int ffn, const NeuronScores to) {
  __shared__ float parts[kRowParts][kScored];
  let_next_begin();
  wait_for_previous();
  const int part = threadIdx.x / kScored, inside = threadIdx.x % kScored;
  const int neuron = blockIdx.x * kScored + inside;
  float sum = 0.0f;
  if (neuron < ffn) {
#pragma unroll 4
    for (int row = part; row < rows; row += kRowParts)
      sum += score_part(to, rows, logits[static_cast<int64_t>(row) * ffn + neuron]);
  }
  parts[part][inside] = sum;
  __syncthreads();
  if (part > 0) return;
#pragma unroll
  for (int other = 1; other < kRowParts; ++other) sum += parts[other][inside];
  keep_key(to, neuron < ffn ? neuron : -1, sum);
}

template <int Items>
void launch(const NeuronScores& scores, int ffn, int count, int32_t* index, int ranks,
            cudaStream_t stream) {
  POLAR_CUDA(launch_early_clusters(list_neurons_kernel<Items>, dim3(ranks), ranks, kThreads, 0,
                                   stream, scores, ffn, count, index));
}

}  // namespace

void launch_score_neurons(const float* logits, int rows, int ffn, const NeuronScores& scores,
                          cudaStream_t stream) {
  POLAR_CHECK(scores.by != UnionBy::kRows && rows > 0 && ffn <= kMostNeurons);
  POLAR_CUDA(launch_early(score_neurons_kernel, dim3((ffn + kScored - 1) / kScored), kScoreThreads,
                          0, stream, logits, rows, ffn, scores));
}

void launch_list_neurons(const NeuronScores& scores, int ffn, int count, int32_t* index,
                         cudaStream_t stream) {
  POLAR_CHECK(count > 0 && count <= ffn && ffn <= kMostNeurons);
  const int ranks = code_version() >= 90 ? kMostRanks : 1;
  const int per = (ffn + ranks * kThreads - 1) / (ranks * kThreads);
  const auto with = [&](auto launch_items) {
    launch_items(scores, ffn, count, index, ranks, stream);
  };
  if (per <= 4) return with(launch<4>);
  if (per <= 9) return with(launch<9>);
  if (per <= 16) return with(launch<16>);
  with(launch<kMostNeurons / kThreads>);
}

}  // namespace polar::backend::cuda
