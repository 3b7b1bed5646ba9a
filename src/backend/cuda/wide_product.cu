// Products of up to 64 rows with a whole matrix, for sm_90a. Where rows are many, small tiles spend
// much on x, which each of them reads, and on their ends. Here tiles are large, one block a
// multiprocessor, in waves that fit the GPU: a tile has as many stored rows as that takes. A warp
// brings the matrix and x in by tensor copies, through a ring, as far ahead as it holds; warpgroups
// multiply. A tile's inputs may be cut into parts: then its blocks are a cluster and add up through
// each other's shared memory, in order, so that results do not depend on timing.

#include <cuda_bf16.h>

#include <algorithm>

#include "backend/cuda/activation.cuh"
#include "backend/cuda/cluster.cuh"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/tensor_copy.cuh"
#include "backend/cuda/wgmma.cuh"

namespace polar::backend::cuda {
namespace {

using bf16 = __nv_bfloat16;

constexpr int kAtomBytes = 1024;  // eight rows of 64 values
constexpr int kMostStages = 12;

struct Product {
  int rows, n, k;
  int tile;  // stored rows of a tile; of a gated pair eight gates, their eight ups, and so on
  int chunks, parts, stages;
  bool gated, by_outputs;
  const float* bias;
  bool activate;
  Activation activation;
  void* y;
  int64_t y_stride;
  bool y_f32;
  bool whole;  // rows of y begin at multiples of 16 bytes

  __host__ __device__ int outputs() const { return gated ? tile / 2 : tile; }  // of a tile
};

/// A warpgroup has kEach blocks of 64 stored rows. A chunk has kPanels x 64 inputs. kRows: rows of
/// x, padded.
template <int kGroups_, int kEach_, int kPanels_, int kRows_>
struct Shape {
  static constexpr int kGroups = kGroups_, kEach = kEach_, kPanels = kPanels_, kRows = kRows_;
  static constexpr int kSpan = kPanels * 64;
  static constexpr int kComputing = kGroups * 4, kThreads = (kComputing + 1) * 32;  // warps
  static constexpr int kM = kGroups * kEach * 64, kNTiles = kRows / 8;
  // Sums of a tile in shared memory: [kRows][kPitch] floats, without bank conflicts.
  static constexpr int kPitch = kM + 4, kSumBytes = kRows * kPitch * 4;
  static constexpr int kPitchBf16 = kM + 8;  // the same of what is stored as bf16
};

#ifdef POLAR_WGMMA

/// The first of the 16 stored rows of a tile that a warp has of one of its blocks.
template <typename S>
__device__ __forceinline__ int first_stored(int warp, int each) {
  return (warp / 4 * S::kEach + each) * 64 + warp % 4 * 16;
}

/// Where chunks stand in shared memory: the matrix, then x.
struct Ring {
  uint32_t base, full, empty;
  int stage_bytes, stages;
  int slot = 0, parity = 0;
  __device__ uint32_t stage() const { return base + slot * stage_bytes; }
  __device__ uint32_t is_full() const { return full + slot * 8; }
  __device__ uint32_t is_empty() const { return empty + slot * 8; }
  __device__ void advance() {
    if (++slot == stages) slot = 0, parity ^= 1;
  }
};

/// One lane: brings chunks [begin, end) of a tile in.
template <typename S>
__device__ void bring_in(const Product& p, const CUtensorMap& weight, const CUtensorMap& x,
                         Ring ring, int tile, int begin, int end) {
  fetch_tensor_map(x);
  const uint64_t once = evict_first();
  const int first_row = tile * p.outputs(), x_at = p.tile * S::kSpan * 2;
  const auto matrix = [&](const Ring& to, int chunk) {
    barrier_expect(to.is_full(), to.stage_bytes);
    const int group = p.by_outputs ? chunk * S::kSpan / 8 : first_row / 8,
              panel = p.by_outputs ? first_row / 64 : chunk * S::kPanels;
    tensor_copy_groups(to.stage(), weight, group, panel, to.is_full(), once);
  };
  const auto inputs = [&](const Ring& to, int chunk) {
#pragma unroll
    for (int panel = 0; panel < S::kPanels; ++panel)
      tensor_copy(to.stage() + x_at + panel * S::kRows * 128, x, 0, chunk * S::kSpan + panel * 64,
                  to.is_full());
  };
  // The matrix does not depend on the kernel in front.
  const int ahead = min(begin + ring.stages, end);
  Ring first = ring;
  for (int chunk = begin; chunk < ahead; ++chunk, first.advance()) matrix(first, chunk);
  wait_for_previous();
  for (int chunk = begin; chunk < ahead; ++chunk, ring.advance()) inputs(ring, chunk);
  for (int chunk = ahead; chunk < end; ++chunk, ring.advance()) {
    barrier_wait(ring.is_empty(), ring.parity ^ 1);
    matrix(ring, chunk);
    inputs(ring, chunk);
  }
}

/// A warpgroup: its rows' sums over all chunks.
template <typename S, bool kByOutputs>
__device__ void multiply(const Product& p, Ring ring, int chunks,
                         float (&sums)[S::kEach][S::kNTiles][4]) {
  const int group = threadIdx.x / 128;
  // Groups of eight stored rows hold all of a chunk's panels, or of a tile's.
  const int group_bytes = (kByOutputs ? p.tile / 64 : S::kPanels) * kAtomBytes,
            block_bytes = kByOutputs ? kAtomBytes : 8 * group_bytes;
  for (int i = 0; i < chunks; ++i, ring.advance()) {
    barrier_wait(ring.is_full(), ring.parity);
    const uint32_t blocks = ring.stage() + group * S::kEach * block_bytes,
                   x_at = ring.stage() + p.tile * S::kSpan * 2;
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < S::kSpan / 16; ++step) {
      const uint64_t x = wgmma_matrix(x_at + step / 4 * S::kRows * 128 + step % 4 * 32);
      const int within =
          kByOutputs ? step * 2 * group_bytes : step / 4 * kAtomBytes + step % 4 * 32;
#pragma unroll
      for (int each = 0; each < S::kEach; ++each)
        wgmma<kByOutputs>(sums[each],
                          wgmma_matrix(blocks + each * block_bytes + within, group_bytes), x);
    }
    wgmma_commit();
    wgmma_wait<0>();
    if (threadIdx.x % 32 == 0) barrier_arrive(ring.is_empty());
  }
#pragma unroll
  for (int each = 0; each < S::kEach; ++each) wgmma_pin(sums[each]);
}

__device__ __forceinline__ float4 load_shared4(uint32_t at) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(at));
  return v;
}

