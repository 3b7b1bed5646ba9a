// Products of at most 64 rows with a matrix that is read once, whole or only the named rows.
//
// What a lane loads is what its tensor core wants. The m16n8k16 product takes from lane (r, c) =
// (lane / 4, lane % 4) the pairs k = 2c, 2c + 1 and 2c + 8, 2c + 9 of row r. Which k stands at
// which place does not matter as long as both operands agree, so a lane takes 8 consecutive values
// of its row (16 bytes) for two products: no shared memory, no shuffles, a warp's load covers 64
// bytes of 8 rows. For the gathered second matrix, whose rows run along the outputs, a lane takes 8
// outputs of 8 neurons, and pairs of neurons are interleaved with byte permutations; output 8 r + t
// is then column r of product t.

#include <cuda_bf16.h>

#include <algorithm>

#include "backend/cuda/cuda_check.h"
#include "backend/cuda/kernels.h"

namespace polar::backend::cuda {
namespace {

using bf16 = __nv_bfloat16;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

__device__ inline void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                           uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Weights are read once: they leave no trace in L1.
__device__ inline uint4 load_once(const bf16* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ inline float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::kRelu:
      return fmaxf(x, 0.0f);
    case Activation::kSilu:
      return x / (1.0f + __expf(-x));
    case Activation::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
  }
  return x;
}

/// Adds the partial sums of all splits of one tile, in their order, in the block that comes last.
/// Returns false in the others. `acc` is the thread's own share, kCount values.
template <int kCount>
__device__ bool sum_splits(float* acc, float* partial, int32_t* counter, int tile, int split,
                           int splits) {
  if (splits == 1) return true;
  __shared__ bool last;
  float* base = partial + static_cast<size_t>(tile) * splits * kCount * kThreads;
  float* mine = base + static_cast<size_t>(split) * kCount * kThreads + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kCount; ++i) __stcg(mine + i * kThreads, acc[i]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter + tile, 1) == splits - 1;
    if (last) counter[tile] = 0;
  }
  __syncthreads();
  if (!last) return false;
  __threadfence();
#pragma unroll
  for (int i = 0; i < kCount; ++i) acc[i] = 0.0f;
  for (int s = 0; s < splits; ++s) {
    const float* other = base + static_cast<size_t>(s) * kCount * kThreads + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kCount; ++i) acc[i] += __ldcg(other + i * kThreads);
  }
  return true;
}

/// A warp: kN tiles of 8 outputs, kM tiles of 16 rows. Gated: tile 0 is gate, tile 1 up.
template <int kM, int kN, bool kGated>
__global__ void __launch_bounds__(kThreads)
    skinny_kernel(const SkinnyLaunch p, float* partial, int32_t* counters, int splits) {
  constexpr int kUnroll = 8 / kN;  // loads in flight: 8 of 16 bytes a lane, twice
  constexpr int kStep = 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
  const int tile = blockIdx.x, split = blockIdx.y;
  const int n0 = (tile * kWarps + warp) * (kGated ? 8 : 8 * kN);
  const int steps = p.k / kStep;
  const int begin = static_cast<int64_t>(steps) * split / splits;
  const int end = static_cast<int64_t>(steps) * (split + 1) / splits;

  const bf16* w[kN];
#pragma unroll
  for (int t = 0; t < kN; ++t) {
    const int n = min(n0 + (kGated ? 0 : t * 8) + r, p.n - 1);
    const int64_t row =
        (p.index != nullptr ? p.index[n] : n) + (kGated ? static_cast<int64_t>(t) * p.n : 0);
    w[t] = static_cast<const bf16*>(p.weight) + row * p.k + c * 8;
  }
  const bf16* x[2 * kM];
#pragma unroll
  for (int m = 0; m < 2 * kM; ++m)
    x[m] = static_cast<const bf16*>(p.x) + min(m * 8 + r, p.rows - 1) * p.x_stride + c * 8;

  float acc[kM * kN * 4];
#pragma unroll
  for (int i = 0; i < kM * kN * 4; ++i) acc[i] = 0.0f;
  uint4 now[kUnroll][kN], next[kUnroll][kN];
  const auto fetch = [&](uint4(&to)[kUnroll][kN], int step) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int t = 0; t < kN; ++t)
        to[u][t] = step + u < end ? load_once(w[t] + (step + u) * kStep) : make_uint4(0, 0, 0, 0);
    }
  };
  fetch(now, begin);
  for (int step = begin; step < end; step += kUnroll) {
    fetch(next, step + kUnroll);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int at = min(step + u, steps - 1) * kStep;
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const uint4 lo = *reinterpret_cast<const uint4*>(x[2 * m] + at);
        const uint4 hi = *reinterpret_cast<const uint4*>(x[2 * m + 1] + at);
#pragma unroll
        for (int t = 0; t < kN; ++t) {
          float(&d)[4] = *reinterpret_cast<float(*)[4]>(acc + (m * kN + t) * 4);
          mma(d, lo.x, hi.x, lo.y, hi.y, now[u][t].x, now[u][t].y);
          mma(d, lo.z, hi.z, lo.w, hi.w, now[u][t].z, now[u][t].w);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int t = 0; t < kN; ++t) now[u][t] = next[u][t];
    }
  }
  if (!sum_splits<kM * kN * 4>(acc, partial, counters, tile, split, splits)) return;

