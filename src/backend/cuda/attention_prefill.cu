// Attention of prefill rows over pages: tiles of 128 (token, query head of the group) pairs against
// pages that bulk copies bring in, FlashAttention-2 style (arXiv 2307.08691) with m16n8k16
// products. For the head_dims and GPUs that attention_prefill_wgmma.cu is not for.

#include <type_traits>

#include "backend/cuda/attention_prefill.cuh"
#include "backend/cuda/head_dim.cuh"
#include "backend/cuda/kv_layout.cuh"
#include "backend/cuda/mma.cuh"

namespace polar::backend::cuda {
namespace {

constexpr int kWarps = 8;
static_assert(kTileRows == kWarps * 16);

template <int D>
struct Shape {
  static constexpr int kPages = D > 128 ? 2 : 4;  // per stage
  static constexpr int kTokens = kPages * kPageTokens;
  static constexpr int kStageBytes = kPages * kv_block_bytes(D);
  static constexpr int kStages = 4;
  static constexpr int kSharedBytes = kStages * kStageBytes + 2 * kStages * 8;
};

template <int D, typename T>
__global__ void __launch_bounds__(kWarps * 32, 1) prefill_attention_kernel(const PrefillParams p) {
  using S = Shape<D>;
  extern __shared__ __align__(1024) std::byte shared[];
  const PrefillAttention& a = p.a;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, kv_head = blockIdx.y;
  const Tile tile = find_tile(p, gridDim.x - 1 - blockIdx.x);  // the longest first
  if (tile.sequence < 0) return;
  const int first_position = a.position[tile.row];
  const int last_position = first_position + tile.tokens - 1;
  const uint32_t ring = shared_address(shared);
  const uint32_t full = ring + S::kStages * S::kStageBytes, empty = full + S::kStages * 8;
  if (threadIdx.x < S::kStages) {
    barrier_init(full + threadIdx.x * 8, S::kPages);
    barrier_init(empty + threadIdx.x * 8, kWarps);
  }
  barriers_are_set();
  __syncthreads();

  // Steps of kTokens tokens. Warp 0 brings them in: lane l the l-th page, its id read a step ahead.
  const int32_t* table = a.pages + tile.sequence * a.table_stride;
  const int last_page = last_position / kPageTokens;
  const int visible = a.window > 0 ? max(first_position - a.window + 1, 0) : 0;
  const int first_step = visible / S::kTokens, steps = last_position / S::kTokens + 1;
  const bool loads = warp == 0 && lane < S::kPages;
  int ahead_page = 0;
  const auto look_ahead = [&](int step) {
    ahead_page = table[min(step * S::kPages + lane, last_page)];
  };
  const auto issue = [&](int step) {
    const int stage = (step - first_step) % S::kStages;
    if (step * S::kPages + lane <= last_page) {
      const int64_t block = static_cast<int64_t>(ahead_page) * a.kv_heads + kv_head;
      barrier_expect(full + stage * 8, kv_block_bytes(D));
      bulk_copy(ring + stage * S::kStageBytes + lane * kv_block_bytes(D),
                a.kv + block * kv_block_bytes(D), kv_block_bytes(D), full + stage * 8);
    } else {  // nothing there: only arrive
      barrier_expect(full + stage * 8, 0);
    }
  };
  if (loads) {
    for (int step = first_step; step < min(first_step + S::kStages - 1, steps); ++step) {
      look_ahead(step);
      issue(step);
    }
    look_ahead(first_step + S::kStages - 1);
  }

  // Row i of the tile is (token i / group, head i % group); this lane has rows lane / 4 + {0, 8} of
  // its warp's 16.
  int row_position[2];
  const uint32_t* row_query[2];
  bool row_valid[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = warp * 16 + half * 8 + lane / 4;
    const int token = i / a.group;
    row_valid[half] = token < tile.tokens;
    row_position[half] = row_valid[half] ? first_position + token : -1;
    const int64_t head =
        (static_cast<int64_t>(tile.row + token) * a.kv_heads + kv_head) * a.group + i % a.group;
    row_query[half] = static_cast<const uint32_t*>(a.query) + (head * D + lane % 4 * 2) / 2;
  }
  uint32_t query[D / 16][4];
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t bits = row_valid[i & 1] ? row_query[i & 1][(k * 16 + i / 2 * 8) / 2] : 0;
      if constexpr (!std::is_same_v<T, __nv_bfloat16>) {
        const float2 v = unpack<__nv_bfloat16>(bits);
        bits = pack<T>(v.x, v.y);
      }
      query[k][i] = bits;
    }
  }
  const int warp_first = first_position + warp * 16 / a.group;
  const int warp_last = min(first_position + (warp * 16 + 15) / a.group, last_position);