template <int kParts>
__device__ __forceinline__ void add_parts(uint32_t at, float (&sum)[4]) {
  float4 v[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    if constexpr (kParts == 1) {
      v[0] = load_shared4(at);
    } else {
      const int4 bits = load_cluster16(cluster_address(at, part));
      v[part] = {__int_as_float(bits.x), __int_as_float(bits.y), __int_as_float(bits.z),
                 __int_as_float(bits.w)};
    }
  }
#pragma unroll
  for (int part = 0; part < kParts; ++part)
    sum[0] += v[part].x, sum[1] += v[part].y, sum[2] += v[part].z, sum[3] += v[part].w;
}

/// Biases of a thread's stored rows, of which each block has two. Loaded early, since an end that
/// waits for memory is in nobody's shadow.
template <typename S>
struct Biases {
  float of[S::kEach][2] = {};
  __device__ Biases(const Product& p, int tile) {
    if (p.bias == nullptr) return;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int each = 0; each < S::kEach; ++each) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = first_stored<S>(warp, each) + lane / 4 + (p.gated ? 0 : i * 8);
        const int n = tile * p.outputs() + (p.gated ? row / 2 / 8 * 8 + row % 8 : row);
        of[each][i] = p.bias[min(n, p.n - 1) + (p.gated ? i * p.n : 0)];
      }
    }
  }
};

