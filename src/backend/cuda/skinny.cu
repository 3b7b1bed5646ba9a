// Products of at most 64 rows with a matrix that is read once, whole or only the named rows.
//
// The matrix stands on the tensor core's M side, the rows of x on N. A block computes one tile of
// stored rows, or one part of its inputs: then the blocks of a tile are a cluster and add up
// through each other's shared memory, in order, so that results do not depend on timing. Chunks of
// the matrix and of x go through a ring in shared memory, filled by asynchronous copies. Two or
// three blocks fit on a multiprocessor: a tile's end hides behind other tiles, and the next
// product, which requests its matrix before the kernel in front has ended, fills its rings while
// this one ends.

#include <cuda_bf16.h>

#include <algorithm>

#include "backend/cuda/activation.cuh"
#include "backend/cuda/async_copy.cuh"
#include "backend/cuda/cluster.cuh"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/wgmma.cuh"

namespace polar::backend::cuda {
namespace {

using bf16 = __nv_bfloat16;

/// How the matrix lies in memory.
enum class Layout {
  kInputs,   // a stored row holds one output's inputs: index names outputs
  kOutputs,  // a stored row holds one input's outputs: index names inputs
};

struct Product {
  const bf16* x;
  int64_t x_stride;
  int rows;
  const bf16* weight;
  int64_t weight_stride;
  const int32_t* index;
  int n, k;  // outputs (of a gated pair: half the stored rows), inputs
  const float* bias;
  bool activate = false;
  Activation activation = Activation::kRelu;
  void* y;
  int64_t y_stride;
  bool y_f32 = false;
  // Of a launch:
  int chunks = 0;
  int parts = 1;  // of a tile's inputs: the blocks of a cluster
};

/// A warp has 16 stored rows of a tile; of a gated pair the first 8 are the gate's, the others the
/// matching up's. kSpan: inputs of a chunk; memory is fastest where a row's piece has 256 bytes,
/// but the more rows of x there are, the more outputs must share them. kRows: rows of x, padded.
template <int kWarps_, int kSpan_, int kPerProcessor_, int kRows_, Layout kLayout_, bool kGated_>
struct Shape {
  static constexpr int kWarps = kWarps_, kThreads = kWarps * 32;
  static constexpr int kSpan = kSpan_, kRows = kRows_;
  static constexpr Layout kLayout = kLayout_;
  static constexpr bool kGated = kGated_;
  static constexpr int kM = kWarps * 16;  // stored rows of a tile
  static constexpr int kOutputs = kGated ? kM / 2 : kM;
  static constexpr int kNTiles = kRows / 8;
  static constexpr int kValues = kNTiles * 4;                     // a thread's sums
  static constexpr int kStored = kGated ? kValues / 2 : kValues;  // of them, outputs
  // In shared memory rows have 128 bytes: a panel has 64 inputs of all rows, or (kOutputs) 64
  // outputs of all inputs.
  static constexpr int kPanelBytes = (kLayout == Layout::kInputs ? kM : kSpan) * 128;
  static constexpr int kMatrixBytes = kM * kSpan * 2;
  static constexpr int kStageBytes = kMatrixBytes + kRows * kSpan * 2;
  static constexpr int kPerProcessor = kPerProcessor_;  // blocks
  static constexpr int kStages = 2 * kTwoPerProcessorBytes / kPerProcessor / kStageBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kCopies = kMatrixBytes / 16 / kThreads;  // of 16 bytes, a thread's per chunk
  static_assert(!kGated || kLayout == Layout::kInputs);
  static_assert(kLayout == Layout::kInputs || kSpan == 64);
  static_assert(kValues * kThreads * 4 <= kSharedBytes);
};

/// Requests chunks of a tile's matrix, one after the other: rows as they are stored (of inputs or
/// of outputs), units of 16 bytes permuted by the row. A thread copies one column of units.
template <typename S>
class MatrixLoader {
 public:
  __device__ MatrixLoader(const Product& p, int tile, int chunk)
      : p_(p),
        tile_(tile),
        chunk_(chunk),
        unit_(threadIdx.x % kUnits),
        row_(threadIdx.x / kUnits),
        to_(unit_ / 8 * S::kPanelBytes + row_ * 128 + ((unit_ % 8 ^ row_ % 8) << 4)) {
    find_rows();
  }