  float out[D / 8][4] = {};
  float maximum[2] = {-1e30f, -1e30f}, sum[2] = {0.0f, 0.0f};
  for (int step = first_step; step < steps; ++step) {
    const int at = step - first_step, stage = at % S::kStages;
    if (loads && step + S::kStages - 1 < steps) {  // into the slot of the step before this one
      if (at > 0) barrier_wait(empty + (at - 1) % S::kStages * 8, (at - 1) / S::kStages & 1);
      issue(step + S::kStages - 1);
      look_ahead(step + S::kStages);
    }
    __syncwarp();
    barrier_wait(full + stage * 8, at / S::kStages & 1);
    const int begin = step * S::kTokens;
    if (step == steps - 1) {  // 0 * NaN is NaN: values behind the last position become zero
      for (int i = threadIdx.x; i < S::kTokens * (D / 8); i += kWarps * 32) {
        const int token = i / (D / 8);
        if (begin + token <= last_position) continue;
        std::byte* values = shared + stage * S::kStageBytes + token / 16 * kv_block_bytes(D) +
                            kv_half_bytes(D) + kv_unit_offset(D, token % 16, i % (D / 8));
        *reinterpret_cast<uint4*>(values) = make_uint4(0, 0, 0, 0);
      }
      __syncthreads();
    }
    const bool seen = begin <= warp_last && warp_first <= warp_last &&
                      (a.window == 0 || begin + S::kTokens > warp_first - a.window + 1);
    if (seen) {
      const uint32_t block = ring + stage * S::kStageBytes;
      float score[S::kTokens / 8][4] = {};
      {
        const int token = (lane & 7) + (lane >> 4) * 8;
#pragma unroll
        for (int k = 0; k < D / 16; ++k) {
#pragma unroll
          for (int page = 0; page < S::kPages; ++page) {
            uint32_t key[4];
            ldmatrix(key, block + page * kv_block_bytes(D) +
                              kv_unit_offset(D, token, k * 2 + ((lane >> 3) & 1)));
            mma<T>(score[page * 2], query[k], key[0], key[1]);
            mma<T>(score[page * 2 + 1], query[k], key[2], key[3]);
          }
        }
      }
      const bool whole =
          begin + S::kTokens - 1 <= warp_first && (a.window == 0 || begin > warp_last - a.window);
      if (!whole) {
#pragma unroll
        for (int n = 0; n < S::kTokens / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int position = begin + n * 8 + lane % 4 * 2 + (i & 1);
            const int own = row_position[i / 2];
            if (position > own || (a.window > 0 && position <= own - a.window))
              score[n][i] = -INFINITY;
          }
        }
      }
      float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int n = 0; n < S::kTokens / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) top[i / 2] = fmaxf(top[i / 2], score[n][i]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
        top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2)) * p.scale_log2;
      }
      if (__any_sync(~0u, top[0] > maximum[0] || top[1] > maximum[1])) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float next = fmaxf(maximum[half], top[half]);
          const float shrink = exp2_fast(maximum[half] - next);
          maximum[half] = next;
          sum[half] *= shrink;
#pragma unroll
          for (int n = 0; n < D / 8; ++n)
            out[n][half * 2] *= shrink, out[n][half * 2 + 1] *= shrink;
        }
      }
#pragma unroll
      for (int n = 0; n < S::kTokens / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          score[n][i] = exp2_fast(fmaf(score[n][i], p.scale_log2, -maximum[i / 2]));
          sum[i / 2] += score[n][i];
        }
      }
      const int token = lane & 15;
#pragma unroll
      for (int page = 0; page < S::kPages; ++page) {
        const float(&low)[4] = score[page * 2];
        const float(&high)[4] = score[page * 2 + 1];
        const uint32_t weights[4] = {pack<T>(low[0], low[1]), pack<T>(low[2], low[3]),
                                     pack<T>(high[0], high[1]), pack<T>(high[2], high[3])};
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
          uint32_t value[4];
          ldmatrix_transposed(value, block + page * kv_block_bytes(D) + kv_half_bytes(D) +
                                         kv_unit_offset(D, token, d * 2 + (lane >> 4)));
          mma<T>(out[d * 2], weights, value[0], value[1]);
          mma<T>(out[d * 2 + 1], weights, value[2], value[3]);
        }
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(empty + stage * 8);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
    sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    if (!row_valid[half]) continue;
    const float inverse = sum[half] > 0.0f ? 1.0f / sum[half] : 0.0f;
    auto* to = static_cast<uint32_t*>(a.output) +
               (row_query[half] - static_cast<const uint32_t*>(a.query));
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      to[n * 4] = pack<__nv_bfloat16>(out[n][half * 2] * inverse, out[n][half * 2 + 1] * inverse);
    }
  }
}

template <int D, typename T>
cudaError_t launch_instance(const PrefillAttention& args, cudaStream_t stream) {
  const PrefillParams params(args);
  const auto kernel = prefill_attention_kernel<D, T>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape<D>::kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<dim3(params.tiles, args.kv_heads), kWarps * 32, Shape<D>::kSharedBytes, stream>>>(
      params);
  return cudaGetLastError();
}

template <int D>
cudaError_t launch_dim(const PrefillAttention& args, cudaStream_t stream) {
  return args.kv_dtype == DType::kF16 ? launch_instance<D, __half>(args, stream)
                                      : launch_instance<D, __nv_bfloat16>(args, stream);
}

}  // namespace

cudaError_t launch_prefill_attention(const PrefillAttention& args, cudaStream_t stream) {
  if (args.prefill_rows == 0) return cudaSuccess;
  if (!attention_supported(args.kv_dtype, args.head_dim, args.group)) return cudaErrorInvalidValue;
#ifdef POLAR_SM90A
  if (prefill_wgmma_supported(args.head_dim)) return launch_prefill_wgmma(args, stream);
#endif
  return with_head_dim(args.head_dim, [&](auto d) { return launch_dim<d.value>(args, stream); });
}

}  // namespace polar::backend::cuda
