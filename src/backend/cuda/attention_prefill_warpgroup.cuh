#pragma once
// What a warpgroup of prefill attention computes on sm_90a, and where the warps of a block leave
// each other tiles, queries, keys and values (attention_prefill_wgmma.cu).

#include "backend/cuda/attention_prefill.cuh"
#include "backend/cuda/kv_layout.cuh"
#include "backend/cuda/mma.cuh"
#include "backend/cuda/wgmma.cuh"

namespace polar::backend::cuda {

inline constexpr int kStepPages = 8, kStepTokens = kStepPages * kPageTokens;
inline constexpr int kQueryThreads = 96, kComputeWarps = 8;

/// What the warps are told about a tile. Steps of kStepTokens tokens count from `first_token`, the
/// first of the first visible page; they are walked from the last to the first.
struct TileTask {
  int row, tokens;  // no tokens: there are no more tiles
  int position;     // of the first row
  int kv_head;
  int first_token, steps;
};

/// Shared memory: queries of two tiles, stages of K and V, each 128 rows laid out as kv_layout.cuh
/// has those of a half; then the tasks of two tiles and the barriers.
template <int D>
struct PrefillShared {
  static constexpr int kGroupBytes = 8 * D * 2;  // of 8 rows
  static constexpr int kMatrixBytes = kTileRows / 8 * kGroupBytes;
  static constexpr int kKeyStages = D == 64 ? 4 : 2;
  static constexpr int kValueStages = D == 64 ? 4 : 3;  // values are let go later than keys
  static constexpr int kQuery = 0;
  static constexpr int kKeys = 2 * kMatrixBytes;
  static constexpr int kValues = kKeys + kKeyStages * kMatrixBytes;
  static constexpr int kTasks = kValues + kValueStages * kMatrixBytes;
  static constexpr int kTaskFull = kTasks + 2 * 32;
  static constexpr int kQueryFull = kTaskFull + 2 * 8;
  static constexpr int kQueryEmpty = kQueryFull + 2 * 8;
  static constexpr int kKeysFull = kQueryEmpty + 2 * 8;
  static constexpr int kKeysEmpty = kKeysFull + kKeyStages * 8;
  static constexpr int kValuesFull = kKeysEmpty + kKeyStages * 8;
  static constexpr int kValuesEmpty = kValuesFull + kValueStages * 8;
  static constexpr int kBytes = kValuesEmpty + kValueStages * 8;
  static_assert(kStepTokens == 128 && kTileRows == 128 && sizeof(TileTask) <= 32);
};

/// A place in a ring of barriers with kSlots slots, of the n-th use.
template <int kSlots>
struct Turn {
  int slot, parity;
  __device__ explicit Turn(int n) : slot(n % kSlots), parity(n / kSlots & 1) {}
};

#ifdef POLAR_WGMMA

/// Barriers of some warps: wait for `threads` arrivals, or only arrive.
__device__ __forceinline__ void named_wait(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
inline constexpr int kGroupBarrier = 1, kTurnBarrier = 3;  // of warpgroup 0; of 1 the next

/// Running softmax of a lane's two rows, lane / 4 + {0, 8} of its warp's 16: maximum of scores in
/// units of log2, and the lane's own part of the sum.
struct Softmax {
  float maximum[2] = {-1e30f, -1e30f}, sum[2] = {0.0f, 0.0f};
  float shrink[2];  // what the last step scaled earlier results by
  bool shrinks;     // in some row of this warp

  /// Scores of a step become weights. The maximum may lag behind by kLag: weights then reach
  /// 2^kLag, which neither type minds, and earlier results are seldom scaled.
  __device__ __forceinline__ void weigh(float (&score)[kStepTokens / 8][4], float scale_log2) {
    constexpr float kLag = 8.0f;
    float top[2] = {score[0][0], score[0][2]};
#pragma unroll
    for (int n = 0; n < kStepTokens / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) top[i / 2] = fmaxf(top[i / 2], score[n][i]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
      top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2)) * scale_log2;
    }
    shrinks = __any_sync(~0u, top[0] > maximum[0] + kLag || top[1] > maximum[1] + kLag);
    if (shrinks) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float next = fmaxf(maximum[half], top[half]);
        shrink[half] = exp2_fast(maximum[half] - next);
        maximum[half] = next;
        sum[half] *= shrink[half];
      }
    }