  __device__ void load(uint32_t stage) {
    const int first = chunk_++ * S::kSpan;  // input
    if constexpr (S::kLayout == Layout::kInputs) {
      const int k = first + unit_ * 8, bytes = k < p_.k ? 16 : 0;
      const bf16* from = p_.weight + (bytes > 0 ? k : 0);
#pragma unroll
      for (int i = 0; i < S::kCopies; ++i)
        copy16(stage + to_ + i * kPassBytes, from + stored_[i] * p_.weight_stride, bytes);
    } else {
      const int n = tile_ * S::kM + unit_ * 8, rows = n < p_.n ? p_.k - first - row_ : 0;
      const bf16* from = p_.weight + (n < p_.n ? n : 0);
#pragma unroll
      for (int i = 0; i < S::kCopies; ++i)
        copy16(stage + to_ + i * kPassBytes, from + stored_[i] * p_.weight_stride,
               i * kPass < rows ? 16 : 0);
      find_rows();
    }
  }

 private:
  static constexpr int kUnits = (S::kLayout == Layout::kInputs ? S::kSpan : S::kM) / 8;
  static constexpr int kPass = S::kThreads / kUnits, kPassBytes = kPass * 128;
  static_assert(kPass % 8 == 0);

  /// Which stored rows this thread copies: of its tile, or of the next chunk (the index must be
  /// there before the copy).
  __device__ void find_rows() {
#pragma unroll
    for (int i = 0; i < S::kCopies; ++i) {
      const int row = row_ + i * kPass;
      if constexpr (S::kLayout == Layout::kInputs) {
        const int inside = S::kGated ? row / 16 * 8 + row % 8 : row,
                  n = min(tile_ * S::kOutputs + inside, p_.n - 1);
        stored_[i] = p_.index != nullptr ? p_.index[n] : n;
        if (S::kGated && row % 16 >= 8) stored_[i] += p_.n;
      } else {
        const int k = min(chunk_ * S::kSpan + row, p_.k - 1);
        stored_[i] = p_.index != nullptr ? p_.index[k] : k;
      }
    }
  }

