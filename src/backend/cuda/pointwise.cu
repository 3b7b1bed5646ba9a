// The verbs that touch each value once: embedding, norms, rotation and KV store, activation.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend/cuda/activation.cuh"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/kv_layout.cuh"
#include "backend/cuda/launch.cuh"

namespace polar::backend::cuda {
namespace {

using bf16 = __nv_bfloat16;

/// Eight bf16 values as 16 bytes.
__device__ inline void unpack8(uint4 bits, float* v) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ inline uint4 pack8(const float* v) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
    words[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// Eight neighbouring values at vector `at` of a row.
__device__ inline void read8(const bf16* row, int at, float* v) {
  unpack8(reinterpret_cast<const uint4*>(row)[at], v);
}
__device__ inline void read8(const float* row, int at, float* v) {
  const auto* from = reinterpret_cast<const float4*>(row) + at * 2;
  const float4 low = from[0], high = from[1];
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
  v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}
__device__ inline void write8(bf16* row, int at, const float* v) {
  reinterpret_cast<uint4*>(row)[at] = pack8(v);
}
__device__ inline void write8(float* row, int at, const float* v) {
  auto* to = reinterpret_cast<float4*>(row) + at * 2;
  to[0] = make_float4(v[0], v[1], v[2], v[3]);
  to[1] = make_float4(v[4], v[5], v[6], v[7]);
}
__device__ inline void store_one(void* values, bool f32, int64_t at, float v) {
  if (f32) {
    static_cast<float*>(values)[at] = v;
  } else {
    static_cast<bf16*>(values)[at] = __float2bfloat16(v);
  }
}

/// read8 of constants; zeros where there are none.
__device__ inline void load8(const float* values, int at, float* v) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    float4 part = make_float4(0, 0, 0, 0);
    if (values != nullptr) part = __ldg(reinterpret_cast<const float4*>(values + at * 8 + i));
    v[i] = part.x;
    v[i + 1] = part.y;
    v[i + 2] = part.z;
    v[i + 3] = part.w;
  }
}

/// The sum over all threads of a block (at most 1024), in a fixed order.
__device__ float block_sum(float v) {
  __shared__ float warps[32];
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
  __syncthreads();
  const int count = (blockDim.x + 31) / 32;
  v = threadIdx.x % 32 < count ? warps[threadIdx.x % 32] : 0.0f;
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}

__global__ void embed_kernel(const EmbedLaunch p) {
  const int row = blockIdx.x;
  int32_t token = p.token[row];
  if (token < 0) token = p.last_token[~token];
  const int32_t position = p.position[row];
  const auto* from = static_cast<const bf16*>(p.table) + static_cast<int64_t>(token) * p.width;
  const auto* learned = p.positions == nullptr
                            ? nullptr
                            : static_cast<const bf16*>(p.positions) +
                                  static_cast<int64_t>(position + p.position_offset) * p.width;
  for (int i = threadIdx.x; i < p.width; i += blockDim.x) {
    const float v =
        __bfloat162float(from[i]) + (learned == nullptr ? 0.0f : __bfloat162float(learned[i]));
    store_one(p.out, p.out_f32, static_cast<int64_t>(row) * p.width + i, v);
  }
  const int half = p.rope.dim / 2;
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    float sin, cos;
    sincosf(static_cast<float>(position) * p.rope.inverse_frequency[i], &sin, &cos);
    float* turn = p.rotation + (static_cast<int64_t>(row) * half + i) * 2;
    turn[0] = cos * p.rope.scale;
    turn[1] = sin * p.rope.scale;
  }
}

__global__ void add_positions_kernel(const int32_t* position, int width, const bf16* positions,
                                     int offset, void* hidden, bool f32) {
  const int row = blockIdx.x;
  const bf16* learned = positions + static_cast<int64_t>(position[row] + offset) * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const int64_t at = static_cast<int64_t>(row) * width + i;
    const float old = f32 ? static_cast<const float*>(hidden)[at]
                          : __bfloat162float(static_cast<const bf16*>(hidden)[at]);
    store_one(hidden, f32, at, old + __bfloat162float(learned[i]));
  }
}

