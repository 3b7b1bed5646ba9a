// Page scores, on tensor cores, straight from global memory. A kernel also writes the indices of
// the pages that its own rows fill: they are no candidates yet.

#include <cuda_bf16.h>

#include "backend/cuda/head_dim.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/page_index.cuh"
#include "backend/cuda/page_select.cuh"

namespace polar::backend::cuda {
namespace {

constexpr int kScoreThreads = kIndexThreads;
constexpr int kScoreWarps = kScoreThreads / 32;
constexpr int kPagesPerWarp = 32;
constexpr int kPagesPerBlock = kScoreWarps * kPagesPerWarp;

/// scores[unit][head][page] = query . mean key * scale, in units of log2, of the pages that are
/// candidates. A warp takes 32 pages: they stand on M, the group's heads on N. Each lane loads 16
/// contiguous bytes of its rows; the dims are permuted the same way on both sides, which a dot
/// product does not notice. Everything is loaded before the budget says whether it is needed: a
/// chain of dependent loads would cost more.
template <int D, int NT>
__global__ void __launch_bounds__(kScoreThreads)
    page_means_kernel(const PageSelection s, float scale_log2) {
  let_next_begin();
  wait_for_previous();
  const int unit = blockIdx.x, lane = threadIdx.x & 31;
  const int which = unit / s.plan.kv_heads, head = unit % s.plan.kv_heads;
  const int begin = blockIdx.y * kPagesPerBlock + threadIdx.x / 32 * kPagesPerWarp;
  const int own = s.plan.position[which] / kPageTokens;
  const int32_t* table = s.pages + s.plan.sequence[which] * s.plan.table_stride;
  const PlanRow row = plan_row(s.plan, which);
  if (s.index.rows > 0 && blockIdx.y == 0)
    write_page_index<D, PageScore::kMean>(s.index, which, head);
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
  const PageChoice c = candidates_of(s.plan, row, head);
  if (begin >= c.first + c.count || !must_select(c)) return;
  const int stride = score_stride(s.plan.table_stride);
  float* out = s.scores + static_cast<int64_t>(unit) * s.group * stride;
#pragma unroll
  for (int tile = 0; tile < kPagesPerWarp / 16; ++tile) {
    uint4 key[2][kChunks];
    uint2 key_rest[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int page = __shfl_sync(~0u, own_page, tile * 16 + half * 8 + lane / 4);
      const auto* mean = static_cast<const std::byte*>(s.index.data) +
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

/// The greatest over lanes l, l ^ 4, l ^ 8, l ^ 16 of eight values; lane l keeps value l / 4.
__device__ __forceinline__ int greatest_of_eight(int (&v)[8]) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int mask = 16, count = 4; mask >= 4; mask /= 2, count /= 2) {
    const bool upper = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int other = __shfl_xor_sync(~0u, upper ? v[i] : v[i + count], mask);
      v[i] = max(upper ? v[i + count] : v[i], other);
    }
  }
  return v[0];
}

/// The same scores by codes: the greatest over a page's tokens (on M) of rotated query (on N, eight
/// bits a channel) times code. With codes c of 0 to 3 that stand for 2 c - 3 half steps, what the
/// tensor cores add up is put right once, at the end.
template <int D, int NT>
__global__ void __launch_bounds__(kScoreThreads)
    page_codes_kernel(const PageSelection s, float scale_log2) {
  constexpr int kGroups = D / 16, kPer = (D + 31) / 32, kBatch = 4;
  __shared__ uint32_t queries[NT * 8][D / 4 + 4];  // padded: eight heads are read at once
  __shared__ float units[NT * 8];
  __shared__ int offsets[NT * 8];
  let_next_begin();
  wait_for_previous();
  const int unit = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const int which = unit / s.plan.kv_heads, head = unit % s.plan.kv_heads;
  const PlanRow row = plan_row(s.plan, which);
  if (s.index.rows > 0 && blockIdx.y == 0)
    write_page_index<D, PageScore::kCodes>(s.index, which, head);
  if (unit_kind(s.plan, row, which, head) != ReadKind::kPages) return;
  const PageChoice c = candidates_of(s.plan, row, head);
  const int of_block = blockIdx.y * kPagesPerBlock, end = c.first + c.count;
  if (of_block >= end || !must_select(c)) return;
  const int begin = of_block + warp * kPagesPerWarp;
  const int64_t own_index =
      static_cast<int64_t>(s.pages[row.table_begin + min(begin + lane, end - 1)]) *
          s.plan.kv_heads +
      head;
  const float own_step = s.index.half_steps[own_index];
  PageCodes<D> next[kBatch];
  const auto load = [&](int first) {
#pragma unroll
    for (int p = 0; p < kBatch; ++p) {
      const int64_t index = __shfl_sync(~0u, own_index, first + p);
      next[p].load(static_cast<const uint32_t*>(s.index.data) + index * PageCodes<D>::kWords, lane);
    }
  };
  load(0);
  for (int h = warp; h < s.group; h += kScoreWarps) {
    const auto* q =
        static_cast<const __nv_bfloat16*>(s.query) + (static_cast<int64_t>(unit) * s.group + h) * D;
    float v[kPer], most = 0.0f;
#pragma unroll
    for (int i = 0; i < kPer; ++i)
      v[i] = lane + i * 32 < D ? static_cast<float>(q[lane + i * 32]) : 0.0f;
    rotate<D>(v);
#pragma unroll
    for (int i = 0; i < kPer; ++i) most = fmaxf(most, fabsf(v[i]));
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, mask));
    const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
    int sum = 0;
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int value = __float2int_rn(v[i] * inverse);
      sum += value;
      if (lane + i * 32 < D)
        reinterpret_cast<int8_t*>(queries[h])[lane + i * 32] = static_cast<int8_t>(value);
    }
    sum = __reduce_add_sync(~0u, sum);
    if (lane == 0) {
      units[h] = most / 127.0f * rsqrtf(static_cast<float>(kRotated<D>)) * scale_log2;
      offsets[h] = 3 * sum;
    }
  }
  __syncthreads();
  if (begin >= end) return;
  uint32_t query[NT][kGroups + kGroups % 2];
  float of_head[NT];
  int offset[NT];
  const int half_of_pair = lane / 4 % 2;  // whose head's score the lane writes
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    query[n][kGroups - kGroups % 2] = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) query[n][g] = queries[n * 8 + lane / 4][g * 4 + lane % 4];
    of_head[n] = units[n * 8 + lane % 4 * 2 + half_of_pair];
    offset[n] = offsets[n * 8 + lane % 4 * 2 + half_of_pair];
  }
  const int stride = score_stride(s.plan.table_stride);
  float* out = s.scores + static_cast<int64_t>(unit) * s.group * stride;