  const Product& p_;
  int tile_, chunk_, unit_, row_, to_;
  int32_t stored_[S::kCopies];
};

template <typename S>
__device__ __forceinline__ void load_x(const Product& p, int chunk, uint32_t stage) {
  constexpr int kOfRow = S::kSpan / 8, kUnits = S::kRows * kOfRow;
#pragma unroll
  for (int i = 0; i < (kUnits + S::kThreads - 1) / S::kThreads; ++i) {
    const int at = threadIdx.x + i * S::kThreads, row = at / kOfRow, unit = at % kOfRow;
    if (kUnits % S::kThreads != 0 && at >= kUnits) break;
    const int k = chunk * S::kSpan + unit * 8;
    const int bytes = row < p.rows ? min(max(p.k - k, 0), 8) * 2 : 0;
    copy16(
        stage + S::kMatrixBytes + (unit / 8 * S::kRows + row) * 128 + ((unit % 8 ^ row % 8) << 4),
        p.x + (bytes > 0 ? row * p.x_stride + k : 0), bytes);
  }
}

/// Where step `step` (16 inputs) of a warpgroup's 64 rows begins in a stage.
template <typename S>
__device__ __forceinline__ uint32_t matrix_step(uint32_t stage, int step) {
  const uint32_t block = threadIdx.x / 128;
  return S::kLayout == Layout::kInputs
             ? stage + step / 4 * S::kPanelBytes + block * 64 * 128 + step % 4 * 32
             : stage + block * S::kPanelBytes + step * 16 * 128;
}
template <typename S>
__device__ __forceinline__ uint32_t x_step(uint32_t stage, int step) {
  return stage + S::kMatrixBytes + step / 4 * S::kRows * 128 + step % 4 * 32;
}

/// Adds a chunk's products to the sums.
#ifdef POLAR_WGMMA
template <typename S>
__device__ __forceinline__ void multiply(uint32_t stage, float (&sums)[S::kNTiles][4]) {
  wgmma_begin();
#pragma unroll
  for (int step = 0; step < S::kSpan / 16; ++step) {
    const uint64_t x = wgmma_matrix(x_step<S>(stage, step));
    wgmma<S::kLayout == Layout::kOutputs>(sums, wgmma_matrix(matrix_step<S>(stage, step)), x);
  }
  wgmma_commit();
  wgmma_wait<0>();
}
#else
template <typename S>
__device__ __forceinline__ void multiply(uint32_t stage, float (&sums)[S::kNTiles][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, eighth = lane / 8;
  // Rows of 128 bytes begin at multiples of 1,024: a unit is chosen by its bits of the address.
  const uint32_t row =
      S::kLayout == Layout::kInputs
          ? (warp % 4 * 16 + lane % 16) * 128 + ((lane / 16 ^ lane % 8) << 4)
          : (lane % 8 + eighth / 2 * 8) * 128 + (((warp % 4 * 2 | eighth % 2) ^ lane % 8) << 4);
  const uint32_t x_row = (lane % 8 + (S::kRows == 8 ? 0 : eighth / 2 * 8)) * 128;
#pragma unroll
  for (int step = 0; step < S::kSpan / 16; ++step) {
    uint32_t a[4];
    if constexpr (S::kLayout == Layout::kInputs) {
      ldmatrix(a, (matrix_step<S>(stage, step / 4 * 4) + row) ^ (step % 4 << 5));
    } else {
      ldmatrix_transposed(a, matrix_step<S>(stage, step) + row);
    }
    const uint32_t x = x_step<S>(stage, step / 4 * 4) + x_row;
    if constexpr (S::kRows == 8) {
      // One ldmatrix serves two steps.
      uint32_t b[4];
      ldmatrix(b, x + (((step % 4 / 2 * 4 | eighth) ^ lane % 8) << 4));
      mma<bf16>(sums[0], a, b[step % 2 * 2], b[step % 2 * 2 + 1]);
    } else {
#pragma unroll
      for (int pair = 0; pair < S::kNTiles / 2; ++pair) {
        uint32_t b[4];
        ldmatrix(b, x + pair * 16 * 128 + (((step % 4 * 2 | eighth % 2) ^ lane % 8) << 4));
        mma<bf16>(sums[2 * pair], a, b[0], b[1]);
        mma<bf16>(sums[2 * pair + 1], a, b[2], b[3]);
      }
    }
  }
}
#endif

/// Which of a thread's sums is its j-th output; of a gated pair the up's stands two behind.
template <typename S>
__device__ constexpr int sum_of(int j) {
  return S::kGated ? j / 2 * 4 + j % 2 : j;
}

/// Where a thread's sum i stands: output, row of x.
template <typename S>
struct Place {
  int n, row;
  __device__ Place(int tile, int i) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    n = tile * S::kOutputs + lane / 4 + (S::kGated ? warp * 8 : warp * 16 + i % 4 / 2 * 8);
    row = i / 4 * 8 + lane % 4 * 2 + i % 2;
  }
};

/// A thread's biases, of the two outputs that it stores: of a gated pair the gate's and the up's.
/// Loaded early, since an end that waits for memory is in nobody's shadow.
template <typename S>
struct Biases {
  float of[2] = {};
  __device__ Biases(const Product& p, int tile) {
    if (p.bias == nullptr) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int n = min(Place<S>(tile, 2 * i).n, p.n - 1);
      const bool gathered = S::kLayout == Layout::kInputs && p.index != nullptr;
      of[i] = p.bias[(gathered ? p.index[n] : n) + (S::kGated && i == 1 ? p.n : 0)];
    }
  }
};

template <typename S>
__device__ __forceinline__ void store(const Product& p, int tile, const Biases<S>& biases, int i,
                                      float v, float up) {
  const Place<S> place(tile, i);
  if (place.n >= p.n || place.row >= p.rows) return;
  v += S::kGated || i % 4 < 2 ? biases.of[0] : biases.of[1];
  if (p.activate) v = activated(p.activation, v);
  if (S::kGated) v *= up + biases.of[1];
  const int64_t to = place.row * p.y_stride + place.n;
  if (p.y_f32) {
    static_cast<float*>(p.y)[to] = v;
  } else {
    static_cast<bf16*>(p.y)[to] = __float2bfloat16(v);
  }
}

#if __CUDA_ARCH__ >= 900
/// Adds up the sums of a cluster's blocks and stores this block's share of them.
template <typename S, int kParts>
__device__ void add_up(const Product& p, int tile, const Biases<S>& biases, uint32_t sums) {
  const int part = blockIdx.x % kParts;
  uint32_t from[kParts];
#pragma unroll
  for (int other = 0; other < kParts; ++other) from[other] = cluster_address(sums, other);
  constexpr int kMine = (S::kStored + kParts - 1) / kParts;
#pragma unroll
  for (int j = 0; j < kMine; ++j) {
    if (part * kMine + j >= S::kStored) break;
    const int i = sum_of<S>(part * kMine + j);
    float v = 0.0f, up = 0.0f;
#pragma unroll
    for (int other = 0; other < kParts; ++other) {
      v += load_cluster(from[other] + i * S::kThreads * 4);
      if (S::kGated) up += load_cluster(from[other] + (i + 2) * S::kThreads * 4);
    }
    store<S>(p, tile, biases, i, v, up);
  }
}
#endif

template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kPerProcessor)
    product_kernel(const __grid_constant__ Product p) {
  extern __shared__ __align__(1024) std::byte ring[];
  const uint32_t base = shared_address(ring);
  const int tile = blockIdx.x / p.parts, part = blockIdx.x % p.parts;
  const int begin = p.chunks * part / p.parts, end = p.chunks * (part + 1) / p.parts;
  // Rows that the kernel in front chooses are known when it has ended, and then also to the next
  // kernel before this one has ended: a gathered second product requests its rows at once.
  const bool chosen_in_front = S::kLayout == Layout::kInputs && p.index != nullptr;
  if (chosen_in_front) wait_for_previous();
  let_next_begin();
  MatrixLoader<S> matrix(p, tile, begin);
  constexpr int kAhead = S::kStages - 1;
#pragma unroll 1
  for (int i = 0; i < kAhead && begin + i < end; ++i) matrix.load(base + i * S::kStageBytes);
  const Biases<S> biases(p, tile);
  if (!chosen_in_front) wait_for_previous();
#pragma unroll 1
  for (int i = 0; i < kAhead; ++i) {
    if (begin + i < end) load_x<S>(p, begin + i, base + i * S::kStageBytes);
    commit_copies();
  }

  float sums[S::kNTiles][4] = {};
  int stage = 0, refill = kAhead;
#pragma unroll 1
  for (int at = begin; at < end; ++at) {
    wait_copies<kAhead - 1>();
#ifdef POLAR_WGMMA
    wgmma_sees_copies();
#endif
    __syncthreads();  // this stage is there for all; the one before is free
    if (at + kAhead < end) {
      matrix.load(base + refill * S::kStageBytes);
      load_x<S>(p, at + kAhead, base + refill * S::kStageBytes);
    }
    commit_copies();
    multiply<S>(base + stage * S::kStageBytes, sums);
    stage = stage + 1 == S::kStages ? 0 : stage + 1;
    refill = refill + 1 == S::kStages ? 0 : refill + 1;
  }

  const float* flat = &sums[0][0];
  if (p.parts == 1) {
#pragma unroll
    for (int j = 0; j < S::kStored; ++j) {
      const int i = sum_of<S>(j);
      store<S>(p, tile, biases, i, flat[i], S::kGated ? flat[i + 2] : 0.0f);
    }
    return;
  }
#if __CUDA_ARCH__ >= 900
  wait_copies<0>();
  __syncthreads();  // the ring is free
  auto* left = reinterpret_cast<float*>(ring) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < S::kValues; ++i) left[i * S::kThreads] = flat[i];
  cluster_barrier();
  const uint32_t mine = base + threadIdx.x * 4;
  if (p.parts == 2) add_up<S, 2>(p, tile, biases, mine);
  if (p.parts == 4) add_up<S, 4>(p, tile, biases, mine);
  if (p.parts == 8) add_up<S, 8>(p, tile, biases, mine);
  cluster_barrier();  // until then others may read here