#pragma unroll
    for (int n = 0; n < kStepTokens / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[n][i] = exp2_fast(fmaf(score[n][i], scale_log2, -maximum[i / 2]));
        sum[i / 2] += score[n][i];
      }
    }
  }
};

/// Weights as left operands of products over 16 tokens each.
template <typename T>
__device__ __forceinline__ void pack_weights(uint32_t (&weights)[kStepTokens / 16][4],
                                             const float (&score)[kStepTokens / 8][4]) {
#pragma unroll
  for (int k = 0; k < kStepTokens / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = score[k * 2 + i / 2] + i % 2 * 2;
      weights[k][i] = pack<T>(pair[0], pair[1]);
    }
  }
}

/// Of four words, the i-th for the i-th lane of four: each gets its own word of all four lanes.
__device__ __forceinline__ uint4 gather_quad(const uint32_t (&words)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  uint32_t v[4];
#pragma unroll
  for (int i = 0; i < 4; i += 2) {  // pairs of lanes
    const uint32_t other = __shfl_xor_sync(~0u, odd ? words[i] : words[i + 1], 1);
    v[i] = odd ? other : words[i];
    v[i + 1] = odd ? words[i + 1] : other;
  }
  uint32_t w[4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = __shfl_xor_sync(~0u, high ? v[i] : v[i + 2], 2);
    w[i] = high ? other : v[i];
    w[i + 2] = high ? v[i + 2] : other;
  }
  return make_uint4(w[0], w[1], w[2], w[3]);
}

