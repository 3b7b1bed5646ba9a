// Page scores and page selection: mean keys of full pages, their products with the queries (tensor
// cores, straight from global memory), and each unit's best pages as a list.

#include <cuda_bf16.h>

#include <type_traits>

#include "backend/cuda/kv_layout.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/plan.cuh"

namespace polar::backend::cuda {
namespace {

constexpr int kScoreWarps = 4;
constexpr int kPagesPerWarp = 32;
constexpr int kSelectThreads = 512;  // of a block whose warps select for a unit each

__device__ __forceinline__ PageChoice candidates_of(const PageSelection& s, const PlanRow& row,
                                                    int head) {
  const int capacity = s.list_capacity / (s.plan.rows * s.plan.kv_heads);
  return page_choice(row.position, s.plan.window, row.budgets[head], row.limits, capacity);
}

/// Mean key of one full page, by one warp.
template <typename T>
__device__ void write_mean(const PageMeans& m, int row, int head, int lane) {
  const int position = m.position[row];
  if (position % kPageTokens != kPageTokens - 1) return;
  const int page = m.pages[m.sequence[row] * m.table_stride + position / kPageTokens];
  const int64_t which = static_cast<int64_t>(page) * m.kv_heads + head;
  const std::byte* keys = m.kv + which * kv_block_bytes(m.head_dim);
  auto* out = static_cast<uint4*>(m.means) + which * (m.head_dim / kUnitElements);
  for (int unit = lane; unit < m.head_dim / kUnitElements; unit += 32) {
    float sum[8] = {};
#pragma unroll
    for (int token = 0; token < kPageTokens; ++token) {
      const uint4 bits =
          *reinterpret_cast<const uint4*>(keys + kv_unit_offset(m.head_dim, token, unit));
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
      packed[i] = pack<__nv_bfloat16>(sum[i * 2] / kPageTokens, sum[i * 2 + 1] / kPageTokens);
    out[unit] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
  }
}

__device__ __forceinline__ void write_mean_any(const PageMeans& m, int row, int head, int lane) {
  if (m.kv_dtype == DType::kF16) {
    write_mean<__half>(m, row, head, lane);
  } else {
    write_mean<__nv_bfloat16>(m, row, head, lane);
  }
}

__global__ void __launch_bounds__(128) page_means_kernel(const PageMeans m) {
  const int task = blockIdx.x * 4 + threadIdx.x / 32;
  if (task < m.rows * m.kv_heads)
    write_mean_any(m, task / m.kv_heads, task % m.kv_heads, threadIdx.x & 31);
}

/// Entries of one head's scores: the pages of a table, a multiple of four for 16-byte loads.
__host__ __device__ inline int score_stride(int table_stride) {
  return (table_stride + 3) / 4 * 4;
}

/// scores[unit][head][page] = query . mean key * scale, in units of log2, of the pages that are
/// candidates. A warp takes 32 pages: they stand on M, the group's heads on N. Each lane loads 16
/// contiguous bytes of its rows; the dims are permuted the same way on both sides, which a dot
/// product does not notice. Everything is loaded before the budget says whether it is needed: a
/// chain of dependent loads would cost more.
template <int D, int NT>
__global__ void __launch_bounds__(kScoreWarps * 32)
    page_score_kernel(const PageSelection s, float scale_log2) {
  let_next_begin();
  wait_for_previous();
  const int unit = blockIdx.x, lane = threadIdx.x & 31;
  const int which = unit / s.plan.kv_heads, head = unit % s.plan.kv_heads;
  const int begin = (blockIdx.y * kScoreWarps + threadIdx.x / 32) * kPagesPerWarp;
  const int own = s.plan.position[which] / kPageTokens;
  const int32_t* table = s.pages + s.plan.sequence[which] * s.plan.table_stride;
  const PlanRow row = plan_row(s.plan, which);
  if (s.means.rows > 0 && blockIdx.y == 0 && threadIdx.x < 32)
    write_mean_any(s.means, which, head, lane);
  if (begin > own) return;
  const int own_page = table[min(begin + lane, own)];
  constexpr int kChunks = D / 32;      // of 32 dims: 16 bytes a lane
  constexpr bool kRest = D % 32 != 0;  // 16 dims more: 8 bytes a lane
  uint4 query[NT][kChunks];
  uint2 query_rest[NT];
  const auto* q =
      static_cast<const std::byte*>(s.query) + static_cast<int64_t>(unit) * s.group * D * 2;
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    const int h = n * 8 + lane / 4;
    const std::byte* of_head = q + h * D * 2;
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      query[n][k] = h < s.group ? *reinterpret_cast<const uint4*>(of_head + k * 64 + lane % 4 * 16)
                                : make_uint4(0, 0, 0, 0);
    }
    if (kRest) {
      query_rest[n] = h < s.group
                          ? *reinterpret_cast<const uint2*>(of_head + kChunks * 64 + lane % 4 * 8)
                          : make_uint2(0, 0);
    }
  }
  if (unit_kind(s.plan, row, which, head) != ReadKind::kPages) return;
  const PageChoice c = candidates_of(s, row, head);
  if (begin >= c.first + c.count || c.chosen == 0 || c.chosen == c.count) return;
  const int stride = score_stride(s.plan.table_stride);
  float* out = s.scores + static_cast<int64_t>(unit) * s.group * stride;
#pragma unroll
  for (int tile = 0; tile < kPagesPerWarp / 16; ++tile) {
    uint4 key[2][kChunks];
    uint2 key_rest[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int page = __shfl_sync(~0u, own_page, tile * 16 + half * 8 + lane / 4);
      const auto* mean = static_cast<const std::byte*>(s.means.means) +
                         (static_cast<int64_t>(page) * s.plan.kv_heads + head) * D * 2;
#pragma unroll
      for (int k = 0; k < kChunks; ++k)
        key[half][k] = __ldcs(reinterpret_cast<const uint4*>(mean + k * 64 + lane % 4 * 16));
      if (kRest)
        key_rest[half] = __ldcs(reinterpret_cast<const uint2*>(mean + kChunks * 64 + lane % 4 * 8));
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      float sum[4] = {};
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
        const uint32_t a0[4] = {key[0][k].x, key[1][k].x, key[0][k].y, key[1][k].y};
        mma<__nv_bfloat16>(sum, a0, query[n][k].x, query[n][k].y);
        const uint32_t a1[4] = {key[0][k].z, key[1][k].z, key[0][k].w, key[1][k].w};
        mma<__nv_bfloat16>(sum, a1, query[n][k].z, query[n][k].w);
      }
      if (kRest) {
        const uint32_t a[4] = {key_rest[0].x, key_rest[1].x, key_rest[0].y, key_rest[1].y};
        mma<__nv_bfloat16>(sum, a, query_rest[n].x, query_rest[n].y);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int h = n * 8 + lane % 4 * 2 + (i & 1);
        const int page = begin + tile * 16 + lane / 4 + i / 2 * 8;
        if (h < s.group && page < c.first + c.count)
          out[static_cast<int64_t>(h) * stride + page] = sum[i] * scale_log2;
      }
    }
  }
}

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
  int at = c.sink + T::before(taken);
  const int32_t* table = s.pages + row.table_begin;
  for (; chosen != 0; chosen &= chosen - 1) list[at++] = table[begin + __ffs(chosen) - 1];
  for (int i = T::rank(); i < c.sink; i += Threads) list[i] = table[i];
}