#endif
}

template <typename S>
void launch_shape(Product p, const ProductCut& cut, cudaStream_t stream) {
  static const bool once = [] {
    POLAR_CUDA(cudaFuncSetAttribute(product_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    S::kSharedBytes));
    return true;
  }();
  (void)once;
  const int tiles = (p.n + S::kOutputs - 1) / S::kOutputs;
  p.chunks = (p.k + S::kSpan - 1) / S::kSpan;
  p.parts = cut.parts;
  POLAR_CUDA(launch_early_clusters(product_kernel<S>, tiles * p.parts, p.parts, S::kThreads,
                                   S::kSharedBytes, stream, p));
}

/// Up to 16 rows of x tiles of 64 outputs, else of 128, which share what is read of x.
template <int kPerProcessor, int kRows, Layout kLayout, bool kGated>
void launch_rows(const Product& p, const ProductCut& cut, cudaStream_t stream) {
  if constexpr (kRows <= 16 && kLayout == Layout::kInputs) {
    using Few = Shape<4, 128, kPerProcessor, kRows, kLayout, kGated>;
    static_assert(Few::kM == product_tile(kRows));
    launch_shape<Few>(p, cut, stream);
  } else {
    launch_shape<Shape<8, 64, kPerProcessor, kRows, kLayout, kGated>>(p, cut, stream);
  }
}