/// One block a row; each thread holds kVectors * 8 values. Weights are asked for before anything
/// else: they do not wait for the kernel in front. T: of the residual stream.
template <int kVectors, typename T>
__global__ void norm_kernel(const NormLaunch p) {
  const Norm& norm = p.norm;
  const int vectors = p.hidden / 8;
  let_next_begin();
  float weight[kVectors][8], bias[kVectors][8];
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int at = threadIdx.x + j * blockDim.x;
    load8(at < vectors ? norm.weight : nullptr, at, weight[j]);
    load8(at < vectors ? norm.bias : nullptr, at, bias[j]);
  }
  wait_for_previous();
  const int64_t row = p.rows_index != nullptr ? p.rows_index[blockIdx.x] : blockIdx.x;
  auto* in = static_cast<T*>(p.residual) + row * p.hidden;
  const auto* more = p.add == nullptr ? nullptr : static_cast<const T*>(p.add) + row * p.hidden;
  float v[kVectors][8];
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int at = threadIdx.x + j * blockDim.x;
    if (at >= vectors) continue;
    read8(in, at, v[j]);
    if (more != nullptr) {
      float extra[8];
      read8(more, at, extra);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[j][i] += extra[i];
      if (p.rows_index == nullptr) write8(in, at, v[j]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += v[j][i];
  }
  float mean = 0.0f, scale = 1.0f;
  if (norm.weight != nullptr) {
    if (norm.kind == NormKind::kLayer) mean = block_sum(sum) / p.hidden;
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (threadIdx.x + j * blockDim.x >= vectors) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += (v[j][i] - mean) * (v[j][i] - mean);
    }
    scale = 1.0f / sqrtf(block_sum(squares) / p.hidden + norm.epsilon);
  } else if (p.out == p.residual) {
    return;  // only added
  }
  auto* to = static_cast<bf16*>(p.out) + static_cast<int64_t>(blockIdx.x) * p.hidden;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int at = threadIdx.x + j * blockDim.x;
    if (at >= vectors) continue;
    if (norm.weight != nullptr) {
#pragma unroll
      for (int i = 0; i < 8; ++i) v[j][i] = (v[j][i] - mean) * scale * weight[j][i] + bias[j][i];
    }
    write8(to, at, v[j]);
  }
}

struct RopeStore {
  const int32_t* position;
  const int32_t* sequence;
  const int32_t* pages;
  int table_stride;
  const bf16* scratch;  // [rows][(heads + 2 kv_heads) head_dim]
  const float* bias;
  Norm query_norm, key_norm;
  Rope rope;
  const float* rotation;
  KvView kv;
  int layer, heads;
  bf16* query;
};

__device__ inline void store_kv(const KvView& kv, int layer, int page, int head, bool value,
                                int slot, int dim, float v) {
  std::byte* half =
      kv.data +
      ((static_cast<size_t>(layer) * kv.pages + page) * kv.kv_heads + head) *
          (2 * static_cast<size_t>(kPageTokens) * kv.head_dim * (kv.dtype == DType::kF32 ? 4 : 2)) +
      (value ? static_cast<size_t>(kPageTokens) * kv.head_dim * (kv.dtype == DType::kF32 ? 4 : 2)
             : 0);
  if (kv.dtype == DType::kF32) {
    reinterpret_cast<float*>(half)[slot * kv.head_dim + dim] = v;
  } else if (kv.dtype == DType::kF16) {
    *reinterpret_cast<__half*>(half + kv_element_offset(kv.head_dim, slot, dim)) = __float2half(v);
  } else {
    *reinterpret_cast<bf16*>(half + kv_element_offset(kv.head_dim, slot, dim)) =
        __float2bfloat16(v);
  }
}

constexpr int kMaxHeadDim = 256;

/// One warp a (row, head), heads in the order Q, K, V.
__global__ void rope_store_kernel(const RopeStore p) {
  __shared__ float shared[4][kMaxHeadDim];
  let_next_begin();
  wait_for_previous();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int dim = p.kv.head_dim, all = p.heads + 2 * p.kv.kv_heads;
  const int head = blockIdx.x * 4 + warp, row = blockIdx.y;
  if (head >= all) return;
  const bool is_query = head < p.heads, is_value = head >= p.heads + p.kv.kv_heads;
  const bf16* in = p.scratch + (static_cast<int64_t>(row) * all + head) * dim;
  float* v = shared[warp];
  float squares = 0.0f, sum = 0.0f;
  for (int i = lane; i < dim; i += 32) {
    v[i] = __bfloat162float(in[i]) + (p.bias != nullptr ? p.bias[head * dim + i] : 0.0f);
    sum += v[i];
    squares += v[i] * v[i];
  }
  __syncwarp();
  const Norm& norm = is_query ? p.query_norm : p.key_norm;
  if (!is_value && norm.weight != nullptr) {
    for (int o = 16; o > 0; o >>= 1) {
      sum += __shfl_xor_sync(~0u, sum, o);
      squares += __shfl_xor_sync(~0u, squares, o);
    }
    const float mean = norm.kind == NormKind::kLayer ? sum / dim : 0.0f;
    const float scale = 1.0f / sqrtf(fmaxf(squares / dim - mean * mean, 0.0f) + norm.epsilon);
    for (int i = lane; i < dim; i += 32) {
      v[i] = (v[i] - mean) * scale * norm.weight[i];
      if (norm.bias != nullptr) v[i] += norm.bias[i];
    }
    __syncwarp();
  }
  if (!is_value && p.rope.dim > 0) {
    const int half = p.rope.dim / 2;
    const float* turn = p.rotation + static_cast<int64_t>(row) * half * 2;
    for (int i = lane; i < half; i += 32) {
      float& a = v[p.rope.interleaved ? 2 * i : i];
      float& b = v[p.rope.interleaved ? 2 * i + 1 : i + half];
      const float cos = turn[2 * i], sin = turn[2 * i + 1], old = a;
      a = old * cos - b * sin;
      b = b * cos + old * sin;
    }
    __syncwarp();
  }
  if (is_query) {
    bf16* out = p.query + (static_cast<int64_t>(row) * p.heads + head) * dim;
    for (int i = lane; i < dim; i += 32) out[i] = __float2bfloat16(v[i]);
    return;
  }
  const int32_t position = p.position[row];
  const int page = p.pages[p.sequence[row] * p.table_stride + position / kPageTokens];
  const int kv_head = is_value ? head - p.heads - p.kv.kv_heads : head - p.heads;
  for (int i = lane; i < dim; i += 32)
    store_kv(p.kv, p.layer, page, kv_head, is_value, position % kPageTokens, i, v[i]);
}