/// Ranges of all units, lists of the selecting ones; the last block writes the schedule.
template <int Threads, int Items>
__global__ void __launch_bounds__(Threads > 32 ? Threads : kSelectThreads)
    page_select_kernel(const PageSelection s) {
  constexpr int kBlock = Threads > 32 ? Threads : kSelectThreads;
  let_next_begin();
  wait_for_previous();
  const int units = s.plan.rows * s.plan.kv_heads;
  const int unit = blockIdx.x * (kBlock / Threads) + threadIdx.x / Threads;
  if (unit < units) {
    const int which = unit / s.plan.kv_heads, head = unit % s.plan.kv_heads;
    const PlanRow row = plan_row(s.plan, which);
    const ReadKind kind = unit_kind(s.plan, row, which, head);
    PageRanges ranges;
    if (kind != ReadKind::kPages) {
      ranges = fixed_ranges(kind, row.position, s.plan.window, row.table_begin, row.limits);
    } else {
      const PageChoice c = candidates_of(s, row, head);
      const int begin = s.list_begin + unit * (s.list_capacity / units);
      ranges = choice_ranges(c, row.position, s.plan.window, row.table_begin, begin);
      if (c.chosen > 0 && c.chosen < c.count) {
        select_pages<Threads, Items>(s, unit, row, c, s.pages + begin);
        if (threadIdx.x % Threads == 0 && s.plan.read != nullptr)
          atomicAdd(&s.plan.read[which].scored, c.count);
      }
    }
    if (threadIdx.x % Threads == 0) s.plan.plan[unit] = ranges;
  }
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(s.arrivals, 1) == static_cast<int>(gridDim.x) - 1;
    if (last) *s.arrivals = 0;
    __threadfence();
  }
  __syncthreads();
  if (last) build_schedule<kBlock>(s.plan);
}

