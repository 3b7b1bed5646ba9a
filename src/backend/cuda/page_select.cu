// Page selection: each unit's best pages as a list, by the scores of page_scores.cu.

#include <type_traits>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/page_select.cuh"

namespace polar::backend::cuda {
namespace {

constexpr int kSelectThreads = 128;  // of a block whose warps select for a unit each

/// Reductions over the threads that work on one unit: a warp, or the whole block.
template <int Threads>
struct Team {
  static __device__ __forceinline__ int rank() { return threadIdx.x % Threads; }
  template <typename V, typename F>
  static __device__ __forceinline__ V reduce(V value, F combine) {
    if constexpr (std::is_same_v<V, int>) {  // sums, in one instruction
      value = __reduce_add_sync(~0u, value);
    } else {
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2)
        value = combine(value, __shfl_xor_sync(~0u, value, mask));
    }
    if constexpr (Threads > 32) {
      __shared__ V parts[Threads / 32];
      __syncthreads();
      if ((threadIdx.x & 31) == 0) parts[threadIdx.x / 32] = value;
      __syncthreads();
      value = parts[0];
#pragma unroll
      for (int w = 1; w < Threads / 32; ++w) value = combine(value, parts[w]);
    }
    return value;
  }
  /// Sum over the threads before this one.
  static __device__ __forceinline__ int before(int value) {
    if constexpr (Threads > 32) {
      int2 all;
      return block_scan<Threads>({value, 0}, all).x;
    } else {
      int sum = value;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, sum, step);
        if (rank() >= step) sum += other;
      }
      return sum - value;
    }
  }
};

/// The candidates of one unit that are read, as a list of physical pages, sink first, ascending.
/// Each thread holds up to `Items` neighbouring pages in registers.
template <int Threads, int Items>
__device__ void select_pages(const PageSelection& s, int unit, const PlanRow& row,
                             const PageChoice& c, int32_t* list) {
  using T = Team<Threads>;
  const int pages = c.first + c.count, stride = score_stride(s.plan.table_stride);
  const int per = ((pages + Threads - 1) / Threads + 3) / 4 * 4;
  const int begin = T::rank() * per, end = min(begin + per, pages);
  const float* scores = s.scores + static_cast<int64_t>(unit) * s.group * stride + begin;
  float mass[Items];  // of pages that are no candidates: negative
#pragma unroll
  for (int i = 0; i < Items; ++i) mass[i] = begin + i >= c.first && begin + i < end ? 0.0f : -1.0f;
  const auto add = [](auto a, auto b) { return a + b; };
#pragma unroll 2
  for (int head = 0; head < s.group; ++head) {
    const float* score = scores + static_cast<int64_t>(head) * stride;
    float value[Items], top = -INFINITY;
#pragma unroll
    for (int i = 0; i < Items; i += 4) {
      const float4 four = begin + i < end ? *reinterpret_cast<const float4*>(score + i)
                                          : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      value[i] = four.x, value[i + 1] = four.y, value[i + 2] = four.z, value[i + 3] = four.w;
    }
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      if (mass[i] < 0.0f) value[i] = -INFINITY;
      top = fmaxf(top, value[i]);
    }
    top = T::reduce(top, [](float a, float b) { return fmaxf(a, b); });
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      value[i] = exp2_fast(value[i] - top);
      sum += value[i];
    }
    const float inverse = 1.0f / T::reduce(sum, add);
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      if (mass[i] >= 0.0f) mass[i] += value[i] * inverse;
    }
  }
  // The largest threshold that at least `chosen` candidates reach. Masses are not negative: their
  // bits order as they do, and as signed numbers all others stay below.
  int threshold = 0;
  bool exact = false;  // as many as wanted reach it
  for (int bit = 30; bit >= 0 && !exact; --bit) {
    const int trial = threshold | 1 << bit;
    int count = 0;
#pragma unroll
    for (int i = 0; i < Items; ++i) count += __float_as_int(mass[i]) >= trial;
    count = T::reduce(count, add);
    if (count >= c.chosen) threshold = trial;
    exact = count == c.chosen;
  }
  int ties = INT32_MAX;  // how many of the equal ones may still come, before this thread
  if (!exact) {
    int above = 0, equal = 0;
#pragma unroll
    for (int i = 0; i < Items; ++i) {
      above += __float_as_int(mass[i]) > threshold;
      equal += __float_as_int(mass[i]) == threshold;
    }
    ties = c.chosen - T::reduce(above, add) - T::before(equal);
  }
  int taken = 0;
  uint32_t chosen = 0;
