// Attention of prefill rows on sm_90a, FlashAttention-3 style (arXiv 2407.08608): one block a
// multiprocessor takes tile after tile. A warp brings pages in, three more the queries; two
// warpgroups have 64 rows of the tile each. While a warpgroup weighs the scores of one step, the
// tensor cores multiply the weights of the step before with its values, or serve the other
// warpgroup.

#include <algorithm>
#include <type_traits>

#include "backend/cuda/attention_prefill_warpgroup.cuh"

#ifdef POLAR_SM90A
namespace polar::backend::cuda {
namespace {

constexpr int kThreads = 3 * 128;  // who loads, then two warpgroups that compute

#ifdef POLAR_WGMMA

constexpr int kLoaderRegisters = 56, kComputeRegisters = 224;

/// Warp 0: takes tiles, says what they are and brings in their K and V, as slots become empty.
template <int D>
__device__ void load_pages(const PrefillParams& p, uint32_t shared, TileTask* tasks) {
  using S = PrefillShared<D>;
  const PrefillAttention& a = p.a;
  const int lane = threadIdx.x & 31, total = p.tiles * a.kv_heads;
  const int lane_page = lane % kStepPages;
  const int64_t page_bytes = static_cast<int64_t>(a.kv_heads) * kv_block_bytes(D);
  // Heads side by side where tiles are few, so that the shortest come last; else head by head, so
  // that K and V of those under way fit the second cache level.
  const int together = p.tiles < 4 * static_cast<int>(gridDim.x) ? a.kv_heads : 1;
  int index = blockIdx.x;
  const auto take = [&] {  // each of the `total` tiles is taken or missed once, then it is 0 again
    int taken = 0;
    if (lane == 0) taken = gridDim.x + atomicInc(a.next_tile, total - 1);
    return taken;
  };
  int step_count = 0;
  for (int n = 0;; ++n) {
    Tile tile;
    int kv_head = 0;
    while (index < total) {
      const int among = p.tiles * together, rest = index % among;
      kv_head = index / among * together + rest % together;
      tile = find_tile(p, p.tiles - 1 - rest / together);  // the longest first
      if (tile.sequence >= 0) break;
      index = __shfl_sync(~0u, take(), 0);
    }
    TileTask task{};
    const int32_t* table = nullptr;
    int last_page = 0;
    if (index < total) {
      task.row = tile.row;
      task.tokens = tile.tokens;
      task.position = a.position[tile.row];
      task.kv_head = kv_head;
      const int visible = a.window > 0 ? max(task.position - a.window + 1, 0) : 0;
      const int first_page = visible / kPageTokens;
      last_page = (task.position + task.tokens - 1) / kPageTokens;
      task.first_token = first_page * kPageTokens;
      task.steps = (last_page - first_page) / kStepPages + 1;
      table = a.pages + static_cast<int64_t>(tile.sequence) * a.table_stride;
    }
    const Turn<2> turn(n);
    barrier_wait(shared + S::kQueryEmpty + turn.slot * 8, turn.parity ^ 1);
    if (lane == 0) {
      tasks[turn.slot] = task;
      barrier_arrive(shared + S::kTaskFull + turn.slot * 8);
    }
    if (task.tokens == 0) return;

    int page = (task.steps - 1) * kStepPages + task.first_token / kPageTokens + lane_page;
    int ahead = table[min(page, last_page)];  // looked up a step before it is used
    int next = 0;
    for (int step = task.steps - 1; step >= 0; --step, ++step_count) {
      const bool copies = lane < kStepPages && page <= last_page;
      const std::byte* keys = a.kv + ahead * page_bytes + task.kv_head * kv_block_bytes(D);
      const int bytes = min(last_page - (page - lane_page) + 1, kStepPages) * kv_half_bytes(D);
      page -= kStepPages;
      if (step > 0) ahead = table[page];
      if (step == 0) next = take();
      const auto bring = [&](auto turn, int matrices, const std::byte* from, int full, int empty) {
        barrier_wait(shared + empty + turn.slot * 8, turn.parity ^ 1);
        const uint32_t barrier = shared + full + turn.slot * 8;
        if (lane == 0) barrier_expect(barrier, bytes);
        __syncwarp();
        const int to = matrices + turn.slot * S::kMatrixBytes + lane_page * kv_half_bytes(D);
        if (copies) bulk_copy(shared + to, from, kv_half_bytes(D), barrier);
      };
      bring(Turn<S::kKeyStages>(step_count), S::kKeys, keys, S::kKeysFull, S::kKeysEmpty);
      bring(Turn<S::kValueStages>(step_count), S::kValues, keys + kv_half_bytes(D), S::kValuesFull,
            S::kValuesEmpty);
    }
    index = __shfl_sync(~0u, next, 0);
  }
}

/// Warps 1 to 3: bring in the queries, as values of the cache's type, rows without a token zero.
template <int D, typename T>
__device__ void load_queries(const PrefillParams& p, uint32_t shared, std::byte* memory,
                             const TileTask* tasks) {
  using S = PrefillShared<D>;
  constexpr int kUnits = D / 8, kAhead = 4;
  const auto* queries = static_cast<const uint4*>(p.a.query);
  for (int n = 0;; ++n) {
    const Turn<2> turn(n);
    barrier_wait(shared + S::kTaskFull + turn.slot * 8, turn.parity);
    const TileTask task = tasks[turn.slot];
    if (task.tokens > 0) {
      std::byte* to = memory + S::kQuery + turn.slot * S::kMatrixBytes;
      for (int first = threadIdx.x - 32; first < kTileRows * kUnits;
           first += kAhead * kQueryThreads) {
        uint4 units[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const int at = first + i * kQueryThreads, row = at / kUnits;
          const int token = row / p.a.group, head = row - token * p.a.group;
          units[i] = make_uint4(0, 0, 0, 0);
          if (token < task.tokens) {
            const int heads = (task.row + token) * p.a.kv_heads + task.kv_head;
            units[i] =
                queries[(static_cast<int64_t>(heads) * p.a.group + head) * kUnits + at % kUnits];
          }
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const int at = first + i * kQueryThreads, row = at / kUnits, unit = at % kUnits;
          if (row >= kTileRows) break;
          if constexpr (!std::is_same_v<T, __nv_bfloat16>) {
            for (uint32_t* word : {&units[i].x, &units[i].y, &units[i].z, &units[i].w}) {
              const float2 v = unpack<__nv_bfloat16>(*word);
              *word = pack<T>(v.x, v.y);
            }
          }
          *reinterpret_cast<uint4*>(to + kv_unit_offset(D, row, unit)) = units[i];
        }
      }
      wgmma_sees_copies();
    }
    barrier_arrive(shared + S::kQueryFull + turn.slot * 8);
    if (task.tokens == 0) return;
  }
}

#endif

template <int D, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_wgmma_kernel(const __grid_constant__ PrefillParams p) {
#ifdef POLAR_WGMMA
  using S = PrefillShared<D>;
  extern __shared__ __align__(1024) std::byte memory[];
  const uint32_t shared = shared_address(memory);
  auto* tasks = reinterpret_cast<TileTask*>(memory + S::kTasks);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared + S::kTaskFull + i * 8, 1);
      barrier_init(shared + S::kQueryFull + i * 8, kQueryThreads);
      barrier_init(shared + S::kQueryEmpty + i * 8, kComputeWarps);
    }
    for (int i = 0; i < S::kKeyStages; ++i) {
      barrier_init(shared + S::kKeysFull + i * 8, 1);
      barrier_init(shared + S::kKeysEmpty + i * 8, kComputeWarps);
    }
    for (int i = 0; i < S::kValueStages; ++i) {
      barrier_init(shared + S::kValuesFull + i * 8, 1);
      barrier_init(shared + S::kValuesEmpty + i * 8, kComputeWarps);
    }
    barriers_are_set();
  }
  __syncthreads();
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kLoaderRegisters));
    if (threadIdx.x < 32) {
      load_pages<D>(p, shared, tasks);
    } else {
      load_queries<D, T>(p, shared, memory, tasks);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kComputeRegisters));
    compute<D, T>(p, shared, memory, tasks, warpgroup - 1);
  }
#endif
}

template <int D, typename T>
cudaError_t launch_instance(const PrefillAttention& args, cudaStream_t stream) {
  const PrefillParams params(args);
  const auto kernel = prefill_wgmma_kernel<D, T>;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, PrefillShared<D>::kBytes);
  if (error != cudaSuccess) return error;
  const int blocks = std::min(params.tiles * args.kv_heads, attention_shares());
  kernel<<<blocks, kThreads, PrefillShared<D>::kBytes, stream>>>(params);
  return cudaGetLastError();
}

template <int D>
cudaError_t launch_dim(const PrefillAttention& args, cudaStream_t stream) {
  return args.kv_dtype == DType::kF16 ? launch_instance<D, __half>(args, stream)
                                      : launch_instance<D, __nv_bfloat16>(args, stream);
}

}  // namespace

bool prefill_wgmma_supported(int head_dim) {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major == 9 && (head_dim == 64 || head_dim == 128);
}

cudaError_t launch_prefill_wgmma(const PrefillAttention& args, cudaStream_t stream) {
  return args.head_dim == 64 ? launch_dim<64>(args, stream) : launch_dim<128>(args, stream);
}

}  // namespace polar::backend::cuda
#endif
