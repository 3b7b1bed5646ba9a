#pragma once
// What both kernels of prefill attention share: tiles of (token, query head of the group) pairs.

#include "backend/cuda/attention.h"

namespace polar::backend::cuda {

inline constexpr int kTileRows = 128;  // row i: token i / group, head i % group

struct PrefillParams {
  PrefillAttention a;
  float scale_log2;
  int tile_tokens;  // tokens per tile: kTileRows / group
  int tiles;        // of a KV head, at most: every sequence may end in one that is not full

  explicit PrefillParams(const PrefillAttention& args)
      : a(args),
        scale_log2(args.scale * 1.4426950408889634f),
        tile_tokens(kTileRows / args.group),
        tiles((args.prefill_rows + tile_tokens - 1) / tile_tokens +
              (args.sequences < args.prefill_rows ? args.sequences : args.prefill_rows)) {}
};

/// A tile of one sequence: rows [row, row + tokens) of the batch.
struct Tile {
  int sequence = -1, row = 0, tokens = 0;
};

/// Which tile is the `index`-th; sequence -1 if there are fewer. All lanes of a warp get it.
__device__ __forceinline__ Tile find_tile(const PrefillParams& p, int index) {
  const int lane = threadIdx.x & 31;
  for (int base = 0; base < p.a.sequences; base += 32) {
    const int s = base + lane;
    int begin = 0, end = 0;
    if (s < p.a.sequences) {
      begin = min(p.a.chunk_begin[s], p.a.prefill_rows);
      end = min(p.a.chunk_begin[s + 1], p.a.prefill_rows);
    }
    const int tiles = (end - begin + p.tile_tokens - 1) / p.tile_tokens;
    int sum = tiles;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    const unsigned hit = __ballot_sync(~0u, index < sum);
    if (hit != 0) {
      const int from = __ffs(hit) - 1;
      const int local = index - __shfl_sync(~0u, sum - tiles, from);
      const int row = __shfl_sync(~0u, begin, from) + local * p.tile_tokens;
      return {base + from, row, min(p.tile_tokens, __shfl_sync(~0u, end, from) - row)};
    }
    index -= __shfl_sync(~0u, sum, 31);
  }
  return {};
}

#ifdef POLAR_SM90A
/// The kernel for WGMMA: head_dim 64 and 128 on sm_90a.
bool prefill_wgmma_supported(int head_dim);
cudaError_t launch_prefill_wgmma(const PrefillAttention& args, cudaStream_t stream);
#endif

}  // namespace polar::backend::cuda
