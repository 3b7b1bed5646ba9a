// Products of at most 64 rows with a matrix that is read once, whole or only the named rows.
//
// The matrix stands on the tensor core's M side, the rows of x on N. A block works on tiles of 128
// or 256 outputs in chunks of 64 inputs; the chunks of all tiles are one line, cut into equal
// shares, one per multiprocessor (stream-K), so that cost follows bytes whatever the shape. Chunks
// of the matrix and of x go through a ring in shared memory, filled by asynchronous copies; whole
// matrices are requested before the kernel in front has ended. The shares of a tile that lies in
// several each add up a part of its values, in the order of the shares: results do not depend on
// timing.

#include <cuda_bf16.h>

#include <algorithm>

#include "backend/cuda/activation.cuh"
#include "backend/cuda/cuda_check.h"
#include "backend/cuda/kernels.h"
#include "backend/cuda/launch.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/wgmma.cuh"

namespace polar::backend::cuda {
namespace {

using bf16 = __nv_bfloat16;
constexpr int kChunk = 64;  // inputs
constexpr int kBlockBytes = 64 * kChunk * 2;

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
  int tiles = 0, chunks = 0, shares = 0;
  float* partial = nullptr;     // [share][2][tile's values]
  int32_t* counters = nullptr;  // [tiles] zeros
};

/// A tile is made of blocks of 64 stored rows; four warps have kBlocks of them, 16 rows of each a
/// warp. kRows: rows of x, padded. kGated: a warp's first block is the gate's, the second the
/// matching up's.
template <int kWarps_, int kBlocks_, int kRows_, Layout kLayout_, bool kGated_>
struct Shape {
  static constexpr int kWarps = kWarps_, kThreads = kWarps * 32;
  static constexpr int kBlocks = kBlocks_, kRows = kRows_;
  static constexpr Layout kLayout = kLayout_;
  static constexpr bool kGated = kGated_;
  static constexpr int kM = kWarps * kBlocks * 16;  // stored rows of a tile
  static constexpr int kOutputs = kGated ? kM / 2 : kM;
  static constexpr int kNTiles = kRows / 8;
  static constexpr int kValues = kBlocks * kNTiles * 4;           // a thread's sums
  static constexpr int kStored = kGated ? kValues / 2 : kValues;  // of them, outputs
  static constexpr int kMatrixBytes = kM * kChunk * 2;
  static constexpr int kStageBytes = kMatrixBytes + kRows * kChunk * 2;
  // Few rows: two kernels fit on a multiprocessor, so that the next one fills its ring early.
  static constexpr int kRingBytes = kRows <= 16 ? 108 << 10 : 200 << 10;
  static constexpr int kStages = kRingBytes / kStageBytes;
  static constexpr int kCopies = kMatrixBytes / 16 / kThreads;  // of 16 bytes, a thread's per chunk
  static_assert(!kGated || (kBlocks == 2 && kLayout == Layout::kInputs));
};

/// 16 bytes to shared memory, those behind `bytes` zero.
__device__ __forceinline__ void copy16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// A place in the line of chunks.
struct Cursor {
  int tile, chunk;
  __device__ Cursor(int at, int chunks) : tile(at / chunks), chunk(at % chunks) {}
  __device__ void advance(int chunks) {
    if (++chunk == chunks) {
      chunk = 0;
      ++tile;
    }
  }
};

__device__ __forceinline__ int share_begin(const Product& p, int share) {
  return static_cast<int>(static_cast<int64_t>(p.tiles) * p.chunks * share / p.shares);
}
/// The share that holds place `at`.
__device__ __forceinline__ int share_of(const Product& p, int at) {
  return static_cast<int>(((static_cast<int64_t>(at) + 1) * p.shares - 1) /
                          (static_cast<int64_t>(p.tiles) * p.chunks));
}

/// Requests chunks of the matrix, in the line's order: blocks of 64 outputs by 64 inputs, rows of
/// 128 bytes (of inputs or of outputs, as they are stored), units of 16 bytes permuted by the row.
/// A thread copies one column of units.
template <typename S>
class MatrixLoader {
 public:
  __device__ MatrixLoader(const Product& p, int at)
      : p_(p),
        cursor_(at, p.chunks),
        unit_(threadIdx.x % kUnits),
        row_(threadIdx.x / kUnits),
        to_(unit_ / 8 * kBlockBytes + row_ * 128 + ((unit_ % 8 ^ row_ % 8) << 4)) {
    find_rows();
  }