template <int kPerProcessor, Layout kLayout, bool kGated>
void launch_blocks(const Product& p, const ProductCut& cut, cudaStream_t stream) {
  if (p.rows <= 8) return launch_rows<kPerProcessor, 8, kLayout, kGated>(p, cut, stream);
  if (p.rows <= 16) return launch_rows<kPerProcessor, 16, kLayout, kGated>(p, cut, stream);
  if (p.rows <= 32) return launch_rows<kPerProcessor, 32, kLayout, kGated>(p, cut, stream);
  if (p.rows <= 48) return launch_rows<kPerProcessor, 48, kLayout, kGated>(p, cut, stream);
  return launch_rows<kPerProcessor, 64, kLayout, kGated>(p, cut, stream);
}

template <Layout kLayout, bool kGated>
void launch(const Product& p, const ProductCut& cut, cudaStream_t stream) {
  POLAR_CHECK(p.rows > 0 && p.rows <= kMostSkinnyRows && p.n > 0 && p.k > 0);
  POLAR_CHECK(p.x_stride % 8 == 0 && p.weight_stride % 8 == 0);
  POLAR_CHECK(cut.parts >= 1 && cut.parts <= kMostParts && (cut.parts & (cut.parts - 1)) == 0);
  cut.per_processor == 2 ? launch_blocks<2, kLayout, kGated>(p, cut, stream)
                         : launch_blocks<3, kLayout, kGated>(p, cut, stream);
}

}  // namespace

std::vector<ProductCut> product_cuts(int outputs, int tile, const ProductLimits& limits) {
  const auto blocks_of = [&](int parts) { return (outputs + tile - 1) / tile * parts; };
  int most = 1;
  while (limits.clusters && most < kMostParts && blocks_of(most) < 3 * limits.processors) most *= 2;
  std::vector<ProductCut> cuts;
  for (int parts = 1; parts <= most; parts *= 2) {
    for (const int per_processor : {3, 2}) {
      if (per_processor == 2 && limits.shared_bytes < kTwoPerProcessorBytes) continue;
      // Blocks that begin early crowd where there is room first: they must nearly fill the GPU.
      const bool fills = blocks_of(parts) * 5 >= limits.processors * per_processor * 3;
      if (fills || parts == most) cuts.push_back({parts, per_processor});
    }
  }
  return cuts;
}

void launch_skinny(const SkinnyLaunch& args, const ProductCut& cut, cudaStream_t stream) {
  POLAR_CHECK(args.k % 8 == 0);
  const Product p{.x = static_cast<const bf16*>(args.x),
                  .x_stride = args.x_stride,
                  .rows = args.rows,
                  .weight = static_cast<const bf16*>(args.weight),
                  .weight_stride = args.k,
                  .index = args.index,
                  .n = args.n,
                  .k = args.k,
                  .bias = args.bias,
                  .activate = args.activate,
                  .activation = args.activation,
                  .y = args.y,
                  .y_stride = args.y_stride,
                  .y_f32 = args.y_f32};
  args.gated ? launch<Layout::kInputs, true>(p, cut, stream)
             : launch<Layout::kInputs, false>(p, cut, stream);
}

void launch_gather_down(const GatherDownLaunch& args, const ProductCut& cut, cudaStream_t stream) {
  POLAR_CHECK(args.outputs % 8 == 0);
  const Product p{.x = static_cast<const bf16*>(args.a),
                  .x_stride = args.a_stride,
                  .rows = args.rows,
                  .weight = static_cast<const bf16*>(args.weight),
                  .weight_stride = args.outputs,
                  .index = args.index,
                  .n = args.outputs,
                  .k = args.count,
                  .bias = args.bias,
                  .y = args.y,
                  .y_stride = args.outputs,
                  .y_f32 = args.y_f32};
  launch<Layout::kOutputs, false>(p, cut, stream);
}

}  // namespace polar::backend::cuda