#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int t = 0; t < (kGated ? 1 : kN); ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = n0 + t * 8 + 2 * c + i % 2, row = m * 16 + r + i / 2 * 8;
        if (n >= p.n || row >= p.rows) continue;
        const int stored = p.index != nullptr ? p.index[n] : n;
        float v = acc[(m * kN + t) * 4 + i];
        if (p.bias != nullptr) v += p.bias[stored];
        if (p.activate) v = activated(p.activation, v);
        if constexpr (kGated) {
          float up = acc[(m * kN + 1) * 4 + i];
          if (p.bias != nullptr) up += p.bias[stored + p.n];
          v *= up;
        }
        const int64_t to = row * p.y_stride + n;
        if (p.y_f32) {
          static_cast<float*>(p.y)[to] = v;
        } else {
          static_cast<bf16*>(p.y)[to] = __float2bfloat16(v);
        }
      }
    }
  }
}

/// A warp: 64 outputs, kM tiles of 16 rows, every (kWarps / kGroups)th step of 32 neurons; the
/// warps of a block cover kGroups groups of 64 outputs and add up over their neurons in shared
/// memory.
template <int kM, int kGroups>
__global__ void __launch_bounds__(kThreads)
    gather_down_kernel(const GatherDownLaunch p, float* partial, int32_t* counters, int splits) {
  extern __shared__ float shared[];  // [kWarps / 2][kCount][32]
  constexpr int kSide = kWarps / kGroups;
  constexpr int kCount = kM * 8 * 4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, c = lane % 4;
  const int group = warp / kSide, side = warp % kSide;
  const int h0 = (blockIdx.x * kGroups + group) * 64;
  const int h = h0 + 8 * r;
  const int steps = (p.count + 31) / 32;
  const int begin = static_cast<int64_t>(steps) * blockIdx.y / splits;
  const int end = static_cast<int64_t>(steps) * (blockIdx.y + 1) / splits;
  const auto* weight = static_cast<const bf16*>(p.weight) + min(h, p.outputs - 8);
  const bf16* a[2 * kM];
#pragma unroll
  for (int m = 0; m < 2 * kM; ++m)
    a[m] = static_cast<const bf16*>(p.a) + min(m * 8 + r, p.rows - 1) * p.a_stride;

  float acc[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) acc[i] = 0.0f;
  for (int step = begin + side; step < end; step += kSide) {
    const int j0 = step * 32 + 8 * c;
    uint4 rows[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int j = min(j0 + i, p.count - 1);
      const int64_t stored = p.index != nullptr ? p.index[j] : j;
      rows[i] = load_once(weight + stored * p.outputs);
    }
    uint4 left[2 * kM];
    const bool whole = j0 + 8 <= p.count && (p.a_stride & 7) == 0;
#pragma unroll
    for (int m = 0; m < 2 * kM; ++m) {
      if (whole) {
        left[m] = *reinterpret_cast<const uint4*>(a[m] + j0);
      } else {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const auto at = [&](int j) -> uint32_t {
            return j < p.count ? reinterpret_cast<const uint16_t*>(a[m])[j] : 0u;
          };
          words[i] = at(j0 + 2 * i) | at(j0 + 2 * i + 1) << 16;
        }
        left[m] = make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      const uint32_t select = t % 2 == 0 ? 0x5410 : 0x7632;
      const auto word = [&](const uint4& v) {
        return t / 2 == 0 ? v.x : t / 2 == 1 ? v.y : t / 2 == 2 ? v.z : v.w;
      };
      const uint32_t b0 = __byte_perm(word(rows[0]), word(rows[1]), select);
      const uint32_t b1 = __byte_perm(word(rows[2]), word(rows[3]), select);
      const uint32_t b2 = __byte_perm(word(rows[4]), word(rows[5]), select);
      const uint32_t b3 = __byte_perm(word(rows[6]), word(rows[7]), select);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        float(&d)[4] = *reinterpret_cast<float(*)[4]>(acc + (m * 8 + t) * 4);
        const uint4 lo = left[2 * m], hi = left[2 * m + 1];
        mma(d, lo.x, hi.x, lo.y, hi.y, b0, b1);
        mma(d, lo.z, hi.z, lo.w, hi.w, b2, b3);
      }
    }
  }

  // The upper half of the sides hands its sums to the lower half, until one is left.