/// Stores a tile that no other block has a part of, as bf16, by way of shared memory.
template <typename S>
__device__ void store_whole(const Product& p, int tile,
                            const float (&sums)[S::kEach][S::kNTiles][4], uint32_t shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp < S::kComputing) {
#pragma unroll
    for (int each = 0; each < S::kEach; ++each) {
      const int row = first_stored<S>(warp, each);
      // 8 x 8 values are stored at once, and beside them the next 8 outputs or rows of x.
      const uint32_t to = shared + (lane % 8 * S::kPitchBf16 + (p.gated ? row / 2 : row)) * 2;
      if (p.gated) {
        const uint32_t next_row = lane / 8 * 8 * S::kPitchBf16 * 2;
#pragma unroll
        for (int t = 0; t < S::kNTiles; t += 2) {
          uint32_t values[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float(&v)[4] = sums[each][t + i];
            values[i] = pack<bf16>(activated(p.activation, v[0]) * v[2],
                                   activated(p.activation, v[1]) * v[3]);
          }
          stmatrix_transposed(to + next_row + t * 8 * S::kPitchBf16 * 2, values[0], values[1]);
        }
      } else {
#pragma unroll
        for (int t = 0; t < S::kNTiles; ++t) {
          float v[4];
#pragma unroll
          for (int i = 0; i < 4; ++i)
            v[i] = p.activate ? activated(p.activation, sums[each][t][i]) : sums[each][t][i];
          stmatrix_transposed(to + lane / 8 * 16 + t * 8 * S::kPitchBf16 * 2,
                              pack<bf16>(v[0], v[1]), pack<bf16>(v[2], v[3]));
        }
      }
    }
  }
  __syncthreads();
  const int eighths = p.outputs() / 8, first = tile * p.outputs();
  for (int item = threadIdx.x; item < p.rows * eighths; item += S::kThreads) {
    const int row = item / eighths, n = item % eighths * 8;
    if (first + n >= p.n) continue;
    *reinterpret_cast<float4*>(static_cast<bf16*>(p.y) + row * p.y_stride + first + n) =
        load_shared4(shared + (row * S::kPitchBf16 + n) * 2);
  }
}

__device__ __forceinline__ void store4(const Product& p, int row, int n, const float (&v)[4]) {
  const int64_t to = row * p.y_stride + n;
  if (p.y_f32) {
    auto* y = static_cast<float*>(p.y) + to;
    if (p.whole) {
      *reinterpret_cast<float4*>(y) = {v[0], v[1], v[2], v[3]};
    } else {
      for (int i = 0; i < 4; ++i) y[i] = v[i];
    }
  } else {
    auto* y = static_cast<bf16*>(p.y) + to;
    if (p.whole) {
      *reinterpret_cast<uint2*>(y) = {pack<bf16>(v[0], v[1]), pack<bf16>(v[2], v[3])};
    } else {
      for (int i = 0; i < 4; ++i) y[i] = __float2bfloat16(v[i]);
    }
  }
}

/// Adds up what the parts of a tile left in shared memory, and stores this part's share of rows: a
/// thread four neighbouring outputs of several rows.
template <typename S, int kParts>
__device__ void store_tile(const Product& p, int tile, int part, uint32_t sums) {
  const int quads = p.outputs() / 4, thread = static_cast<int>(threadIdx.x);
  const int output = thread % quads * 4, n = tile * p.outputs() + output,
            step = S::kThreads / quads;
  if (thread >= step * quads || n >= p.n) return;
  const int end = p.rows * (part + 1) / kParts;
  const uint32_t column = sums + (p.gated ? output / 8 * 16 + output % 8 : output) * 4;
  constexpr int kTogether = kParts == 1 ? 4 : 2;  // rows whose sums are under way
  for (int row = p.rows * part / kParts + thread / quads; row < end; row += kTogether * step) {
    float v[kTogether][4] = {}, up[kTogether][4] = {};
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const uint32_t at = column + min(row + j * step, p.rows - 1) * S::kPitch * 4;
      add_parts<kParts>(at, v[j]);
      if (p.gated) add_parts<kParts>(at + 8 * 4, up[j]);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (p.activate) v[j][i] = activated(p.activation, v[j][i]);
        if (p.gated) v[j][i] *= up[j][i];
      }
      if (row + j * step < end) store4(p, row + j * step, n, v[j]);
    }
  }
}

