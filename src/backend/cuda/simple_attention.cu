// Attention and plans without tricks, for what the fast kernels leave out: f32 caches (parity
// tests) and head sizes without an instance.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend/cuda/cuda_check.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/kv_layout.cuh"
#include "backend/cuda/launch.cuh"
#include "backend/ranges.h"

namespace polar::backend::cuda {
namespace {

using bf16 = __nv_bfloat16;

struct SimpleAttention {
  const int32_t* position;
  const int32_t* sequence;
  const int32_t* pages;
  int table_stride, list_begin, prefill_rows;
  KvView kv;
  int layer, heads, window;
  float scale;
  const PageRanges* plan;
  const bf16* query;
  bf16* output;
};

__device__ float of_16_bits(DType type, const std::byte* at) {
  if (type == DType::kF16) return __half2float(*reinterpret_cast<const __half*>(at));
  return __bfloat162float(*reinterpret_cast<const bf16*>(at));
}

__device__ float cached(const KvView& kv, const std::byte* half, int slot, int dim) {
  if (kv.dtype == DType::kF32)
    return reinterpret_cast<const float*>(half)[slot * kv.head_dim + dim];
  return of_16_bits(kv.dtype, half + kv_element_offset(kv.head_dim, slot, dim));
}

/// One element of a page's summary; half 0 is the mean key, 1 the mean value.
__device__ float summarized(const KvView& kv, const std::byte* summary, int page, int half,
                            int dim) {
  if (kv.dtype == DType::kF32)
    return reinterpret_cast<const float*>(summary)[half * kv.head_dim + dim];
  const int offset = kv_row_offset(kv.head_dim, page % kPageTokens, dim);
  return of_16_bits(kv.dtype, summary + half * kv.head_dim * 2 + offset);
}

constexpr int kLaneValues = 8;  // head_dim <= 256

/// One warp a (row, head).
__global__ void simple_attention_kernel(const SimpleAttention p) {
  const int head = blockIdx.x * 4 + threadIdx.x / 32, row = blockIdx.y, lane = threadIdx.x % 32;
  if (head >= p.heads) return;
  const int dim = p.kv.head_dim, kv_head = head / (p.heads / p.kv.kv_heads);
  const int32_t position = p.position[row];
  const int table = p.sequence[row] * p.table_stride;
  const PageRanges ranges = row < p.prefill_rows
                                ? full_ranges(position, p.window, table)
                                : p.plan[(row - p.prefill_rows) * p.kv.kv_heads + kv_head];
  const int64_t at = (static_cast<int64_t>(row) * p.heads + head) * dim;
  float q[kLaneValues], sum[kLaneValues], maximum = -INFINITY, total = 0.0f;
  for (int i = 0; i < kLaneValues; ++i) {
    sum[i] = 0.0f;
    q[i] = lane + 32 * i < dim ? __bfloat162float(p.query[at + lane + 32 * i]) * p.scale : 0.0f;
  }
  // A token's key and value at each of the lane's dims; its score counts for `tokens`.
  const auto add = [&](auto key, auto value, float tokens) {
    float score = 0.0f;
    for (int i = 0; i < kLaneValues; ++i)
      if (lane + 32 * i < dim) score += q[i] * key(lane + 32 * i);
    for (int o = 16; o > 0; o >>= 1) score += __shfl_xor_sync(~0u, score, o);
    const float larger = fmaxf(maximum, score);
    const float shrink = __expf(maximum - larger), weight = tokens * __expf(score - larger);
    maximum = larger;
    total = total * shrink + weight;
    for (int i = 0; i < kLaneValues; ++i)
      if (lane + 32 * i < dim) sum[i] = sum[i] * shrink + weight * value(lane + 32 * i);
  };
  const size_t half_bytes =
      static_cast<size_t>(kPageTokens) * dim * (p.kv.dtype == DType::kF32 ? 4 : 2);
  for (int page = ranges.summary_begin; page < ranges.summary_end; ++page) {
    if ((summary_bits(ranges, page / kBitPages, p.pages) >> page % kBitPages & 1) == 0) continue;
    const std::byte* summary =
        p.kv.summaries +
        ((static_cast<size_t>(p.layer) * p.kv.pages + p.pages[table + page]) * p.kv.kv_heads +
         kv_head) *
            2 * (half_bytes / kPageTokens);
    add([&](int d) { return summarized(p.kv, summary, page, 0, d); },
        [&](int d) { return summarized(p.kv, summary, page, 1, d); }, kPageTokens);
  }
  for (int e = 0; e < ranges.count + ranges.tail_count; ++e) {
    const int entry = e < ranges.count ? ranges.begin + e : ranges.tail_begin + e - ranges.count;
    const bool list = entry >= p.list_begin;
    const std::byte* keys =
        p.kv.data +
        ((static_cast<size_t>(p.layer) * p.kv.pages + p.pages[entry]) * p.kv.kv_heads + kv_head) *
            2 * half_bytes;
    for (int slot = 0; slot < kPageTokens; ++slot) {
      const int seen = (entry - table) * kPageTokens + slot;
      if (!list && (seen > position || (p.window > 0 && seen <= position - p.window))) continue;
      add([&](int d) { return cached(p.kv, keys, slot, d); },
          [&](int d) { return cached(p.kv, keys + half_bytes, slot, d); }, 1.0f);
    }
  }
  for (int i = 0; i < kLaneValues; ++i)
    if (lane + 32 * i < dim)
      p.output[at + lane + 32 * i] = __float2bfloat16(total > 0 ? sum[i] / total : 0.0f);
}

__global__ void count_pages_kernel(const PageRanges* units, ReadCount* read, int rows, int kv_heads,
                                   int layers) {
  let_next_begin();
  wait_for_previous();
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  int blocks = 0;
  for (int h = 0; h < kv_heads; ++h)
    blocks += units[row * kv_heads + h].count + units[row * kv_heads + h].tail_count;
  read[row].blocks += blocks * layers;
}

}  // namespace

void launch_simple_attention(const AttentionArgs& args, cudaStream_t stream) {
  const Batch& batch = *args.batch;
  POLAR_CHECK(args.kv.head_dim <= 32 * kLaneValues);
  const SimpleAttention p{batch.position,
                          batch.sequence,
                          batch.pages,
                          batch.table_stride,
                          batch.list_begin(),
                          batch.prefill_rows,
                          args.kv,
                          args.layer,
                          args.heads,
                          args.window,
                          args.scale,
                          args.plan != nullptr ? args.plan->units : nullptr,
                          args.query.as<bf16>(),
                          args.output.as<bf16>()};
  simple_attention_kernel<<<dim3((args.heads + 3) / 4, batch.rows), 128, 0, stream>>>(p);
}

void launch_count_pages(const PageRanges* units, ReadCount* read, int rows, int kv_heads,
                        int layers, cudaStream_t stream) {
  POLAR_CUDA(launch_early(count_pages_kernel, dim3((rows + 127) / 128), 128, 0, stream, units, read,
                          rows, kv_heads, layers));
}

}  // namespace polar::backend::cuda