#pragma unroll
  for (int half = kSide / 2; half > 0; half /= 2) {
    float* slot =
        shared + static_cast<size_t>(group * (kSide / 2) + side % half) * kCount * 32 + lane;
    __syncthreads();
    if (side >= half && side < 2 * half) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) slot[i * 32] = acc[i];
    }
    __syncthreads();
    if (side < half) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) acc[i] += slot[i * 32];
    }
  }
  if (splits > 1) {
    __shared__ bool last;
    float* base = partial + static_cast<size_t>(blockIdx.x) * splits * kCount * 32 * kGroups;
    const size_t each = static_cast<size_t>(kCount) * 32 * kGroups;
    const size_t own = static_cast<size_t>(group) * kCount * 32 + lane;
    if (side == 0) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) __stcg(base + blockIdx.y * each + own + i * 32, acc[i]);
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      last = atomicAdd(counters + blockIdx.x, 1) == splits - 1;
      if (last) counters[blockIdx.x] = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (side == 0) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) acc[i] = 0.0f;
      for (int s = 0; s < splits; ++s) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) acc[i] += __ldcg(base + s * each + own + i * 32);
      }
    }
  }
  if (side != 0) return;
    // d[0], d[1]: row r, product columns 2c, 2c + 1, that is outputs 8 (2c) + t and 8 (2c + 1) + t.
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = m * 16 + r + i / 2 * 8, to = h0 + 8 * (2 * c + i % 2);
      if (row >= p.rows || to >= p.outputs) continue;
      uint32_t words[4];
#pragma unroll
      for (int t = 0; t < 8; t += 2) {
        float u = acc[(m * 8 + t) * 4 + i], v = acc[(m * 8 + t + 1) * 4 + i];
        if (p.bias != nullptr) {
          u += p.bias[to + t];
          v += p.bias[to + t + 1];
        }
        const __nv_bfloat162 pair = __floats2bfloat162_rn(u, v);
        words[t / 2] = *reinterpret_cast<const uint32_t*>(&pair);
      }
      *reinterpret_cast<uint4*>(static_cast<bf16*>(p.y) + static_cast<int64_t>(row) * p.outputs +
                                to) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

/// Splits of the reduced dimension: enough blocks for all multiprocessors, whole waves preferred.
int choose_splits(int tiles, int steps, int processors, int resident, int least_steps,
                  size_t partial_bytes, size_t workspace_bytes) {
  int best = 1;
  double best_time = 1e30;
  for (int splits = 1; splits <= 32 && (splits == 1 || steps / splits >= least_steps); ++splits) {
    if (splits > 1 && partial_bytes * splits > workspace_bytes) break;
    const int blocks = tiles * splits;
    const int slots = processors * resident;
    const double waves =
        blocks <= slots ? static_cast<double>((blocks + processors - 1) / processors) / resident
                        : static_cast<double>((blocks + slots - 1) / slots);
    // A multiprocessor with few blocks has little in flight; each split costs its share of
    // partials.
    const double filled = blocks < slots ? 0.5 + 0.5 * blocks / slots : 1.0;
    const double time =
        waves * (static_cast<double>(steps) / splits + 6) / filled * (1 + 0.02 * splits);
    if (time < best_time) {
      best_time = time;
      best = splits;
    }
  }
  return best;
}