template <int D>
cudaError_t launch_scores(const PageSelection& s, dim3 grid, cudaStream_t stream) {
  const float scale = s.scale * 1.4426950408889634f;
  const auto kernel = s.group > 8 ? page_score_kernel<D, 2> : page_score_kernel<D, 1>;
  return launch_early(kernel, grid, kScoreWarps * 32, 0, stream, s, scale);
}

template <int Threads, int Items>
cudaError_t launch_select(const PageSelection& s, int units, cudaStream_t stream) {
  constexpr int kBlock = Threads > 32 ? Threads : kSelectThreads;
  constexpr int kPerBlock = kBlock / Threads;
  return launch_early(page_select_kernel<Threads, Items>, (units + kPerBlock - 1) / kPerBlock,
                      kBlock, 0, stream, s);
}

}  // namespace

cudaError_t launch_page_means(const PageMeans& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  page_means_kernel<<<(args.rows * args.kv_heads + 3) / 4, 128, 0, stream>>>(args);
  return cudaGetLastError();
}

size_t page_scores_bytes(int units, int group, int table_stride) {
  return static_cast<size_t>(units) * group * score_stride(table_stride) * sizeof(float);
}

cudaError_t launch_page_selection(const PageSelection& args, cudaStream_t stream) {
  const int units = args.plan.rows * args.plan.kv_heads;
  const int stride = args.plan.table_stride;
  constexpr int kMaxPages = 256 * 32;  // 131,072 tokens
  if (units == 0) return cudaSuccess;
  if (stride > kMaxPages) return cudaErrorInvalidValue;
  constexpr int kPerBlock = kScoreWarps * kPagesPerWarp;
  const dim3 grid(units, (stride + kPerBlock - 1) / kPerBlock);
  cudaError_t error = cudaErrorInvalidValue;
  switch (args.means.head_dim) {
    case 64:
      error = launch_scores<64>(args, grid, stream);
      break;
    case 80:
      error = launch_scores<80>(args, grid, stream);
      break;
    case 96:
      error = launch_scores<96>(args, grid, stream);
      break;
    case 128:
      error = launch_scores<128>(args, grid, stream);
      break;
    case 256:
      error = launch_scores<256>(args, grid, stream);
      break;
    default:
      break;
  }
  if (error != cudaSuccess) return error;
  if (stride <= 256) return launch_select<32, 8>(args, units, stream);
  if (stride <= 512) return launch_select<32, 16>(args, units, stream);
  if (stride <= 1024) return launch_select<32, 32>(args, units, stream);
  if (stride <= 2048) return launch_select<256, 8>(args, units, stream);
  return launch_select<256, 32>(args, units, stream);
}

}  // namespace polar::backend::cuda