  __device__ void load(uint32_t stage) {
    const int first = cursor_.chunk * kChunk;  // input
    if constexpr (S::kLayout == Layout::kInputs) {
      const int k = first + unit_ * 8, bytes = k < p_.k ? 16 : 0;
      const bf16* from = p_.weight + (bytes > 0 ? k : 0);
#pragma unroll
      for (int i = 0; i < S::kCopies; ++i)
        copy16(stage + to_ + i * kPassBytes, from + stored_[i] * p_.weight_stride, bytes);
    } else {
      const int n = cursor_.tile * S::kM + unit_ * 8, rows = n < p_.n ? p_.k - first - row_ : 0;
      const bf16* from = p_.weight + (n < p_.n ? n : 0);
#pragma unroll
      for (int i = 0; i < S::kCopies; ++i)
        copy16(stage + to_ + i * kPassBytes, from + stored_[i] * p_.weight_stride,
               i * kPass < rows ? 16 : 0);
    }
    const int tile = cursor_.tile;
    cursor_.advance(p_.chunks);
    if (S::kLayout == Layout::kOutputs || cursor_.tile != tile) find_rows();
  }

 private:
  static constexpr int kUnits = S::kLayout == Layout::kInputs ? kChunk / 8 : S::kM / 8;
  static constexpr int kPass = S::kThreads / kUnits, kPassBytes = kPass * 128;
  static_assert(kPass % 8 == 0);

  /// Which stored rows this thread copies: of a tile, or of a chunk (then one chunk ahead, since
  /// the index must be there first).
  __device__ void find_rows() {
    if (cursor_.tile >= p_.tiles) return;
#pragma unroll
    for (int i = 0; i < S::kCopies; ++i) {
      const int row = row_ + i * kPass;
      if constexpr (S::kLayout == Layout::kInputs) {
        const int inside = S::kGated ? row / 128 * 64 + row % 64 : row,
                  n = min(cursor_.tile * S::kOutputs + inside, p_.n - 1);
        stored_[i] = p_.index != nullptr ? p_.index[n] : n;
        if (S::kGated && row % 128 >= 64) stored_[i] += p_.n;
      } else {
        const int k = min(cursor_.chunk * kChunk + row, p_.k - 1);
        stored_[i] = p_.index != nullptr ? p_.index[k] : k;
      }
    }
  }