__global__ void activate_kernel(const bf16* in, int64_t in_stride, bf16* out, int64_t out_stride,
                                int width, Activation activation, bool gated) {
  let_next_begin();
  wait_for_previous();
  const int at = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (at >= width) return;
  const bf16* from = in + blockIdx.y * in_stride + at;
  float v[8], up[8];
  unpack8(*reinterpret_cast<const uint4*>(from), v);
  if (gated) unpack8(*reinterpret_cast<const uint4*>(from + width), up);
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = activated(activation, v[i]) * (gated ? up[i] : 1.0f);
  *reinterpret_cast<uint4*>(out + blockIdx.y * out_stride + at) = pack8(v);
}

}  // namespace

void launch_embed(const EmbedLaunch& args, cudaStream_t stream) {
  embed_kernel<<<args.rows, 256, 0, stream>>>(args);
}

void launch_add_positions(const int32_t* position, int rows, int width, const void* positions,
                          int offset, void* hidden, bool hidden_f32, cudaStream_t stream) {
  add_positions_kernel<<<rows, 256, 0, stream>>>(
      position, width, static_cast<const bf16*>(positions), offset, hidden, hidden_f32);
}

void launch_norm(const NormLaunch& args, cudaStream_t stream) {
  POLAR_CHECK(args.hidden % 8 == 0 && args.hidden <= 16384);
  POLAR_CHECK(!args.f32 || args.norm.weight == nullptr || args.out != args.residual);
  const int vectors = args.hidden / 8, each = vectors <= 1024 ? 1 : 2;
  const int threads = ((vectors + each - 1) / each + 31) / 32 * 32;
  const auto kernel = each == 1 ? (args.f32 ? norm_kernel<1, float> : norm_kernel<1, bf16>)
                                : (args.f32 ? norm_kernel<2, float> : norm_kernel<2, bf16>);
  POLAR_CUDA(launch_early(kernel, dim3(args.rows), threads, 0, stream, args));
}

void launch_rope_store(const QkvArgs& args, const float* bias, cudaStream_t stream) {
  POLAR_CHECK(args.kv.head_dim <= kMaxHeadDim);
  const Batch& batch = *args.batch;
  const RopeStore p{batch.position,
                    batch.sequence,
                    batch.pages,
                    batch.table_stride,
                    args.scratch.as<bf16>(),
                    bias,
                    args.query_norm,
                    args.key_norm,
                    args.rope,
                    args.rotation,
                    args.kv,
                    args.layer,
                    args.heads,
                    args.query.as<bf16>()};
  const int all = args.heads + 2 * args.kv.kv_heads;
  POLAR_CUDA(launch_early(rope_store_kernel, dim3((all + 3) / 4, batch.rows), 128, 0, stream, p));
}

void launch_activate(const void* in, int64_t in_stride, void* out, int64_t out_stride, int rows,
                     int width, Activation activation, bool gated, cudaStream_t stream) {
  POLAR_CHECK(width % 8 == 0);
  POLAR_CUDA(launch_early(activate_kernel, dim3((width / 8 + 255) / 256, rows), 256, 0, stream,
                          static_cast<const bf16*>(in), in_stride, static_cast<bf16*>(out),
                          out_stride, width, activation, gated));
}

}  // namespace polar::backend::cuda