#pragma unroll
  for (int i = 0; i < Items; ++i) {
    const int bits = __float_as_int(mass[i]);
    if (bits > threshold || (bits == threshold && ties-- > 0)) chosen |= 1u << i, ++taken;
  }
  if (row.budgets[unit % s.plan.kv_heads].summaries) {
    int32_t* bits = list + c.sink + c.chosen;
    for (int i = T::rank(); i <= (pages - 1) / kBitPages; i += Threads) bits[i] = 0;
    Threads > 32 ? __syncthreads() : __syncwarp();
    const uint64_t from_word = static_cast<uint64_t>(chosen) << begin % kBitPages;
    for (int word = 0; word < 3; ++word) {
      const auto part = static_cast<uint32_t>(from_word >> word * kBitPages) & 0xffffu;
      if (part != 0) atomicOr(bits + begin / kBitPages + word, static_cast<int32_t>(part));
    }
  }
  int at = c.sink + T::before(taken);
  const int32_t* table = s.pages + row.table_begin;
  for (; chosen != 0; chosen &= chosen - 1) list[at++] = table[begin + __ffs(chosen) - 1];
  for (int i = T::rank(); i < c.sink; i += Threads) list[i] = table[i];
}

/// The lists of the units that select.
template <int Threads, int Items>
__global__ void __launch_bounds__(Threads > 32 ? Threads : kSelectThreads)
    page_select_kernel(const PageSelection s) {
  constexpr int kBlock = Threads > 32 ? Threads : kSelectThreads;
  let_next_begin();
  wait_for_previous();
  const int unit = blockIdx.x * (kBlock / Threads) + threadIdx.x / Threads;
  if (unit >= s.plan.rows * s.plan.kv_heads) return;
  const int which = unit / s.plan.kv_heads, head = unit % s.plan.kv_heads;
  const PlanRow row = plan_row(s.plan, which);
  if (unit_kind(s.plan, row, which, head) != ReadKind::kPages) return;
  const PageChoice c = candidates_of(s.plan, row, head);
  if (must_select(c))
    select_pages<Threads, Items>(s, unit, row, c, s.pages + list_begin_of(s.plan, unit));
}

template <int Threads, int Items>
cudaError_t launch_select(const PageSelection& s, int units, cudaStream_t stream) {
  constexpr int kBlock = Threads > 32 ? Threads : kSelectThreads;
  constexpr int kPerBlock = kBlock / Threads;
  return launch_early(page_select_kernel<Threads, Items>, (units + kPerBlock - 1) / kPerBlock,
                      kBlock, 0, stream, s);
}

}  // namespace

size_t page_scores_bytes(int units, int group, int table_stride) {
  return static_cast<size_t>(units) * group * score_stride(table_stride) * sizeof(float);
}

cudaError_t launch_page_selection(const PageSelection& args, cudaStream_t stream) {
  const int units = args.plan.rows * args.plan.kv_heads;
  const int stride = args.plan.table_stride;
  constexpr int kMaxPages = 256 * 32;  // 131,072 tokens
  if (units == 0) return cudaSuccess;
  if (stride > kMaxPages) return cudaErrorInvalidValue;
  const cudaError_t error = launch_page_scores(args, stream);
  if (error != cudaSuccess) return error;
  if (stride <= 256) return launch_select<32, 8>(args, units, stream);
  if (stride <= 512) return launch_select<32, 16>(args, units, stream);
  if (stride <= 1024) return launch_select<32, 32>(args, units, stream);
  if (stride <= 2048) return launch_select<256, 8>(args, units, stream);
  return launch_select<256, 32>(args, units, stream);
}

}  // namespace polar::backend::cuda