#pragma unroll 1
  for (int first = 0; first < kPagesPerWarp && begin + first < end; first += kBatch) {
    PageCodes<D> page[kBatch];
#pragma unroll
    for (int p = 0; p < kBatch; ++p) page[p] = next[p];
    if (first + kBatch < kPagesPerWarp) load(first + kBatch);
    const int at = begin + first + lane / 8;
    const float step = __shfl_sync(~0u, own_step, first + lane / 8);
#pragma unroll
    for (int n = 0; n < NT; ++n) {
      int best[8];
#pragma unroll
      for (int p = 0; p < kBatch; ++p) {
        int sum[4] = {};
#pragma unroll
        for (int g = 0; g < kGroups; g += 2) {
          const uint32_t a[4] = {page[p].codes(g, 0), page[p].codes(g, 1), page[p].codes(g + 1, 0),
                                 page[p].codes(g + 1, 1)};
          mma_codes(sum, a, query[n][g], query[n][g + 1]);
        }
        best[p * 2] = max(sum[0], sum[2]);
        best[p * 2 + 1] = max(sum[1], sum[3]);
      }
      const int most = 2 * greatest_of_eight(best) - offset[n];
      const int h = n * 8 + lane % 4 * 2 + half_of_pair;
      if (h < s.group && at < end)
        out[static_cast<int64_t>(h) * stride + at] = static_cast<float>(most) * of_head[n] * step;
    }
  }
}

}  // namespace

cudaError_t launch_page_scores(const PageSelection& s, cudaStream_t stream) {
  const dim3 grid(s.plan.rows * s.plan.kv_heads,
                  (s.plan.table_stride + kPagesPerBlock - 1) / kPagesPerBlock);
  const float scale = s.scale * 1.4426950408889634f;
  return with_head_dim(s.index.head_dim, [&](auto d) {
    constexpr int D = d.value;
    auto kernel = s.group > 8 ? page_means_kernel<D, 2> : page_means_kernel<D, 1>;
    if (s.index.score == PageScore::kCodes)
      kernel = s.group > 8 ? page_codes_kernel<D, 2> : page_codes_kernel<D, 1>;
    return launch_early(kernel, grid, kScoreThreads, 0, stream, s, scale);
  });
}

}  // namespace polar::backend::cuda