/// Warpgroup `group` of two: rows [64 group, 64 group + 64) of every tile.
template <int D, typename T>
__device__ void compute(const PrefillParams& p, uint32_t shared, std::byte* memory,
                        const TileTask* tasks, int group) {
  using S = PrefillShared<D>;
  const PrefillAttention& a = p.a;
  const int lane = threadIdx.x & 31, warp_row = group * 64 + threadIdx.x / 32 % 4 * 16;
  const uint64_t query_matrix =
      wgmma_matrix(shared + S::kQuery + group * S::kMatrixBytes / 2, S::kGroupBytes);
  const uint64_t key_matrix = wgmma_matrix(shared + S::kKeys, S::kGroupBytes);
  const uint64_t value_matrix = wgmma_matrix(shared + S::kValues, S::kGroupBytes, kAtomBytes);
  // One lane arrives for its warp: all lanes have then waited together for the products that follow
  // what each of them read and wrote there. racecheck, which orders only lanes that arrive, reports
  // the others' tasks and zeroed values against the copy that comes next.
  const auto release = [&](int barrier) {
    if (lane == 0) barrier_arrive(shared + barrier);
  };
  if (group == 1) named_arrive(kTurnBarrier, 256);  // 0 begins
  int step_count = 0;
  for (int n = 0;; ++n) {
    const Turn<2> turn(n);
    barrier_wait(shared + S::kQueryFull + turn.slot * 8, turn.parity);
    const TileTask task = tasks[turn.slot];
    if (task.tokens == 0) break;
    const int last_position = task.position + task.tokens - 1;
    int row_token[2], row_head[2], row_position[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + half * 8 + lane / 4;
      row_token[half] = row / a.group;
      row_head[half] = row - row_token[half] * a.group;
      row_position[half] = row_token[half] < task.tokens ? task.position + row_token[half] : -1;
    }
    const int warp_first = task.position + warp_row / a.group;
    const int warp_last = min(task.position + (warp_row + 15) / a.group, last_position);

    float score[kStepTokens / 8][4], out[D / 8][4] = {};
    uint32_t weights[kStepTokens / 16][4];
    Softmax softmax;
    const auto queue_scores = [&](int slot) {
      const uint64_t query = wgmma_advance(query_matrix, turn.slot * S::kMatrixBytes),
                     keys = wgmma_advance(key_matrix, slot * S::kMatrixBytes);
      wgmma_pin(score);
      wgmma_begin();
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
        const int at = k / 4 * kAtomBytes + k % 4 * 32;
        wgmma_both_shared<T>(score, wgmma_advance(query, at), wgmma_advance(keys, at), k > 0);
      }
      wgmma_commit();
    };
    const auto queue_values = [&](int slot) {
      const uint64_t values = wgmma_advance(value_matrix, slot * S::kMatrixBytes);
      wgmma_pin(out);
      wgmma_begin();
#pragma unroll
      for (int k = 0; k < kStepTokens / 16; ++k)
        wgmma_from_registers<T>(out, weights[k], wgmma_advance(values, k * 2 * S::kGroupBytes));
      wgmma_commit();
    };
    const auto weigh = [&](int step) {
      const int begin = task.first_token + step * kStepTokens;
      const bool whole =
          begin + kStepTokens - 1 <= warp_first && (a.window == 0 || begin > warp_last - a.window);
      if (!whole) {
        int high[2], low[2];  // columns (low, high] of this lane's are seen
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          high[half] = row_position[half] - begin - lane % 4 * 2;
          low[half] = a.window > 0 ? high[half] - a.window : -1;
        }
#pragma unroll
        for (int i = 0; i < kStepTokens / 8; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int column = i * 8 + j % 2;
            if (column > high[j / 2] || column <= low[j / 2]) score[i][j] = -INFINITY;
          }
        }
      }
      softmax.weigh(score, p.scale_log2);
    };

    // The last step, whose values behind the last position become zero: 0 * NaN is NaN. Both
    // warpgroups write them, each before its own products.
    Turn<S::kKeyStages> key(step_count);
    Turn<S::kValueStages> value(step_count);
    barrier_wait(shared + S::kKeysFull + key.slot * 8, key.parity);
    queue_scores(key.slot);
    const int seen = last_position + 1 - task.first_token - (task.steps - 1) * kStepTokens;
    barrier_wait(shared + S::kValuesFull + value.slot * 8, value.parity);
    if (seen < kStepTokens) {
      std::byte* values = memory + S::kValues + value.slot * S::kMatrixBytes;
      for (int i = threadIdx.x % 128 + seen * (D / 8); i < kStepTokens * (D / 8); i += 128)
        *reinterpret_cast<uint4*>(values + kv_unit_offset(D, i / (D / 8), i % (D / 8))) = uint4{};
      wgmma_sees_copies();
      named_wait(kGroupBarrier + group, 128);
    }
    wgmma_wait<0>();
    wgmma_pin(score);
    release(S::kKeysEmpty + key.slot * 8);
    weigh(task.steps - 1);
    pack_weights<T>(weights, score);

    for (int step = task.steps - 2; step >= 0; --step) {
      const int before = value.slot;
      ++step_count;
      key = Turn<S::kKeyStages>(step_count);
      value = Turn<S::kValueStages>(step_count);
      barrier_wait(shared + S::kKeysFull + key.slot * 8, key.parity);
      named_wait(kTurnBarrier + group, 256);
      queue_scores(key.slot);
      queue_values(before);
      named_arrive(kTurnBarrier + 1 - group, 256);
      wgmma_wait<1>();
      wgmma_pin(score);
      release(S::kKeysEmpty + key.slot * 8);
      weigh(step);
      wgmma_pin(score);
      // Needed only by the next products, but the assembler moves no exponentials behind this wait,
      // as it does behind that for products.
      barrier_wait(shared + S::kValuesFull + value.slot * 8, value.parity);
      wgmma_wait<0>();
      wgmma_pin(out);
      release(S::kValuesEmpty + before * 8);
      if (softmax.shrinks) {
#pragma unroll
        for (int i = 0; i < D / 8; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) out[i][j] *= softmax.shrink[j / 2];
        }
      }
      pack_weights<T>(weights, score);
    }
    release(S::kQueryEmpty + turn.slot * 8);
    queue_values(value.slot);
    ++step_count;
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = softmax.sum[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      inverse[half] = sum > 0.0f ? 1.0f / sum : 0.0f;
    }
    wgmma_wait<0>();
    wgmma_pin(out);
    release(S::kValuesEmpty + value.slot * 8);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int heads = (task.row + row_token[half]) * a.kv_heads + task.kv_head;
      auto* to = static_cast<uint4*>(a.output) +
                 (static_cast<int64_t>(heads) * a.group + row_head[half]) * (D / 8) + lane % 4;
#pragma unroll
      for (int i = 0; i < D / 8; i += 4) {  // 16 bytes a lane, 64 a row
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* o = out[i + j] + half * 2;
          words[j] = pack<__nv_bfloat16>(o[0] * inverse[half], o[1] * inverse[half]);
        }
        const uint4 unit = gather_quad(words);
        if (row_position[half] >= 0) to[i] = unit;
      }
    }
  }
  if (group == 0) named_wait(kTurnBarrier, 256);  // for the turn that nobody took
}

#endif

}  // namespace polar::backend::cuda