#endif

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    wide_product_kernel(const __grid_constant__ CUtensorMap weight,
                        const __grid_constant__ CUtensorMap x, const __grid_constant__ Product p) {
#ifdef POLAR_WGMMA
  extern __shared__ __align__(1024) std::byte shared[];
  const uint32_t barriers = shared_address(shared), base = barriers + 1024;
  const Ring ring{base, barriers, barriers + kMostStages * 8, (p.tile + S::kRows) * S::kSpan * 2,
                  p.stages};
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tile = blockIdx.x / p.parts, part = blockIdx.x % p.parts;
  const int begin = p.chunks * part / p.parts, end = p.chunks * (part + 1) / p.parts;
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {
      barrier_init(ring.full + i * 8, 1);
      barrier_init(ring.empty + i * 8, S::kComputing);
    }
    barriers_are_set();
  }
  __syncthreads();
  let_next_begin();
  const Biases<S> biases(p, tile);
  float sums[S::kEach][S::kNTiles][4] = {};
  if (warp == S::kComputing) {
    if (lane == 0) bring_in<S>(p, weight, x, ring, tile, begin, end);
    __syncwarp();
  } else if (p.by_outputs) {
    multiply<S, true>(p, ring, end - begin, sums);
  } else {
    multiply<S, false>(p, ring, end - begin, sums);
  }
  __syncthreads();  // the ring is free
  if (part == 0) {
#pragma unroll
    for (int i = 0; i < S::kEach * S::kNTiles * 4; ++i) {
      const int each = i / (S::kNTiles * 4);
      sums[each][i / 4 % S::kNTiles][i % 4] += biases.of[each][i % 4 / 2];
    }
  }
  if (p.parts == 1 && p.whole && !p.y_f32) return store_whole<S>(p, tile, sums, base);
  if (warp < S::kComputing) {
    auto* left = reinterpret_cast<float*>(shared + 1024);
#pragma unroll
    for (int each = 0; each < S::kEach; ++each) {
      const int column = first_stored<S>(warp, each) + lane / 4;
#pragma unroll
      for (int i = 0; i < S::kNTiles * 4; ++i) {
        const int row = i / 4 * 8 + lane % 4 * 2 + i % 2;
        left[row * S::kPitch + column + i % 4 / 2 * 8] = sums[each][i / 4][i % 4];
      }
    }
  }
  if (p.parts == 1) {
    __syncthreads();
    return store_tile<S, 1>(p, tile, 0, base);
  }
  cluster_barrier();
  if (p.parts == 2) store_tile<S, 2>(p, tile, part, base);
  if (p.parts == 4) store_tile<S, 4>(p, tile, part, base);
  if (p.parts == 8) store_tile<S, 8>(p, tile, part, base);
  cluster_barrier();  // until then others may read here
#endif
}

template <typename S>
void launch_shape(const SkinnyLaunch& args, Product p, const WideCut& cut, cudaStream_t stream) {
  static const bool once = [] {
    POLAR_CUDA(cudaFuncSetAttribute(wide_product_kernel<S>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, kWideSharedBytes));
    return true;
  }();
  (void)once;
  // The last block of a tile may reach beyond it, into what stands behind.
  const int stage_bytes = (p.tile + S::kRows) * S::kSpan * 2,
            beyond = std::max(0, (S::kM - p.tile - S::kRows) * S::kSpan * 2);
  const int room = kWideSharedBytes - 1024 - beyond;
  p.parts = cut.parts;
  p.chunks = (p.k + S::kSpan - 1) / S::kSpan;
  p.stages = std::min({room / stage_bytes, kMostStages, (p.chunks + p.parts - 1) / p.parts});
  const int bytes = 1024 + std::max(p.stages * stage_bytes + beyond, S::kSumBytes);
  POLAR_CHECK(p.stages > 0 && bytes <= kWideSharedBytes);
  const int tiles = (p.n + p.outputs() - 1) / p.outputs();
  const CUtensorMap x = tensor_map(args.x, p.rows, p.k, args.x_stride, S::kRows);
  const CUtensorMap weight =
      p.by_outputs ? tensor_map_of_groups(args.weight, 1, p.k, p.n, S::kSpan / 8, p.tile / 64)
                   : tensor_map_of_groups(args.weight, p.gated ? 2 : 1, p.n, p.k, p.outputs() / 8,
                                          S::kPanels);
  POLAR_CUDA(launch_early_clusters(wide_product_kernel<S>, tiles * p.parts, p.parts, S::kThreads,
                                   bytes, stream, weight, x, p));
}

template <int kGroups, int kEach, int kPanels>
void launch_rows(const SkinnyLaunch& args, const Product& p, const WideCut& cut,
                 cudaStream_t stream) {
  if (p.rows <= 16) return launch_shape<Shape<kGroups, kEach, kPanels, 16>>(args, p, cut, stream);
  if (p.rows <= 32) return launch_shape<Shape<kGroups, kEach, kPanels, 32>>(args, p, cut, stream);
  if (p.rows <= 48) return launch_shape<Shape<kGroups, kEach, kPanels, 48>>(args, p, cut, stream);
  return launch_shape<Shape<kGroups, kEach, kPanels, 64>>(args, p, cut, stream);
}