template <int kM, int kN, bool kGated>
void launch_skinny_instance(const SkinnyLaunch& args, void* workspace, size_t workspace_bytes,
                            int32_t* counters, int processors, cudaStream_t stream) {
  const auto kernel = skinny_kernel<kM, kN, kGated>;
  static const int resident = [&] {
    int blocks = 1;
    POLAR_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, 0));
    return blocks;
  }();
  const int outputs = kWarps * (kGated ? 8 : 8 * kN);
  const int tiles = (args.n + outputs - 1) / outputs;
  const size_t partial = static_cast<size_t>(tiles) * kM * kN * 4 * kThreads * sizeof(float);
  const int splits = tiles > kSplitCounters ? 1
                                            : choose_splits(tiles, args.k / 32, processors,
                                                            resident, 8, partial, workspace_bytes);
  kernel<<<dim3(tiles, splits), kThreads, 0, stream>>>(args, static_cast<float*>(workspace),
                                                       counters, splits);
}

template <int kM, int kGroups>
void launch_down_instance(const GatherDownLaunch& args, void* workspace, size_t workspace_bytes,
                          int32_t* counters, int processors, cudaStream_t stream) {
  const auto kernel = gather_down_kernel<kM, kGroups>;
  constexpr int kShared = kWarps / 2 * kM * 32 * 32 * 4;
  static const int resident = [&] {
    POLAR_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
    int blocks = 1;
    POLAR_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, kShared));
    return blocks;
  }();
  const int tiles = (args.outputs + 64 * kGroups - 1) / (64 * kGroups);
  const size_t partial = static_cast<size_t>(tiles) * kM * 32 * 32 * kGroups * sizeof(float);
  const int splits = choose_splits(tiles, (args.count + 31) / 32 / (kWarps / kGroups) + 1,
                                   processors, resident, 2, partial, workspace_bytes);
  kernel<<<dim3(tiles, splits), kThreads, kShared, stream>>>(args, static_cast<float*>(workspace),
                                                             counters, splits);
}

}  // namespace

void launch_skinny(const SkinnyLaunch& args, void* workspace, size_t workspace_bytes,
                   int32_t* counters, int processors, cudaStream_t stream) {
  POLAR_CHECK(args.k % 32 == 0 && args.rows > 0 && args.rows <= 64 && args.n > 0);
  const auto run = [&]<int kM, int kN, bool kGated>() {
    launch_skinny_instance<kM, kN, kGated>(args, workspace, workspace_bytes, counters, processors,
                                           stream);
  };
  if (args.gated) {
    if (args.rows <= 16) return run.template operator()<1, 2, true>();
    if (args.rows <= 32) return run.template operator()<2, 2, true>();
    return run.template operator()<4, 2, true>();
  }
  if (args.rows <= 16) return run.template operator()<1, 1, false>();
  if (args.rows <= 32) return run.template operator()<2, 2, false>();
  return run.template operator()<4, 4, false>();
}

void launch_gather_down(const GatherDownLaunch& args, void* workspace, size_t workspace_bytes,
                        int32_t* counters, int processors, cudaStream_t stream) {
  POLAR_CHECK(args.outputs % 8 == 0 && args.rows > 0 && args.rows <= 64 && args.count > 0);
  const auto run = [&]<int kM, int kGroups>() {
    launch_down_instance<kM, kGroups>(args, workspace, workspace_bytes, counters, processors,
                                      stream);
  };
  if (args.rows <= 16) return run.template operator()<1, 1>();
  if (args.rows <= 32) return run.template operator()<2, 1>();
  return run.template operator()<4, 2>();
}

}  // namespace polar::backend::cuda