  const Product& p_;
  Cursor cursor_;
  int unit_, row_, to_;
  int32_t stored_[S::kCopies];
};

template <typename S>
__device__ __forceinline__ void load_x(const Product& p, int chunk, uint32_t stage) {
  constexpr int kUnits = S::kRows * 8;
#pragma unroll
  for (int i = 0; i < (kUnits + S::kThreads - 1) / S::kThreads; ++i) {
    const int at = threadIdx.x + i * S::kThreads, row = at / 8, unit = at % 8;
    if (kUnits % S::kThreads != 0 && at >= kUnits) break;
    const int k = chunk * kChunk + unit * 8;
    const int bytes = row < p.rows ? min(max(p.k - k, 0), 8) * 2 : 0;
    copy16(stage + S::kMatrixBytes + row * 128 + ((unit ^ (row % 8)) << 4),
           p.x + (bytes > 0 ? row * p.x_stride + k : 0), bytes);
  }
}

#ifdef POLAR_WGMMA
template <typename S>
__device__ __forceinline__ void multiply(uint32_t stage, float (&sums)[S::kBlocks][S::kNTiles][4]) {
  constexpr bool kTransposed = S::kLayout == Layout::kOutputs;
  constexpr int kStepBytes = kTransposed ? 16 * 128 : 16 * 2;
  const uint32_t first = stage + threadIdx.x / 128 * S::kBlocks * kBlockBytes;
  wgmma_begin();
#pragma unroll
  for (int step = 0; step < kChunk / 16; ++step) {
    const uint64_t x = wgmma_matrix(stage + S::kMatrixBytes + step * 32);
#pragma unroll
    for (int block = 0; block < S::kBlocks; ++block)
      wgmma<kTransposed>(sums[block], wgmma_matrix(first + block * kBlockBytes + step * kStepBytes),
                         x);
  }
  wgmma_end();
}
#else
template <typename S>
__device__ __forceinline__ void multiply(uint32_t stage, float (&sums)[S::kBlocks][S::kNTiles][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, eighth = lane / 8;
  // Where this lane's row of each matrix begins at step 0.
  uint32_t from = stage + warp / 4 * S::kBlocks * kBlockBytes;
  if constexpr (S::kLayout == Layout::kInputs) {
    from += (warp % 4 * 16 + lane % 16) * 128 + ((lane / 16 ^ lane % 8) << 4);
  } else {
    from += (lane % 8 + eighth / 2 * 8) * 128 + (((warp % 4 * 2 | eighth % 2) ^ lane % 8) << 4);
  }
  const uint32_t x =
      stage + S::kMatrixBytes + (lane % 8 + (S::kRows == 8 ? 0 : eighth / 2 * 8)) * 128;
#pragma unroll
  for (int step = 0; step < kChunk / 16; ++step) {
    uint32_t a[S::kBlocks][4];
#pragma unroll
    for (int block = 0; block < S::kBlocks; ++block) {
      if constexpr (S::kLayout == Layout::kInputs) {
        ldmatrix(a[block], (from ^ (step << 5)) + block * kBlockBytes);
      } else {
        ldmatrix_transposed(a[block], from + step * 16 * 128 + block * kBlockBytes);
      }
    }
    if constexpr (S::kRows == 8) {
      // One ldmatrix serves two steps.
      uint32_t b[4];
      ldmatrix(b, x + (((step / 2 * 4 | eighth) ^ lane % 8) << 4));
#pragma unroll
      for (int block = 0; block < S::kBlocks; ++block)
        mma<bf16>(sums[block][0], a[block], b[step % 2 * 2], b[step % 2 * 2 + 1]);
    } else {
#pragma unroll
      for (int pair = 0; pair < S::kNTiles / 2; ++pair) {
        uint32_t b[4];
        ldmatrix(b, x + pair * 16 * 128 + (((step * 2 | eighth % 2) ^ lane % 8) << 4));
#pragma unroll
        for (int block = 0; block < S::kBlocks; ++block) {
          mma<bf16>(sums[block][2 * pair], a[block], b[0], b[1]);
          mma<bf16>(sums[block][2 * pair + 1], a[block], b[2], b[3]);
        }
      }
    }
  }
}
#endif

/// Where a thread's sum i stands: output of the tile, row of x. Of a gated pair i names the gate's.
template <typename S>
struct Place {
  int n, row;
  __device__ Place(int tile, int i) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, block = i / (S::kNTiles * 4);
    n = tile * S::kOutputs + (warp / 4 * (S::kGated ? 1 : S::kBlocks) + block) * 64 +
        warp % 4 * 16 + lane / 4 + i % 4 / 2 * 8;
    row = i / 4 % S::kNTiles * 8 + lane % 4 * 2 + i % 2;
  }
};

template <typename S>
__device__ __forceinline__ void store(const Product& p, int tile, int i, float v, float up) {
  const Place<S> place(tile, i);
  if (place.n >= p.n || place.row >= p.rows) return;
  if (p.bias != nullptr) {
    const bool gathered = S::kLayout == Layout::kInputs && p.index != nullptr;
    const int stored = gathered ? p.index[place.n] : place.n;
    v += p.bias[stored];
    if (S::kGated) up += p.bias[stored + p.n];
  }
  if (p.activate) v = activated(p.activation, v);
  if (S::kGated) v *= up;
  const int64_t to = place.row * p.y_stride + place.n;
  if (p.y_f32) {
    static_cast<float*>(p.y)[to] = v;
  } else {
    static_cast<bf16*>(p.y)[to] = __float2bfloat16(v);
  }
}

template <typename S>
__device__ __forceinline__ float* slot(const Product& p, int share, bool head) {
  return p.partial + (static_cast<size_t>(share) * 2 + head) * S::kValues * S::kThreads +
         threadIdx.x;
}

/// Leaves this share's sums of a tile that lies in several shares where the others look for them.
template <typename S>
__device__ __forceinline__ void leave(const Product& p, bool head, const float* sums) {
  float* mine = slot<S>(p, blockIdx.x, head);
#pragma unroll
  for (int i = 0; i < S::kValues; ++i) __stcg(mine + i * S::kThreads, sums[i]);
}

/// Adds up this share's part of a tile's values, in the order of the shares, once all have left
/// theirs: shares run side by side, so nobody waits for one that has not begun.
template <typename S>
__device__ void add_up(const Product& p, int tile) {
  const int first = share_of(p, tile * p.chunks), last = share_of(p, (tile + 1) * p.chunks - 1);
  const int shares = last - first + 1, mine = static_cast<int>(blockIdx.x) - first;
  constexpr int kAtOnce = S::kRows <= 16 ? 1 : 4;  // there are few values of few rows
  constexpr int kUnroll = 16 / kAtOnce;
  const int begin = S::kStored * mine / shares, end = S::kStored * (mine + 1) / shares;
  volatile int32_t* counter = p.counters + tile;
  while (*counter < shares) {
  }
  __threadfence();
  for (int i = begin; i < end; i += kAtOnce) {
    float v[kAtOnce] = {}, up[kAtOnce] = {};
#pragma unroll(kUnroll)
    for (int share = first; share <= last; ++share) {
      const float* part = slot<S>(p, share, share == first);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int at = min(i + j, end - 1);
        v[j] += __ldcg(part + at * S::kThreads);
        if (S::kGated) up[j] += __ldcg(part + (at + S::kStored) * S::kThreads);
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (i + j < end) store<S>(p, tile, i + j, v[j], up[j]);
  }
  __syncthreads();
  if (threadIdx.x == 0 && atomicAdd(p.counters + tile, 1) == 2 * shares - 1) *counter = 0;
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads) product_kernel(const __grid_constant__ Product p) {
  extern __shared__ __align__(1024) std::byte ring[];
  const uint32_t base = shared_address(ring);
  const int begin = share_begin(p, blockIdx.x), end = share_begin(p, blockIdx.x + 1);
  let_next_begin();
  if (p.index != nullptr) wait_for_previous();
  MatrixLoader<S> matrix(p, begin);
  Cursor x_cursor(begin, p.chunks);
  constexpr int kAhead = S::kStages - 1;
#pragma unroll 1
  for (int i = 0; i < kAhead && begin + i < end; ++i) matrix.load(base + i * S::kStageBytes);
  if (p.index == nullptr) wait_for_previous();
#pragma unroll 1
  for (int i = 0; i < kAhead; ++i) {
    if (begin + i < end) load_x<S>(p, x_cursor.chunk, base + i * S::kStageBytes);
    x_cursor.advance(p.chunks);
    commit_copies();
  }

  int stage = 0, refill = kAhead, cuts = 0, cut[2];  // tiles that other shares have parts of
#pragma unroll 1
  for (int at = begin; at < end;) {
    const int tile = at / p.chunks, tile_end = min(end, (tile + 1) * p.chunks);
    float sums[S::kBlocks][S::kNTiles][4] = {};
#pragma unroll 1
    for (; at < tile_end; ++at) {
      wait_copies<kAhead - 1>();
#ifdef POLAR_WGMMA
      wgmma_sees_copies();
#endif
      __syncthreads();  // this stage is there for all; the one before is free
      if (at + kAhead < end) {
        matrix.load(base + refill * S::kStageBytes);
        load_x<S>(p, x_cursor.chunk, base + refill * S::kStageBytes);
      }
      x_cursor.advance(p.chunks);
      commit_copies();
      multiply<S>(base + stage * S::kStageBytes, sums);
      stage = stage + 1 == S::kStages ? 0 : stage + 1;
      refill = refill + 1 == S::kStages ? 0 : refill + 1;
    }
    const float* flat = &sums[0][0][0];
    const int first = share_of(p, tile * p.chunks), last = share_of(p, (tile + 1) * p.chunks - 1);
    if (first == last) {
#pragma unroll
      for (int i = 0; i < S::kStored; ++i)
        store<S>(p, tile, i, flat[i], S::kGated ? flat[i + S::kStored] : 0.0f);
    } else {
      leave<S>(p, static_cast<int>(blockIdx.x) == first, flat);
      cut[cuts++] = tile;
    }
  }
  wait_copies<0>();
  if (cuts == 0) return;
  __threadfence();
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < cuts) atomicAdd(p.counters + cut[threadIdx.x], 1);
  add_up<S>(p, cut[0]);
  if (cuts > 1) add_up<S>(p, cut[1]);
}

template <typename S>
void launch_shape(Product p, const ProductWorkspace& workspace, cudaStream_t stream) {
  constexpr int kShared = S::kStages * S::kStageBytes;
  static const bool once = [] {
    POLAR_CUDA(cudaFuncSetAttribute(product_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    kShared));
    return true;
  }();
  (void)once;
  p.tiles = (p.n + S::kOutputs - 1) / S::kOutputs;
  p.chunks = (p.k + kChunk - 1) / kChunk;
  POLAR_CHECK(p.tiles <= kSplitCounters);
  const int64_t work = static_cast<int64_t>(p.tiles) * p.chunks;
  p.shares = static_cast<int>(std::clamp<int64_t>(work / 2, 1, workspace.processors));
  p.partial = static_cast<float*>(workspace.partial);
  p.counters = workspace.counters;
  const size_t wanted = size_t{8} * p.shares * S::kValues * S::kThreads;
  POLAR_CHECK(wanted <= workspace.bytes);
  POLAR_CUDA(launch_early(product_kernel<S>, dim3(p.shares), S::kThreads, kShared, stream, p));
}

/// Tiles of 256 outputs where shares are long, else of 128: their sums are what is handed on.
template <int kRows, Layout kLayout, bool kGated>
void launch_rows(const Product& p, const ProductWorkspace& workspace, cudaStream_t stream) {
  constexpr int kLongShare = 12;
  if constexpr (kGated) {
    launch_shape<Shape<8, 2, kRows, kLayout, true>>(p, workspace, stream);
  } else if (int64_t{p.n / 256} * (p.k / kChunk) >= int64_t{kLongShare} * workspace.processors) {
    launch_shape<Shape<16, 1, kRows, kLayout, false>>(p, workspace, stream);
  } else {
    launch_shape<Shape<8, 1, kRows, kLayout, false>>(p, workspace, stream);
  }
}

template <Layout kLayout, bool kGated>
void launch(const Product& p, const ProductWorkspace& workspace, cudaStream_t stream) {
  POLAR_CHECK(p.rows > 0 && p.rows <= kMostSkinnyRows && p.n > 0 && p.k > 0);
  POLAR_CHECK(p.x_stride % 8 == 0 && p.weight_stride % 8 == 0);
  if (p.rows <= 8) return launch_rows<8, kLayout, kGated>(p, workspace, stream);
  if (p.rows <= 16) return launch_rows<16, kLayout, kGated>(p, workspace, stream);
  if (p.rows <= 32) return launch_rows<32, kLayout, kGated>(p, workspace, stream);
  return launch_rows<64, kLayout, kGated>(p, workspace, stream);
}

}  // namespace

void launch_skinny(const SkinnyLaunch& args, const ProductWorkspace& workspace,
                   cudaStream_t stream) {
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
  args.gated ? launch<Layout::kInputs, true>(p, workspace, stream)
             : launch<Layout::kInputs, false>(p, workspace, stream);
}

void launch_gather_down(const GatherDownLaunch& args, const ProductWorkspace& workspace,
                        cudaStream_t stream) {
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
                  .y_stride = args.outputs};
  launch<Layout::kOutputs, false>(p, workspace, stream);
}

}  // namespace polar::backend::cuda