#ifdef POLAR_SM90A
/// Clusters of so many blocks that run at once.
int clusters_at_once(int blocks) {
  static int found[kMostParts + 1] = {};
  int& count = found[blocks];
  if (count > 0) return count;
  const auto kernel = wide_product_kernel<Shape<1, 1, 2, 16>>;
  POLAR_CUDA(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kWideSharedBytes));
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(blocks);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks * 64);
  config.blockDim = dim3(Shape<1, 1, 2, 16>::kThreads);
  config.dynamicSmemBytes = kWideSharedBytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  POLAR_CUDA(cudaOccupancyMaxActiveClusters(&count, kernel, &config));
  return count;
}
#endif

}  // namespace

void launch_wide(const SkinnyLaunch& args, bool by_outputs, const WideCut& cut,
                 cudaStream_t stream) {
  const int tile = cut.tile;
  POLAR_CHECK(args.rows > 0 && args.rows <= kMostSkinnyRows && args.index == nullptr);
  POLAR_CHECK(wide_can(args.n, args.k, by_outputs) && args.x_stride % 8 == 0);
  POLAR_CHECK(tile > 0 && tile <= kMostWideTile && tile % (by_outputs ? 64 : 16) == 0);
  POLAR_CHECK(!args.gated || (args.activate && !by_outputs));
  const Product p{.rows = args.rows,
                  .n = args.n,
                  .k = args.k,
                  .tile = tile,
                  .gated = args.gated,
                  .by_outputs = by_outputs,
                  .bias = args.bias,
                  .activate = args.activate,
                  .activation = args.activation,
                  .y = args.y,
                  .y_stride = args.y_stride,
                  .y_f32 = args.y_f32,
                  .whole = reinterpret_cast<uintptr_t>(args.y) % 16 == 0 &&
                           args.y_stride * (args.y_f32 ? 4 : 2) % 16 == 0};
  // Two panels a chunk as long as three chunks fit.
  if (tile <= 64) return launch_rows<1, 1, 2>(args, p, cut, stream);
  if (tile <= 128) return launch_rows<2, 1, 2>(args, p, cut, stream);
  if (tile <= 192) return launch_rows<3, 1, 2>(args, p, cut, stream);
  if (tile <= 224) return launch_rows<4, 1, 2>(args, p, cut, stream);
  if (tile <= 384) return launch_rows<3, 2, 1>(args, p, cut, stream);
  launch_rows<4, 2, 1>(args, p, cut, stream);
}

bool wide_can(int outputs, int k, bool by_outputs) {
#ifdef POLAR_SM90A
  return code_version() == 90 &&
         (by_outputs ? outputs % 64 == 0 && k % 8 == 0 : outputs % 8 == 0 && k % 64 == 0);
#else
  return false;
#endif
}

std::vector<WideCut> wide_cuts(int outputs, int k, bool gated, bool by_outputs) {
  std::vector<WideCut> cuts;
#ifdef POLAR_SM90A
  if (!wide_can(outputs, k, by_outputs)) return cuts;
  const int stored = gated ? 2 * outputs : outputs, step = by_outputs ? 64 : 16;
  const int most_parts = std::min(kMostParts, (k + 127) / 128);
  const auto add = [&](int parts, int waves) {
    if (parts > most_parts) return;
    const int tiles = clusters_at_once(parts) * waves;
    const WideCut cut{((stored + tiles - 1) / tiles + step - 1) / step * step, parts};
    if (cut.tile <= kMostWideTile && std::find(cuts.begin(), cuts.end(), cut) == cuts.end())
      cuts.push_back(cut);
  };
  // As few parts as nearly leave a warpgroup's rows to a tile; as few waves as its height allows.
  int parts = 1, waves = 1;
  while (parts < most_parts && clusters_at_once(parts) * 48 > stored) parts *= 2;
  while (clusters_at_once(parts) * waves * 224 < stored) ++waves;
  add(parts, waves);
  add(parts, waves + 1);
  if (waves > 1) add(parts, waves - 1);
  add(2 * parts, waves);
  add(4 * parts, waves);
#endif
  return cuts;
}

}  // namespace polar::backend::cuda
